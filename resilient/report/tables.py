# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal, and aligned text where there is none.

What is in a cell may come from a checkpoint that somebody else has written: it is escaped, and never read as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CELL_CHARS = 300
Rows = Sequence[Sequence[str]]


class PlainConsole(Console):
    """A console that reads no markup, and leaves it to the command line what a closed pipe means."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """rich would leave with 1 here, which is a finding's code."""
        raise BrokenPipeError


def print_table(head: Sequence[str], rows: Rows, console: Console | None = None) -> None:
    """Print rows of text under a head; nothing where there are none."""
    console = console or PlainConsole()
    clean = [[shown(cell) for cell in row] for row in rows]
    if not clean:
        return
    if not console.is_terminal:
        console.print(Text(_aligned([list(head), *clean])), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(Text(title), overflow="fold")
    for row in clean:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_line(line: str, console: Console | None = None) -> None:
    """Print one line of text, however long."""
    (console or PlainConsole()).print(Text(shown(line, 4000)), soft_wrap=True)


def shown(text: str, limit: int = _CELL_CHARS) -> str:
    """Text without anything that a terminal acts upon, cut to ``limit`` characters."""
    cut = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)


def size_text(size_bytes: int) -> str:
    """In the unit that leaves one to four digits."""
    value, units = float(size_bytes), iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)) is not None:
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def time_text(wall_s: float | None) -> str:
    """A time of the wall clock; nothing where there is none."""
    try:
        return datetime.fromtimestamp(wall_s or 0.0, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC") if wall_s else ""
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def _aligned(rows: Rows) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
