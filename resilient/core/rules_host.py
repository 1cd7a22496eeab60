# SPDX-License-Identifier: Apache-2.0
"""Rules about the host: hangs, memory, DataLoader workers, signals, exit codes.

Only rows. An exit code alone decides nothing but "cannot be run", and SIGKILL is
"out of memory" only where the cgroup's counter says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.evidence import Evidence, Hang, Place, RankEvidence
from resilient.core.rule import (
    AllOf,
    AnyOf,
    Condition,
    Ended,
    Family,
    Role,
    Rule,
    died_of,
    left_behind,
    printed,
    raised,
    raised_anywhere,
)
from resilient.core.symptoms import Lane, Symptoms

SIGNALS: Final = "https://man7.org/linux/man-pages/man7/signal.7.html"
FORK: Final = "https://man7.org/linux/man-pages/man2/fork.2.html"
CGROUP: Final = "https://docs.kernel.org/admin-guide/cgroup-v2.html"
LOADER: Final = "https://github.com/pytorch/pytorch/blob/main/torch/csrc/DataLoader.cpp"
SHELL: Final = "https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html"
PYTHON: Final = "https://docs.python.org/3/using/cmdline.html"
HANG: Final = "https://docs.pytorch.org/docs/stable/distributed.html"

_FULL: Final = 0.95


def _oom_killed(symptoms: Symptoms) -> str | None:
    return "" if (symptoms.evidence.oom_kills or 0) > 0 else None


def _shm_full(symptoms: Symptoms) -> str | None:
    return "" if (symptoms.evidence.shm_used_fraction or 0.0) >= _FULL else None


def _no_step_yet(symptoms: Symptoms) -> str | None:
    return "" if symptoms.rank.step in (None, 0) and not symptoms.chain else None


def _nonzero(symptoms: Symptoms) -> str | None:
    return f"exit code {symptoms.code}" if symptoms.code not in (None, 0) else None


def _left_early(symptoms: Symptoms) -> str | None:
    rank = symptoms.rank
    training = rank.place in (Place.OUTSIDE, Place.STEP) and not rank.stopped
    return "" if training and symptoms.code == 0 and rank.error is None else None


def _not_started(symptoms: Symptoms) -> str | None:
    return symptoms.rank.not_started


def _by_signal(symptoms: Symptoms) -> str | None:
    return f"signal {symptoms.signal}" if symptoms.signal is not None else None


def _hung(*places: Place) -> Condition:
    def holds(symptoms: Symptoms) -> str | None:
        hang = symptoms.evidence.hang
        if hang is None or hang.rank != symptoms.rank.rank or hang.place not in places:
            return None
        return f"in {hang.phase}" if hang.phase else hang.place.value

    return holds


def _host(
    name: str,
    cause: Cause,
    action: Action,
    why: str,
    when: Condition,
    example: Evidence,
    source: str,
    *,
    confidence: Confidence = Confidence.LOW,
    family: Family = Family.HOST,
    role: Role = Role.CULPRIT,
) -> Rule:
    return Rule(
        id=name,
        family=family,
        cause=cause,
        action=action,
        role=role,
        confidence=confidence,
        when=when,
        why=why,
        source=source,
        example=example,
    )


def _hang_example(place: Place) -> Evidence:
    hang = Hang(rank=0, place=place, phase=None, silent_s=75.0, bound_s=60.0, where="train.py:41 in loss")
    return Evidence(ranks=(RankEvidence(rank=0, signal=9, stopped=True),), hang=hang)


_SETUP: Final = (Cause.CONFIG_OR_ENVIRONMENT, Action.STOP)
_AGAIN: Final = (Cause.AMBIGUOUS, Action.RESTART_IN_PLACE)
_UNCLEAR: Final = (Cause.AMBIGUOUS, Action.INVESTIGATE)
_HUNG: Final = (Cause.HANG_OR_COLLECTIVE_TIMEOUT, Action.INVESTIGATE)

HANG_RULES: Final = (
    _host(
        "hang-in-step",
        *_HUNG,
        "rank {rank} stood still{where} for {silent_s:.0f} s, where {bound_s:.0f} s are allowed",
        _hung(Place.STEP),
        _hang_example(Place.STEP),
        HANG,
        confidence=Confidence.MEDIUM,
        family=Family.HANG,
    ),
    _host(
        "hang-outside-step",
        *_HUNG,
        "rank {rank} stood still{where} outside of a step for {silent_s:.0f} s, where {bound_s:.0f} s are allowed",
        _hung(Place.OUTSIDE, Place.UNKNOWN, Place.FINISHED),
        _hang_example(Place.OUTSIDE),
        HANG,
        confidence=Confidence.MEDIUM,
        family=Family.HANG,
    ),
)


def _loader(name: str, cause: Cause, action: Action, why: str, kind: str, printed_kind: str, said: str) -> Rule:
    when = raised_anywhere("RuntimeError", text=rf"DataLoader worker \(pid\(?s?\)? .{{0,200}}{kind}")
    either: Condition = when
    if printed_kind:
        # The trainer may die of a ConnectionResetError instead, when it reads from a worker that crashed.
        line = printed(Lane.STDERR, rf"^ERROR: Unexpected {printed_kind} encountered in worker\.")
        either = AnyOf((when, AllOf((raised("ConnectionError", "RuntimeError", "EOFError"), line))))
    example = died_of("RuntimeError", f"DataLoader worker (pid 4242) {said}")
    return _host(name, cause, action, why + "{where}: {seen}", either, example, LOADER, confidence=Confidence.MEDIUM)


_KILLED: Final = raised_anywhere(
    "RuntimeError", text=r"DataLoader worker \(pid.{0,200}(?:signal: Killed|exited unexpectedly)"
)

LOADER_RULES: Final = (
    _host(
        "loader-out-of-memory",
        Cause.OUT_OF_MEMORY_HOST,
        Action.STOP,
        "a DataLoader worker of rank {rank} was killed because the container ran out of memory{where}",
        AllOf((_oom_killed, _KILLED)),
        replace(died_of("RuntimeError", "DataLoader worker (pid 4242) is killed by signal: Killed. "), oom_kills=1),
        CGROUP,
        confidence=Confidence.HIGH,
    ),
    _loader(
        "loader-shared-memory",
        *_SETUP,
        "a DataLoader worker of rank {rank} died of a bus error, as when /dev/shm is too small",
        "signal: Bus error",
        "bus error",
        "is killed by signal: Bus error. ",
    ),
    _loader(
        "loader-killed",
        *_AGAIN,
        "a DataLoader worker of rank {rank} was killed, probably for lack of memory",
        "signal: Killed",
        "",
        "is killed by signal: Killed. ",
    ),
    _loader(
        "loader-crashed",
        *_UNCLEAR,
        "a DataLoader worker of rank {rank} crashed",
        "(?:is killed by signal|exited unexpectedly)",
        "(?:segmentation fault|floating-point exception)",
        "is killed by signal: Segmentation fault. ",
    ),
)


def _signal(name: str, number: int, cause: Cause, action: Action, why: str, *more: int) -> Rule:
    when = Ended(signals=frozenset((number, *more)))
    return _host(name, cause, action, f"rank {{rank}} {why}{{where}}", when, left_behind(signal=number), SIGNALS)


HOST_RULES: Final = (
    _host(
        "not-started",
        *_AGAIN,
        "this node gave no process for rank {rank}: {seen}",
        _not_started,
        Evidence(ranks=(RankEvidence(rank=0, not_started="Resource temporarily unavailable"),)),
        FORK,
        confidence=Confidence.MEDIUM,
    ),
    _host(
        "host-out-of-memory",
        Cause.OUT_OF_MEMORY_HOST,
        Action.STOP,
        "rank {rank} was killed because the container ran out of memory{where}",
        AllOf((_oom_killed, Ended(signals=frozenset({9})))),
        replace(left_behind(signal=9), oom_kills=1),
        CGROUP,
        confidence=Confidence.HIGH,
    ),
    _signal("sigkill", 9, *_AGAIN, "was killed by a SIGKILL that nothing explains"),
    _host(
        "sigbus-shared-memory",
        *_SETUP,
        "rank {rank} died of a bus error with /dev/shm full{where}; give the pod more shared memory",
        AllOf((_shm_full, Ended(signals=frozenset({7})))),
        replace(left_behind(signal=7), shm_used_fraction=1.0),
        SIGNALS,
        confidence=Confidence.MEDIUM,
    ),
    _signal("sigsegv", 11, *_UNCLEAR, "crashed in native code (SIGSEGV)"),
    _signal("sigbus", 7, *_UNCLEAR, "died of a bus error (SIGBUS)"),
    _signal("sigill", 4, *_UNCLEAR, "met an illegal instruction: a wrong build, or a bad processor (SIGILL)"),
    _signal("sigfpe", 8, Cause.USER_CODE, Action.STOP, "divided by zero in native code (SIGFPE)"),
    _signal("sigabrt", 6, *_UNCLEAR, "aborted in native code (SIGABRT)"),
    _signal("sigterm", 15, *_AGAIN, "was ended by a SIGTERM that the supervisor did not send"),
    _host(
        "interrupted",
        *_UNCLEAR,
        "somebody interrupted rank {rank}{where}",
        AnyOf((raised("KeyboardInterrupt"), Ended(signals=frozenset({1, 2})))),
        left_behind(signal=2),
        SIGNALS,
        family=Family.EXIT,
    ),
    _host("signal", *_UNCLEAR, "rank {rank} was ended by {seen}{where}", _by_signal, left_behind(signal=24), SIGNALS),
)

EXIT_RULES: Final = (
    _host(
        "usage",
        *_SETUP,
        "rank {rank} refused its command line: {seen}",
        AllOf(
            (
                printed(Lane.STDERR, r"^[\w./-]{1,200}: error: "),
                printed(Lane.STDERR, "^usage: "),
                Ended(codes=frozenset({2})),
            )
        ),
        left_behind("usage: train.py [-h] [--lr LR]", "train.py: error: unrecognized arguments: --learning", code=2),
        "https://docs.python.org/3/library/argparse.html",
        confidence=Confidence.HIGH,
        family=Family.EXIT,
    ),
    _host(
        "no-such-script",
        *_SETUP,
        "Python found nothing to run for rank {rank}: {seen}",
        AllOf(
            (
                printed(
                    Lane.STDERR,
                    r"^\S{1,400}: (?:can't (?:open file|find '__main__')|No module named |Error while finding)",
                ),
                Ended(codes=frozenset({1, 2})),
                _no_step_yet,
            )
        ),
        left_behind("/usr/bin/python3: can't open file '/app/trian.py': [Errno 2] No such file or directory", code=2),
        PYTHON,
        confidence=Confidence.HIGH,
        family=Family.EXIT,
    ),
    _host(
        "cannot-run",
        *_SETUP,
        "the command of rank {rank} cannot be run",
        AllOf((Ended(codes=frozenset({126, 127})), _no_step_yet)),
        left_behind(code=127),
        SHELL,
        confidence=Confidence.HIGH,
        family=Family.EXIT,
    ),
    _host(
        "left-early",
        Cause.USER_CODE,
        Action.INVESTIGATE,
        "rank {rank} left with exit code 0 in the middle of training",
        _left_early,
        Evidence(ranks=(RankEvidence(rank=0, exit_code=0, order=0, place=Place.OUTSIDE),)),
        PYTHON,
        confidence=Confidence.MEDIUM,
        family=Family.EXIT,
    ),
    _host(
        "exit-code",
        *_UNCLEAR,
        "rank {rank} ended with {seen} and left no reason{where}",
        _nonzero,
        left_behind(code=3),
        PYTHON,
        family=Family.EXIT,
    ),
    _host(
        "unknown",
        *_UNCLEAR,
        "nothing was seen that explains the end of the attempt",
        lambda _: "",
        Evidence(ranks=(RankEvidence(rank=0),)),
        SIGNALS,
        family=Family.EXIT,
    ),
)
