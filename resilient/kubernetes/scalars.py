# SPDX-License-Identifier: Apache-2.0
"""What a plain word of a manifest means, as kubectl and Helm read it.

Both read YAML through sigs.k8s.io/yaml (its goyaml.v2), for which ``yes``, ``on`` and ``y`` are booleans and ``0644``
is octal. A reader of YAML 1.2 would take an environment variable's ``value: on`` for the text that it is not.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

_WORDS: Final[Mapping[str, Scalar]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
# Underscores may stand anywhere in a number.
_WHOLE: Final = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|[1-9][0-9]*|0)")
_FRACTION: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER: Final = 64
_PREFIXES: Final = {"0x": 16, "0o": 8, "0b": 2}
_FAMILY: Final = "tag:yaml.org,2002:"


def plain(text: str) -> Scalar:
    """The value of a word without quotes and tag."""
    if text in _WORDS:
        return _WORDS[text]
    bare = text.replace("_", "")
    if text[:1] not in "+-.0123456789" or len(text) > _LONGEST_NUMBER:
        return text
    if _WHOLE.fullmatch(bare):
        return _whole(bare)
    return float(bare) if _FRACTION.fullmatch(bare) else text


def tagged(text: str, tag: str) -> Scalar:
    """The value of a word with a tag; a tag that nobody knows changes nothing; ``ValueError`` if it contradicts."""
    kind = tag.removeprefix(_FAMILY)
    if kind == "binary":
        return _decoded(text)
    if kind not in _ACCEPTS:
        return text
    value = text if kind == "str" else plain(text)
    if not _ACCEPTS[kind](value):
        raise ValueError(f"a value is marked as !!{kind} and is none")
    return float(value) if kind == "float" and isinstance(value, int) else value


_ACCEPTS: Final[Mapping[str, Callable[[Scalar], bool]]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def key(value: Scalar) -> str:
    """A key as JSON has it, in which all keys are text; ``ValueError`` for what cannot be one."""
    if value is None:
        raise ValueError("a key is empty")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _whole(bare: str) -> int | float:
    sign, digits = (-1, bare[1:]) if bare[0] == "-" else (1, bare.lstrip("+"))
    base = _PREFIXES.get(digits[:2].lower())
    if base is None:
        base = 8 if digits[0] == "0" and len(digits) > 1 else 10
        number = int(digits, base)
    else:
        number = int(digits[2:], base)
    # What fits into no 64 bits is a floating-point number to Go.
    return sign * number if sign * number >= -(1 << 63) and number < 1 << 64 else float(sign * number)


def _decoded(text: str) -> str:
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError) as error:
        raise ValueError("a value is marked as !!binary and is not base64") from error
