# SPDX-License-Identifier: Apache-2.0
"""Looks at the workers' rows of the board: how far they are, and whether they stand still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resilient.core.evidence import Place
from resilient.core.hangs import Reading
from resilient.link.board import FINISHED, PHASE, STEP, Board, Pulse
from resilient.supervisor.group import Member


def reading(pulse: Pulse, phases: Mapping[int, str]) -> Reading:
    """A row as the hang rules see it."""
    return Reading(
        opened=pulse.opened,
        place=place(pulse),
        phase=phase(pulse, phases),
        mark=(pulse.place, pulse.since_ns, pulse.entered, pulse.done),
        longest_s=pulse.longest_ns / 1e9,
        first_s=pulse.first_ns / 1e9,
    )


def place(pulse: Pulse) -> Place:
    """Where the worker is, in the words of evidence."""
    if not pulse.opened:
        return Place.UNKNOWN
    return {STEP: Place.STEP, FINISHED: Place.FINISHED}.get(pulse.place, Place.OUTSIDE)


def phase(pulse: Pulse, phases: Mapping[int, str]) -> str | None:
    """Name of the phase that it is in."""
    number = pulse.place - PHASE
    return phases.get(number, f"phase {number}") if number >= 0 else None


def someone_outside(board: Board, live: Sequence[Member]) -> bool:
    """Whether a worker that lives is outside of a step, where others may wait for it inside one."""
    pulses = [board.pulse(member.rank) for member in live]
    return any(pulse.opened and place(pulse) is not Place.STEP for pulse in pulses)


def completed(board: Board) -> int:
    """The step that all workers have completed; 0 while one of them has not told."""
    pulses = [board.pulse(index) for index in range(board.rows)]
    return min(pulse.done if pulse.opened else 0 for pulse in pulses)
