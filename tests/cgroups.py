# SPDX-License-Identifier: Apache-2.0
"""Control groups with little memory, for tests that may make some: root, with the hierarchy mounted to be written."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from namespaces import NOT_PERMITTED

_ENTER = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write('0'); os.execvp(sys.argv[2], sys.argv[2:])"
_MARK = "cgroup"
_TOP = Path("/sys/fs/cgroup")


def make(name: str, limit_bytes: int) -> Path | None:
    """A group below our own in which all processes together may take so much; ``None`` where that is not permitted."""
    own, limits = _own()
    path = own / f"resilient-test-{name}-{os.getpid()}"
    try:
        path.mkdir()
    except OSError:
        return None
    try:
        for limit in limits:
            if (path / limit).exists() or limit == limits[0]:
                (path / limit).write_text(str(limit_bytes))
    except OSError:
        path.rmdir()
        return None
    return path


@contextmanager
def made(name: str, limit_bytes: int) -> Iterator[Path]:
    """Such a group as long as a test lasts, which is skipped where that is not permitted."""
    group = make(name, limit_bytes)
    if group is None:
        pytest.skip("this machine does not let us make a control group")
    yield group
    group.rmdir()


def entering(group: Path) -> tuple[str, ...]:
    """What to put in front of a command that is to run in it."""
    return (sys.executable, "-c", _ENTER, str(group))


def _own() -> tuple[Path, tuple[str, ...]]:
    """Our own group in the hierarchy that has memory, and the files that limit it and what may be swapped out."""
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    paths = {controllers: path.lstrip("/") for _, controllers, path in lines}
    for controllers, path in paths.items():
        if "memory" in controllers.split(","):
            return _TOP / "memory" / path, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    return _TOP / paths.get("", ""), ("memory.max", "memory.swap.max")


def enter(folder: Path, limit_bytes: int) -> None:
    """Go into such a group, and leave its path in the folder; the process ends where that is not permitted."""
    group = make(folder.name, limit_bytes)
    if group is None:
        os._exit(NOT_PERMITTED)
    (folder / _MARK).write_text(str(group))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def oom_kills(group: Path) -> int | None:
    """How often the OOM killer has struck in it."""
    for name in ("memory.oom_control", "memory.events"):
        if (group / name).exists():
            counts = dict(line.split() for line in (group / name).read_text().splitlines())
            return int(counts["oom_kill"])
    return None


def leave(folder: Path) -> int | None:
    """Take away the group that the folder tells of, and give its count; ``None`` where there was none."""
    mark = folder / _MARK
    if not mark.exists():
        return None
    group = Path(mark.read_text())
    count = oom_kills(group)
    while (group / "cgroup.procs").read_text():  # killed, and not gone yet
        time.sleep(0.01)
    group.rmdir()
    return count
