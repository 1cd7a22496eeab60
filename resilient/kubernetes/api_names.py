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
_SEARCH: Final = re.compile(r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*")
_CONFIG_KEY: Final = re.compile(r"[-._a-zA-Z0-9]+")
_PORT_NAME_BYTES: Final = 15
_MOST_PORT: Final = 65_535
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
_SEARCH_WORDS: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    f"'{_SEARCH.pattern}')"
)
_CONFIG_KEY_WORDS: Final = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
_VARIABLE_WORDS: Final = (
    "a valid environment variable name must consist only of printable ASCII characters other than '='"
)


def label(value: str) -> list[str]:
    """As the name of a container or a host."""
    words = "must not contain dots" if _SUBDOMAIN.fullmatch(value) else _LABEL_WORDS
    return _checked(value, LABEL_BYTES, _LABEL, words)


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


def search_domain(value: str) -> list[str]:
    """As a domain in which DNS searches, where services have underscores."""
    return _checked(value, SUBDOMAIN_BYTES, _SEARCH, _SEARCH_WORDS)


def config_key(value: str) -> list[str]:
    """As a key of a ConfigMap or a Secret."""
    return _checked(value, SUBDOMAIN_BYTES, _CONFIG_KEY, _CONFIG_KEY_WORDS) + _leads_upwards(value)


def variable(value: str) -> list[str]:
    """As the name of an environment variable, by the relaxed rules of Kubernetes 1.34 and newer."""
    return [] if all(" " <= letter <= "~" and letter != "=" for letter in value) else [_VARIABLE_WORDS]


def port_name(value: str) -> list[str]:
    """As the name of a port."""
    checks = (
        (len(value.encode()) > _PORT_NAME_BYTES, f"must be no more than {_PORT_NAME_BYTES} bytes"),
        (
            not re.fullmatch("[-a-z0-9]+", value),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (not re.search("[a-z]", value), "must contain at least one letter (a-z)"),
        ("--" in value, "must not contain consecutive hyphens"),
        (value.startswith("-") or value.endswith("-"), "must not begin or end with a hyphen"),
    )
    return [words for is_wrong, words in checks if is_wrong]


def port_number(value: int) -> list[str]:
    return [] if 1 <= value <= _MOST_PORT else [f"must be between 1 and {_MOST_PORT}, inclusive"]


def no_backsteps(path: str) -> list[str]:
    """As a path that stays below where it begins."""
    return ["must not contain '..'"] if ".." in path.split("/") else []


def relative_path(path: str) -> list[str]:
    """As a path inside a volume."""
    return (["must be a relative path"] if path.startswith("/") else []) + no_backsteps(path)


def local_path(path: str) -> list[str]:
    """As a file that is put into a volume, which keeps names with two dots for itself."""
    is_reserved = path.startswith("..") and not path.startswith("../") and path != ".."
    return relative_path(path) + (["must not start with '..'"] if is_reserved else [])


def domain_path(value: str) -> list[str]:
    """As the name of a controller: ``example.com/path``."""
    host, _, path = value.partition("/")
    if not host or not path:
        return ['must be a domain-prefixed path (such as "acme.io/foo")']
    return subdomain(host) + ([] if _HTTP_PATH.fullmatch(path) else ["Invalid path"])


def _checked(value: str, most: int, pattern: re.Pattern[str], words: str) -> list[str]:
    complaints = [f"must be no more than {most} bytes"] if len(value.encode()) > most else []
    return complaints + ([] if pattern.fullmatch(value) else [words])


def _leads_upwards(value: str) -> list[str]:
    if value in (".", ".."):
        return [f"must not be '{value}'"]
    return ["must not start with '..'"] if value.startswith("..") else []
