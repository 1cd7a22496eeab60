# SPDX-License-Identifier: Apache-2.0
"""What a supervisor begins with, and what the store's first answer tells it: budgets, deny list, the one before it."""

from __future__ import annotations

import time
from typing import Final

from resilient.checkpoint import deny_list
from resilient.checkpoint.requests import Opened
from resilient.core import events as ev
from resilient.core.aftermath import Counters, as_past, probable_end
from resilient.core.denials import in_force, refusals_by_counter, refusals_in_a_row
from resilient.core.job import Job
from resilient.supervisor.scene import Scene

MOST_ASIDE: Final = 4
_LONGEST: Final = 300
"""The journal's entry is to tell why nothing can be used, not to list a store."""


def first_job(scene: Scene) -> Job:
    """Before anything has happened; where there is no store, the journal's directory says what was spent."""
    debits = scene.local_debits()
    platform = scene.platform
    has_store = scene.settings.checkpoints is not None
    guess = 0 if debits or has_store else refusals_by_counter(platform.in_kubernetes, platform.ignored_count)
    return Job(
        terms=scene.terms(),
        ranks=scene.launch.nproc * (scene.launch.nodes if scene.launch.node == 0 else 1),
        rules=scene.rules,
        ledger=scene.first_ledger(debits),
        refusals=guess or refusals_in_a_row(debits),
        refusals_guessed=guess > 0,
        has_store=has_store,
    )


def learned(scene: Scene, answer: Opened) -> ev.Opened:
    """The store's answer as an event; what people should know of it is said."""
    aside = tuple(why[:_LONGEST] for why in answer.set_aside[:MOST_ASIDE])
    scene.journal.write("opened", run=answer.run_id, set_aside=aside)
    for note in (*answer.notes, *aside):
        scene.say(note)
    debits = scene.on_record(answer.debits)
    mark = answer.earlier
    _tell_before(scene, answer)
    return ev.Opened(
        next_attempt=answer.next_attempt,
        committed_step=max((ref.step for ref in answer.checkpoints), default=0),
        ever_committed=answer.ever_committed and not scene.settings.fresh,
        set_aside=aside,
        usage=answer.usage,
        debits=debits,
        finished_step=mark.reached if mark is not None and mark.submission == scene.submission else None,
        denials=in_force(map(deny_list.denial_of, answer.denials), wall_s=time.time(), pods=scene.terms().pods),
    )


def _tell_before(scene: Scene, answer: Opened) -> None:
    """What probably became of the supervisor before this one, if it left no exit."""
    before, mark = answer.before, answer.earlier
    finished = mark is not None and mark.submission == scene.submission
    if before is None or before.exited or finished:
        return
    if any(row.wall_s >= before.started_s for row in answer.debits):
        return
    counters = Counters(failures=scene.platform.failure_count, ignored=scene.platform.ignored_count)
    found = probable_end(before, counters)
    scene.journal.write("before", likely=found.likely, why=found.why, trace=before)
    where = ", ".join(f"{what} {name}" for what, name in (("pod", before.pod), ("node", before.node)) if name)
    scene.say(f"the supervisor before this one{where and f' ({where})'} wrote no exit: {found.why}")
    past = as_past(found, before)
    if past is not None:
        scene.past.append(past)
