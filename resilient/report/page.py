# SPDX-License-Identifier: Apache-2.0
"""The story of a run as a page on a terminal; plain lines where there is none.

Every word of the story is put into ``Text``: rich never reads it as markup.
"""

from __future__ import annotations

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from resilient.report.chapters import Story
from resilient.report.plain import attempt_lines, before_lines, closing, headline, others_lines, seconds_text, sentences
from resilient.report.tables import PlainConsole


def show_page(story: Story, console: Console | None = None) -> None:
    """Print the story."""
    console = console or PlainConsole()
    if not console.is_terminal:
        console.print(Text("\n".join(sentences(story))), soft_wrap=True)
        return
    good = story.exit is not None and story.exit.code == 0
    before = before_lines(story)
    parts: list[Text | Table] = [Text(line) for line in (*before, "")] if before else []
    for attempt in story.attempts:
        first, *rest = attempt_lines(attempt, story)
        parts += [Text(first, style="bold"), *(Text(line) for line in rest)]
        if attempt.standstill is not None:
            parts.append(_bars(attempt.standstill.phases))
        parts.append(Text())
    others = others_lines(story)[1:]
    parts += [Text(line) for line in (*others, *([""] if others else []), *closing(story))]
    title = Text(headline(story), style="bold green" if good else "bold yellow")
    console.print(title)
    console.print(Panel(Group(*parts), border_style="green" if good else "yellow"))


def _bars(phases: tuple[tuple[str, float], ...]) -> Table:
    """Where the time of a standstill went."""
    longest = max((seconds for _, seconds in phases), default=0.0) or 1.0
    table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=False)
    for name, seconds in phases:
        bar = "█" * round(30 * seconds / longest)
        table.add_row(Text(f"    {name}"), Text(seconds_text(seconds), justify="right"), Text(bar, style="cyan"))
    return table
