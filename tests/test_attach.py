# SPDX-License-Identifier: Apache-2.0
"""Tests of finding the host: the supervisor's socket, or a keeper of one's own."""

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient.checkpoint.arena import Slot, create_arenas
from resilient.errors import ResilientError, SettingsError
from resilient.link import attach
from resilient.link.board import SLOTS, Board, row_base
from resilient.link.channel import send_descriptors
from resilient.link.messages import Begin, Note
from resilient.settings import worker_facts

FORK = multiprocessing.get_context("fork")


def environment(rank: int, ranks: int, **more: str) -> Mapping[str, str]:
    local = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return {**local, **more}


def test_a_supervised_worker_takes_its_inherited_socket(tmp_path: Path) -> None:
    """It finds the board and its slots, shares them with the host, and hands the socket to no child."""
    ours, theirs = socket.socketpair()
    board, slots = Board.create(2), create_arenas(2, tmp_path)[1]
    theirs.set_inheritable(True)
    send_descriptors(ours, [board.fd, *(slot.fd for slot in slots)])
    facts = worker_facts(environment(1, 2, RESILIENT_INTERNAL_LINK=str(theirs.detach())))
    found = attach.attach(facts)
    assert (found.supervised, found.index, len(found.slot_fds), len(found.shared_fds)) == (True, 1, SLOTS, 2)
    assert not found.channel.sock.get_inheritable()
    found.board.words[row_base(1)] = 5
    assert board.words[row_base(1)] == 5
    assert not found.host_is_gone()
    ours.close()
    assert found.host_is_gone()
    found.send(Note(text="nobody hears it"))
    found.channel.close()
    found.board.close()
    board.close()
    for slot in [*slots, *(Slot.from_fd(fd) for fd in [*found.slot_fds, *found.shared_fds])]:
        slot.close()


def test_a_descriptor_that_is_not_the_link_is_refused() -> None:
    """A child of a worker that builds a run of its own finds a closed descriptor, or another file behind it."""
    reader, writer = os.pipe()
    with pytest.raises(ResilientError, match="not its socket"):
        attach.attach(worker_facts({"RESILIENT_INTERNAL_LINK": str(reader)}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(ResilientError, match="another socket"):
            attach.attach(worker_facts({"RESILIENT_INTERNAL_LINK": str(server.fileno())}))
        assert server.getsockname()
    os.close(reader)
    os.close(writer)


def test_a_host_of_another_version_is_named() -> None:
    """One that hands out another number of slots is not taken for ours."""
    ours, theirs = socket.socketpair()
    board, slot = Board.create(1), Slot.create("a")
    send_descriptors(ours, [board.fd, slot.fd])
    with pytest.raises(ResilientError, match="another version of resilient"):
        attach.attach(worker_facts({"RESILIENT_INTERNAL_LINK": str(theirs.detach())}))
    ours.close()
    board.close()
    slot.close()


def test_a_host_that_has_ended_is_named() -> None:
    """A socket without descriptors on it means that the host is gone."""
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises(ResilientError, match="cannot attach to the host"):
        attach.attach(worker_facts({"RESILIENT_INTERNAL_LINK": str(theirs.detach())}))


def test_several_nodes_are_refused_with_a_reason() -> None:
    """Plain torchrun over nodes has no keeper that all could share."""
    facts = worker_facts({**environment(0, 4), "LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(SettingsError, match="cannot checkpoint over 2 nodes"):
        attach.attach(facts)


def standalone(rank: int, ranks: int) -> None:
    found = attach.attach(
        worker_facts(environment(rank, ranks, MASTER_PORT="1", TORCHELASTIC_RUN_ID=str(os.getppid())))
    )
    found.send(Note(text=f"rank {rank}"))
    answer = found.channel.receive()
    assert answer == Begin(attempt=rank + 1, checkpoints=f"rank {rank} True")
    assert (found.supervised, found.index) == (False, rank)
    found.channel.close()
    if found.keeper:
        assert found.keeper.wait(LIMIT_S) == 0


@pytest.mark.parametrize("ranks", [1, 3])
def test_standalone_workers_share_a_keeper(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank starts it in a session of its own, all connect, and no name is left in the temporary directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(attach.__file__).parents[2]))
    monkeypatch.setattr(attach, "KEEPER", (sys.executable, str(Path(__file__).with_name("keeper.py"))))
    workers = [FORK.Process(target=standalone, args=(rank, ranks)) for rank in reversed(range(ranks))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT_S)
    assert [worker.exitcode for worker in workers] == [0] * ranks
    assert list(tmp_path.iterdir()) == []


def test_a_keeper_that_never_listens_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank whose first rank died does not wait for ever."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(attach, "CONNECT_S", 0.0)
    facts = replace(worker_facts(environment(1, 2)), link_fd=None)
    with pytest.raises(ResilientError, match="did local rank 0 build its Run"):
        attach.attach(facts)


def test_a_keeper_that_cannot_start_leaves_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is noticed at once, named, and cleaned up after."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(attach, "KEEPER", (sys.executable, "-c", "raise SystemExit(3)"))
    worker = FORK.Process(target=refused)
    worker.start()
    worker.join(LIMIT_S)
    assert worker.exitcode == 0
    assert list(tmp_path.iterdir()) == []


def refused() -> None:
    with pytest.raises(ResilientError, match="cannot use the keeper"):
        attach.attach(worker_facts(environment(0, 1)))
