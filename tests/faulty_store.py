# SPDX-License-Identifier: Apache-2.0
"""A store that fails when it is told to, and a saver and its clients, for tests."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from resilient.checkpoint import requests
from resilient.checkpoint.digest import digest
from resilient.checkpoint.requests import Reply
from resilient.checkpoint.saver import serve
from resilient.core.retention import Rules
from resilient.core.usage import NOTHING_USED
from resilient.link.board import DESCRIPTORS, Extent, SlotRecord
from resilient.link.channel import Channel
from resilient.link.memory import anonymous_file
from resilient.supervisor.saver_process import REPLY_LIMIT


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """``faulty://``: the memory file system, asking ``fault(operation, path)`` before each operation."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fault: ClassVar[Any] = staticmethod(lambda operation, path: None)

    @classmethod
    def reset(cls, fault: Callable[[str, str], None] = lambda operation, path: None) -> None:
        """Empty, with another fault."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.fault = staticmethod(fault)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.fault("create" if mode == "create" else "pipe", path)
        super().pipe_file(path, value, mode=mode, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb" and "data" not in kwargs:
            self.fault("open", path)
        return super()._open(path, mode=mode, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self.fault("ls", path)
        return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, path: str, **kwargs: Any) -> Any:
        self.fault("cat", path)
        return super().cat_file(path, **kwargs)

    def rm_file(self, path: str) -> None:
        self.fault("rm", path)
        super().rm_file(path)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


class Arenas:
    """Snapshots of some ranks, in memory that a saver inherits."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self.slots = {rank: [anonymous_file("test") for _ in range(DESCRIPTORS)] for rank in range(len(images))}
        self.records = self.put(images, slot=0)

    def put(self, images: Sequence[bytes], slot: int, attempt: int = 1, step: int = 1) -> tuple[SlotRecord, ...]:
        """Fill one slot of each rank: an image is that of its tensors, its name that of its own."""
        records = []
        for rank, image in enumerate(images):
            own = f"rank {rank}".encode()
            extents = [Extent(size=len(part), digest=digest(part)) for part in (image, own)]
            record = SlotRecord(slot=slot, attempt=attempt, step=step, tensors=extents[0], own=extents[1])
            os.pwrite(self.slots[rank][slot], image, 0)
            os.pwrite(self.slots[rank][slot], own, record.own_offset)
            records.append(record)
        self.records = tuple(records)
        return self.records

    @property
    def fds(self) -> list[int]:
        return [fd for fds in self.slots.values() for fd in fds]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class Client:
    """The supervisor's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel: Channel[Reply] = Channel(sock, requests.REPLIES, limit=REPLY_LIMIT)
        self._ids = itertools.count(1)
        self._rules = Rules()

    def ask(self, kind: type[Any], **fields: Any) -> Any:
        """Send one request and wait for its reply."""
        number = self.send(kind, **fields)
        reply = self.channel.receive()
        assert reply.id == number
        return reply

    def send(self, kind: type[Any], **fields: Any) -> int:
        number = next(self._ids)
        self.channel.send(kind(id=number, **fields))
        return number

    def open(self, url: object, *, keep: int = 3, **fields: Any) -> Any:
        """``keep``: of every later save."""
        self._rules = Rules(keep=keep)
        values: Mapping[str, Any] = {
            "url": str(url),
            "submission": "sub",
            "index": 0,
            "pod": "pod-0",
            "host": "here",
            "pid": os.getpid(),
            "journal": "/journal",
            "lock_patience_s": 0.0,
            "patience_s": 0.0,
        }
        return self.ask(requests.Open, **{**values, **fields})

    def claim(self, attempt: int, **fields: Any) -> Any:
        values: Mapping[str, Any] = {"began_from": None, "usage": NOTHING_USED, "claimed_s": 1.0, "token": "ours"}
        return self.ask(requests.Claim, attempt=attempt, **{**values, **fields})

    def save(self, records: Sequence[SlotRecord], attempt: int, step: int, **fields: Any) -> Any:
        values: Mapping[str, Any] = {
            "world_size": len(records),
            "began_from": None,
            "versions": {"python": "3"},
            "determinism": {},
            "patience_s": 0.0,
            "rules": self._rules,
        }
        return self.ask(requests.Save, attempt=attempt, step=step, records=tuple(records), **{**values, **fields})


class Inline:
    """A saver in a thread of this process."""

    def __init__(self, arenas: Arenas) -> None:
        ours, theirs = socket.socketpair()
        self.client = Client(ours)
        self._thread = threading.Thread(target=serve, args=(theirs, arenas.slots))
        self._thread.start()

    def __enter__(self) -> Client:
        return self.client

    def __exit__(self, *error: object) -> None:
        self.client.channel.close()
        self._thread.join()


class SaverProcess:
    """A real saver process; ``script`` is Python that runs before its ``main``, and may ``tell`` on its stdout."""

    def __init__(self, arenas: Arenas, script: str = "", *, tell: bool = False) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys\n{script}\nfrom resilient.checkpoint.saver import main\nsys.exit(main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), json.dumps(arenas.slots)],
            pass_fds=[theirs.fileno(), *arenas.fds],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE if tell else None,
        )
        theirs.close()
        self.client = Client(ours)

    def end(self) -> int:
        """Close the socket and wait for the exit code."""
        self.client.channel.close()
        return self.process.wait(60)

    def __enter__(self) -> SaverProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.channel.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
