# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in the ``successPolicy`` of an Indexed Job (``validateSuccessPolicy`` upstream)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from resilient.kubernetes.api_problems import (
    Problem,
    invalid,
    items,
    mapping,
    number,
    required,
    too_long,
    too_many,
)
from resilient.kubernetes.building import PartPath

_MOST_RULES: Final = 20
_MOST_BYTES: Final = 64 * 1024
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")


def success_policy(policy: Mapping[str, Any], completions: int, path: PartPath) -> Iterator[Problem]:
    """All rules, for so many completions."""
    rules, where = items(policy.get("rules")), (*path, "rules")
    if not rules:
        why = "at least one rules must be specified when the successPolicy is specified"
        yield required("success-rules-count", where, why)
    if len(rules) > _MOST_RULES:
        yield too_many("success-rules-count", where, len(rules), _MOST_RULES)
    for index, rule in enumerate(rules):
        yield from _rule(mapping(rule), completions, (*where, index))


def _rule(rule: Mapping[str, Any], completions: int, path: PartPath) -> Iterator[Problem]:
    count, indexes = number(rule.get("succeededCount")), rule.get("succeededIndexes")
    if count is None and not isinstance(indexes, str):
        why = "at least one of succeededCount or succeededIndexes must be specified"
        yield required("success-rule-empty", path, why)
    total = 0
    if isinstance(indexes, str):
        where = (*path, "succeededIndexes")
        if len(indexes.encode()) > _MOST_BYTES:
            yield too_long("success-indexes-malformed", where, _MOST_BYTES)
        try:
            total = _total(indexes, completions)
        except ValueError as error:
            yield invalid("success-indexes-malformed", where, indexes, f"error parsing succeededIndexes: {error}")
    if count is not None:
        yield from _count(count, total if isinstance(indexes, str) else None, completions, (*path, "succeededCount"))


def _count(count: int, total: int | None, completions: int, path: PartPath) -> Iterator[Problem]:
    if count < 0:
        yield invalid("negative-number", path, count, "must be greater than or equal to 0")
    if count > completions:
        why = f"must be less than or equal to {completions} (the number of specified completions)"
        yield invalid("success-count-too-large", path, count, why)
    if total is not None and count > total:
        why = f"must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        yield invalid("success-count-too-large", path, count, why)


def _total(indexes: str, completions: int) -> int:
    """How many indexes a text such as ``0,2-4`` names; ``ValueError`` in the API server's words."""
    total, last = 0, -1
    for fragment in indexes.split(",") if indexes else ():
        first, end = _interval(fragment, completions)
        if last >= first and total:
            raise ValueError(f"non-increasing order, previous: {last}, current: {first}")
        total, last = total + end - first + 1, end
    return total


def _interval(fragment: str, completions: int) -> tuple[int, int]:
    limits = fragment.split("-")
    if len(limits) > 2:
        raise ValueError(
            f'the fragment "{fragment}" violates the requirement that an index interval can have at most two parts '
            "separated by '-'"
        )
    bounds = [_index(limit, completions) for limit in limits]
    if len(bounds) == 2 and bounds[0] >= bounds[1]:
        raise ValueError(f"non-increasing order, previous: {bounds[0]}, current: {bounds[1]}")
    return bounds[0], bounds[-1]


def _index(word: str, completions: int) -> int:
    if not _WHOLE.fullmatch(word):
        raise ValueError(f'cannot convert string to integer for index: "{word}"')
    if int(word) >= completions:
        raise ValueError(f'too large index: "{word}"')
    return int(word)
