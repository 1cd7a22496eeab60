# SPDX-License-Identifier: Apache-2.0
"""Memory and disk, read from directories as the kernel and container runtimes lay them out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from resilient.core.measured import UNLIMITED
from resilient.supervisor.samples import Sample, memory_available, processes_left, sample

GIB = 1 << 30
MEMINFO = {"proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\nHugePages_Total: 0\n"}
HYBRID = "11:cpu,cpuacct:/x\n4:memory:{path}\n1:name=systemd:/x\n0::/x\n"


def lay_out(root: Path, files: Mapping[str, object]) -> Path:
    """Write the files, by their names below ``root``."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return root


def v2(folder: str, used: int, limit: object, *, cache: int = 0, kills: int = 0) -> dict[str, object]:
    base = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {
        f"{base}/memory.current": f"{used}\n",
        f"{base}/memory.max": f"{limit}\n",
        f"{base}/memory.stat": f"anon 1\nfile 2\ninactive_file {cache}\nshmem 7\n",
        f"{base}/memory.events": f"low 0\nhigh 0\nmax 9\noom 3\noom_kill {kills}\noom_group_kill 0\n",
    }


def v1(folder: str, used: int, limit: int, *, cache: int = 0, kills: int = 0) -> dict[str, object]:
    base = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    return {
        f"{base}/memory.usage_in_bytes": f"{used}\n",
        f"{base}/memory.limit_in_bytes": f"{limit}\n",
        f"{base}/memory.stat": f"cache 1\ninactive_file 5\ntotal_inactive_file {cache}\n",
        f"{base}/memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    }


def memory_of(root: Path) -> tuple[int | None, int | None, int | None]:
    seen = sample(root=root)
    return seen.memory_used, seen.memory_limit, seen.oom_kills


def test_v2_in_a_namespace(tmp_path: Path) -> None:
    """A container of its own namespace: the top is its cgroup; file cache that can go is not used memory."""
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", **v2("", 5 * GIB, 8 * GIB, cache=GIB, kills=2), **MEMINFO})
    assert memory_of(tmp_path) == (4 * GIB, 8 * GIB, 2)
    assert memory_available(tmp_path) == 4 * GIB


@pytest.mark.parametrize("path", ["/kubepods.slice/pod1/abc", "/../../abc"])
def test_v2_with_a_path_that_cannot_be_seen(tmp_path: Path, path: str) -> None:
    """The host's path in /proc and the container's own cgroup at the top."""
    lay_out(tmp_path, {"proc/self/cgroup": f"0::{path}\n", **v2("", GIB, 2 * GIB), "abc/memory.max": 1})
    assert memory_of(tmp_path) == (GIB, 2 * GIB, 0)


def test_v2_on_the_host_takes_the_tightest_level(tmp_path: Path) -> None:
    """The pod's limit can be nearer than the container's; the kills are those of our own cgroup."""
    files = {
        "proc/self/cgroup": "0::/pod/main\n",
        **v2("pod/main", 2 * GIB, 8 * GIB, kills=1),
        **v2("pod", 5 * GIB, 6 * GIB, kills=4),
        **MEMINFO,
    }
    lay_out(tmp_path, files)
    assert memory_of(tmp_path) == (5 * GIB, 6 * GIB, 1)
    assert memory_available(tmp_path) == GIB


def test_v2_without_a_limit(tmp_path: Path) -> None:
    """``max`` is no limit: our own usage is told, and the host says what is left."""
    lay_out(tmp_path, {"proc/self/cgroup": "0::/a\n", **v2("a", GIB, "max"), **MEMINFO})
    assert memory_of(tmp_path) == (GIB, None, 0)
    assert memory_available(tmp_path) == 32 * GIB


def test_the_host_can_have_less_than_the_limit(tmp_path: Path) -> None:
    """A generous limit does not make memory that is not there."""
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", **v2("", GIB, 500 * GIB), **MEMINFO})
    assert memory_available(tmp_path) == 32 * GIB


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    """A limit that was lowered below the usage leaves zero, not less."""
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", **v2("", 3 * GIB, 2 * GIB), **MEMINFO})
    assert memory_available(tmp_path) == 0


@pytest.mark.parametrize("folder", ["", "docker/abc"])
def test_v1(tmp_path: Path, folder: str) -> None:
    """With the path visible (host) or not (container), beside a v2 hierarchy without controllers."""
    table = HYBRID.format(path="/docker/abc")
    lay_out(tmp_path, {"proc/self/cgroup": table, **v1(folder, 3 * GIB, 4 * GIB, cache=GIB, kills=5), **MEMINFO})
    assert memory_of(tmp_path) == (2 * GIB, 4 * GIB, 5)
    assert memory_available(tmp_path) == 2 * GIB


def test_v1_without_a_limit(tmp_path: Path) -> None:
    """The huge number of v1 is no limit, and an ancestor's counts."""
    table = HYBRID.format(path="/a/b")
    lay_out(tmp_path, {"proc/self/cgroup": table, **v1("a/b", GIB, 9223372036854771712)})
    assert memory_of(tmp_path) == (GIB, None, 0)
    lay_out(tmp_path, v1("a", 2 * GIB, 3 * GIB))
    assert memory_of(tmp_path) == (2 * GIB, 3 * GIB, 0)


@pytest.mark.parametrize("files", [{}, {"proc/self/cgroup": "garbage\n::\n"}, {"proc/self/cgroup": "0::/\n"}])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, files: dict[str, object]) -> None:
    """No number is made up, and nothing is raised."""
    lay_out(tmp_path, files)
    nowhere = tmp_path / "nowhere"
    unknown = Sample(
        memory_used=None, memory_limit=None, oom_kills=None, shm_used_fraction=None, disk_used_fraction=None
    )
    assert sample(root=tmp_path, shm=nowhere, disk=nowhere) == unknown
    assert memory_available(tmp_path) is None


