# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes takes as a name, a quantity and a word, checked before anything is written.

``SettingsError`` names the value, why the API server would refuse it, and what to do.
"""

from __future__ import annotations

import re
from typing import Final

from resilient.core.redact import clean_url
from resilient.errors import SettingsError
from resilient.kubernetes import api_names
from resilient.kubernetes.api_resources import quantity as number

_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,1023}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,252}")
_KEY: Final = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_BINARY: Final = {f"{unit}i": 1024**power for power, unit in enumerate("KMGTP", 1)}
_LEAST_BYTES: Final = 2**20
_MOST_BYTES: Final = 2**53
_MOST_CPUS: Final = 10_000
_SHOWN_CHARS: Final = 80


def label(value: str, what: str, *, ending: str = "") -> str:
    """A DNS label of Services and host names; ``ending`` is what the controllers will put after it."""
    if len(value) + len(ending) > api_names.LABEL_BYTES:
        most = api_names.LABEL_BYTES - len(ending)
        why = f"it has {len(value)} characters, and pods are called {'<name>' + ending!r}, a DNS label of at most 63"
        raise refused(value, what, why if ending else "it has more than 63 characters", f"use at most {most}")
    if api_names.label(value) or not value[0].isalpha():
        raise refused(value, what, "it is no DNS label", "write lower-case letters, digits and '-', a letter first")
    return value


def namespace(value: str, what: str) -> str:
    """The name of a namespace."""
    if api_names.label(value):
        raise refused(value, what, "it is no DNS label", "write at most 63 of a-z, 0-9 and '-'")
    return value


def subdomain(value: str, what: str) -> str:
    """The name of most objects."""
    if api_names.subdomain(value):
        do = "write at most 253 lower-case letters, digits, '-' and '.'"
        raise refused(value, what, "it is no DNS subdomain", do)
    return value


def queue(value: str, what: str) -> str:
    """The name of a queue, which is the value of a label as well."""
    if len(value) > api_names.LABEL_BYTES:
        raise refused(value, what, "it has more than 63 characters", "give the name of a LocalQueue")
    return subdomain(value, what)


def image(value: str, what: str) -> str:
    """The reference of a container image."""
    return _matching(_IMAGE, value, what, "it is no image reference", "write for example registry.example.com/train:1")


def resource(value: str, what: str) -> str:
    """The name of an extended resource, such as nvidia.com/gpu."""
    if "/" not in value or api_names.qualified(value):
        raise refused(value, what, "it is no resource of a device", "write for example nvidia.com/gpu")
    return value


def variable(value: str, what: str) -> str:
    """The name of an environment variable."""
    return _matching(_VARIABLE, value, what, "it is no name of a variable", "write letters, digits and '_'")


def key(value: str, what: str) -> str:
    """A key in a Secret."""
    return _matching(_KEY, value, what, "it is no key of a Secret", "write letters, digits, '-', '_' and '.'")


def cpu(value: str, what: str) -> str:
    """An amount of processors."""
    found = number(value)
    if found is None or not 0 < found <= _MOST_CPUS:
        raise refused(value, what, "it is no amount of processors", "write for example 16 or 500m")
    return value


def size(value: str, what: str) -> int:
    """Bytes of a quantity such as ``256Gi``."""
    count = number(value)
    if count is None:
        raise refused(value, what, "it is no quantity of bytes", "write for example 256Gi")
    if not _LEAST_BYTES <= count <= _MOST_BYTES:
        raise refused(value, what, "it is not between 1Mi and 8Pi", "write for example 256Gi")
    return int(count.to_integral_value())


def quantity(count: int) -> str:
    """Bytes as the shortest exact quantity."""
    for unit, unit_bytes in reversed(_BINARY.items()):
        if count % unit_bytes == 0:
            return f"{count // unit_bytes}{unit}"
    return str(count)


def whole(value: int, what: str, *, least: int, most: int) -> int:
    """A count within bounds."""
    if not least <= value <= most:
        raise refused(str(value), what, f"it is not between {least} and {most}", "choose a number between them")
    return value


def word(value: str, what: str) -> str:
    """A word of a command or the value of a variable: text that a manifest can hold."""
    if "\0" in value or (not value.isprintable() and _unwritable(value)):
        raise refused(value, what, "it holds bytes that no manifest can", "write it as text, in UTF-8")
    return value


def literal(value: str) -> str:
    """The text that the kubelet, which expands ``$(VAR)`` and ``$$`` in words and values, makes ``value`` of."""
    return re.sub(r"\$(?=[$(])", "$$", value)


def refused(value: str, what: str, why: str, do: str) -> SettingsError:
    """The complaint about a value."""
    return SettingsError(f"cannot use {clean_url(value)[:_SHOWN_CHARS]!r} for {what}: {why}; {do}")


def _matching(pattern: re.Pattern[str], value: str, what: str, why: str, do: str) -> str:
    if not pattern.fullmatch(value):
        raise refused(value, what, why, do)
    return value


def _unwritable(value: str) -> bool:
    """Whether it holds half a character (an argument that was no UTF-8), or what YAML forbids."""
    return any(
        "\ud800" <= letter <= "\udfff" or (letter < " " and letter not in "\t\n\r") or letter in "\x7f\ufffe\uffff"
        for letter in value
    )
