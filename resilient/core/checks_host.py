# SPDX-License-Identifier: Apache-2.0
"""Checks of the machine that a container is on: limits, memory, directories, names.

Only rows and what they say. A threshold stands with its reason; where torch or NCCL would
merely be slow or fail later, it is a warning, since a preflight must not keep a training
from running that would have run.
"""

from __future__ import annotations

from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.core.measured import UNLIMITED, FolderFacts, HostFacts, NamesFacts, StoreFacts
from resilient.core.preflight import (
    Asked,
    Check,
    Judgement,
    counted,
    fail,
    limit_text,
    ok,
    size_text,
    skip,
    unread,
    warn,
)

SHM_DEFAULT: Final = 64 << 20
"""What a container gets where nobody asks for more: Docker's ``--shm-size``, and the runtimes of Kubernetes alike."""
OPEN_FILES_DEFAULT: Final = 1024
"""The kernel's own soft limit (``INR_OPEN_CUR``). With torch's sharing of tensors by descriptors each takes one."""
PROCESSES_PER_RANK: Final = 128
"""A choice of ours: a rank, some DataLoader workers and their threads, with OMP_NUM_THREADS=1 as launchers set it."""
EVICTION_FREE: Final = 0.10
"""The kubelet evicts pods when the file system of the node has less left (nodefs.available; 5 % of its inodes)."""
EVICTION_FILES: Final = 0.05
SLOTS: Final = 2
"""Snapshots of each rank that lie in memory: one is being taken while the other is whole."""

SHM: Final = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html#shared-memory"
RDMA: Final = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html#infiniband"
SHARING: Final = "https://docs.pytorch.org/docs/stable/multiprocessing.html#file-descriptor-file-descriptor"
EVICTION: Final = "https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/"
CGROUP: Final = "https://docs.kernel.org/admin-guide/cgroup-v2.html"
HEADLESS: Final = "https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/"


def _shm(host: HostFacts, asked: Asked) -> Judgement:
    if host.shm_size is None or host.shm_free is None:
        return unread("/dev/shm")
    found = f"{size_text(host.shm_free)} of {size_text(host.shm_size)} are free"
    do = "mount an emptyDir with medium: Memory at /dev/shm; it counts against the memory limit"
    if host.shm_size <= SHM_DEFAULT:
        return warn(f"{found}: a container's default, too little for DataLoader workers and NCCL", do)
    if host.shm_free < SHM_DEFAULT:
        return warn(f"{found}: DataLoader workers and NCCL may not find room", f"delete what was left there, or {do}")
    return ok(found)


def _memory(host: HostFacts, asked: Asked) -> Judgement:
    if host.memory_available is None:
        return unread("the memory that is available")
    limit = "no limit" if host.memory_limit is None else f"a limit of {size_text(host.memory_limit)}"
    return ok(f"{size_text(host.memory_available)} are available, {limit}")


def _snapshots(host: HostFacts, store: StoreFacts, asked: Asked) -> Judgement:
    if store.state is None:
        return skip("no checkpoint says yet how large the state is")
    if host.memory_available is None:
        return unread("the memory that is available")
    need = SLOTS * store.state
    left = size_text(host.memory_available)
    found = f"snapshots of {size_text(store.state)} take up to {size_text(need)}; {left} are available"
    if need > host.memory_available:
        do = "raise the memory limit; until then checkpoints go through a file while the training waits"
        return warn(found, do)
    return ok(found)


def _open_files(host: HostFacts, asked: Asked) -> Judgement:
    if host.open_files is None:
        return unread("the limit of open files")
    found = f"at most {limit_text(host.open_files)} for each process"
    if host.open_files != UNLIMITED and host.open_files <= OPEN_FILES_DEFAULT:
        do = 'raise it (ulimit -n), or use torch.multiprocessing.set_sharing_strategy("file_system")'
        return warn(f"{found}: DataLoader workers that share many tensors run out of them", do)
    return ok(found)


def _memlock(host: HostFacts, asked: Asked) -> Judgement:
    if host.memlock is None:
        return unread("the limit of locked memory")
    limit = "unlimited" if host.memlock == UNLIMITED else size_text(host.memlock)
    if not host.infiniband:
        return ok(f"{limit}; no RDMA device needs more")
    names = ", ".join(host.infiniband)
    if host.memlock == UNLIMITED:
        return ok(f"{limit}, with {names}")
    do = "give the container CAP_IPC_LOCK or an unlimited memlock (ulimit -l)"
    return warn(f"{limit}, with {names}: NCCL registers its buffers there and fails above the limit", do)


