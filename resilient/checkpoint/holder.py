# SPDX-License-Identifier: Apache-2.0
"""Who holds a run: a record for people, and for telling a dead holder from a live one.

A host name and a process id do not identify a process: the pod that replaces another may
have the same host name and its own process 1. So a process is named by the boot of its
machine, its PID namespace, its number and its start time. Only on the same machine and in
the same namespace can its death be seen at once.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Final

from resilient.core import wire
from resilient.errors import StoreError

LIMIT: Final = 8 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The supervisor that holds a run, through its saver."""

    host: str
    pid: int
    """Of the supervisor."""
    pod: str
    """Empty outside Kubernetes."""
    journal: str
    """Directory of its journal."""
    since_s: float
    machine: str
    """Boot and PID namespace; empty where they cannot be read."""
    supervisor: str
    """``<pid>:<start time>``, as :func:`process` gives it; empty where unknown."""
    keeper: str
    """The same for the process that keeps the lock."""

    def __str__(self) -> str:
        pod = f" in pod {self.pod}" if self.pod else ""
        journal = f", journal {self.journal}" if self.journal else ""
        return f"process {self.pid} on {self.host}{pod}{journal}"


class Locked(StoreError):
    """Somebody else holds the run."""

    kind = "locked"

    def __init__(self, holder: Holder) -> None:
        super().__init__(
            f"cannot use this run: it is held by {holder}; stop that one first, or give another directory",
            answered=True,
        )
        self.holder = holder


UNKNOWN: Final = Holder(
    host="an unknown host", pid=0, pod="", journal="", since_s=0.0, machine="", supervisor="", keeper=""
)


def parse_holder(data: bytes) -> Holder:
    """The record in ``data``; a damaged one is nobody in particular, which holds all the same."""
    try:
        return wire.from_data(json.loads(data.decode()), Holder)
    except (ValueError, RecursionError):
        return UNKNOWN


def machine() -> str:
    """This boot of this machine, and the PID namespace of this process."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process(pid: int) -> str:
    """Number and start time of a process, or empty where there is none (a zombie is none)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else f"{pid}:{int(fields[19])}"


def is_alive(holder: Holder, name: str) -> bool | None:
    """Whether the process ``name`` of a holder lives; ``None`` where this cannot be seen from here."""
    if not holder.machine or holder.machine != machine():
        return None
    number = name.partition(":")[0]
    return process(int(number)) == name if number.isdigit() else None
