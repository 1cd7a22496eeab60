# SPDX-License-Identifier: Apache-2.0
"""The permissions of ``rbac`` for the pods of somebody's manifest: as which account they run, and what is added for it.

An account that the manifest names is its owner's, and stays; where it names none the training gets one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resilient.kubernetes import names, rbac, writing
from resilient.kubernetes.api_problems import inside
from resilient.kubernetes.completing import mapping, plain, refused
from resilient.kubernetes.documents import Document

_EVERYBODYS: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A service account that pods run as."""

    name: str
    namespace: str
    is_new: bool


def account_of(document: Document, metadata: Any, pod: Mapping[str, Any], namespace: str | None) -> Account:
    """That of the pods of an object; ``namespace`` is what a person says where the object does not."""
    told = plain(mapping(document, metadata or {}, "metadata"))
    own, name = told.get("namespace"), told.get("name")
    if own and namespace not in (None, own):
        raise refused(document, f"its namespace is {own}, and {namespace} was asked for", "leave --namespace out")
    if not own and namespace is None:
        why = "its namespace is not said, and a service account has one"
        raise refused(document, why, "give --namespace")
    place = names.namespace(str(own or namespace), "the namespace")
    account = pod.get("serviceAccountName") or pod.get("serviceAccount")
    if account == _EVERYBODYS:
        why = f"its pods run as the account {account}, as others do that would get the same permissions"
        raise refused(document, why, "give them an account of their own, or take its name out")
    if not account and not name:
        raise refused(document, "it has no name, and a service account would be called after it", "give it one")
    called = names.subdomain(str(account or name), "the service account")
    return Account(name=called, namespace=place, is_new=not account)


def pod_fields(account: Account) -> dict[str, object]:
    """What the pod has to say: its account, and that it gets the account's token."""
    named = {"serviceAccountName": account.name} if account.is_new else {}
    return {**named, "automountServiceAccountToken": True}


def with_permissions(text: str, accounts: Iterable[Account], found: Sequence[Document]) -> str:
    """The text after what its accounts need, which must be there before its pods; not again what is in it already."""
    there = {_identity(document.data) for document in found}
    needed = [
        writing.written(each, rbac.COMMENTS)
        for account in dict.fromkeys(accounts)
        for each in map(writing.plain, _objects(account))
        if _identity(each) not in there
    ]
    if not needed:
        return text
    before = "".join(f"{each}---\n" for each in needed)
    if "\r\n" in text:
        before = before.replace("\n", "\r\n")
    return before + text


def _objects(account: Account) -> list[object]:
    name, is_new = account.name, account.is_new
    return rbac.permissions(name, account.namespace, role=f"{name}-resilient", with_account=is_new)


def _identity(data: object) -> tuple[object, ...]:
    return inside(data, "kind"), inside(data, "metadata", "name"), inside(data, "metadata", "namespace")
