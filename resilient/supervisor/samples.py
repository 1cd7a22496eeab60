# SPDX-License-Identifier: Apache-2.0
"""What the machine has left: memory and processes of the cgroup (v1 and v2), ``/dev/shm`` and a disk.

What cannot be read is ``None``: unknown, never fine. Workers import this as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_NO_LIMIT: Final = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at everything."""

    memory_used: int | None
    """Bytes charged to the cgroup that is nearest to its limit, without file cache that can be dropped."""
    memory_limit: int | None
    """Its limit; ``None`` where nothing limits."""
    oom_kills: int | None
    """Processes of our cgroup that the kernel's OOM killer has ended since it was made."""
    shm_used_fraction: float | None
    disk_used_fraction: float | None


SPARE_BYTES: Final = 256 << 20
"""Stays free for each rank: the last memory of a container is not for snapshots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    used: int | None
    limit: int | None

    @property
    def left(self) -> float:
        if self.limit is None:
            return float("inf")
        return self.limit - (self.used or 0)


def sample(
    *,
    inherited: int = 0,
    disk: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] = "/",
    shm: str | os.PathLike[str] = "/dev/shm",
) -> Sample:
    """Look now; ``disk`` is any path on the file system of interest, ``root`` where ``proc`` and ``sys`` lie.

    ``inherited`` are bytes of ours that an earlier container of the pod is charged for: our cgroup does not show them,
    and they take of the pod's limit, which is the container's.
    """
    folders, version = _folders(Path(root), "memory")
    memory = _tightest(folders, version)
    if memory.used is not None and memory.limit is not None:
        memory = replace(memory, used=memory.used + inherited)
    return Sample(
        memory_used=memory.used,
        memory_limit=memory.limit,
        oom_kills=_oom_kills(folders, version),
        shm_used_fraction=_used_fraction(shm),
        disk_used_fraction=None if disk is None else _used_fraction(disk),
    )


def memory_available(root: str | os.PathLike[str] = "/", *, inherited: int = 0) -> int | None:
    """Bytes that can still be taken, by the cgroup's limits and by the host; ``None`` where neither can be read.

    ``inherited``: as in :func:`sample`.
    """
    memory = _tightest(*_folders(Path(root), "memory"))
    host = _keyed(Path(root) / "proc/meminfo").get("MemAvailable:")
    left = [] if host is None else [host << 10]  # "kB" there are KiB
    if memory.limit is not None and memory.used is not None:
        left.append(memory.limit - memory.used - inherited)
    return max(0, min(left)) if left else None


def processes_left(root: str | os.PathLike[str] = "/") -> int | None:
    """Processes and threads that the cgroup still allows, ``UNLIMITED`` where it has no limit."""
    from resilient.core.measured import UNLIMITED  # words of the preflight: workers look at memory, and need none

    folders, _ = _folders(Path(root), "pids")
    if not folders[0].is_dir():
        return None
    limits = [(_number(folder / "pids.max"), _number(folder / "pids.current")) for folder in folders]
    return min((max(0, limit - (used or 0)) for limit, used in limits if limit is not None), default=UNLIMITED)


def _folders(root: Path, controller: str) -> tuple[list[Path], int]:
    """Our cgroup of a controller and its ancestors, nearest first, as far as they can be seen; and the version."""
    path, version = _own_cgroup(root / "proc/self/cgroup", controller)
    top = root / "sys/fs/cgroup"
    if version == 1:
        top /= controller
    # A container often sees the host's path in /proc, and its own cgroup mounted as the top.
    own = top / path.lstrip("/") if ".." not in path.split("/") else top
    if not own.is_dir():
        own = top
    return [own, *(parent for parent in own.parents if parent.is_relative_to(top))], version


def _own_cgroup(table: Path, controller: str) -> tuple[str, int]:
    unified = "/"
    for line in _lines(table):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            return path, 1
        if not names:
            unified = path
    return unified, 2


def _tightest(folders: list[Path], version: int) -> _Memory:
    """The level that leaves least; our own where none has a limit."""
    return min((_memory(folder, version) for folder in folders), key=lambda memory: memory.left)


def _memory(folder: Path, version: int) -> _Memory:
    used_name, limit_name, cache_name = (
        ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.current", "memory.max", "inactive_file")
    )
    used, limit = _number(folder / used_name), _number(folder / limit_name)
    if used is not None:
        used = max(0, used - _keyed(folder / "memory.stat").get(cache_name, 0))
    return _Memory(used=used, limit=None if limit is None or limit >= _NO_LIMIT else limit)


def _oom_kills(folders: list[Path], version: int) -> int | None:
    name = "memory.oom_control" if version == 1 else "memory.events"
    return _keyed(folders[0] / name).get("oom_kill")


def _used_fraction(path: str | os.PathLike[str]) -> float | None:
    """The fuller of blocks and inodes, as an unprivileged process finds it."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    fractions = [
        (total - free) / (total - free + available)
        for total, free, available in (
            (status.f_blocks, status.f_bfree, status.f_bavail),
            (status.f_files, status.f_ffree, status.f_favail),
        )
        if total - free + available > 0
    ]
    return max(fractions, default=None)


def _number(path: Path) -> int | None:
    text = next(_lines(path), "").strip()
    return int(text) if text.isdecimal() else None


def _keyed(path: Path) -> dict[str, int]:
    """Lines of a name, a number and perhaps a unit."""
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) >= 2 and pair[1].isdecimal()}


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(errors="replace").splitlines()
    except OSError:
        return
