# SPDX-License-Identifier: Apache-2.0
"""How far each rank was in the collectives of its groups, and who did not come.

Two witnesses: torch's flight recorder, as JSON (its pickle is never read), and the line
with which NCCL's watchdog ends a process. A number counts what a rank had enqueued, and
rises only after the call; so a rank that is behind had at least not come back from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

MOST_GROUPS: Final = 32
_NAME_CHARS: Final = 80
_NUMBER: Final = re.compile(r"-?\d{1,18}")
# "[PG ID 0 PG GUID 0(default_pg) Rank 4]", "[PG 3 Rank 3]", "[Rank 5]": old releases had one group most of the time,
# and do not name it. The rank is that within the group, so whoever printed the line is known from elsewhere.
_WATCHDOG: Final = re.compile(
    r"\[(?:PG (?:ID \d{1,9} PG GUID )?([^\s()\]]{1,80})(?: ?\(([^()\]\n]{1,80})\))? )?Rank \d{1,6}\][^\n]{0,300}?"
    r"[Ll]ast enqueued (?:NCCL )?work: (-?\d{1,18}), last completed (?:NCCL )?work: (-?\d{1,18})"
)
_DEFAULT: Final = "default_pg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collectives:
    """One rank in one group."""

    group: str
    """As torch describes it; ``default_pg`` is that of all ranks."""
    enqueued: int
    """Number of the last collective that it had handed over."""
    completed: int | None = None
    operation: str | None = None
    """What that last one was, as ``gloo:all_reduce [[1024]]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """The one rank that must have kept the others waiting, and how that is known."""

    rank: int
    why: str


def from_recorder(text: str | bytes) -> tuple[Collectives, ...]:
    """Read a dump of the flight recorder; what is not of its form is left out."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    entries = data.get("entries") if isinstance(data, dict) else None
    found: dict[str, Collectives] = {}
    for entry in entries if isinstance(entries, list) else ():
        number, group = _sequence(entry), _group(entry)
        if number is None or group is None or (group not in found and len(found) == MOST_GROUPS):
            continue
        known = found.get(group)
        if known is None or number > known.enqueued:
            done = number if entry.get("state") == "completed" else known.completed if known else None
            found[group] = Collectives(group=group, enqueued=number, completed=done, operation=_operation(entry))
    return tuple(_with_status(one, entries, data.get("pg_status")) for one in found.values())


def from_watchdog(text: str) -> tuple[Collectives, ...]:
    """Read the lines of torch's watchdog, the last for each group."""
    found: dict[str, Collectives] = {}
    for said in _WATCHDOG.finditer(text):
        group = said[2] or said[1] or _DEFAULT
        if group in found or len(found) < MOST_GROUPS:
            found[group] = Collectives(group=group, enqueued=int(said[3]), completed=int(said[4]))
    return tuple(found.values())


def absent(ranks: Mapping[int, Sequence[Collectives]], least: int = 2) -> Suspect | None:
    """Find the one rank that is behind all others in a group, or does something else than they all.

    ``least``: of so many ranks of a group it must be known where they were; more where some may be missing.
    """
    groups = dict.fromkeys(one.group for theirs in ranks.values() for one in theirs)
    for group in groups:
        places = {rank: one for rank, theirs in ranks.items() for one in theirs if one.group == group}
        if len(places) < least:
            continue
        found = _behind(group, places) or _different(group, places)
        if found is not None:
            return found
    return None


def _behind(group: str, places: Mapping[int, Collectives]) -> Suspect | None:
    """No other can get past the collective that comes after its last."""
    (rank, last), *others = sorted(places.items(), key=lambda item: item[1].enqueued)
    front, farthest = others[0][1].enqueued, others[-1][1].enqueued
    if last.enqueued == front:
        return None
    what = next((one.operation for _, one in others if one.enqueued == front and one.operation), None)
    waited = (
        f"collective {front} of {group}" + (f" ({what})" if what else "") + (" or beyond" if farthest > front else "")
    )
    return Suspect(rank=rank, why=f"rank {rank} had come to {last.enqueued} when the others waited in {waited}")


def _different(group: str, places: Mapping[int, Collectives]) -> Suspect | None:
    """At the same number, one rank alone called another operation: at least two must agree against it."""
    operations = [one.operation for one in places.values()]
    if len(places) < 3 or len({one.enqueued for one in places.values()}) != 1:
        return None
    odd = [rank for rank, one in places.items() if one.operation and operations.count(one.operation) == 1]
    if len(odd) != 1 or len(set(operations)) != 2 or None in operations:
        return None
    others = next(operation for operation in operations if operation != places[odd[0]].operation)
    return Suspect(
        rank=odd[0], why=f"rank {odd[0]} called {places[odd[0]].operation} where the others called {others} in {group}"
    )


def _with_status(one: Collectives, entries: Any, status: Any) -> Collectives:
    """Take what the recorder counts itself over what its entries show: old entries are overwritten."""
    identity = next((entry.get("pg_id") for entry in entries if _group(entry) == one.group), None)
    counts = status.get(str(identity)) if isinstance(status, dict) else None
    if not isinstance(counts, dict):
        return one
    completed = _whole(counts.get("last_completed_collective"))
    return one if completed is None else replace(one, completed=completed)


def _sequence(entry: Any) -> int | None:
    is_collective = isinstance(entry, dict) and entry.get("is_p2p") is False
    return _whole(entry.get("collective_seq_id")) if is_collective else None


def _group(entry: Any) -> str | None:
    names = entry.get("process_group") if isinstance(entry, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    name: str = names[-1] if names[-1] not in ("", "undefined") else names[0]
    return name[:_NAME_CHARS]


def _operation(entry: Any) -> str | None:
    name, sizes = entry.get("profiling_name"), entry.get("input_sizes")
    if not isinstance(name, str):
        return None
    return f"{name} {json.dumps(sizes)}"[:_NAME_CHARS] if sizes else str(name)[:_NAME_CHARS]


def _whole(value: Any) -> int | None:
    if type(value) is int and abs(value) < 1 << 63:
        return value
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None
