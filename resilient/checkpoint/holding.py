# SPDX-License-Identifier: Apache-2.0
"""Holding a run for a command of a person: as a supervisor does, so that neither changes it under the other."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import Holder, machine, process
from resilient.checkpoint.lease import FREE_AFTER_S, RENEW_S
from resilient.checkpoint.lock import Lock, acquire
from resilient.errors import StoreError

_FILE_LOCK_S: Final = 5.0
"""A file lock is free at once when its holder is dead; its saver may still be ending."""
_LEASE_S: Final = FREE_AFTER_S + RENEW_S
"""A lease has to be watched for so long to know that its holder is dead; one that lives is seen to renew it before."""


@contextlib.contextmanager
def held(store: Store, pod: str) -> Iterator[Lock]:
    """The run's lock, renewed while the block runs; :class:`Locked` says who has it."""
    ourselves = process(os.getpid())
    holder = Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        pod=pod,
        journal="",
        since_s=time.time(),
        machine=machine(),
        supervisor=ourselves,
        keeper=ourselves,
    )
    patience_s = _LEASE_S if store.path is None else _FILE_LOCK_S
    lock = acquire(store, holder, patience_s=patience_s, now=time.monotonic, wait=time.sleep)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_S):
            with contextlib.suppress(StoreError):  # the lock notices that it is not renewed
                lock.renew()

    renewer = threading.Thread(target=renew, name="resilient-renew")
    renewer.start()
    try:
        yield lock
    finally:
        done.set()
        renewer.join()
        lock.release()
