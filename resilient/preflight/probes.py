# SPDX-License-Identifier: Apache-2.0
"""The probes, and the process that runs one of them: ``python -m resilient.preflight.probes FD PARENT``.

A probe looks and says what it saw; it judges nothing. Before each call that may never come
back it says where it is, so that whoever kills it can name the place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from resilient.core import wire
from resilient.core.devices import Look
from resilient.core.measured import UNLIMITED, FolderFacts, HostFacts, NameFacts, NamesFacts, Unmeasured
from resilient.devices.vendors import vendor_here
from resilient.preflight.nearest import nearest
from resilient.supervisor import samples
from resilient.supervisor.exec_worker import die_with

At = Callable[[str], None]
"""Says what the probe does next."""

_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


def host(at: At, root: str = "/", shm: str = "/dev/shm") -> HostFacts:
    """Limits, memory and shared memory; ``root`` is where ``proc`` and ``sys`` lie."""
    at("reading limits")
    seen = samples.sample(root=root)
    folder = _status(shm)
    rdma = Path(root) / "sys/class/infiniband"
    return HostFacts(
        open_files=_soft(resource.RLIMIT_NOFILE),
        memlock=_soft(resource.RLIMIT_MEMLOCK),
        processes_left=samples.processes_left(root),
        infiniband=tuple(sorted(path.name for path in rdma.iterdir())) if rdma.is_dir() else (),
        memory_limit=seen.memory_limit,
        memory_available=samples.memory_available(root),
        shm_size=None if folder is None else folder.f_frsize * folder.f_blocks,
        shm_free=None if folder is None else folder.f_frsize * folder.f_bavail,
    )


def folder(at: At, path: str) -> FolderFacts:
    """A directory: its space, and whether a file can be made, read back and deleted there."""
    at(f"looking at {path}")
    place = nearest(path)
    status = os.statvfs(place)
    at(f"writing in {place}")
    kind = why = ""
    try:
        _write_read_delete(os.path.join(place, f".resilient-probe-{os.urandom(8).hex()}"))
    except OSError as error:
        kind, why = _kind(error.errno), f"{error.strerror} ({place})"
    return FolderFacts(
        path=path,
        size=status.f_frsize * status.f_blocks,
        free=status.f_frsize * status.f_bavail,
        files_free_fraction=status.f_favail / status.f_files if status.f_files else None,
        kind=kind,
        why=why,
    )


def names(at: At, hosts: Sequence[str]) -> NamesFacts:
    """What names resolve to, by whatever this container resolves names with."""
    found = []
    for name in hosts:
        at(f"resolving {name}")
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "not a name"
            found.append(NameFacts(name=name, why=why))
        else:
            addresses = dict.fromkeys(str(answer[4][0]) for answer in answers)
            found.append(NameFacts(name=name, addresses=tuple(addresses)))
    return NamesFacts(names=tuple(found))


def devices(at: At) -> Look:
    """What the driver says of its devices; none where no vendor's are visible."""
    from resilient import settings  # longer to load than all else that the quick probes do

    vendor = vendor_here(settings.environment())
    if vendor is None:
        return Look(devices=())
    at(f"asking the driver of {vendor.name}")
    library = vendor.open()
    try:
        return library.look()
    finally:
        library.close()


def _store(at: At, **given: Any) -> object:
    from resilient.preflight.store_probe import store  # fsspec: a second on a busy machine

    return store(at, **given)


def _deny_list(at: At, **given: Any) -> object:
    from resilient.preflight.deny_list_probe import deny_list  # fsspec, as above

    return deny_list(at, **given)


def _torch(at: At, **given: Any) -> object:
    from resilient.preflight.torch_probes import compute  # torch: seconds

    return compute(at, **given)


def _all_reduce(at: At, **given: Any) -> object:
    from resilient.preflight.torch_probes import all_reduce

    return all_reduce(at, **given)


PROBES: Final[Mapping[str, Callable[..., object]]] = {
    "host": host,
    "folder": folder,
    "names": names,
    "devices": devices,
    "store": _store,
    "deny-list": _deny_list,
    "torch": _torch,
    "all-reduce": _all_reduce,
}


def _soft(which: int) -> int:
    soft, _ = resource.getrlimit(which)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _status(path: str) -> os.statvfs_result | None:
    try:
        return os.statvfs(path)
    except OSError:
        return None


def _write_read_delete(path: str) -> None:
    data = os.urandom(4096)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
        if os.pread(fd, len(data) + 1, 0) != data:
            raise OSError(errno.EIO, "what was read back is not what was written")
    finally:
        os.close(fd)
        os.unlink(path)


def _kind(number: int | None) -> str:
    table = (("denied", _DENIED), ("full", _FULL), ("missing", _MISSING))
    return next((kind for kind, numbers in table if number in numbers), "failed")


def main(argv: Sequence[str]) -> int:
    """Run the probe that was asked for, and tell what it saw."""
    fd, parent = int(argv[0]), int(argv[1])
    die_with(parent)
    request = json.loads(sys.stdin.buffer.read())

    def tell(line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody waits any more
            while line:
                line = line[os.write(fd, line) :]

    def at(place: str) -> None:
        tell(b'{"at":' + json.dumps(place).encode() + b"}\n")

    try:
        facts = PROBES[request["probe"]](at, **request["given"])
    except Exception as error:  # the top of a process whose only word this is
        facts = Unmeasured(why=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}")
    tell(wire.encode(facts))
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # whatever libraries have begun, there is nothing to tidy up
