# SPDX-License-Identifier: Apache-2.0
"""Tests of a worker's run against a real host: resuming to the bit, acting at one boundary, and leaving."""

import os
import signal
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from host import FORK, WAIT_S, Host, left, taken
from torch import nn
from trainer import train

import resilient
from resilient.link import board as words
from resilient.link.messages import AtEnd, NotTaken, PhaseNamed, Steps, Taken, Tried, Try

STEPS = 12


def undisturbed(kind: str, folder: Path, batched: bool = True) -> str:
    with Host() as host:
        host.final_slot = None
        host.launch(train, kind, STEPS, folder / "undisturbed", batched)
        host.begin()
        assert host.wait() == [0]
    return (folder / "undisturbed.0").read_text()


def killed_at(steps: list[int], kind: str, folder: Path, batched: bool = True) -> str:
    """Kill the worker after its snapshot of each of ``steps``, resume from memory, and finish."""
    candidates: list[Try] = []
    with Host() as host:
        for step in steps:
            host.launch(train, kind, STEPS, folder / "killed", batched)
            host.order(step, snapshot=host.attempt % 2)
            assert bool(host.begin(candidates)) == bool(candidates), host.refusals()
            host.hear(Taken)
            candidates = [Try(name="memory", step=step, slot=host.attempt % 2)]
            host.kill()
            assert taken(host) == [step]
        host.launch(train, kind, STEPS, folder / "killed", batched)
        assert host.begin(candidates) == "memory", host.refusals()
        assert host.wait() == [0]
    return (folder / "killed.0").read_text()


@pytest.mark.parametrize("kind", ["plain", "workers", "persistent", "generator", "replacement", "unbatched"])
def test_a_killed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    """Killed within an epoch, on its border and in the next one, it ends like a run that nothing happened to."""
    assert killed_at([2, 5, 7], kind, tmp_path) == undisturbed(kind, tmp_path)


def test_a_run_without_batches_resumes_to_the_bit(tmp_path: Path) -> None:
    """Where only the decorated function is used, the generators are put back at its first call."""
    assert killed_at([4], "plain", tmp_path, batched=False) == undisturbed("plain", tmp_path, batched=False)


def free_running(steps: int, extra: Callable[[resilient.Run], None] | None = None, meeting: Any = None) -> None:
    """Ranks of changing speed that wait for one another every few steps only, if at all."""
    torch.set_num_threads(1)
    run = resilient.Run(state={"weights": {"w": torch.zeros(3)}})

    @run.step
    def step(batch: int) -> None:
        sum(range(100 + 400 * ((int(os.environ["RANK"]) + batch) % 3)))
        if meeting and run.step_number % 20 == 19:
            meeting.wait()

    for batch in run.batches([0, 1, 2], steps=steps):
        step(batch)
    if extra:
        extra(run)


def test_all_ranks_act_at_the_same_boundary_over_and_over() -> None:
    """Whatever the ranks are doing when a boundary is named, all take their snapshot there and stop at one step."""
    with Host(ranks=2) as host:
        host.launch(free_running, 10**9, None, FORK.Barrier(2, timeout=WAIT_S))
        host.begin()
        named = []
        for number in range(60):
            named.append(host.name(snapshot=number % 2))
            host.hear(Taken, 2 * len(named))
            assert [record.step for record in host.records(number % 2) if record] == [named[-1]] * 2
        named.append(host.name(snapshot=0, stop=True))
        assert host.wait() == [195, 195]
        assert sorted(taken(host)) == sorted(named * 2)
        assert left(host) == [named[-1]] * 2


def test_a_stop_waits_for_a_slot_that_is_given_later() -> None:
    """A stop whose slot is still being saved from is left only once the slot is free, and the snapshot is taken."""
    with Host() as host:
        host.launch(free_running, 10**9)
        host.begin()
        host.hear(Steps)
        step = host.name(snapshot=words.NONE, stop=True)
        while host.board.pulse(0).entered <= step and host.workers[0].is_alive():
            os.sched_yield()  # it is at the boundary, or will be within microseconds
        assert not taken(host)
        host.board.words[words.SNAPSHOT_SLOT] = 1
        assert host.wait() == [195]
        assert taken(host) == left(host) == [step]


def test_a_stop_without_a_snapshot_leaves_at_once() -> None:
    """A host that has nowhere to save to stops the ranks all the same."""
    with Host() as host:
        host.launch(free_running, 10**9)
        host.begin()
        host.hear(Steps)
        step = host.name(snapshot=-2, stop=True)
        assert host.wait() == [195]
        assert (taken(host), left(host)) == ([], [step])


