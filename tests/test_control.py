# SPDX-License-Identifier: Apache-2.0
"""`resilient save` and `resilient stop`, over real sockets."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectFileSystem
from supervised import LIMIT_S

from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import Holder, machine, process
from resilient.checkpoint.lock import Lock, acquire
from resilient.checkpoint.store import open_store
from resilient.errors import ResilientError, SettingsError
from resilient.supervisor.control import SOCKET, Control, Request, control_command

WAIT_S = LIMIT_S
assert ObjectFileSystem.protocol == "objects"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    return directory


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@contextmanager
def listening(directory: Path) -> Iterator[Control]:
    control = Control(directory)
    try:
        yield control
    finally:
        control.close()


def next_request(control: Control) -> Request:
    """What a loop does: wait for the descriptor, then take the request."""
    while True:
        ready, _, _ = select.select([control], [], [], WAIT_S)
        assert ready, "nobody asked"
        request = control.accept()
        if request is not None:
            return request


def holder_of(journal: Path) -> Holder:
    me = process(os.getpid())
    return Holder(
        host="here", pid=os.getpid(), pod="train-0", journal=str(journal), since_s=1.0, machine=machine(),
        supervisor=me, keeper=me,
    )  # fmt: skip


def hold(store: Store, holder: Holder) -> Lock:
    return acquire(store, holder, patience_s=0.0, now=lambda: 0.0, wait=lambda seconds: None)


def connect(directory: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(str(directory / SOCKET))
    return link


@pytest.mark.parametrize("verb", ["save", "stop"])
def test_a_request_is_answered(
    journal: Path, pool: ThreadPoolExecutor, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verb arrives, the answer is printed, and `stop` says what Kubernetes will do and how to end it for good."""
    with listening(journal) as control:
        asked: Future[int] = pool.submit(control_command, verb, str(journal))
        request = next_request(control)
        assert request.verb == verb
        request.reply("done, \x1b[31mstep 7")
        assert asked.result(WAIT_S) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("done, step 7\n")
    assert ("kubectl delete job" in printed) == (verb == "stop")


def test_a_refusal_is_an_error(journal: Path, pool: ThreadPoolExecutor) -> None:
    """And the answer is its text."""
    with listening(journal) as control:
        asked = pool.submit(control_command, "save", str(journal))
        next_request(control).reply("cannot save: no worker trains yet")
        with pytest.raises(ResilientError, match=r"^cannot save: no worker trains yet$"):
            asked.result(WAIT_S)


