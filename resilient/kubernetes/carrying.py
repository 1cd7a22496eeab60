# SPDX-License-Identifier: Apache-2.0
"""Changes of a document carried into its text, where every line that is not concerned stays as it is.

A YAML writer may indent, quote and space anew, and moves the comments before a key to the key before it. So the
document is written twice without its comments, as it was and as it is to be; the lines that differ between the two
are what is put into the text, which tells where by the parts that begin there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from resilient.errors import SettingsError
from resilient.kubernetes import documents
from resilient.kubernetes.documents import Document


def carried(document: Document, edited: Any) -> str:
    """The text of the document's content with the edits of its tree."""
    with_comments = _content(edited, document)
    before, after = documents.tree(document), edited
    for tree in (before, after):
        _forget_comments(tree)
    text = _Carrier(document, _content(before, document), _content(after, document)).text()
    (wanted,) = documents.read(with_comments, document.name)
    return text if text is not None and _data(text) == wanted.data else with_comments


def _content(tree: Any, document: Document) -> str:
    whole = documents.dump(tree, document)
    return whole[len(document.head) : len(whole) - len(document.tail)]


def _data(text: str) -> object:
    """What a text says; nothing where it is no YAML."""
    try:
        return documents.read(text, "the edited text")[0].data
    except SettingsError:
        return None


def _forget_comments(node: Any) -> None:
    if isinstance(node, Mapping | list):
        ca = getattr(node, "ca", None)
        if ca is not None:
            ca.items.clear()
            ca.comment, ca.end = None, []
        for child in node.values() if isinstance(node, Mapping) else node:
            _forget_comments(child)


class _Carrier:
    """Lines of the text, and of the document written bare before and after the edit."""

    def __init__(self, document: Document, before: str, after: str) -> None:
        self._text = document.body.splitlines()
        self._before = before.splitlines()
        self._after = after.splitlines()
        first = min(document.lines.values())
        (bare,) = documents.read(before, document.name)
        begins: dict[int, int] = {}
        for path, line in sorted(bare.lines.items(), key=lambda each: len(each[0])):
            if path in document.lines:  # what an alias stands for may be written out in one of the two
                begins.setdefault(line - 1, document.lines[path] - first)
        skipped = _before_first_part(self._text)
        self._begins = {line: at + skipped for line, at in begins.items()}

    def text(self) -> str | None:
        """The text with the changes; None where a change falls into the middle of something."""
        out: list[str] = []
        done = 0
        matcher = difflib.SequenceMatcher(None, self._before, self._after, autojunk=False)
        for tag, i1, i2, j1, j2 in matcher.get_opcodes():
            if tag == "equal":
                continue
            start, end = self._start(i1, inserting=i1 == i2), self._start(i2, inserting=True)
            if start is None or end is None or start < done:
                return None
            out += self._text[done:start]
            out += _with_remarks(self._text[start : max(start, end)], self._moved(self._after[j1:j2], i1, i2))
            done = max(start, end)
        return "".join(f"{line}\n" for line in [*out, *self._text[done:]])

    def _start(self, line: int, *, inserting: bool) -> int | None:
        """Where in the text a bare line begins; what is inserted goes before the comments of what follows."""
        if line == len(self._before):
            at = len(self._text)
            indent = _indent(self._text[max(self._begins.values())])
        elif line in self._begins:
            at = self._begins[line]
            indent = _indent(self._text[at])
        else:
            return None
        while inserting and at and _is_remark(self._text[at - 1], indent):
            at -= 1
        return at

    def _moved(self, lines: Sequence[str], at: int, end: int) -> list[str]:
        """New lines indented as the text has it at their level: a bare line's column may be another in the text."""
        columns: list[tuple[int, int]] = []
        for line in (*([end] if end in self._begins else []), *range(at - 1, -1, -1)):
            bare = _indent(self._before[line])
            if line in self._begins and (not columns or bare < columns[-1][0] or line == at - 1):
                columns.append((bare, _indent(self._text[self._begins[line]])))
        known = dict(reversed(columns))
        moved = []
        for line in lines:
            bare = _indent(line)
            above = max((column for column in known if column < bare), default=None)
            if bare not in known:
                known[bare] = bare if above is None else known[above] + bare - above
            # What comes next further in is below this line, whatever was known of its column.
            known = {column: there for column, there in known.items() if column <= bare}
            moved.append(" " * known[bare] + line[bare:])
        return moved


def _before_first_part(lines: Sequence[str]) -> int:
    return next((at for at, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), 0)


def _with_remarks(old: Sequence[str], new: list[str]) -> list[str]:
    """New lines with the comments of those that they replace: behind the line with the same key, else above."""
    lines, lost = list(new), []
    for line in old:
        remark = remark_of(line)
        key = line.partition(":")[0].strip()
        at = next((n for n, each in enumerate(lines) if each.partition(":")[0].strip() == key), None)
        if remark and at is not None and not _is_remark(line, len(line)):
            lines[at] = f"{lines[at]}  {remark}"
        elif remark:
            lost.append(" " * _indent(line) + remark)
    return [*lost, *lines]


def remark_of(line: str) -> str:
    """The comment in a line, with its ``#``; nothing where there is none."""
    quote = ""
    for at, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (at == 0 or line[at - 1] in " [{,:-"):
            quote = letter
        elif letter == "#" and (at == 0 or line[at - 1] in " \t"):
            return line[at:].rstrip()
    return ""


def _is_remark(line: str, indent: int) -> bool:
    """A blank line, or a comment that is no content of a block of text further in."""
    return not line.strip() or (line.lstrip().startswith("#") and _indent(line) <= indent)


def _indent(line: str) -> int:
    """The column of what a line begins with; a list's dash counts as such."""
    return len(line) - len(line.lstrip(" "))
