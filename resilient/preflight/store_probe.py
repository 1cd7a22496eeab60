# SPDX-License-Identifier: Apache-2.0
"""The probe of a checkpoint store: one object of its own is made, read and deleted; a run's files are only read."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from resilient import retry
from resilient.checkpoint import layout
from resilient.checkpoint.catalog import State, find, read_catalog
from resilient.checkpoint.files import Store
from resilient.checkpoint.store import display_url, open_store
from resilient.checkpoint.store_errors import Answered, Exists, code_of, kind_of
from resilient.checkpoint.vault import Vault
from resilient.core.measured import StoreFacts
from resilient.errors import CheckpointError, ResilientError, SettingsError
from resilient.preflight.nearest import nearest
from resilient.supervisor.store_link import MEMORY_REFUSED

Ask = Callable[..., Any]
"""Calls a function, again where the store does not answer."""
STAMP_S: Final = 1.0
"""Object stores say their time in whole seconds: it may be that much later."""


def store(at: Callable[[str], None], url: str, patience_s: float) -> StoreFacts:
    """Write, read and delete in the store at ``url``; one that does not answer is asked again for ``patience_s``."""
    shown = display_url(url)
    if url.startswith("memory:"):
        return StoreFacts(url=shown, kind="settings", why=MEMORY_REFUSED)
    began = time.monotonic()
    ask = retry.store_small(patience_s, threading.Event())
    try:
        target = open_store(url)
        made_in = _missing_directory(target)
        place = open_store(made_in) if made_in else target
        skew = _write_read_delete(at, place, ask)
    except ResilientError as error:
        return StoreFacts(
            url=shown, kind=kind_of(error), code=code_of(error), why=str(error), seconds=time.monotonic() - began
        )
    seconds = time.monotonic() - began
    at(f"reading the newest checkpoint of {shown}")
    state = None if made_in else _state(target, ask)
    return StoreFacts(url=shown, seconds=round(seconds, 3), made_in=made_in, skew=skew, state=state)


def _missing_directory(target: Store) -> str:
    """The directory in which that of the run would be made; a typing error must not leave one behind."""
    return "" if target.path is None or os.path.isdir(target.path) else nearest(target.path)


def _write_read_delete(at: Callable[[str], None], target: Store, ask: Ask) -> float | None:
    """By how much the store's clock is ahead."""
    name, data = f".probe-{secrets.token_hex(8)}", secrets.token_bytes(64)
    try:
        at(f"writing in {target.url}")
        before = time.time()
        with contextlib.suppress(Exists):  # nobody else has this name: an earlier try was done, and its answer lost
            ask(target.create, name, data)
        after = time.time()
        at(f"reading in {target.url}")
        if ask(target.read, name, len(data)) != data:
            raise Answered(f"cannot use {target.url}: what was read back is not what was written; have it looked at")
        stamp: float | None = ask(target.written_at, name)
        _refuses_twice(target, ask, name)
    except BaseException:
        with contextlib.suppress(CheckpointError):  # the first reason counts; what was not answered may be there
            target.delete(name)
        raise
    at(f"deleting in {target.url}")
    ask(target.delete, name)
    if stamp is None:
        return None
    return round(min(0.0, stamp + STAMP_S - before) + max(0.0, stamp - after), 3)


def _refuses_twice(target: Store, ask: Ask, name: str) -> None:
    try:
        ask(target.create, name, b"twice")
    except Exists:
        return
    raise SettingsError(
        f"cannot keep checkpoints in {target.url}: it does not refuse to create a file twice; "
        "use a store with conditional writes or a file system"
    )


def _state(target: Store, ask: Ask) -> int | None:
    """Bytes that one snapshot of all ranks takes in memory, as the newest checkpoint has it; unknown without one."""
    try:
        if not ask(target.exists, layout.RUN):
            return None
        run = ask(lambda: Vault(target, clock=lambda: 0.0).identify(make=False))
        rows = ask(read_catalog, target, run).rows
        newest = next((row.name for row in rows if row.state is State.NEXT), None)
        if newest is None:
            return None
        _, manifest = find(target, newest)
    except CheckpointError:
        return None  # `resilient checkpoints` says more; here only a size was wanted
    return sum(manifest.file(file).size for rank in manifest.ranks for file in (rank.tensors, rank.own))