def test_garbage_in_the_files_is_unknown(tmp_path: Path) -> None:
    """Text where a number belongs is as good as nothing."""
    files = {**v2("", 1, "lots"), "sys/fs/cgroup/memory.current": "-\n", "sys/fs/cgroup/memory.events": "oom_kill\n"}
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", **files})
    assert memory_of(tmp_path) == (None, None, None)


def test_this_machine(tmp_path: Path) -> None:
    """On a real system the numbers are plausible."""
    seen = sample(disk=tmp_path, shm=tmp_path)
    assert seen.disk_used_fraction is not None
    assert 0 < seen.disk_used_fraction <= 1
    assert seen.shm_used_fraction == pytest.approx(seen.disk_used_fraction, abs=0.01)
    if os.path.exists("/proc/meminfo"):
        assert (memory_available() or 0) > 0


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"sys/fs/cgroup/pids.max": "max\n", "sys/fs/cgroup/pids.current": "7\n"}, UNLIMITED),
        ({"sys/fs/cgroup/pids.max": "100\n", "sys/fs/cgroup/pids.current": "7\n"}, 93),
        ({"sys/fs/cgroup/pids.max": "100\n", "sys/fs/cgroup/pids.current": "107\n"}, 0),
        (
            {
                "proc/self/cgroup": "0::/pod/main\n",
                "sys/fs/cgroup/pod/main/pids.max": "max\n",
                "sys/fs/cgroup/pod/pids.max": "50\n",
                "sys/fs/cgroup/pod/pids.current": "20\n",
            },
            30,
        ),
        (
            {
                "proc/self/cgroup": "8:pids:/x\n4:memory:/y\n0::/\n",
                "sys/fs/cgroup/pids/x/pids.max": "9\n",
                "sys/fs/cgroup/pids/x/pids.current": "4\n",
            },
            5,
        ),
        ({"proc/self/cgroup": "8:pids:/\n", "sys/fs/cgroup/pids/tasks": ""}, UNLIMITED),
        ({}, None),
    ],
)
def test_processes_that_are_left(tmp_path: Path, files: Mapping[str, object], left: int | None) -> None:
    """The tightest level of either version; the top cgroup has no limit, and no cgroup is unknown."""
    assert processes_left(lay_out(tmp_path, files)) == left
