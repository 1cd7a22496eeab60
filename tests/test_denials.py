# SPDX-License-Identifier: Apache-2.0
"""What goes on a run's deny list, which entries count, and what they do to a start."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driving import DEVICE, KILLED, ONE, SETTLED, code_of, denial, drive, fail, raised

from resilient.core import events as ev
from resilient.core.classify import classify
from resilient.core.commands import Announce, Command, RecordDebit, StartWorkers
from resilient.core.denials import SKEW_S, concerning, in_force, refusals_in_a_row, suspect_of
from resilient.core.denied import LASTS_S, Denial, Denied, Suspect
from resilient.core.devices import Device, DeviceEvidence, State
from resilient.core.evidence import Evidence, RankEvidence, Ruling
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase
from resilient.core.machine import advance, begin
from resilient.core.policy import Terms

THERE = replace(ONE, has_store=True, terms=Terms(in_kubernetes=True, node="node-a"))
NODE, GPU = denial("node-a"), denial("GPU-1")
REFUSED = (ev.Debit(code=198, step=0),) * 3


def lost(*uuids: str, well: tuple[str, ...] = ()) -> Evidence:
    """A worker whose driver has lost some of its devices."""
    devices = [
        DeviceEvidence(device=Device(index=index, uuid=uuid, state=State.LOST if uuid in uuids else State.ANSWERS))
        for index, uuid in enumerate((*uuids, *well))
    ]
    return Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0, devices=tuple(devices)),))


def suspect(evidence: Evidence, node: str | None = "node-a") -> Suspect | None:
    return suspect_of(classify(evidence), evidence, node)


def start(job: Job, opened: ev.Opened, examined: ev.Examined) -> tuple[Job, list[Command]]:
    """A start up to the end of its preflight."""
    job, _ = begin(job, 0.0)
    job, _ = advance(job, opened, 0.0)
    job, commands = advance(job, examined, 0.0)
    return job, list(commands)


# What is kept off.


def test_the_one_device_that_can_be_to_blame_is_kept_off_else_the_node() -> None:
    """Of several the one that is not well; where that is not one, all of the node."""
    assert suspect(lost("GPU-1")) == Suspect(
        kind=Denied.DEVICE, name="GPU-1", rule="device-lost", evidence=classify(lost("GPU-1")).evidence[0]
    )
    one_of_two = suspect(lost("GPU-1", well=("GPU-2",)))
    assert one_of_two is not None
    assert one_of_two.name == "GPU-1"
    for evidence in (lost("GPU-1", "GPU-2"), DEVICE):
        found = suspect(evidence)
        assert found is not None
        assert (found.kind, found.name) == (Denied.NODE, "node-a")


def test_nothing_is_kept_off_without_a_name_or_a_device_grade_verdict() -> None:
    """A node that is not known cannot be named, and a crash or the script's own ruling blames no hardware."""
    assert suspect(DEVICE, node=None) is None
    assert suspect(KILLED) is None
    assert suspect(raised("resilient.errors.Reschedule", ruling=Ruling.RESCHEDULE)) is None


@pytest.mark.parametrize(("in_kubernetes", "kept_off"), [(True, "node-a"), (False, None)])
def test_a_device_grade_exit_puts_it_on_the_list(in_kubernetes: bool, kept_off: str | None) -> None:
    """With the exit's own record, and only where something moves the pod."""
    job = replace(THERE, terms=replace(THERE.terms, in_kubernetes=in_kubernetes))
    _, told = drive(job, ev.Opened(next_attempt=1), *fail(DEVICE), *SETTLED)
    (record,) = (command for command in told if isinstance(command, RecordDebit))
    assert (record.debit.code, record.suspect and record.suspect.name) == (194, kept_off)


def test_who_is_asked_to_leave_meanwhile_denies_nothing() -> None:
    """The exit is 196 then, and moves the pod for another reason."""
    _, told = drive(THERE, ev.Opened(next_attempt=1), *fail(DEVICE), ev.LeaveAsked(by="SIGTERM"), *SETTLED)
    (record,) = (command for command in told if isinstance(command, RecordDebit))
    assert (record.debit.code, record.suspect) == (196, None)


# Which entries count.


def test_an_entry_counts_for_a_day_by_a_clock_that_may_differ() -> None:
    """One from the future says nothing, and none lasts longer than a day, whatever it says."""
    times = {-2 * SKEW_S: False, -SKEW_S / 2: True, 0.0: True, LASTS_S - 1: True, LASTS_S: False}
    for wall_s, counts in times.items():
        assert bool(in_force([NODE], wall_s=wall_s, pods=1)) == counts, wall_s
    assert not in_force([replace(NODE, expires_s=10 * LASTS_S)], wall_s=LASTS_S, pods=1)
    assert not in_force([replace(NODE, expires_s=5.0)], wall_s=6.0, pods=1)


