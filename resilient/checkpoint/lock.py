# SPDX-License-Identifier: Apache-2.0
"""One supervisor at a time on one run; sole owner of filelock.

In a directory it is a file lock for life: the kernel frees it with its holder, also after
SIGKILL. Elsewhere it is a lease, see :mod:`resilient.checkpoint.lease`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final, Protocol

import filelock

from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import LIMIT, UNKNOWN, Holder, Locked, is_alive, parse_holder
from resilient.checkpoint.lease import observe
from resilient.core import wire
from resilient.errors import StoreError

LOCK: Final = ".lock"
HOLDER: Final = ".holder.json"
_LOOK_AGAIN_S: Final = 0.2


class Lock(Protocol):
    """A run that is held."""

    def check(self) -> None:
        """Return while it is held, else raise :class:`Locked`."""

    def renew(self) -> None:
        """Say that the holder lives; to be called every ``lease.RENEW_S``."""

    def release(self) -> None:
        """Give it back; never raises."""


class Unheld:
    """In the place of a lock where another pod of the run has it."""

    def check(self) -> None:
        """There is nothing to lose."""

    def renew(self) -> None:
        """There is nothing to keep."""

    def release(self) -> None:
        """There is nothing to give back."""


def acquire(
    store: Store, holder: Holder, *, patience_s: float, now: Callable[[], float], wait: Callable[[float], object]
) -> Lock:
    """Hold the run in ``store``, or raise :class:`Locked` with who does.

    A holder that is known to live is not waited for. One that may be dying (its supervisor
    is dead and its saver finishes, or it is on another machine) is, for ``patience_s``.
    """
    if store.path is not None:
        return _acquire_file(store, store.path, holder, patience_s=patience_s, now=now, wait=wait)
    return observe(store, holder, patience_s=patience_s, now=now, wait=wait)


class _FileLock:
    """A directory's lock; the sidecar only says who."""

    def __init__(self, lock: filelock.BaseFileLock) -> None:
        self._lock = lock
        self._held = _identity(lock.lock_file)

    def check(self) -> None:
        """The kernel holds it as long as this process lives, but its path may lead elsewhere by now."""
        if _identity(self._lock.lock_file) != self._held:
            raise StoreError(
                f"cannot use {os.path.dirname(self._lock.lock_file)}: it is not the directory that was opened, which "
                "was deleted, replaced, or has lost its mount; put it back",
                answered=True,
            )

    def renew(self) -> None:
        """Nothing to do."""

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._lock.release()


def _identity(path: str) -> tuple[int, int] | None:
    """Device and number of a file, ``None`` where there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot look at {path}: {error}", answered=False) from error
    return found.st_dev, found.st_ino


def _acquire_file(
    store: Store,
    path: str,
    holder: Holder,
    *,
    patience_s: float,
    now: Callable[[], float],
    wait: Callable[[float], object],
) -> Lock:
    with contextlib.suppress(OSError):  # where it cannot be made, the lock says why
        os.makedirs(path, exist_ok=True)
    lock = filelock.FileLock(os.path.join(path, LOCK), thread_local=False)
    deadline = now() + patience_s
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except filelock.Timeout:
            other = _read_holder(store)
            if now() >= deadline or (is_alive(other, other.supervisor) and other.supervisor != holder.supervisor):
                raise Locked(other) from None
            wait(_LOOK_AGAIN_S)
        except (OSError, NotImplementedError) as error:
            raise StoreError(
                f"cannot lock {store.url}: {error}; give a file system that has file locks, or an object store",
                answered=True,
            ) from error
    try:
        store.replace(HOLDER, wire.encode(holder))
        return _FileLock(lock)
    except StoreError:
        lock.release()
        raise


def _read_holder(store: Store) -> Holder:
    try:
        return parse_holder(store.read(HOLDER, LIMIT))
    except StoreError:
        return UNKNOWN
