# SPDX-License-Identifier: Apache-2.0
"""The README taken apart. ``python tests/readme.py`` writes its generated parts anew."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from resilient.core.machine import diagram
from resilient.settings import settings_table
from resilient.supervisor.ending import exit_code_table

PATH = Path(__file__).parents[1] / "README.md"
_PART = re.compile(r"(?<=<!-- )(?P<name>[a-z ]+): (?P<source>[\w.]+) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)

GENERATED: Mapping[str, Callable[[], str]] = {
    "exit codes": lambda: exit_code_table().strip() + "\n",
    "settings": lambda: settings_table().strip() + "\n",
    "diagram": lambda: f"```mermaid\n{diagram().strip()}\n```\n",
}


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str


def blocks(language: str) -> list[str]:
    """All blocks of a language."""
    found = (Block(match["language"], match["text"]) for match in _BLOCK.finditer(PATH.read_text()))
    return [block.text for block in found if block.language == language]


def languages() -> set[str]:
    """The languages of all blocks."""
    return {match["language"] for match in _BLOCK.finditer(PATH.read_text())}


def prose() -> str:
    """All that is no block of code."""
    return _BLOCK.sub("", PATH.read_text())


def commands() -> Iterator[str]:
    """Every line of every shell block."""
    for text in blocks("sh"):
        yield from text.splitlines()


def parts() -> dict[str, str]:
    """What stands in the README between the marks of a generated part."""
    return {match["name"]: match["text"] for match in _PART.finditer(PATH.read_text())}


def written_anew(text: str) -> str:
    """The README with its generated parts as they should be."""
    return _PART.sub(lambda m: f"{m['name']}: {m['source']} -->\n{GENERATED[m['name']]()}<!-- end -->", text)


if __name__ == "__main__":
    PATH.write_text(written_anew(PATH.read_text()))
