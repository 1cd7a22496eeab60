# SPDX-License-Identifier: Apache-2.0
"""What becomes of a fault that comes back at the same step, over all pods of a submission: every rung it gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from driving import ONE, SETTLED, drive, fail, raised

from resilient.core import events as ev
from resilient.core.commands import Announce, Exit, RecordDebit
from resilient.core.evidence import Evidence, Past, RankEvidence
from resilient.core.history import on_record, remember
from resilient.core.job import Phase
from resilient.core.policy import Terms

UNCLEAR = Evidence(ranks=(RankEvidence(rank=0, signal=11, order=0, step=40),))
CODE = raised("TypeError", step=40)
AGAIN = ev.DeadlinePassed()


def lives(evidence: Evidence, nodes: Sequence[str | None], *, in_kubernetes: bool = True) -> Iterator[tuple[str, int]]:
    """The rule and the exit code of each fault (0: a restart in place), where each pod runs on the next node."""
    debits: list[ev.Debit] = []
    for node in nodes:
        start = replace(ONE, has_store=True, terms=Terms(in_kubernetes=in_kubernetes, node=node))
        opened = ev.Opened(next_attempt=1, debits=tuple(debits), committed_step=30)
        events: list[ev.Event] = [opened, ev.HeartbeatOpened(), ev.Advanced(step=39)]
        past: list[Past] = list(on_record(debits))
        exits: list[Exit] = []
        while not exits:
            (*end, found) = fail(evidence)
            assert isinstance(found, ev.Collected)
            events += [*end, replace(found, past=tuple(past))]
            job, told = drive(start, *events)
            verdict = next(each.verdict for each in reversed(told) if isinstance(each, Announce) and each.verdict)
            past.append(remember(verdict, node=node, reached=39))
            if job.phase is Phase.BACKING_OFF:
                yield verdict.rule, 0
                events.append(AGAIN)
                continue
            _, told = drive(start, *events, *SETTLED)
            exits = [each for each in told if isinstance(each, Exit)]
            debits += [each.debit for each in told if isinstance(each, RecordDebit)]
            yield verdict.rule, int(exits[0].code)


IN_PLACE, FRESH, AWAY, STOP, SPENT = 0, 193, 194, 114, 116


@pytest.mark.parametrize(
    ("evidence", "nodes", "rungs"),
    [
        (CODE, ["a"], [("user-type-error", IN_PLACE), ("user-type-error", STOP)]),
        (UNCLEAR, ["a", "b"], [("sigsegv", IN_PLACE), ("sigsegv", FRESH), ("same-step-elsewhere", STOP)]),
        (
            UNCLEAR,
            ["a", "a", "b"],
            [
                ("sigsegv", IN_PLACE),
                ("sigsegv", FRESH),
                ("same-step-three-times", AWAY),
                ("same-step-elsewhere", STOP),
            ],
        ),
        (
            UNCLEAR,
            [None, None, None],
            [
                ("sigsegv", IN_PLACE),
                ("sigsegv", FRESH),
                ("same-step-three-times", AWAY),
                ("same-step-every-time", STOP),
            ],
        ),
    ],
    ids=["code", "elsewhere", "thrice on one machine", "no other machine is known"],
)
def test_a_fault_at_the_same_step_gets_each_rung_once(
    evidence: Evidence, nodes: list[str | None], rungs: list[tuple[str, int]]
) -> None:
    """A code verdict is confirmed by one restart. A symptom with two owners climbs: that it comes back on another
    machine is what confirms it, and no machine is believed alone before another one was tried."""
    assert list(lives(evidence, nodes)) == rungs


def test_outside_kubernetes_there_is_no_other_machine_to_ask() -> None:
    """Then it is no verdict on the code, but its budget is spent."""
    assert list(lives(UNCLEAR, ["a"], in_kubernetes=False)) == [("sigsegv", IN_PLACE), ("sigsegv", SPENT)]
