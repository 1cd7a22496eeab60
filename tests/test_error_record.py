# SPDX-License-Identifier: Apache-2.0
"""Tests of a worker's last words, each in a real interpreter that ends of its exception."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import LIMIT_S

import resilient
from resilient.core import wire
from resilient.core.error_text import from_torchelastic
from resilient.core.evidence import ErrorRecord, Ruling

PREAMBLE = """
import atexit, os, sys
import resilient
from resilient.training.error_record import LastWords
atexit.register(print, "atexit ran")
words = LastWords(rank=3, path={path!r}, torchelastic_path={elastic!r}, supervised={supervised!r})
words.step = lambda: 41
words.install()
"""


def run(body: str, folder: Path, *, supervised: bool = True) -> tuple[subprocess.CompletedProcess[str], Path]:
    path = folder / "error.json"
    paths = {"path": str(path) if supervised else None, "elastic": None if supervised else str(path)}
    script = folder / "train.py"
    script.write_text(PREAMBLE.format(**paths, supervised=supervised) + body)
    command = [sys.executable, str(script)]
    environ = {**os.environ, "PYTHONPATH": str(Path(resilient.__file__).parents[1])}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False), path


def record(body: str, folder: Path) -> ErrorRecord:
    done, path = run(body, folder)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stdout == "atexit ran\n"
    return wire.decode(path.read_bytes(), {"ErrorRecord": ErrorRecord})


def test_the_record_says_what_where_and_when(tmp_path: Path) -> None:
    """Type, message, bases, the user's innermost frame, rank, step; and Python's own output stays."""
    body = "import json\ndef loss():\n    json.loads('{')\nloss()\n"
    found = record(body, tmp_path)
    assert found.type == "json.decoder.JSONDecodeError"
    assert found.chain[0].bases[0] == "ValueError"
    assert found.message.startswith("Expecting property name")
    line = PREAMBLE.count("\n") + 3
    assert (found.frame, found.function) == (f"train.py:{line} in loss", "train.py:loss")
    assert (found.rank, found.step, found.ruling) == (3, 41, None)
    assert all((found.host, found.monotonic_s, found.wall_s))
    assert "loss()" in found.traceback


def test_the_chain_has_causes_contexts_and_members(tmp_path: Path) -> None:
    """What an exception came from stands behind it; a suppressed context does not; BaseExceptions count."""
    body = """
class Members(BaseException):
    exceptions = (KeyError("member"),)
class CheckpointException(BaseException):
    failures = {0: (OSError("disk"), "summary"), 1: IndexError("rank 1")}
try:
    try:
        raise ValueError("suppressed")
    except ValueError:
        raise CheckpointException("dcp") from None
except BaseException as error:
    raise Members("outer") from error
"""
    types = [link.type.rpartition(".")[2] for link in record(body, tmp_path).chain]
    assert types == ["Members", "CheckpointException", "KeyError", "OSError", "IndexError"]


def test_what_a_checkpoint_failed_of_is_in_its_chain(tmp_path: Path) -> None:
    """torch's own exception, with the failures of other ranks as it collects them."""
    body = """
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception
def failed(error):
    try:
        raise error
    except Exception as caught:
        return _wrap_exception(caught)
raise CheckpointException("save", {0: failed(OSError(28, "No space left")), 5: failed(EOFError("cut"))})
"""
    types = [link.type for link in record(body, tmp_path).chain]
    assert types == ["torch.distributed.checkpoint.api.CheckpointException", "OSError", "EOFError"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
def test_all_members_of_groups_are_in_the_chain(tmp_path: Path) -> None:
    """Groups within groups, and what their members came from."""
    body = """
def caused():
    try:
        raise KeyError("cause")
    except KeyError as cause:
        error = ValueError("first")
        error.__cause__ = cause
        return error
raise ExceptionGroup("outer", [caused(), ExceptionGroup("inner", [OSError("second")]), TypeError("third")])
"""
    types = [link.type for link in record(body, tmp_path).chain]
    assert types == ["ExceptionGroup", "ValueError", "ExceptionGroup", "TypeError", "KeyError", "OSError"]


def test_the_exception_of_a_spawned_process_is_unwrapped(tmp_path: Path) -> None:
    """torch.multiprocessing passes it on as text; what counts is what the process died of, and where."""
    body = """
import torch.multiprocessing
def loss(index):
    raise KeyError("labels")
torch.multiprocessing.start_processes(loss, nprocs=1, start_method="fork")
"""
    found = record(body, tmp_path)
    assert [link.type.rpartition(".")[2] for link in found.chain] == ["ProcessRaisedException", "KeyError"]
    assert found.chain[1].message == "'labels'"
    assert found.function == "train.py:loss"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "class E(Exception):\n    def __str__(self): raise KeyError\nraise E()",
            "<its message cannot be read: KeyError>",
        ),
        ("raise ValueError('\\ud800')", "\\ud800"),
        ("raise ValueError('x' * 10**7)", "x" * 4096),
        ("e = ValueError('loop')\ne.__cause__ = e\nraise e", "loop"),
    ],
)
def test_hostile_exceptions_are_recorded_within_bounds(body: str, message: str, tmp_path: Path) -> None:
    """Neither a broken message nor an endless one keeps the record from being written."""
    done, path = run(body, tmp_path)
    assert done.returncode == 1
    assert path.stat().st_size < 100_000
    assert wire.decode(path.read_bytes(), {"ErrorRecord": ErrorRecord}).message == message


