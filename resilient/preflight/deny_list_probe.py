# SPDX-License-Identifier: Apache-2.0
"""The probe that reads a platform's deny list: a file of JSON lines, at a path or any fsspec URL.

``{"node": "gpu-17"}`` or ``{"device": "GPU-..."}``, with ``"why"`` and ``"until"`` (seconds since 1970) where there
are any. Nobody vouches for it: what is no such line is counted and left out.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Final

from resilient import retry
from resilient.checkpoint import layout
from resilient.checkpoint.store import display_url, open_store
from resilient.checkpoint.untrusted import object_of, parse_json
from resilient.core.denied import Denial, Denied, Suspect
from resilient.core.grammar import remedy_apart
from resilient.core.measured import DenyListFacts
from resilient.core.redact import Redactor
from resilient.errors import CheckpointError, SettingsError

LIMIT: Final = 4 << 20
"""Bytes: some ten thousand nodes, each with a reason."""
_PATIENCE_S: Final = 10.0
_LINE_CHARS: Final = 4096
_WHY_CHARS: Final = 300
MOST_DEVICES: Final = 1000
"""That are passed on, as only whoever has asked the driver knows which of them are here; more are not read."""
_FIELDS: Final = frozenset({"node", "device", "why", "until"})


def deny_list(at: Callable[[str], None], url: str, node: str | None) -> DenyListFacts:
    """What the list says of this node, and of devices."""
    shown = display_url(url)
    at(f"reading {shown}")
    try:
        text = _read(url)
    except (CheckpointError, SettingsError) as error:
        return DenyListFacts(url=shown, node=node, why=remedy_apart(str(error))[0])
    return read_entries(text, url=shown, node=node)


def read_entries(text: str, *, url: str, node: str | None) -> DenyListFacts:
    """The entries in its text."""
    entries = devices = unread = 0
    found: list[Denial] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            denial = _entry(line)
        except ValueError:
            unread += 1
            continue
        if denial.suspect.kind is Denied.DEVICE and devices == MOST_DEVICES:
            unread += 1
            continue
        entries += 1
        devices += denial.suspect.kind is Denied.DEVICE
        if denial.suspect.kind is Denied.DEVICE or denial.suspect.name == node:
            found.append(denial)
    return DenyListFacts(url=url, node=node, entries=entries, unread=unread, denials=tuple(found))


def _read(url: str) -> str:
    if "://" not in url:
        url = os.path.realpath(url)  # a mounted ConfigMap is links to links, which a store does not follow
    folder, _, name = url.rpartition("/")
    if not name:
        raise SettingsError(f"cannot read {display_url(url)}: it names no file; give the URL of one")
    store = open_store(folder or "/")
    return retry.store_small(_PATIENCE_S, threading.Event())(lambda: store.read(name, LIMIT)).decode("utf-8", "replace")


def _entry(line: str) -> Denial:
    if len(line) > _LINE_CHARS:
        raise ValueError("it is too long")
    data = object_of(parse_json(line))
    kinds = [kind for kind in Denied if kind.value in data]
    name, why, until = data.get(kinds[0].value) if len(kinds) == 1 else None, data.get("why", ""), data.get("until")
    if data.keys() - _FIELDS or not (isinstance(name, str) and layout.is_denial_name(name)):
        raise ValueError("it names no node or device")
    if not isinstance(why, str) or isinstance(until, bool) or not isinstance(until, int | float | None):
        raise ValueError("why or until is not what it should be")
    suspect = Suspect(kind=kinds[0], name=name, rule="", evidence=_clean(why))
    expires_s = math.inf if until is None else float(until)
    # "Until" may be any time; infinity has no place in JSON.
    return Denial(suspect=suspect, written_s=0.0, expires_s=min(expires_s, float(1 << 52)), of_platform=True)


def _clean(text: str) -> str:
    return " ".join(Redactor().clean(text, _WHY_CHARS).split())
