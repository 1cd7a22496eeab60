# SPDX-License-Identifier: Apache-2.0
"""Manifests as text: read into plain data with the line of every part, and written again as people left them.

Owns ruamel.yaml. Reading goes over the parser's events and builds nothing but dicts, lists and scalars, as kubectl
would; what is too large, too deep, ambiguous or recursive is refused. Editing takes a second tree that keeps comments,
order and quotes. Nothing here knows what a manifest means.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import DocumentEndEvent, DocumentStartEvent, Event
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import PlainScalarString

from resilient.core.redact import Redactor
from resilient.errors import SettingsError
from resilient.kubernetes import scalars
from resilient.kubernetes.building import Builder, PartPath, Refused

MAX_BYTES: Final = 1024 * 1024
"""An object of a cluster is at most 1.5 MiB (etcd's limit of a request); a training's manifests take some KiB."""
STDIN: Final = "-"
_WIDTH: Final = 4096
"""Lines are not folded: what was on one line stays there."""
_REASON_LIMIT: Final = 300
_MAKE_VALID: Final = "make it valid YAML or JSON"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a file. Its three texts, put together, are what was read."""

    name: str
    """The file, as whoever reads messages knows it."""
    data: Any
    """Dicts with text as keys, lists, text, numbers, booleans and None. Parts may be shared: do not change it."""
    lines: Mapping[PartPath, int] = field(repr=False)
    head: str = field(repr=False)
    """What stands before the content: comments, the ``---``, and documents that are empty."""
    body: str = field(repr=False)
    tail: str = field(repr=False)

    def line(self, path: PartPath) -> int:
        """The line of a part, else that of the nearest part around it which the file has."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def read_file(path: str) -> tuple[Document, ...]:
    """The documents of a file, or of stdin for ``-``."""
    try:
        if path == STDIN:
            return read(sys.stdin.buffer.read(MAX_BYTES + 1), "stdin")
        with Path(path).open("rb") as stream:
            return read(stream.read(MAX_BYTES + 1), path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _unreadable(path, why, "name a file with manifests, or - for stdin") from error


def read(text: str | bytes, name: str) -> tuple[Document, ...]:
    """The documents of a text, the empty ones left out; ``SettingsError`` names the line of what is wrong."""
    source = _decoded(text, name)
    documents: list[Document] = []
    builder, start, end = Builder(), 0, 0
    try:
        for event in _events(source, name):
            if isinstance(event, DocumentStartEvent):
                builder = Builder()
                start = _after_marker(source, event.end_mark.index) if event.explicit else event.start_mark.index
            elif not isinstance(event, DocumentEndEvent):
                builder.take(event)
            elif builder.data is not None:
                close = event.start_mark.index
                head, body, tail = source[end:start], source[start:close], source[close : event.end_mark.index]
                documents.append(
                    Document(name=name, data=builder.data, lines=builder.lines, head=head, body=body, tail=tail)
                )
                end = event.end_mark.index
    except Refused as error:
        raise _unreadable(name, f"line {error.line}: {error.why}", error.do) from error
    return _with_rest(documents, source[end:])


def tree(document: Document) -> Any:
    """The document as dicts and lists that may be changed; comments, order and quotes stay with what they are at."""
    try:
        return _round_trip(document.body).load(document.body)
    except YAMLError as error:  # a %TAG directive, which stands in the head
        raise _unreadable(document.name, _reason(error), "write out what its directives abbreviate") from error


def fresh(data: Any) -> Any:
    """The same tree for plain data, of which there is no text yet."""
    if isinstance(data, Mapping):
        return CommentedMap((key, fresh(value)) for key, value in data.items())
    if isinstance(data, list | tuple):
        return CommentedSeq(fresh(value) for value in data)
    return data


def dump(edited: Any, document: Document | None = None) -> str:
    """The text of a tree; that of an edited document keeps its indentation and what stands around it."""
    stream = io.StringIO()
    _round_trip(document.body if document else "").dump(edited, stream)
    return f"{document.head}{stream.getvalue()}{document.tail}" if document else stream.getvalue()


def _decoded(text: str | bytes, name: str) -> str:
    if len(text) > MAX_BYTES:
        raise _unreadable(name, f"it is larger than {MAX_BYTES} bytes", "give the manifests of one training alone")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise _unreadable(name, f"line {line}: it is not text in UTF-8", "save it as UTF-8") from error
    return _json_without_tabs(text.removeprefix("\ufeff"))


def _json_without_tabs(text: str) -> str:
    """JSON may be indented with tabs, YAML may not; inside of its strings they are escaped."""
    if "\t" in text and text.lstrip()[:1] in {"{", "["}:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text
        return text.replace("\t", " ")
    return text


def _events(source: str, name: str) -> Iterator[Event]:
    try:
        yield from YAML(typ="safe", pure=True).parse(source)
    except YAMLError as error:
        raise _unreadable(name, _reason(error), _MAKE_VALID) from error
    except (ValueError, OverflowError) as error:  # an escape that no character has
        raise _unreadable(name, f"it is not YAML ({error})", _MAKE_VALID) from error


def _after_marker(source: str, index: int) -> int:
    """Where the content begins: on the marker's line if it stands there, else on the next."""
    end = source.find("\n", index) + 1 or len(source)
    rest = source[index:end].strip()
    return end if not rest or rest.startswith("#") else index


def _with_rest(documents: list[Document], rest: str) -> tuple[Document, ...]:
    """Give the last document what follows it, empty documents and comments."""
    if not documents or not rest:
        return tuple(documents)
    last = documents[-1]
    kept = Document(
        name=last.name, data=last.data, lines=last.lines, head=last.head, body=last.body, tail=last.tail + rest
    )
    return (*documents[:-1], kept)


class _Constructor(RoundTripConstructor):
    """Marks the words that must stay bare since kubectl takes them for something else than text: ``yes``, ``012``."""

    def construct_scalar(self, node: ScalarNode) -> Any:
        value = super().construct_scalar(node)
        return PlainScalarString(value) if node.style is None and type(value) is str else value


class _Representer(RoundTripRepresenter):
    """Quotes the text that kubectl would take for something else."""

    def represent_text(self, text: str) -> Any:
        """A new text; those that were read stay as they were."""
        ordinary = isinstance(scalars.plain(text), str) and text.replace("\n", " ").isprintable()
        ordinary &= not text.startswith(("?", ":"))  # bare in YAML 1.2, and no text between brackets in kubectl's 1.1
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if ordinary else '"')


