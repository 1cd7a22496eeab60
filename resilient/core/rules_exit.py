# SPDX-License-Identifier: Apache-2.0
"""Rules about hangs, and about what an exit code can tell where nothing else does.

Only rows. An exit code alone decides nothing but that a command cannot be run or was used wrongly.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.evidence import Evidence, Hang, Place, RankEvidence
from resilient.core.lanes import Lane
from resilient.core.rule import AllOf, AnyOf, Condition, Ended, Family, kept_log, left_behind, printed, row
from resilient.core.rules_host import SIGNALS
from resilient.core.symptoms import Symptoms

SHELL: Final = "https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html"
PYTHON: Final = "https://docs.python.org/3/using/cmdline.html"
HANG: Final = "https://docs.pytorch.org/docs/stable/distributed.html"

_SETUP: Final = (Cause.CONFIG_OR_ENVIRONMENT, Action.STOP)
_UNCLEAR: Final = (Cause.AMBIGUOUS, Action.INVESTIGATE)
_HUNG: Final = (Cause.HANG_OR_COLLECTIVE_TIMEOUT, Action.INVESTIGATE)

_hang = partial(row, family=Family.HANG, confidence=Confidence.MEDIUM)
_exit = partial(row, family=Family.EXIT, confidence=Confidence.LOW)


def _no_step_yet(symptoms: Symptoms) -> str | None:
    return "" if symptoms.rank.step in (None, 0) and not symptoms.raised else None


def _nonzero(symptoms: Symptoms) -> str | None:
    return f"exit code {symptoms.code}" if symptoms.code not in (None, 0) else None


def _left_early(symptoms: Symptoms) -> str | None:
    rank = symptoms.rank
    training = rank.place in (Place.OUTSIDE, Place.STEP) and not rank.stopped
    return "" if training and symptoms.code == 0 and rank.error is None else None


def _hung(*places: Place) -> Condition:
    def holds(symptoms: Symptoms) -> str | None:
        hang = symptoms.evidence.hang
        if hang is None or hang.rank != symptoms.rank.rank or hang.place not in places:
            return None
        return f"in {hang.phase}" if hang.phase else hang.place.value

    return holds


def _hang_example(place: Place) -> Evidence:
    hang = Hang(rank=0, place=place, phase=None, silent_s=75.0, bound_s=60.0, where="train.py:41 in loss")
    return Evidence(ranks=(RankEvidence(rank=0, signal=9, stopped=True),), hang=hang)


HANG_RULES: Final = (
    _hang(
        "hang-in-step",
        *_HUNG,
        "rank {rank} stood still{where} for {silent_s:.0f} s, where {bound_s:.0f} s are allowed",
        _hung(Place.STEP),
        _hang_example(Place.STEP),
        HANG,
    ),
    _hang(
        "hang-outside-step",
        *_HUNG,
        "rank {rank} stood still{where}, outside of a step, for {silent_s:.0f} s, where {bound_s:.0f} s are allowed",
        _hung(Place.OUTSIDE, Place.UNKNOWN, Place.FINISHED),
        _hang_example(Place.OUTSIDE),
        HANG,
    ),
)


REFUSED_RULES: Final = (
    _exit(
        "usage",
        *_SETUP,
        "rank {rank} refused its command line: {seen}",
        AllOf(
            (
                printed(Lane.STDERR, r"^[\w./-]{1,200}: error: ", ": error: "),
                printed(Lane.STDERR, "^usage: ", "usage: "),
                Ended(codes=frozenset({2})),
            )
        ),
        left_behind("usage: train.py [-h] [--lr LR]", "train.py: error: unrecognized arguments: --learning", code=2),
        "https://docs.python.org/3/library/argparse.html",
        confidence=Confidence.HIGH,
    ),
    _exit(
        "no-such-script",
        *_SETUP,
        "Python found nothing to run for rank {rank}: {seen}",
        AllOf(
            (
                printed(
                    Lane.STDERR,
                    r"^\S{1,400}: (?:can't (?:open file|find '__main__')|No module named |Error while finding)",
                    "can't ",
                    "No module named ",
                    "Error while finding",
                ),
                AnyOf((Ended(codes=frozenset({1, 2})), kept_log)),
                _no_step_yet,
            )
        ),
        left_behind("/usr/bin/python3: can't open file '/app/trian.py': [Errno 2] No such file or directory", code=2),
        PYTHON,
        confidence=Confidence.HIGH,
    ),
    _exit(
        "cannot-run",
        *_SETUP,
        "the command of rank {rank} cannot be run",
        AllOf((Ended(codes=frozenset({126, 127})), _no_step_yet)),
        left_behind(code=127),
        SHELL,
        confidence=Confidence.HIGH,
    ),
    _exit(
        "refused-arguments",
        *_SETUP,
        "rank {rank} ended with the code for wrong usage before its first step",
        AllOf((Ended(codes=frozenset({2})), _no_step_yet)),
        left_behind(code=2),
        SHELL,
        confidence=Confidence.MEDIUM,
    ),
)

EXIT_RULES: Final = (
    _exit(
        "left-early",
        Cause.USER_CODE,
        Action.INVESTIGATE,
        "rank {rank} left with exit code 0 in the middle of training",
        _left_early,
        Evidence(ranks=(RankEvidence(rank=0, exit_code=0, order=0, place=Place.OUTSIDE),)),
        PYTHON,
        confidence=Confidence.MEDIUM,
    ),
    _exit(
        "exit-code",
        *_UNCLEAR,
        "rank {rank} ended with {seen} and left no reason{where}",
        _nonzero,
        left_behind(code=3),
        PYTHON,
    ),
    _exit(
        "unknown",
        *_UNCLEAR,
        "nothing was seen that explains the end of the attempt",
        lambda _: "",
        Evidence(ranks=(RankEvidence(rank=0),)),
        SIGNALS,
    ),
)
