# SPDX-License-Identifier: Apache-2.0
"""Names as the API server wants them, and what it says of others.

Facts from ``k8s.io/apimachinery/pkg/util/validation``: each function gives the complaints about a value.
"""

from __future__ import annotations

import re
from typing import Final

LABEL_BYTES: Final = 63
SUBDOMAIN_BYTES: Final = 253

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_HTTP_PATH: Final = re.compile(r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+")
_ALPHANUMERIC: Final = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    "(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE_WORDS: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_LABEL_WORDS: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_WORDS: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)


def label(value: str) -> list[str]:
    """As the name of a container or a host."""
    return _checked(value, LABEL_BYTES, _LABEL, _LABEL_WORDS)


def subdomain(value: str) -> list[str]:
    """As the name of a Job."""
    return _checked(value, SUBDOMAIN_BYTES, _SUBDOMAIN, _SUBDOMAIN_WORDS)


def label_value(value: str) -> list[str]:
    """As the value of a label, which may be empty."""
    return _checked(value, LABEL_BYTES, _QUALIFIED, _LABEL_VALUE_WORDS) if value else []


def qualified(value: str) -> list[str]:
    """As the type of a condition, with a domain before it or not."""
    prefix, slash, name = value.rpartition("/")
    if "/" in prefix:
        optional = " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        return [f"a qualified name {_ALPHANUMERIC}{optional}"]
    complaints: list[str] = []
    if slash:
        found = subdomain(prefix) if prefix else ["must be non-empty"]
        complaints += [f"prefix part {complaint}" for complaint in found]
    if not name:
        complaints.append("name part must be non-empty")
    elif len(name.encode()) > LABEL_BYTES:
        complaints.append(f"name part must be no more than {LABEL_BYTES} bytes")
    if not _QUALIFIED.fullmatch(name):
        complaints.append(f"name part {_ALPHANUMERIC}")
    return complaints


def domain_path(value: str) -> list[str]:
    """As the name of a controller: ``example.com/path``."""
    host, _, path = value.partition("/")
    if not host or not path:
        return ['must be a domain-prefixed path (such as "acme.io/foo")']
    return subdomain(host) + ([] if _HTTP_PATH.fullmatch(path) else ["Invalid path"])


def _checked(value: str, most: int, pattern: re.Pattern[str], words: str) -> list[str]:
    complaints = [f"must be no more than {most} bytes"] if len(value.encode()) > most else []
    return complaints + ([] if pattern.fullmatch(value) else [words])