@pytest.mark.parametrize(("pods", "count"), [(1, 2), (40, 2), (60, 3), (1000, 50)])
def test_only_the_newest_few_count(pods: int, count: int) -> None:
    """Two, or a twentieth of the pods: a list can never keep a run off the whole cluster."""
    many = [denial(f"node-{number}", written_s=float(number)) for number in range(100)]
    names = [each.suspect.name for each in in_force(many, wall_s=100.0, pods=pods)]
    assert names == [f"node-{number}" for number in range(99, 99 - count, -1)]


def test_an_entry_concerns_this_node_or_a_device_that_is_here() -> None:
    """A device that has left the node denies nothing, and an unknown node is on no list."""
    assert concerning((NODE, GPU), "node-a", ()) == (NODE,)
    assert concerning((NODE, GPU), "node-b", ("GPU-1", "GPU-2")) == (GPU,)
    assert concerning((NODE, GPU), None, ()) == ()
    assert concerning((denial("GPU-2"),), "GPU-2", ()) == ()


def test_refusals_are_counted_since_the_last_other_exit() -> None:
    """In a row."""
    codes = [198, 198, 193, 198, 198]
    assert refusals_in_a_row(ev.Debit(code=code, step=0) for code in codes) == 2


# What they do to a start.


@pytest.mark.parametrize(
    ("denials", "examined"),
    [((NODE,), ev.Examined()), ((GPU,), ev.Examined(devices=("GPU-1",))), ((), ev.Examined(listed=(NODE,)))],
    ids=["the node", "a device", "the platform's list"],
)
def test_a_denied_start_is_refused_on_record(denials: tuple[Denial, ...], examined: ev.Examined) -> None:
    """198 before anything is started, with the reason."""
    listed = tuple(replace(each, of_platform=True) for each in examined.listed)
    job, told = start(THERE, ev.Opened(next_attempt=1, denials=denials), replace(examined, listed=listed))
    assert not any(isinstance(command, StartWorkers) for command in told)
    (record,) = (command for command in told if isinstance(command, RecordDebit))
    assert record.debit.code == ExitCode.NODE_REFUSED
    assert "deny list" in record.why
    job, commands = advance(job, ev.Recorded(), 0.0)
    assert code_of(list(commands)) == ExitCode.NODE_REFUSED


def test_a_refusal_that_is_not_on_record_is_counted() -> None:
    """199, so that no loop of refusals is without a bound."""
    job, _ = start(THERE, ev.Opened(next_attempt=1, denials=(NODE,)), ev.Examined())
    _, commands = advance(job, ev.RecordFailed(why="disk full"), 0.0)
    assert code_of(list(commands)) == ExitCode.INTERNAL


def test_after_three_refusals_in_a_row_it_runs_and_says_so() -> None:
    """Unless the preflight finds something."""
    opened = ev.Opened(next_attempt=4, denials=(NODE,), debits=REFUSED)
    job, told = start(THERE, opened, ev.Examined())
    assert job.phase is Phase.RUNNING
    (said,) = (command.text for command in told if isinstance(command, Announce))
    assert "refused 3 times in a row" in said
    job, told = start(THERE, opened, ev.Examined(refusal="a GPU is lost", do="cordon it"))
    assert job.ending is not None
    assert job.ending.code == ExitCode.NODE_REFUSED
    job, _ = start(THERE, replace(opened, debits=REFUSED[1:]), ev.Examined())
    assert job.phase is Phase.RECORDING


def test_elsewhere_than_in_kubernetes_only_the_platforms_list_counts() -> None:
    """Nothing would move the start; whoever names a list means it."""
    here = replace(THERE, terms=Terms(node="node-a"))
    job, _ = start(here, ev.Opened(next_attempt=1, denials=(NODE,)), ev.Examined())
    assert job.phase is Phase.RUNNING
    listed = ev.Examined(listed=(denial("node-a", of_platform=True),))
    job, _ = start(here, ev.Opened(next_attempt=1), listed)
    assert job.phase is Phase.RECORDING


def test_under_observe_it_is_said_and_nothing_more() -> None:
    """As torchrun would."""
    watching = replace(THERE, terms=replace(THERE.terms, observe=True))
    job, told = start(watching, ev.Opened(next_attempt=1, denials=(NODE,)), ev.Examined())
    assert job.phase is Phase.RUNNING
    assert any(isinstance(command, Announce) and "(--observe)" in command.text for command in told)


def test_a_script_that_names_its_store_is_refused_before_its_first_step() -> None:
    """Its workers wait for the store; once it has trained here, or was restarted, it is no start any more."""
    late = replace(THERE, has_store=False)
    waiting = (ev.HeartbeatOpened(), ev.Announced())
    opened = ev.Opened(next_attempt=1, denials=(NODE,))
    gone = (ev.GroupEnded(), *SETTLED)
    assert code_of(drive(late, *waiting, opened, *gone)[1]) == ExitCode.NODE_REFUSED
    for before in ((ev.Advanced(step=1),), (*fail(KILLED), ev.DeadlinePassed())):
        job, _ = drive(late, *waiting, *before, opened)
        assert job.phase is Phase.RUNNING