def test_a_stop_at_the_final_boundary_finds_the_work_finished() -> None:
    """Steps that were asked for and made are never reported as a preemption."""
    with Host() as host:
        host.launch(free_running, 3)
        host.order(3, snapshot=0, stop=True)
        host.begin()
        assert host.wait() == [0]
        assert (taken(host), left(host)) == ([3], [])
        assert host.board.pulse(0).place == words.FINISHED
        assert host.records(0) == [None]
        assert host.records(1)[0].step == 3  # type: ignore[union-attr]  # there is one


def test_a_finished_run_makes_no_step() -> None:
    """Resumed after its last step, a run gives no batch and goes on behind the loop."""
    with Host() as host:
        host.launch(free_running, 3)
        host.begin()
        host.wait()
        host.launch(free_running, 3)
        host.begin([Try(name="memory", step=3, slot=1)])
        assert host.wait() == [0]
        assert [message for _, message in host.heard if isinstance(message, AtEnd)] == []
        assert host.board.pulse(0).done == 3


def test_an_earlier_submission_has_finished() -> None:
    """A worker that is told so ends with 0 and never gets to what follows the loop."""
    with Host() as host:
        host.finished_steps = 3
        host.launch(free_running, 3, lambda run: os._exit(9))
        host.begin()
        assert host.wait() == [0]


def endless_setup() -> None:
    run = resilient.Run(state={"numbers": [1]})
    heard, hears = socket.socketpair()
    hears.setblocking(False)
    signal.set_wakeup_fd(hears.fileno())
    for number in range(30):
        with run.phase(f"after {number} signals"):
            heard.recv(1)


def test_sigterm_is_obeyed_only_while_the_group_is_ended() -> None:
    """A platform that signals every process changes nothing; the supervisor's own ending does."""
    with Host() as host:
        host.launch(endless_setup)
        host.begin()
        host.hear(PhaseNamed)
        worker = host.workers[0]
        for count in (2, 3):
            os.kill(worker.pid, signal.SIGTERM)
            host.hear(PhaseNamed, count)
        host.board.words[words.END] = 1
        assert host.kill(signal.SIGTERM) == [143]


def test_a_broken_snapshot_is_refused_and_the_next_candidate_taken(tmp_path: Path) -> None:
    """One changed byte is found by the digest; the older snapshot in the other slot is loaded instead."""
    with Host() as host:
        host.launch(free_running, 10**9)
        host.begin()
        steps = []
        for slot in (0, 1):
            steps.append(host.name(snapshot=slot))
            host.hear(Taken, slot + 1)
        host.kill()
        record = host.records(1)[0]
        assert record
        host.slots[0][1].view(record.size)[record.size - 1] ^= 1
        host.launch(free_running, 10**9)
        tries = [Try(name="memory", step=steps[slot], slot=slot) for slot in (1, 0)]
        assert host.begin(tries) == "memory"
        assert "digest" in host.refusals()[0]
        assert host.board.pulse(0).done >= steps[0]
        assert host.records(1) == [None]


def keeps(model: nn.Module, result: Path) -> None:
    before = [parameter.clone() for parameter in model.parameters()]
    run = resilient.Run(state={"model": model})
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    result.write_text(f"{run.resumed_from} {same}")


def hold(model: nn.Module) -> None:
    run = resilient.Run(state={"model": model})
    step = run.step(lambda batch: None)
    for batch in run.batches([0], steps=10**9):
        step(batch)


def test_a_model_of_another_shape_is_refused_with_nothing_written(tmp_path: Path) -> None:
    """The refusal names the tensor, and the fresh model keeps every bit of its own."""
    with Host() as host:
        host.launch(hold, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        host.begin()
        host.hear(Steps)
        step = host.name(snapshot=0)
        host.hear(Taken)
        host.kill()
        host.launch(keeps, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5)), tmp_path / "result")
        assert host.begin([Try(name="memory", step=step, slot=0)]) == ""
        assert "state.model: 1.bias: saved as torch.float32 (4,), the model has" in host.refusals()[0]
        assert host.wait() == [0]
    assert (tmp_path / "result").read_text() == "None True"


class Growing:
    """State that can be saved at first and cannot later."""

    def __init__(self) -> None:
        self.value: object = 1

    def state_dict(self) -> dict[str, object]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, object]) -> None:
        raise KeyError("value")


