# SPDX-License-Identifier: Apache-2.0
"""The last lines of a supervisor on stderr, and the exit codes as people read them.

Owns the sentences about exit codes; their numbers and what they do are the contract's.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from resilient.core.causes import Verdict
from resilient.core.exit_codes import OBSERVED_FAILURE, ExitCode
from resilient.core.grammar import going_on

_SENTENCE_CHARS: Final = 600
_UNRECORDED: Final = "what it was to end with could not be put on record"
_SHUT: Final = "the checkpoint store cannot be used, and without it nothing can be put on record"
_KILLED: Final = 137
"""128 + SIGKILL: nobody of ours exits with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One exit code, in words."""

    name: str
    means: str
    platform: str
    """What Kubernetes does about it, under the policy of the contract."""
    do: str


_REPLACES: Final = "Kubernetes starts the pod anew, without counting it as a failure"
_FAILS: Final = "Kubernetes fails the Job and starts nothing again"
_COUNTS: Final = "Kubernetes counts a failure and starts the container or pod again"

MEANINGS: Final[Mapping[int, Meaning]] = {
    ExitCode.FINISHED: Meaning(
        name="finished", means="the work is done", platform="Kubernetes counts the pod as succeeded", do="nothing"
    ),
    OBSERVED_FAILURE: Meaning(
        name="failed, observed",
        means="the workers failed under --observe, and it ends as torchrun would",
        platform="what the Job's policy says of 1",
        do="read the verdict; run without --observe to have it acted upon",
    ),
    ExitCode.CODE_FAULT: Meaning(
        name="code fault",
        means="the same code would fail again",
        platform=_FAILS,
        do="correct the code and submit the job again",
    ),
    ExitCode.CONFIG_FAULT: Meaning(
        name="configuration or checkpoint fault",
        means="a setting is wrong, or the store answered and holds nothing usable",
        platform=_FAILS,
        do="correct the setting, the URL or the mount and submit the job again",
    ),
    ExitCode.BUDGET_SPENT: Meaning(
        name="budget spent",
        means="restarts or time went by without progress",
        platform=_FAILS,
        do="find the cause first; a new submission starts with full budgets",
    ),
    ExitCode.CANNOT_EXECUTE: Meaning(
        name="cannot be executed",
        means="the command is not executable",
        platform=_FAILS,
        do="correct the command or the image",
    ),
    ExitCode.NOT_FOUND: Meaning(
        name="not found", means="the command does not exist", platform=_FAILS, do="correct the command or the image"
    ),
    _KILLED: Meaning(
        name="killed (not ours)",
        means="SIGKILL from outside: the OOM killer, a grace period that ran out, an eviction or a lost node",
        platform=_COUNTS,
        do="read what `resilient explain` holds for probable; raise the memory limit or the grace period if it says so",
    ),
    ExitCode.RESTART: Meaning(
        name="restart", means="this node is fine, a fresh container helps", platform=_COUNTS, do="nothing"
    ),
    ExitCode.RESCHEDULE: Meaning(
        name="reschedule",
        means="the node or a device is suspect",
        platform=_REPLACES,
        do="have the node looked at, and cordon it if the pod comes back to it",
    ),
    ExitCode.PREEMPTED_SAVED: Meaning(
        name="preempted, saved",
        means="asked to leave; a checkpoint of the last step is durable",
        platform=_REPLACES,
        do="nothing; to end the run for good, delete the Job",
    ),
    ExitCode.PREEMPTED_UNSAVED: Meaning(
        name="preempted, not saved",
        means="asked to leave; the last durable checkpoint is older than the last step",
        platform=_REPLACES,
        do="nothing; if it comes often, give a longer grace period or save more often",
    ),
    ExitCode.PEER_FAILED: Meaning(
        name="healthy, a peer failed",
        means="nothing is wrong here, and waiting longer in place is no use",
        platform=_REPLACES,
        do="look at the pod that it names",
    ),
    ExitCode.NODE_REFUSED: Meaning(
        name="refused at start",
        means="this node is on the deny list, or failed its preflight",
        platform=_REPLACES,
        do="have the node looked at; `resilient forgive` takes it off the list",
    ),
    ExitCode.INTERNAL: Meaning(
        name="internal",
        means="a bug in the supervisor, or it could not do its bookkeeping",
        platform=_COUNTS,
        do="restore the checkpoint store if it names that, else report it with the journal",
    ),
}
_UNKNOWN: Final = Meaning(name="unknown", means="not a code of ours", platform="what the Job's policy says", do="")


def last_words(
    code: int,
    why: str,
    do: str,
    *,
    target: str,
    attempts: int,
    highest_step: int,
    durable_step: int,
    verdict: Verdict | None = None,
    in_kubernetes: bool = False,
    unrecorded: bool = False,
    has_store: bool = False,
) -> str:
    """What is said last, at most a dozen lines; ``target`` is what ``resilient explain`` is to be given."""
    known = meaning(code)
    means = known.means if not unrecorded else _SHUT if has_store else _UNRECORDED
    reached = _reached(attempts, highest_step)
    more = f"resilient: read more: resilient explain {shlex.quote(target)}\n"
    if code == ExitCode.FINISHED:
        return _lines(f"finished: {going_on(why)}; {reached}", f"next: {do}" if do != known.do else "") + more
    said = _lines(
        f"ended with exit code {code} ({known.name}): {means}",
        _what_failed(verdict),
        f"why: {why}",
        _judged(verdict, why),
        f"next: {do}",
        f"then: {known.platform}" if in_kubernetes else "",
        f"so far: {reached}{_saved(attempts, durable_step)}",
    )
    return said + more


def _reached(attempts: int, highest_step: int) -> str:
    if not attempts and not highest_step:
        return "nothing was started"
    step = f"step {highest_step} was reached" if highest_step else "no step is on record"
    return f"{step}, {_count(attempts, 'attempt')}"


def _saved(attempts: int, durable_step: int) -> str:
    """Of a store that a supervisor without an attempt may never have opened nothing is known."""
    if durable_step:
        return f"; step {durable_step} is saved"
    return "; no checkpoint is saved" if attempts else ""


def meaning(code: int) -> Meaning:
    """A code in words, whoever made it."""
    return MEANINGS.get(code, _UNKNOWN)


def exit_code_table() -> str:
    """The codes for the README, in Markdown."""
    rows = [
        f"| {int(code)} | {known.name} | {'Completed' if code == 0 else 'Error'}, exit code {int(code)} "
        f"→ {known.means}; {known.platform} → {known.do} |"
        for code, known in sorted(MEANINGS.items())
    ]
    return "\n".join(["| code | name | kubectl shows → it means → do |", "|---|---|---|", *rows])


def _what_failed(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    when = "after" if verdict.between else "in"
    who = "all workers alike" if verdict.culprit is None else f"rank {verdict.culprit}"
    return f"what failed: {who}" + (f", {when} step {verdict.step}" if verdict.step else "")


def _judged(verdict: Verdict | None, why: str) -> str:
    """The verdict's sentence is said once: the reason of the exit mostly contains it."""
    if verdict is None:
        return ""
    sentence = "" if going_on(verdict.why) in why else f" {going_on(verdict.why)};"
    return f"verdict:{sentence} {verdict.cause.value} by rule {verdict.rule}, confidence {verdict.confidence.value}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _lines(*lines: str) -> str:
    """Each on one line of its own, whatever line ends are in it."""
    flat = (" ".join(line.split()) for line in lines if line)
    cut = (line if len(line) <= _SENTENCE_CHARS else line[: _SENTENCE_CHARS - 3] + "..." for line in flat)
    return "".join(f"resilient: {line}\n" for line in cut)