def _processes(host: HostFacts, asked: Asked) -> Judgement:
    if host.processes_left is None:
        return unread("the limit of processes")
    if host.processes_left == UNLIMITED:
        return ok("unlimited")
    found = f"{host.processes_left} more processes and threads for {counted(asked.ranks, 'rank')}"
    if host.processes_left < PROCESSES_PER_RANK * asked.ranks:
        return warn(f"{found}: DataLoader workers may not start", "raise podPidsLimit of the node, or start fewer")
    return ok(found)


def _folder(folder: FolderFacts, needed: bool) -> Judgement:
    if folder.kind:
        found = f"{folder.path} cannot be used: {folder.why}"
        if not needed:
            return warn(found, "give TMPDIR a directory that can be written to")
        own = folder.kind in ("denied", "missing")
        do = "mount a volume there that can be written to" if own else "have the node's disk looked at"
        return fail(found, do, ExitCode.CONFIG_FAULT if own else ExitCode.NODE_REFUSED)
    if folder.free is None or folder.size is None:
        return unread(f"the space in {folder.path}")
    found = f"{size_text(folder.free)} of {size_text(folder.size)} are free in {folder.path}"
    if folder.size and folder.free < EVICTION_FREE * folder.size:
        return warn(f"{found}: the kubelet evicts below {EVICTION_FREE:.0%}", "free space, or use a larger volume")
    files = folder.files_free_fraction
    if files is not None and files < EVICTION_FILES:
        return warn(f"{found}, but only {files:.1%} of its inodes", "delete small files there")
    return ok(found)


def _journal(folder: FolderFacts, asked: Asked) -> Judgement:
    return _folder(folder, needed=True)


def _temporary(folder: FolderFacts, asked: Asked) -> Judgement:
    return _folder(folder, needed=False)


def _names(names: NamesFacts, asked: Asked) -> Judgement:
    lost = [f"{name.name} ({name.why})" for name in names.names if not name.addresses]
    if not lost:
        return ok(", ".join(f"{name.name} is {name.addresses[0]}" for name in names.names))
    do = "check the headless Service and its publishNotReadyAddresses, the pods' subdomain, and this node's DNS"
    return fail(f"cannot be resolved: {', '.join(lost)}", do)


HOST_CHECKS: Final = (
    Check(
        id="shm",
        looks_at="shared memory in /dev/shm",
        probes=("host",),
        judge=_shm,
        do="look at /dev/shm of the container",
        source=SHM,
    ),
    Check(
        id="memory",
        looks_at="memory limit of the container",
        probes=("host",),
        judge=_memory,
        do="look at the container's cgroup",
        source=CGROUP,
    ),
    Check(
        id="snapshots",
        looks_at="room for snapshots in memory",
        probes=("host", "store"),
        judge=_snapshots,
        follows=True,
        do="see the checks of memory and of the checkpoint store",
        source=CGROUP,
    ),
    Check(
        id="open-files",
        looks_at="limit of open files",
        probes=("host",),
        judge=_open_files,
        do="look at ulimit -n in the container",
        source=SHARING,
    ),
    Check(
        id="memlock",
        looks_at="limit of locked memory",
        probes=("host",),
        judge=_memlock,
        do="look at ulimit -l in the container",
        source=RDMA,
    ),
    Check(
        id="processes",
        looks_at="limit of processes",
        probes=("host",),
        judge=_processes,
        do="look at pids.max of the container's cgroup",
        source=CGROUP,
    ),
    Check(
        id="journal-disk",
        looks_at="disk of the journal",
        probes=("journal",),
        judge=_journal,
        do="have the volume or the node's disk looked at",
        source=EVICTION,
    ),
    Check(
        id="temporary-disk",
        looks_at="disk of temporary files",
        probes=("temporary",),
        judge=_temporary,
        do="have the volume or the node's disk looked at",
        source=EVICTION,
    ),
    Check(
        id="names",
        looks_at="names of peers",
        probes=("names",),
        judge=_names,
        do="look at the container's /etc/resolv.conf and the cluster's DNS",
        source=HEADLESS,
    ),
)
