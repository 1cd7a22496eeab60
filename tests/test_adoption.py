# SPDX-License-Identifier: Apache-2.0
"""Tests of what is left in memory to the next container, by table: after which exit, and to whom."""

from dataclasses import replace

import pytest

from resilient.core.adoption import Kept, Origin, Present, objection, outlives, told_adopted, told_kept
from resilient.core.batch import Batch
from resilient.core.exit_codes import ExitCode

OUT = Batch(epoch=2, first=17, samples=(544, 545), of=1000)
KEPT = Kept(
    submission="job-1", index=0, pod="pod-1", run="run-1", ranks=2, attempt=4, step=60,
    origin=Origin(token="a1", began_from="3-40", skipped=(OUT,)),
)  # fmt: skip
PRESENT = Present(
    submission="job-1", index=0, pod="pod-1", run="run-1", ranks=2,
    fresh_from=3, claim="a1", skipped=(OUT,), newest=(4, 50),
)  # fmt: skip


@pytest.mark.parametrize("code", [*ExitCode, 1, 137, 143])
def test_a_snapshot_outlives_two_exits(code: int) -> None:
    """Those that the kubelet answers with a new container in the same pod."""
    assert outlives(code) == (code in (193, 197))


@pytest.mark.parametrize(
    "present",
    [
        PRESENT,
        replace(PRESENT, newest=(4, 60)),
        replace(PRESENT, newest=(3, 900)),
        replace(PRESENT, newest=None),
        replace(PRESENT, claim=None),
        replace(PRESENT, fresh_from=4),
        replace(PRESENT, skipped=(replace(OUT, samples=()), Batch(epoch=1, first=3))),
    ],
)
def test_the_same_pod_adopts_what_no_checkpoint_is_newer_than(present: Present) -> None:
    """Also what is saved itself, as memory is faster; and what the store has not even a claim of."""
    assert objection(KEPT, present) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"submission": "job-2"}, "it is that of another submission"),
        ({"index": 1}, "it is that of another index"),
        ({"pod": "pod-2"}, "it is that of another pod"),
        ({"run": "run-2"}, "it is that of another run"),
        ({"ranks": 4}, "it was taken by 2 ranks, and there are 4 now"),
        ({"fresh_from": 5}, "a new history has begun with attempt 5"),
        ({"claim": "b2"}, "attempt 4 has been claimed by somebody else"),
        ({"claim": "?"}, "attempt 4 has been claimed by somebody else"),
        ({"skipped": ()}, "it was made without a batch that is not on record as left out"),
        ({"newest": (4, 61)}, "a newer checkpoint is there, of step 61 of attempt 4"),
        ({"newest": (5, 10)}, "a newer checkpoint is there, of step 10 of attempt 5"),
    ],
)
def test_nobody_else_does(changes: dict[str, object], why: str) -> None:
    """And a pod that was given up for dead does not win with later steps."""
    assert objection(KEPT, replace(PRESENT, **changes)) == why  # type: ignore[arg-type]  # one field of each type


def test_it_is_told_in_one_sentence() -> None:
    """For the log and for explain."""
    assert told_adopted(4, 60, None).startswith("adopted the snapshot of step 60 of attempt 4, ")
    assert told_adopted(4, 60, "it rained").endswith("was not adopted, and is removed: it rained")
    assert told_adopted(None, None, "it rained").endswith("was not adopted, and is removed: it rained")
    assert told_kept(4, 60, None).startswith("the snapshot of step 60 of attempt 4 is left")
    assert told_kept(4, 60, "it rained").endswith("could not be left in memory to the next container: it rained")