def grow(result: Path) -> None:
    growing = Growing()
    run = resilient.Run(state={"growing": growing})

    @run.step
    def step(batch: int) -> None:
        growing.value = print if run.step_number >= 1 else 2

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for batch in run.batches([0], steps=4):
            step(batch)
    result.write_text(" ".join(str(warning.message)[:32] for warning in warned))


def test_what_cannot_be_saved_any_more_does_not_end_the_training(tmp_path: Path) -> None:
    """A snapshot that fails is reported to the host, warned of once, and the steps go on to the end."""
    with Host() as host:
        host.launch(grow, tmp_path / "result")
        host.order(2, snapshot=0)
        host.begin()
        assert host.wait() == [0]
        missed = [message for _, message in host.heard if isinstance(message, NotTaken)]
        assert [message.step for message in missed] == [2, 4]
        assert "state['growing']['value']" in missed[0].why
    assert (tmp_path / "result").read_text() == "cannot take a snapshot of step 2"


def test_a_load_that_fails_half_way_ends_the_worker() -> None:
    """No step is trained on a partial state."""
    with Host() as host:
        host.launch(hold_growing)
        host.begin()
        host.hear(Steps)
        step = host.name(snapshot=0)
        host.hear(Taken)
        host.kill()
        host.launch(hold_growing)
        with pytest.raises(AssertionError, match="the workers ended"):
            host.begin([Try(name="memory", step=step, slot=0)])
        assert [message.ok for _, message in host.heard if isinstance(message, Tried)] == [True]
        assert host.wait() == [42]


def hold_growing() -> None:
    try:
        run = resilient.Run(state={"growing": Growing()})
    except resilient.CheckpointError as error:
        raise SystemExit(42 if "state['growing']" in str(error) else 1) from None
    step = run.step(lambda batch: None)
    for batch in run.batches([0], steps=10**9):
        step(batch)


def misuse(result: Path) -> None:
    run = resilient.Run(state={"numbers": [1]})
    errors = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except resilient.ResilientError as error:
            errors.append(str(error))

    inner = run.step(lambda batch: None)
    outer = run.step(lambda batch: inner(batch))
    attempt(lambda: resilient.Run(state={}))
    attempt(lambda: outer(0))
    attempt(lambda: run.batches(iter([1]), steps=3))
    attempt(lambda: run.batches([1], steps=0))
    attempt(lambda: [run.phase(str(number)) for number in range(33)])
    for batch in run.batches([1], steps=2):
        inner(batch)
        attempt(lambda: inner(0))
    pid = os.fork()
    if not pid:
        try:
            inner(0)
        except resilient.ResilientError:
            os._exit(7)
        os._exit(0)
    errors.append(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    result.write_text("\n".join(errors))


def test_misuse_is_refused_with_a_reason(tmp_path: Path) -> None:
    """A second run, a nested step, an iterator, no steps, too many phases, two steps for one batch, a forked child."""
    with Host() as host:
        host.launch(misuse, tmp_path / "result")
        host.begin()
        assert host.wait() == [0]
    found = (tmp_path / "result").read_text().splitlines()
    expected = [
        "second Run",
        "inside another",
        "an iterator",
        "steps=0",
        "at most 32",
        "for this batch",
        "for this",
        "7",
    ]
    assert len(found) == len(expected)
    for text, error in zip(expected, found, strict=True):
        assert text in error


def train_together(store: Path, result: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    train("plain", STEPS, result)
    dist.destroy_process_group()


def test_two_ranks_that_are_killed_end_with_the_same_bits(tmp_path: Path) -> None:
    """One rank dies, both resume from the snapshot that all have, and each ends as undisturbed."""
    with Host(ranks=2) as host:
        host.final_slot = None
        host.launch(train_together, tmp_path / "store-0", tmp_path / "undisturbed")
        host.begin()
        assert host.wait() == [0, 0]
        host.launch(train_together, tmp_path / "store-1", tmp_path / "killed")
        host.order(7, snapshot=0)
        host.begin()
        host.hear(Taken)
        host.kill()
        host.launch(train_together, tmp_path / "store-2", tmp_path / "killed")
        assert host.begin([Try(name="memory", step=7, slot=0)]) == "memory", host.refusals()
        assert host.wait() == [0, 0]
    for rank in (0, 1):
        assert (tmp_path / f"killed.{rank}").read_text() == (tmp_path / f"undisturbed.{rank}").read_text()
