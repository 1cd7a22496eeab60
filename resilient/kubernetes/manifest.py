# SPDX-License-Identifier: Apache-2.0
"""Whole manifests: what is submitted, as objects and as the text that is applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resilient.errors import SettingsError
from resilient.kubernetes import comments, patching, rbac, workloads, writing
from resilient.kubernetes.documents import Document
from resilient.kubernetes.submission import Submission


def objects(
    kind: str, asked: Submission, *, patches: Sequence[Document] = (), patch_type: str = patching.STRATEGIC
) -> list[dict[str, Any]]:
    """The objects to apply, in their order, as the API would be sent them."""
    if kind not in workloads.KINDS:
        raise SettingsError(f"cannot write {kind!r}: no such kind; choose from {', '.join(workloads.KINDS)}")
    granted = rbac.permissions(asked.name, asked.namespace) if asked.permissions and asked.namespace else ()
    objects = [*granted, *workloads.KINDS[kind](asked)]
    return patching.patched([writing.plain(each) for each in objects], patches, patch_type)


def write(
    kind: str,
    asked: Submission,
    *,
    patches: Sequence[Document] = (),
    patch_type: str = patching.STRATEGIC,
    head: Sequence[str] = (),
) -> str:
    """The text for ``kubectl apply -f -``; ``head`` are paragraphs of a comment at its top."""
    told = {**comments.comments(asked), **(rbac.COMMENTS if asked.permissions else {})}
    ours = objects(kind, asked)
    theirs = objects(kind, asked, patches=patches, patch_type=patch_type)
    paragraphs = [*head, *about(kind, asked)]
    return "---\n".join(
        # What a patch has changed is the person's, and our reasons are not theirs.
        writing.written(new, told, () if at else paragraphs, silent=set(writing.new_parts(old, new)))
        for at, (old, new) in enumerate(zip(ours, theirs, strict=True))
    )


def about(kind: str, asked: Submission) -> list[str]:
    """What a person must know before it is applied."""
    needs = [
        *([f"a claim named {asked.claim}"] if asked.claim else []),
        *(["JobSet 0.10 or newer"] if kind == "jobset" else []),
        *(["Kubeflow Trainer 2.1 or newer"] if kind.endswith("runtime") else []),
        *([f"Kueue with a LocalQueue named {asked.queue}"] if asked.queue else []),
        *([f"the Secret {secret}" for secret in secrets_of(asked)]),
        "the Role that it brings" if asked.permissions else "no permission in the cluster",
    ]
    oldest = "1.35 (container restart rules)" if asked.restart_rules else "1.31"
    listed = " and ".join([", ".join(needs[:-1]), needs[-1]] if needs[1:] else needs)
    return [f"For Kubernetes {oldest} and newer. It needs {listed}."]


def secrets_of(asked: Submission) -> list[str]:
    """The Secrets that must be there."""
    return sorted({*asked.secrets, *(secret for secret, _ in asked.secret_env.values())})
