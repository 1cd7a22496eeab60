# SPDX-License-Identifier: Apache-2.0
"""The boundary for text from workers: what passes it is printable and holds no secrets.

Owns every pattern of a credential. It must not know where the text goes: HTML
and markup are escaped by whoever writes them. Cleaning twice changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, quote_plus

from resilient.core.secret_names import is_ordinary, may_be_secret, promises_secret, secrets_of, secrets_of_argv

__all__ = ["MARK", "Redactor", "clean_argv", "clean_url", "secrets_of", "secrets_of_argv"]

MARK: Final = "[redacted]"
_MAX_INPUT: Final = 1024 * 1024
_MAX_ARGUMENT: Final = 4096
_MAX_ARGUMENTS: Final = 1024
_MAX_PASSES: Final = 8
_SHORTEST_LITERAL: Final = 4

# ECMA-48: control sequences, then strings (OSC, DCS, SOS, PM, APC) with their terminator, then two-byte escapes.
_SEQUENCES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,256}[ -/]{0,256}[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]{0,4096}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]{0,16}[0-~]"
)
# What is left of C0 and C1, bidirectional overrides, and characters without width (they can split a secret).
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LINE_ENDS: Final = re.compile("\r\n|[\r\v\f\u0085\u2028\u2029]")

_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]{0,40}PRIVATE KEY)-----[\s\S]*?(?:-----END \1-----|\Z)")
_PEM_REST: Final = re.compile(r"\A[A-Za-z0-9+/=\s\\]{0,16384}-----END [A-Z ]{0,40}PRIVATE KEY-----")
_USERINFO: Final = re.compile(
    r"(://)(?!\[redacted\]@)(?:[^\s/\"'<>]{0,1024}@|[^\s/@:\"'<>]{0,256}:(?!\d{1,5}/)[^\s@\"'<>]{1,256}@)"
)
_QUERY: Final = re.compile(
    r"([?&;](?:amp;)?(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|GoogleAccessId|[\w.-]{0,32}"
    r"(?:signature|token|secret|password|passwd|credentials?|api_?key|access_?key)|sig|key|code|auth|pwd)=)"
    r"(?!\[redacted\](?:[&\s\"'#<>]|\Z))[^&\s\"'#<>]{1,8192}",
    re.IGNORECASE,
)
_HEADER: Final = re.compile(
    r"(\b(?:proxy-)?authorization\\?[\"']?\s{0,2}[:=]\s{0,2}|\b(?:set-)?cookie\\?[\"']?:\s{0,2})"
    r"(\\?[\"']?)([^\n\"']{1,8192})",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(r"\b(bearer|basic)(\s{1,4})(?!\[redacted\])[\w.~+/=-]{8,8192}", re.IGNORECASE)
_SHAPES: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|nvapi-[\w-]{16,}|npm_[A-Za-z0-9]{16,}|pypi-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w.-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*"
    r")"
)
# name=value, name: value, "name": "value", also inside of an escaped string.
_NAME: Final = re.compile(r"(?<![\w.-])-{0,2}([A-Za-z_][\w.-]{0,80})\\{0,2}[\"']?\s{0,2}(?:=|:(?!//))\s{0,2}")
_VALUE: Final = re.compile(
    r"[bru]{0,2}\"(?:[^\"\\\n]|\\.){0,8192}\"?|[bru]{0,2}'(?:[^'\\\n]|\\.){0,8192}'?|[^\s]{1,8192}"
)
_FLAG: Final = re.compile(r"(?<!\S)(--?([A-Za-z][\w-]{0,80})\s{1,4})(?!-)([^\s]{1,8192})")
_NAMED_FIELD: Final = re.compile(
    r"([\"']name[\"']\s{0,4}:\s{0,4}[\"']([\w.-]{1,80})[\"']\s{0,4},\s{0,8}[\"']value[\"']\s{0,4}:\s{0,4})"
    r"(\"(?:[^\"\\\n]|\\.){0,8192}\"|'(?:[^'\\\n]|\\.){0,8192}')"
)
_OPENING: Final = re.compile(r"[bru]{0,2}\\{0,2}[\"']")
_CLOSING: Final = ",;.)]}>\"'\\"


class Redactor:
    """Cleans text of control sequences, of known secrets, and of whatever looks like one."""

    __slots__ = ("_literals",)

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
        usable = (text for text in spellings if len(text) >= _SHORTEST_LITERAL and text not in MARK)
        # The longest first: a secret may be part of another.
        self._literals = tuple(sorted(usable, key=lambda text: (-len(text), text)))

    def __repr__(self) -> str:
        return f"Redactor({len(self._literals)} spellings)"

    def clean(self, text: str | bytes, limit: int, *, tail: bool = False) -> str:
        """Give ``text`` without control sequences and secrets, cut to ``limit`` characters.

        The start is kept, or the end where ``tail`` says so.
        """
        if limit <= 0:
            return ""
        cut = slice(-_MAX_INPUT, None) if tail else slice(_MAX_INPUT)
        longer = len(text) > _MAX_INPUT
        piece = text[cut]
        plain = _printable(piece.decode("utf-8", "replace") if isinstance(piece, bytes) else piece)
        if longer:
            plain = _without_torn_line(plain, tail=tail)
        redacted = self._redact(plain)
        return redacted[-limit:] if tail else redacted[:limit]

    def _redact(self, text: str) -> str:
        """Redact until nothing changes: what was put in place of one secret may bare the form of another."""
        for _ in range(_MAX_PASSES):
            before = text
            for literal in self._literals:
                text = text.replace(literal, MARK)
            text = _redact_patterns(text)
            if text == before:
                break
        return text


def clean_argv(argv: Sequence[str], secrets: Iterable[str] = ()) -> tuple[str, ...]:
    """Clean a command line, item by item; the value after ``--token`` is an item of its own."""
    redactor = Redactor(secrets)
    cleaned: list[str] = []
    value_follows = False
    for item in argv[:_MAX_ARGUMENTS]:
        if value_follows and not item.startswith("--"):
            cleaned.append(MARK)
            value_follows = False
            continue
        value_follows = False
        if item.startswith("-"):
            flag, equals, _ = item.partition("=")
            secret = promises_secret(flag.lstrip("-"), variable=True)
            value_follows = secret and not equals
            item = f"{flag}={MARK}" if secret and equals else item
        cleaned.append(redactor.clean(item, _MAX_ARGUMENT))
    return tuple(cleaned)


def clean_url(url: str, secrets: Iterable[str] = ()) -> str:
    """Clean a URL of its user, password and signed parameters."""
    return Redactor(secrets).clean(url, _MAX_ARGUMENT).replace("\n", "")


def _spellings(secret: str) -> tuple[str, ...]:
    """Every way in which a program may print a secret: itself, quoted in a URL, in JSON, by repr."""
    plain = _printable(secret).strip()
    return (plain, quote(plain, safe=""), quote_plus(plain), json.dumps(plain)[1:-1], repr(plain)[1:-1])


def _printable(text: str) -> str:
    # Lone surrogates cannot be written to any file.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _UNPRINTABLE.sub("", _LINE_ENDS.sub("\n", _SEQUENCES.sub("", text)))


def _without_torn_line(text: str, *, tail: bool) -> str:
    """Drop the line that the cut went through: half a secret looks like none."""
    if tail:
        return text.partition("\n")[2] or text[_MAX_ARGUMENT:]
    return text.rpartition("\n")[0] or text[:-_MAX_ARGUMENT]


def _redact_patterns(text: str) -> str:
    text = _PEM_REST.sub(MARK, _PEM.sub(MARK, text))
    text = _USERINFO.sub(rf"\1{MARK}@", text)
    text = _QUERY.sub(rf"\1{MARK}", text)
    text = _HEADER.sub(_header, text)
    text = _BEARER.sub(rf"\1\2{MARK}", text)
    text = _SHAPES.sub(MARK, text)
    text = _NAMED_FIELD.sub(_named, text)
    text = _FLAG.sub(_named, text)
    return _without_assigned(text)


def _header(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}{_masked(found[3])}"


def _named(found: re.Match[str]) -> str:
    """Redact the value of a flag or field: names of their own, so that any KEY or TOKEN counts."""
    if not promises_secret(found[2], variable=True) or is_ordinary(found[2], found[3], sure=True):
        return found[0]
    return f"{found[1]}{_masked(found[3])}"


def _without_assigned(text: str) -> str:
    """Redact what is assigned to telling names.

    The value of any other name is looked at again, since it may hold an
    assignment itself: ``args=--token=...``.
    """
    kept: list[str] = []
    at = 0
    while name := _NAME.search(text, at):
        kept.append(text[at : name.end()])
        at = name.end()
        sure = promises_secret(name[1])
        if (sure or may_be_secret(name[1])) and (value := _VALUE.match(text, at)):
            masked = value[0] if is_ordinary(name[1], value[0].rstrip(_CLOSING), sure=sure) else _masked(value[0])
            kept.append(masked)
            at = value.end()
    return "".join((*kept, text[at:]))


def _masked(value: str) -> str:
    """Put the mark for a value, keeping its quotes and what closes the line around it."""
    opening = _OPENING.match(value)
    rest = value[opening.end() :] if opening else value
    bare = rest.rstrip(_CLOSING)
    # The mark ends in a bracket of its own, which closes nothing.
    if bare.endswith(MARK[:-1]) and rest[len(bare) :].startswith("]"):
        bare += "]"
    return f"{opening[0] if opening else ''}{MARK if bare else ''}{rest[len(bare) :]}"
