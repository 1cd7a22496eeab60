# SPDX-License-Identifier: Apache-2.0
"""NCCL's own log: written where nobody has said otherwise, read back within bounds, and believed as NCCL's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from supervised import HEAD, Folder

from resilient.core.causes import Cause
from resilient.core.classify import classify
from resilient.core.evidence import Evidence, RankEvidence
from resilient.supervisor import nccl
from resilient.supervisor.leavings import read_tail, read_whole

WARN = "\n[2026-05-05 06:16:47] node-01:{pid}:18 [0] transport/net_ib.cc:139 (ncclIbAsync) NCCL WARN "
BROKEN = WARN + "NET/IB : mlx5_0:1 async fatal event: local catastrophic error\n"


@pytest.fixture(autouse=True)
def _no_file_of_the_administrators(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster there may be one."""
    monkeypatch.setattr(nccl, "_CONFIGURATION", Path("/nowhere/nccl.conf"))


def test_workers_are_told_to_log_unless_the_user_has_spoken(tmp_path: Path) -> None:
    """Each of the variables is the user's once it is set, and the log is his if either of its two is."""
    path = f"{tmp_path}/nccl-3.%h.%p"
    ours = {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1", "NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": path}
    assert nccl.variables(tmp_path, 3, {}) == ours
    assert nccl.variables(tmp_path, 3, {"NCCL_DEBUG": "INFO"}) == {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    assert nccl.variables(tmp_path, 3, {"NCCL_DEBUG_FILE": "x"}) == {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    assert nccl.variables(tmp_path, 3, {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0", "NCCL_DEBUG": ""}) == {}


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("NCCL_DEBUG=INFO\n", True),
        ("NCCL_IB_HCA=mlx5\n NCCL_DEBUG_FILE = x", True),
        ("# NCCL_DEBUG=INFO\nNCCL_X=1", False),
    ],
)
def test_what_nccls_own_files_say_is_the_users_as_well(tmp_path: Path, text: str, users: bool) -> None:
    """NCCL reads them only for what the environment lacks, so that a variable of ours would win."""
    (tmp_path / ".nccl.conf").write_text(text)
    (tmp_path / "other").write_text(text)
    assert nccl.is_users({"HOME": str(tmp_path)}) is users
    assert nccl.is_users({"NCCL_CONF_FILE": str(tmp_path / "other")}) is users
    assert not nccl.is_users({"HOME": str(tmp_path), "NCCL_CONF_FILE": str(tmp_path / "missing")})


def test_the_logs_of_all_processes_of_a_worker_are_read_and_no_others(tmp_path: Path) -> None:
    """A launcher's processes write one file each; the next rank has a longer number."""
    for name in ("nccl-1.host.10", "nccl-1.host.11", "nccl-11.host.12", "error-1.json"):
        (tmp_path / name).write_text(f"{name}\n")
    assert nccl.read_log(tmp_path, 1, 10, {}) == "nccl-1.host.10\nnccl-1.host.11\n"


def test_a_log_without_end_is_read_from_its_last_lines(tmp_path: Path) -> None:
    """A warning in each collective of a day is a large file."""
    (tmp_path / "nccl-0.host.1").write_text("".join(f"line {number}\n" for number in range(100_000)))
    lines = nccl.read_log(tmp_path, 0, 1, {}).splitlines()
    assert lines[-1] == "line 99999"
    assert lines[0].startswith("line 9")
    assert sum(len(line) + 1 for line in lines) <= nccl.LIMIT


def test_the_users_own_file_is_read_for_the_worker(tmp_path: Path) -> None:
    """His name for it is expanded as NCCL does it; of a file that all share the worker's lines count."""
    host = socket.gethostname().partition(".")[0]
    (tmp_path / f"log%.{host}.77").write_text("a:77:1 own\n")
    (tmp_path / "shared").write_text("a:77:1 mine\na:78:2 another's\n")
    assert nccl.read_log(tmp_path, 0, 77, {"NCCL_DEBUG_FILE": f"{tmp_path}/log%%.%h.%p"}) == "a:77:1 own\n"
    assert nccl.read_log(tmp_path, 0, 77, {"NCCL_DEBUG_FILE": f"{tmp_path}/shared"}) == "a:77:1 mine\n"
    assert nccl.read_log(tmp_path, 0, 77, {"NCCL_DEBUG": "INFO"}) == ""


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A FIFO would hold the supervisor for ever; a link would lead it elsewhere."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("one\ntwo\n")
    (tmp_path / "link").symlink_to("file")
    for name in ("fifo", "link", "missing", "."):
        assert read_whole(tmp_path / name, 100) is None
        assert read_tail(tmp_path / name, 100) == b""
    assert read_whole(tmp_path / "file", 8) == read_tail(tmp_path / "file", 8) == b"one\ntwo\n"
    assert read_whole(tmp_path / "file", 7) is None
    assert read_tail(tmp_path / "file", 5) == b"two\n"


@pytest.mark.parametrize("place", ["nccl_log", "stdout_tail", "stderr_tail"])
def test_nccl_is_heard_wherever_it_writes(place: str) -> None:
    """Its lines are told from a script's by their form; what is in them is the adapter's fault."""
    rank = RankEvidence(rank=0, signal=6, order=0, **{place: BROKEN.format(pid=17)})  # type: ignore[arg-type]  # one of several fields, all of them str
    verdict = classify(Evidence(ranks=(rank,)))
    assert (verdict.rule, verdict.cause) == ("ib-async-fatal", Cause.INTERCONNECT_FAULT)


def test_a_script_that_talks_of_nccl_on_stdout_is_no_witness() -> None:
    """What only looks a little like it stays free text."""
    text = "we saw NCCL WARN NET/IB : mlx5_0:1 async fatal event: local catastrophic error yesterday\n"
    rank = RankEvidence(rank=0, exit_code=1, order=0, stdout_tail=text)
    assert not classify(Evidence(ranks=(rank,))).device_grade


SCRIPT = (
    HEAD
    + '''
import re, socket
known = {"%h": socket.gethostname().partition(".")[0], "%p": str(os.getpid()), "%%": "%"}
path = re.sub("%[hp%]", lambda found: known[found[0]], os.environ["NCCL_DEBUG_FILE"])
assert os.environ["NCCL_DEBUG"] == "WARN"
with open(path, "w") as file:
    file.write("""WARNING""".format(pid=os.getpid()))
os.abort()
'''
).replace("WARNING", BROKEN)


def test_what_nccl_logs_decides_a_real_run(tmp_path: Path) -> None:
    """The path has a percent sign in it, which NCCL would read as one of its forms."""
    folder = Folder(tmp_path / "100%p")
    ended = folder.run(folder.script(SCRIPT))
    assert (ended.code, ended.rules) == (194, ["ib-async-fatal"])
    assert "mlx5_0:1 async fatal event" in ended.termination["why"]
