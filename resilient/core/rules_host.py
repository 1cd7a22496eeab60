# SPDX-License-Identifier: Apache-2.0
"""Rules about the host: memory, DataLoader workers, signals.

Only rows. SIGKILL is certain to be "out of memory" only where the cgroup's counter says so.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.lanes import Lane
from resilient.core.rule import (
    AllOf,
    AnyOf,
    Condition,
    Ended,
    Family,
    Rule,
    alike_everywhere,
    died_of,
    kept_log,
    left_behind,
    logged,
    printed,
    raised,
    raised_anywhere,
    row,
    stated,
)
from resilient.core.symptoms import Symptoms

SIGNALS: Final = "https://man7.org/linux/man-pages/man7/signal.7.html"
FORK: Final = "https://man7.org/linux/man-pages/man2/fork.2.html"
CGROUP: Final = "https://docs.kernel.org/admin-guide/cgroup-v2.html"
LOADER: Final = "https://github.com/pytorch/pytorch/blob/main/torch/csrc/DataLoader.cpp"

_FULL: Final = 0.95


def _oom_killed(symptoms: Symptoms) -> str | None:
    return "" if (symptoms.evidence.oom_kills or 0) > 0 else None


def _nobody_oom_killed(symptoms: Symptoms) -> str | None:
    return "" if symptoms.evidence.oom_kills == 0 else None


def _failed(symptoms: Symptoms) -> str | None:
    return "" if symptoms.code not in (None, 0) or symptoms.evidence.from_log else None


def _no_exception(symptoms: Symptoms) -> str | None:
    return None if symptoms.raised else ""


def _shm_full(symptoms: Symptoms) -> str | None:
    return "" if (symptoms.evidence.shm_used_fraction or 0.0) >= _FULL else None


def _not_started(symptoms: Symptoms) -> str | None:
    return symptoms.rank.not_started


def _by_signal(symptoms: Symptoms) -> str | None:
    return f"signal {symptoms.signal}" if symptoms.signal is not None else None


_host = partial(row, family=Family.HOST, confidence=Confidence.LOW)

_SETUP: Final = (Cause.CONFIG_OR_ENVIRONMENT, Action.STOP)
_AGAIN: Final = (Cause.AMBIGUOUS, Action.RESTART_IN_PLACE)
_UNCLEAR: Final = (Cause.AMBIGUOUS, Action.INVESTIGATE)


def _loader(name: str, cause: Cause, action: Action, why: str, kind: str, printed_kind: str, said: str) -> Rule:
    when = stated(rf"DataLoader worker \(pid\(?s?\)? .{{0,200}}{kind}", "RuntimeError")
    either: Condition = when
    if printed_kind:
        # The trainer may die of a ConnectionResetError instead, when it reads from a worker that crashed.
        line = printed(
            Lane.STDERR, rf"^ERROR: Unexpected {printed_kind} encountered in worker\.", "encountered in worker."
        )
        # Or it is raised where nobody can print it: the exception comes out of a signal handler.
        silent = AllOf((_no_exception, _failed, line))
        either = AnyOf((when, AllOf((raised("ConnectionError", "RuntimeError", "EOFError"), line)), silent))
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
    _host(
        "loader-killed",
        *_AGAIN,
        "a DataLoader worker of rank {rank} was killed, and not by the OOM killer of its container{where}",
        AllOf((_nobody_oom_killed, stated(r"DataLoader worker \(pid.{0,200}signal: Killed"))),
        replace(died_of("RuntimeError", "DataLoader worker (pid 4242) is killed by signal: Killed. "), oom_kills=0),
        LOADER,
    ),
    _loader(
        "loader-killed-unseen",
        Cause.OUT_OF_MEMORY_HOST,
        Action.STOP,
        "a DataLoader worker of rank {rank} was killed, which hardly anybody but the OOM killer does",
        "signal: Killed",
        "",
        "is killed by signal: Killed. ",
    ),
    _loader(
        "loader-crashed",
        *_UNCLEAR,
        "a DataLoader worker of rank {rank} crashed",
        "(?:is killed by signal|exited unexpectedly)|^Pin memory thread exited unexpectedly",
        "(?:segmentation fault|floating-point exception)",
        "is killed by signal: Segmentation fault. ",
    ),
)


def _signal(name: str, number: int, cause: Cause, action: Action, why: str, *more: int) -> Rule:
    when = Ended(signals=frozenset((number, *more)))
    return _host(name, cause, action, f"rank {{rank}} {why}{{where}}", when, left_behind(signal=number), SIGNALS)


# faulthandler's first frame, which is the innermost.
_LOADING: Final = (
    r"^(?:Current t|T)hread 0x.{0,60} \(most recent call first\):\n"
    r'  File "<frozen importlib\._bootstrap(?:_external)?>", line \d{1,6} in (?:_call_with|create_module|exec_module)'
)

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
    _host(
        "sigkill-while-loading",
        Cause.OUT_OF_MEMORY_HOST,
        Action.STOP,
        "a SIGKILL ended rank {rank} while it built or loaded what needs most memory, as the OOM killer does: {seen}",
        AllOf(
            (
                Ended(signals=frozenset({9})),
                printed(
                    Lane.LOG,
                    r"(?i)^(?=.{0,400}\b(?:load(?:ing)?|initiali[sz]\w{2,5}|offload\w{0,3}|shards?)\b).{0,400}$",
                ),
            )
        ),
        logged("Loading checkpoint shards:  50%", "exits with return code = -9"),
        CGROUP,
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
    _host(
        "sigbus-in-log",
        *_SETUP,
        "a bus error ended rank {rank}, as where the /dev/shm of a container is too small",
        AllOf((kept_log, _no_exception, AnyOf((Ended(signals=frozenset({7})), printed(Lane.LOG, r"\bBus error\b"))))),
        logged("train.sh: line 3: 4242 Bus error      (core dumped) python3 train.py"),
        "https://docs.pytorch.org/docs/stable/data.html",
    ),
    _host(
        "crash-alike-everywhere",
        Cause.USER_CODE,
        Action.STOP,
        "nearly all ranks crashed in native code with the same signal, which machines do not do together{where}",
        AllOf(
            (
                Ended(signals=frozenset({4, 7, 8, 11})),
                alike_everywhere,
            )
        ),
        Evidence(ranks=tuple(RankEvidence(rank=rank, signal=11, order=rank) for rank in range(4))),
        "resilient/core/crowd.py",
        confidence=Confidence.MEDIUM,
    ),
    _host(
        "crash-in-import",
        *_SETUP,
        "native code of rank {rank} crashed while Python loaded it, as where two libraries do not go together",
        AllOf((Ended(signals=frozenset({4, 6, 8, 11})), printed(Lane.STDERR, _LOADING, "hread 0x"))),
        left_behind(
            "Fatal Python error: Segmentation fault",
            "Current thread 0x00007f0000000000 (most recent call first):",
            '  File "<frozen importlib._bootstrap_external>", line 1176 in create_module',
            signal=11,
        ),
        "https://docs.python.org/3/library/faulthandler.html",
    ),
    _signal("sigsegv", 11, *_UNCLEAR, "crashed in native code (SIGSEGV)"),
    _signal("sigbus", 7, *_UNCLEAR, "died of a bus error (SIGBUS)"),
    _signal("sigill", 4, *_UNCLEAR, "met an illegal instruction: a wrong build, or a bad processor (SIGILL)"),
    _signal("sigfpe", 8, Cause.USER_CODE, Action.STOP, "divided by zero in native code (SIGFPE)"),
    _signal("sigsys", 31, *_SETUP, "made a system call that its sandbox forbids (SIGSYS)"),
    _signal("sigabrt", 6, *_UNCLEAR, "aborted in native code (SIGABRT)"),
    _host(
        "sigterm-in-log",
        Cause.PREEMPTED,
        Action.CHECKPOINT_AND_EXIT,
        "the command was asked to leave (SIGTERM), and nothing says that a launcher did it",
        AllOf((kept_log, _no_exception, Ended(signals=frozenset({15})))),
        logged("step 10", signal=15),
        SIGNALS,
    ),
    _signal("sigterm", 15, *_AGAIN, "was ended by a SIGTERM that the supervisor did not send"),
    _host(
        "hung-up",
        Cause.CONFIG_OR_ENVIRONMENT,
        Action.CHECKPOINT_AND_EXIT,
        "the terminal or session that rank {rank} was started from was closed (SIGHUP); start it detached from one",
        AnyOf(
            (
                Ended(signals=frozenset({1})),
                raised_anywhere("SignalException", text=r"got signal: 1\b"),
                printed(Lane.LOG, r"Received (?:1|Signals\.SIGHUP|SIGHUP) death signal|closing signal SIGHUP"),
            )
        ),
        left_behind(signal=1),
        SIGNALS,
        confidence=Confidence.MEDIUM,
        family=Family.EXIT,
    ),
    _host(
        "interrupted",
        *_UNCLEAR,
        "somebody interrupted rank {rank}{where}",
        AnyOf((raised("KeyboardInterrupt"), Ended(signals=frozenset({2})))),
        left_behind(signal=2),
        SIGNALS,
        family=Family.EXIT,
    ),
    _host("signal", *_UNCLEAR, "rank {rank} was ended by {seen}{where}", _by_signal, left_behind(signal=24), SIGNALS),
)