_Representer.add_representer(str, _Representer.represent_text)


def _round_trip(body: str) -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor, yaml.Representer = _Constructor, _Representer
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    offset = _sequence_offset(body)
    yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    return yaml


def _sequence_offset(body: str) -> int:
    """By how much most lists of the text are indented from their key: 2, or 0 as kubectl writes them."""
    votes: Counter[int] = Counter()
    key_indent: int | None = None
    for line in body.splitlines():
        bare = line.lstrip(" ")
        indent = len(line) - len(bare)
        if bare.startswith("- ") and key_indent is not None and indent in (key_indent, key_indent + 2):
            votes[indent - key_indent] += 1
        # The key of a list item stands where the item's text begins.
        while bare.startswith("- "):
            indent, bare = indent + 2, bare[2:]
        key_indent = indent if bare.split(" #")[0].rstrip().endswith(":") else None
    return votes.most_common(1)[0][0] if votes else 2


def _reason(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError):
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        return line + (error.problem or error.context or "it is not YAML")
    if isinstance(error, ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"the character U+{code:04X} at {error.position} may not stand in YAML"
    return f"it is not YAML ({error})"


def _unreadable(name: str, why: str, do: str) -> SettingsError:
    redactor = Redactor()
    shown = redactor.clean(why, _REASON_LIMIT).replace("\n", " ")
    return SettingsError(f"cannot read {redactor.clean(name, _REASON_LIMIT)}: {shown}; {do}")