def test_the_command_line_reaches_it(journal: Path) -> None:
    """From another process, as a person would."""
    with listening(journal) as control:
        command = [sys.executable, "-m", "resilient", "save", str(journal)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
            next_request(control).reply("saving")
            assert asking.communicate()[0] == "saving\n"
        assert asking.returncode == 0


def test_only_its_user_may_ask(journal: Path) -> None:
    """The socket's own mode says so, whatever the directory's."""
    with listening(journal):
        assert (journal / SOCKET).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_not_heard(journal: Path) -> None:
    """Not even one who got to the socket: the kernel says who it is."""
    script = f"""
import os, socket
os.chdir({str(journal)!r})
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as link:
    link.connect({SOCKET!r})
    link.sendall(b"stop\\n")
    raise SystemExit(link.recv(10) != b"")
"""
    with listening(journal) as control:
        journal.chmod(0o777)
        (journal / SOCKET).chmod(0o666)
        with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as stranger:
            select.select([control], [], [], WAIT_S)
            assert control.accept() is None
            errors = stranger.communicate()[1]
        assert stranger.returncode == 0 or b"reset" in errors or b"Broken pipe" in errors
        assert control.accept() is None


def test_accept_never_waits(journal: Path) -> None:
    """Not for a connection, and not for one that says nothing; others are heard meanwhile."""
    with listening(journal) as control:
        assert control.accept() is None
        with connect(journal), connect(journal) as other:
            assert control.accept() is None
            other.sendall(b"save\n")
            assert next_request(control).verb == "save"


@pytest.mark.parametrize("line", [b"", b"rm -rf /\n", b"save", b"\xff\xfe\n", b"stop\nstop\n", b"x" * 1000])
def test_what_is_no_request_is_hung_up_on(journal: Path, line: bytes) -> None:
    """Without an answer, and the next one is heard."""
    with listening(journal) as control:
        with connect(journal) as link:
            link.sendall(line)
            link.shutdown(socket.SHUT_WR)
            assert control.accept() is None
            link.settimeout(WAIT_S)
            with suppress(ConnectionResetError):  # it left unread what was too long
                assert link.recv(10) == b""
        with connect(journal) as link:
            link.sendall(b"stop\n")
            assert next_request(control).verb == "stop"


def test_a_crowd_that_says_nothing_keeps_nobody_out(journal: Path) -> None:
    """Nor does it use up our descriptors: the oldest is hung up on, and only that one."""
    with listening(journal) as control, ExitStack() as clients:
        crowd = [clients.enter_context(connect(journal)) for _ in range(16)]
        control.accept()
        with connect(journal) as link:
            link.sendall(b"save\n")
            assert next_request(control).verb == "save"
        for client in crowd:
            client.settimeout(WAIT_S)
        assert crowd[0].recv(1) == b""
        for client in crowd[1:]:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


def test_whoever_asks_and_leaves_does_no_harm(journal: Path) -> None:
    """Its answer goes nowhere; a second answer, and one after the end, are nothing."""
    with listening(journal) as control:
        with connect(journal) as link:
            link.sendall(b"save\n")
            request = next_request(control)
        request.reply("x")
        request.reply("again")
    request.reply("too late")


def test_a_supervisor_that_ends_leaves_nobody_waiting(journal: Path, pool: ThreadPoolExecutor) -> None:
    """Who asked is told that there will be no answer; and the socket is gone."""
    with listening(journal) as control:
        asked = pool.submit(control_command, "stop", str(journal))
        next_request(control)
    with pytest.raises(ResilientError, match="cannot tell whether the supervisor did it"):
        asked.result(WAIT_S)
    assert not (journal / SOCKET).exists()


def test_a_dead_supervisors_socket_is_replaced(journal: Path) -> None:
    """Nobody listens on it: the client says so, and the next supervisor takes its place."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(journal / SOCKET))
    dead.close()
    with pytest.raises(ResilientError, match=r"nobody listens in .*resilient explain"):
        control_command("save", str(journal))
    with listening(journal) as control, connect(journal) as link:
        link.sendall(b"save\n")
        assert next_request(control).verb == "save"


def test_a_live_supervisors_socket_is_not(journal: Path) -> None:
    """A second supervisor is refused, and neither it nor its end takes the first one's socket away."""
    with listening(journal) as control:
        with pytest.raises(SettingsError, match="another supervisor does"):
            Control(journal)
        with connect(journal) as link:
            link.sendall(b"save\n")
            while (request := control.accept()) is None:
                select.select([control], [], [], WAIT_S)
            assert request.verb == "save"


def test_a_successors_socket_stays(journal: Path) -> None:
    """A supervisor that ends late unlinks its own socket only."""
    late = Control(journal)
    (journal / SOCKET).unlink()
    with listening(journal):
        late.close()
        assert (journal / SOCKET).exists()


def test_a_file_in_the_sockets_place_is_not_deleted(journal: Path) -> None:
    """It may be somebody's."""
    (journal / SOCKET).write_text("precious")
    with pytest.raises(SettingsError, match="is no socket; remove it"):
        Control(journal)
    assert (journal / SOCKET).read_text() == "precious"


def test_paths_longer_than_an_address(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """An AF_UNIX address has room for 107 bytes, a journal may lie deeper."""
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    with listening(directory) as control:
        asked = pool.submit(control_command, "save", str(directory))
        next_request(control).reply("ok")
        assert asked.result(WAIT_S) == 0


@pytest.mark.parametrize("scheme", ["", "objects://"])
def test_a_run_is_found_by_its_checkpoints(
    journal: Path, tmp_path: Path, pool: ThreadPoolExecutor, scheme: str
) -> None:
    """The lock names the journal's directory, on a file system and on an object store."""
    url = f"{scheme}{tmp_path}/run"
    lock = hold(open_store(url), holder_of(journal))
    with listening(journal) as control:
        asked = pool.submit(control_command, "save", url)
        next_request(control).reply("ok")
        assert asked.result(WAIT_S) == 0
    lock.release()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"machine": "other"}, r"from here.*kubectl exec train-0 -- resilient stop /"),
        ({"machine": "other", "pod": ""}, r"from here.*on here: resilient stop /"),
        ({"supervisor": "1:1"}, r"the last one, process .*, has ended"),
        ({"journal": ""}, r"none has it, process .* held it last, for a command"),
        ({"journal": "/no/such"}, r"/no/such cannot be opened"),
    ],
)
def test_a_supervisor_out_of_reach_is_named(
    journal: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    """On another machine: with the line that reaches it; dead; or unknown."""
    run = tmp_path / "run"
    lock = hold(open_store(str(run)), replace(holder_of(journal), **changes))
    with pytest.raises(ResilientError, match=expected):
        control_command("stop", str(run))
    lock.release()


def test_targets_that_are_none_are_refused(tmp_path: Path) -> None:
    """A path that does not exist, and a directory that nobody ever trained in."""
    with pytest.raises(SettingsError, match="there is no such directory"):
        control_command("save", str(tmp_path / "missing"))
    for run in (str(tmp_path), f"objects://{tmp_path}"):
        with pytest.raises(SettingsError, match="nobody has ever held it"):
            control_command("save", run)


def test_a_damaged_lease_is_no_crash(tmp_path: Path) -> None:
    """What lies in a bucket is untrusted."""
    (tmp_path / ".lock").mkdir()
    (tmp_path / ".lock/3.json").write_text("[" * 1000)
    with pytest.raises(SettingsError, match="nobody has ever held it"):
        control_command("save", f"objects://{tmp_path}")
