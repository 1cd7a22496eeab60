# SPDX-License-Identifier: Apache-2.0
"""Drives the state machine through events, and the evidence that its tests have attempts end with."""

from __future__ import annotations

from dataclasses import replace

from resilient.core import events as ev
from resilient.core.batch import Batch
from resilient.core.commands import Command, Dismiss, Exit
from resilient.core.denied import LASTS_S, Denial, Denied, Suspect
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, Place, RankEvidence, Ruling
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase
from resilient.core.machine import advance, begin
from resilient.core.policy import Decision, Terms
from resilient.core.rules import RULES


def raised(kind: str, *, step: int = 1, ruling: Ruling | None = None, batch: Batch | None = None) -> Evidence:
    """Evidence of one worker that died of an exception."""
    record = ErrorRecord(
        chain=(ErrorLink(type=kind, message="x", bases=("Exception",)),),
        function="train.py:main",
        step=step,
        ruling=ruling,
    )
    rank = RankEvidence(rank=0, exit_code=1, order=0, error=record, step=step, place=Place.STEP, batch=batch)
    return Evidence(ranks=(rank,))


def of_rank(evidence: Evidence, rank: int) -> Evidence:
    """The same of another worker than the first."""
    return replace(evidence, ranks=tuple(replace(seen, rank=rank) for seen in evidence.ranks))


XID_79 = "NVRM: Xid (PCI:0000:05:00): 79, pid=1234, name=python, GPU has fallen off the bus."
DEVICE = Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0, stderr_tail=XID_79, step=1),))
SUSPECT = next(rule.example for rule in RULES if rule.id == "device-ecc-contained")
KILLED = Evidence(ranks=(RankEvidence(rank=0, signal=9, order=0, step=1),))
UNKNOWN = Evidence(ranks=(RankEvidence(rank=0, exit_code=3, order=0, step=1),))
CODE = raised("TypeError")
BATCH = Batch(epoch=2, first=17, exact=True, samples=tuple(range(544, 576)), of=100_000)
STOPPED = raised("resilient.errors.Stop", ruling=Ruling.STOP)


def drive(start: Job, *events: ev.Event, now: float = 0.0) -> tuple[Job, list[Command]]:
    """The job after these events on a sound machine, and every command on the way."""
    job, commands = begin(start, 0.0)
    told = list(commands)
    rest = list(events)
    while rest or job.phase is Phase.EXAMINING:
        event = ev.Examined() if job.phase is Phase.EXAMINING else rest.pop(0)
        job, commands = advance(job, event, now)
        told += commands
    return job, told


def denial(name: str, *, of_platform: bool = False, written_s: float = 0.0) -> Denial:
    """An entry of a deny list, written now, for a node or a GPU."""
    kind = Denied.DEVICE if name.startswith("GPU-") else Denied.NODE
    suspect = Suspect(kind=kind, name=name, rule="xid-fatal", evidence="Xid 79")
    return Denial(suspect=suspect, written_s=written_s, expires_s=written_s + LASTS_S, of_platform=of_platform)


def fail(evidence: Evidence) -> tuple[ev.Event, ...]:
    """One failed attempt of a job with one rank."""
    return (ev.WorkerEnded(rank=0, clean=False, finished=False), ev.GroupEnded(), ev.Collected(evidence=evidence))


def code_of(commands: list[Command]) -> int | None:
    """The exit code, once there is one."""
    return next((command.code for command in commands if isinstance(command, Exit)), None)


ONE = Job(terms=Terms(), ranks=1)
SETTLED = (ev.SaveSettled(durable_step=0), ev.Recorded())
LEADER = Job(terms=Terms(pods=2), ranks=2)
"""Of two pods with a worker each."""
FOLLOWER = Job(terms=Terms(pods=2, pod=1), ranks=1)
THREE = Job(terms=Terms(pods=3), ranks=3)
LAUNCHED = (ev.Assembled(),)
MOVED = Decision(code=ExitCode.RESCHEDULE, why="rank 1: Xid 79", do="another node", pods=(1,))
SAVED = ev.SaveSettled(durable_step=0)


def in_kubernetes(job: Job) -> Job:
    return replace(job, terms=replace(job.terms, in_kubernetes=True))


def failed(evidence: Evidence, rank: int = 1) -> tuple[ev.Event, ...]:
    """An attempt of several pods that ends with a fault of this rank."""
    ended = ev.WorkerEnded(rank=rank, clean=False, finished=False)
    return (ended, ev.GroupEnded(), ev.Collected(evidence=of_rank(evidence, rank)))


def dismissals(told: list[Command]) -> list[tuple[int, int | None, float]]:
    """Which pod is told to end with what, and how much later than the others."""
    return [(c.pod, c.decision.code, c.yield_s) for c in told if isinstance(c, Dismiss)]


def kinds(told: list[Command]) -> set[type[Command]]:
    return {type(command) for command in told}
