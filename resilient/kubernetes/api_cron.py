# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in a CronJob beside its Job: the schedule, the time zone, what runs at the same time.

Facts from ``validateCronJobSpec`` and the parser that it uses (robfig/cron v3, five fields and descriptors).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from resilient.kubernetes.api_job import not_negative
from resilient.kubernetes.api_problems import Problem, invalid, required, text, unsupported
from resilient.kubernetes.building import PartPath

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_BOUNDS: Final[tuple[tuple[int, int, Mapping[str, int]], ...]] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    (0, 6, {name: number for number, name in enumerate(_DAYS)}),
)
_DESCRIPTORS: Final = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_EVERY: Final = re.compile(r"@every ([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+")
_CONCURRENCY: Final = ("Allow", "Forbid", "Replace")
_ZONE_PART: Final = re.compile(r"[A-Za-z._0-9+][A-Za-z._0-9+-]{0,13}")


def schedule(spec: Mapping[str, Any], path: PartPath) -> Iterator[Problem]:
    """When it runs."""
    given, where = text(spec.get("schedule")), (*path, "schedule")
    if not given:
        yield required("cron-schedule", where)
    elif "TZ" in given:
        why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        yield invalid("cron-schedule", where, given, why)
    elif not _is_schedule(given):
        yield invalid("cron-schedule", where, given, "it is not five fields that a clock reaches, nor a descriptor")
    yield from not_negative(spec.get("startingDeadlineSeconds"), (*path, "startingDeadlineSeconds"))
    for name in ("successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        yield from not_negative(spec.get(name), (*path, name))
    policy = text(spec.get("concurrencyPolicy"))
    if policy and policy not in _CONCURRENCY:
        yield unsupported("cron-concurrency-unknown", (*path, "concurrencyPolicy"), policy, _CONCURRENCY)
    zone = spec.get("timeZone")
    if isinstance(zone, str) and not _is_zone(zone):
        yield invalid("cron-time-zone", (*path, "timeZone"), zone, f"unknown time zone {zone}")


def _is_schedule(given: str) -> bool:
    if given.startswith("@"):
        return given in _DESCRIPTORS or bool(_EVERY.fullmatch(given))
    parts = given.split()
    return len(parts) == len(_BOUNDS) and all(
        _is_range(choice, *bounds)
        for part, bounds in zip(parts, _BOUNDS, strict=True)
        for choice in part.split(",")
        if choice or part == ""
    )


def _is_range(choice: str, low: int, high: int, names: Mapping[str, int]) -> bool:
    span, slash, step = choice.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return False
    if span in ("*", "?"):
        return True
    first, dash, last = span.partition("-")
    bounds = [_number(word, names) for word in ((first, last) if dash else (first,))]
    known = [bound for bound in bounds if bound is not None]
    return len(known) == len(bounds) and low <= known[0] <= known[-1] <= high


def _number(word: str, names: Mapping[str, int]) -> int | None:
    return names.get(word.lower(), int(word) if word.isdecimal() and len(word) < 10 else None)


def _is_zone(zone: str) -> bool:
    parts = zone.split("/")
    return zone.lower() != "local" and all(part not in (".", "..") and _ZONE_PART.fullmatch(part) for part in parts)
