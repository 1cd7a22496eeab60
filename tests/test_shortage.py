# SPDX-License-Identifier: Apache-2.0
"""A node that is short of something: said in one sentence, survived where that is possible, and never called a bug."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from supervised import HEAD, Folder

from resilient.errors import SettingsError
from resilient.supervisor import group, processes
from resilient.supervisor.output import Lines


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def limited(what: int, number: int) -> list[str]:
    """A program that lowers a limit of its own and becomes what follows."""
    lower = f"resource.setrlimit({what}, ({number}, {number}))"
    lower = f"import os, resource, sys; {lower}; os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", lower]


def test_a_worker_that_the_system_does_not_start_is_a_fault_of_the_node(folder: Folder) -> None:
    """Here its command and environment are longer than the kernel takes: judged and bounded like any other fault."""
    arguments = ("--max-restarts", "0", "--no-python", "true")
    stack = 1 << 20  # of which a quarter is for words and the pointers to them
    environ = folder.environment(folder.path / "journal-1", {"PAD1": "", "PAD2": ""})
    words = [sys.executable, "-m", "resilient", "run", *arguments, *(f"{name}={environ[name]}" for name in environ)]
    room = stack // 4 - sum(len(os.fsencode(word)) + 1 + 8 for word in words)
    pad = "x" * ((room - 600) // 2)  # a worker is told more than that
    with folder.start(*arguments, init=limited(resource.RLIMIT_STACK, stack), PAD1=pad, PAD2=pad) as running:
        ended = running.wait()
    assert (ended.code, ended.rules) == (116, ["not-started"]), ended.stderr
    assert "Argument list too long" in ended.termination["why"]


def test_workers_are_started_although_nothing_can_be_made_in_the_journal(folder: Folder) -> None:
    """A full disk at a restart; what is lost is only the record of what they may raise."""
    body = """
import shutil
if once("first"):
    journal = HERE / "journal-1"
    shutil.rmtree(journal)
    journal.write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
print("again")
"""
    ended = folder.run(folder.script(HEAD + body), RESILIENT_TERMINATION_LOG=str(folder.path / "last-word"))
    assert (ended.code, ended.stdout) == (0, "[rank0] again\n"), ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 115, "cannot keep a journal: no directory for temporary files can be written"),
        (("--journal", "journal"), 199, "cannot supervise: [Errno 27] File too large"),
    ],
)
def test_what_is_missing_before_anything_starts_is_said_in_a_sentence(
    folder: Folder, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """In the pod's status too; here no file may grow."""
    environ = {"RESILIENT_JOURNAL": "", "RESILIENT_TERMINATION_LOG": "/dev/stderr"}
    init = limited(resource.RLIMIT_FSIZE, 0)
    with folder.start(*arguments, "--no-python", "true", init=init, **environ) as running:
        ended = running.wait()
    assert ended.code == code
    status, line = ended.stderr.splitlines()[-2:]
    assert line.startswith(f"resilient: {said}")
    assert (json.loads(status)["code"], line[11:].startswith(json.loads(status)["why"])) == (code, True)


def test_open_files_are_allowed_for_all_workers_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit of a container is often low, and is raised; a hard one that is too low is named."""
    limits = [64, 1024]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda which, given: limits.__setitem__(slice(None), given))
    processes.allow_descriptors(8)
    assert (limits[0] >= 8 * 7, limits[1]) == (True, 1024)
    with pytest.raises(SettingsError, match="1000 workers with at most 1024 open files"):
        processes.allow_descriptors(1000)


def test_a_pipe_that_a_stranger_writes_to_for_ever_is_left(tmp_path: Path) -> None:
    """What a worker has printed is passed on; a process of its own that nobody can find may hold its pipe."""
    worker = processes.spawn(["yes"], environ=dict(os.environ))
    printed: list[bytes] = []
    lines = Lines()
    member = group.Member(
        rank=0, process=worker, channel=None, stdout=lines.relay(printed.append), stderr=lines.relay(printed.append),
        error_file=tmp_path / "e", torchelastic_file=tmp_path / "t", spawned_at=0.0,
        open_pipes={fd for fd in (worker.stdout, worker.stderr) if fd is not None},
    )  # fmt: skip
    assert worker.stdout is not None
    os.set_blocking(worker.stdout, True)
    assert group.read_pipe(member, worker.stdout)
    group.drain(member)
    assert member.open_pipes == set()
    assert b"".join(printed).startswith(b"y\ny\n")
    worker.send(signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    worker.close()