@pytest.mark.parametrize(("name", "ruling"), [("Stop", "stop"), ("Retry", "retry"), ("Reschedule", "reschedule")])
def test_a_ruling_is_recorded(name: str, ruling: str, tmp_path: Path) -> None:
    """What the user's own code ruled reaches the supervisor as such."""
    assert record(f"raise resilient.{name}('because')", tmp_path).ruling is Ruling(ruling)


@pytest.mark.parametrize(
    ("error", "code"),
    [("Stop", 114), ("Retry", 193), ("Reschedule", 194), ("CheckpointError", 115), ("SettingsError", 115)],
)
def test_without_a_supervisor_the_worker_exits_with_the_contracts_code(error: str, code: int, tmp_path: Path) -> None:
    """And still in good order: the traceback is shown and atexit runs, also inside of torch's own hook."""
    wrapped = f"""
import io
inner = sys.excepthook
def hook(*args):  # as torch.distributed does it
    before, sys.stderr = sys.stderr, io.StringIO()
    try:
        inner(*args)
    finally:
        sys.stderr = before
sys.excepthook = hook
raise resilient.{error}("because")
"""
    for body in (f"raise resilient.{error}('because')", wrapped):
        done, path = run(body, tmp_path, supervised=False)
        assert done.returncode == code
        assert f"{error}: because" in done.stderr
        assert done.stdout == "atexit ran\n"
        assert json.loads(path.read_text())["message"]["message"] == f"{error}: because"


def test_torchruns_file_has_torchelastics_form(tmp_path: Path) -> None:
    """Written for torchrun, it is read by our own reader of torchelastic's files as well; the exit stays Python's."""
    done, path = run("raise ValueError('plain')", tmp_path, supervised=False)
    assert done.returncode == 1
    found = from_torchelastic(path.read_text())
    assert found is not None
    assert (found.type, found.message) == ("ValueError", "plain")


def test_a_record_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    """The traceback and the exit are those of the exception."""
    (tmp_path / "error.json").mkdir()
    done, _ = run("raise ValueError('plain')", tmp_path)
    assert done.returncode == 1
    assert "cannot write the error record" in done.stderr
    assert "ValueError: plain" in done.stderr


def test_a_forked_childs_exception_is_not_the_workers(tmp_path: Path) -> None:
    """A DataLoader worker or a pool that dies must not overwrite the evidence."""
    _, path = run("pid = os.fork()\nif not pid:\n    raise ValueError('child')\nos.waitpid(pid, 0)", tmp_path)
    assert not path.exists()


def test_a_hook_in_place_of_ours_does_not_keep_the_exception_to_itself(tmp_path: Path) -> None:
    """What the interpreter remembers at its end is recorded apart: it may be older than the end."""
    done, path = run("sys.excepthook = lambda *error: print('mine')\nraise KeyError('labels')\n", tmp_path)
    assert (done.returncode, done.stdout) == (1, "mine\natexit ran\n")
    found = wire.decode(path.with_name("error.json.late").read_bytes(), {"ErrorRecord": ErrorRecord})
    assert (found.type, found.message, found.step) == ("KeyError", "'labels'", 41)
    assert not path.exists()


def test_an_exception_that_our_hook_has_seen_is_recorded_once(tmp_path: Path) -> None:
    """And nothing is recorded of a worker that ends in good order."""
    run("raise KeyError('labels')", tmp_path)
    assert [path.name for path in tmp_path.glob("error*")] == ["error.json"]
    (tmp_path / "error.json").unlink()
    run("pass", tmp_path)
    assert list(tmp_path.glob("error*")) == []


def test_a_loaders_worker_that_dies_meanwhile_does_not_take_the_last_words(tmp_path: Path) -> None:
    """torch's handler of SIGCHLD raises wherever the main thread is: here while the step is asked for."""
    body = """
import signal
from torch.utils.data import DataLoader

def step():
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    return 41

words.step = step
iterator = iter(DataLoader(range(8), num_workers=1))
victim = iterator._workers[0].pid
raise ValueError("what it was about")
"""
    found = record(body, tmp_path)
    assert (found.type, found.message, found.step) == ("ValueError", "what it was about", 41)
