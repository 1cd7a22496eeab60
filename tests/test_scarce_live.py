# SPDX-License-Identifier: Apache-2.0
"""Real supervisors in containers that have too little: what the OOM killer and a full /dev/shm leave as evidence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cgroups
import pytest
from supervised import HEAD, ROOT, Folder

from resilient.core.causes import Action, Cause
from resilient.core.classify import classify
from resilient.core.log_text import read_log

ENOUGH = 400 << 20
"""For a supervisor with its saver, and a worker that takes little."""
EATS = """
print("step 1 loss 0.3", flush=True)
kept = []
while True:
    kept.append(b"x" * (16 << 20))
"""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Path]:
    with cgroups.made(tmp_path.name, ENOUGH) as group:
        yield group


def test_the_oom_killer_of_the_container_is_told_from_any_other(tmp_path: Path, group: Path) -> None:
    """It takes the worker, which is the largest, and the supervisor lives on to read the counter of its own group."""
    folder = Folder(tmp_path)
    script = folder.script(HEAD + EATS)
    with folder.start(script, init=cgroups.entering(group)) as running:
        ended = running.wait()
    assert (ended.code, ended.rules) == (114, ["host-out-of-memory"] * 2), ended.stderr
    assert "was killed because the container ran out of memory" in ended.termination["why"]
    kills = cgroups.oom_kills(group)
    assert kills == 2, "one for each attempt: the second confirms the first"
    verdicts = [
        command["verdict"] for each in ended.entries("event") for command in each["commands"] if "verdict" in command
    ]
    assert "the OOM killer struck 1 time" in next(filter(None, verdicts))["evidence"]
    said = [line for entry in ended.entries("kernel_log") for line in entry["lines"]]
    if said:  # this container may read the kernel's log, and whoever has it in a log of his own is told the same
        judged = classify(read_log("\n".join(["step 1 loss 0.3"] * 300 + said)))
        assert (judged.cause, judged.action) == (Cause.OUT_OF_MEMORY_HOST, Action.STOP)


FILLS = """
import mmap
with open("/dev/shm/mapped", "wb+") as file:
    file.truncate(64 << 20)
    mapped = mmap.mmap(file.fileno(), 0)
try:
    open("/dev/shm/full", "wb").write(b"x" * (2 << 20))
except OSError:
    pass
mapped[0] = 1
"""
TINY = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from namespaces import make_shared_memory_tiny
make_shared_memory_tiny()
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_bus_error_with_a_full_shared_memory_names_it(tmp_path: Path) -> None:
    """The worker says not a word; how full /dev/shm is, is looked up when it has ended."""
    folder = Folder(tmp_path)
    with folder.start(folder.script(HEAD + FILLS), init=(sys.executable, "-c", TINY)) as running:
        ended = running.wait()
    if ended.code == 77:
        pytest.skip("this machine does not let us mount a tiny /dev/shm")
    assert (ended.code, set(ended.rules)) == (115, {"sigbus-shared-memory"}), ended.stderr
    assert "give the pod more shared memory" in ended.termination["why"]
