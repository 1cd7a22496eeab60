# SPDX-License-Identifier: Apache-2.0
"""What every store promises, and what a name in it may look like.

A store holds files by name under one URL, and knows nothing of runs or checkpoints:

* a name never leads out of its root: names are checked before any open or delete;
* ``create`` has one winner, whoever else tries at the same time;
* what was written is durable on return, and an upload that was broken off is never seen;
* nothing but a :class:`CheckpointError` comes out of it, with secrets of the URL removed.
"""

from __future__ import annotations

import abc
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from resilient.checkpoint.pieces import Ready, there_already
from resilient.checkpoint.store_errors import Exists
from resilient.errors import CheckpointError, SettingsError

CHUNK: Final = 8 << 20
"""Bytes that are handled at once."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.+=@-]{1,255}")


def check_name(name: str) -> str:
    """``name``, if it is plain, relative and stays inside: parts of ``A-Za-z0-9_.+=@-``, none of them dots only."""
    parts = name.split("/")
    if len(name) > 1024 or not all(_NAME.fullmatch(part) and part.strip(".") for part in parts):
        raise CheckpointError(f"cannot use {name[:80]!r} as a name in the store: it is not a plain relative path")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a listing."""

    name: str
    size: int
    stamp: str = ""
    """Another one whenever the file was written anew; empty where the store does not tell."""


class Store(abc.ABC):
    """Files under one URL. Safe to be used by several threads."""

    url: str
    """For people: without credentials."""
    path: str | None = None
    """Directory of the root where the store is a file system of this machine."""

    @abc.abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Write a small file that nobody has written yet, else :class:`Exists`."""

    @abc.abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write a small file, in one instant, whether there was one or not."""

    @abc.abstractmethod
    def write_file(self, name: str, data: memoryview) -> None:
        """Write a large file into a fresh directory; nothing is published if that fails. ``data`` may be shared memory,
        which begins on a page."""

    @abc.abstractmethod
    def read(self, name: str, limit: int) -> bytes:
        """The whole file, refused when longer than ``limit``."""

    @abc.abstractmethod
    def read_into(self, name: str, buffer: memoryview, ready: Ready = there_already) -> None:
        """Fill ``buffer`` from a file that has exactly its size, each piece of it once it is ``ready``."""

    @abc.abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """The file, piece by piece."""

    @abc.abstractmethod
    def list(self, prefix: str) -> tuple[Entry, ...]:
        """The files below a directory, at any depth, by name; none where there is no such directory."""

    @abc.abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, and its directory if that is empty then; a file that is gone already is fine."""

    @abc.abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abc.abstractmethod
    def written_at(self, name: str) -> float | None:
        """When a file was written, by the store's own clock; ``None`` where it does not say."""

    def probe(self) -> None:
        """Refuse a store in which two writers could both believe that they were first, or that is read-only."""
        name = f".probe-{secrets.token_hex(8)}"
        self.create(name, b"1")
        try:
            self.create(name, b"2")
        except Exists:
            return
        finally:
            self.delete(name)
        raise SettingsError(
            f"cannot keep checkpoints in {self.url}: it does not refuse to create a file twice, so two supervisors "
            "could both claim one attempt; use a store with conditional writes or a file system"
        )
