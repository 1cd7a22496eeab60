# SPDX-License-Identifier: Apache-2.0
"""Sets of completion indexes as Kubernetes writes them: ``0,2-5,7``."""

from __future__ import annotations

from collections.abc import Collection


def format_indexes(indexes: Collection[int]) -> str:
    """Intervals in rising order; two neighbours are no interval yet: ``1,2``, ``1-3``."""
    spans: list[list[int]] = []
    for index in sorted(indexes):
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(_span(first, last) for first, last in spans)


def _span(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first}{',' if last == first + 1 else '-'}{last}"


def parse_indexes(text: str, completions: int) -> frozenset[int]:
    """The indexes below ``completions``; what cannot be read is left out, as the controller leaves it out."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        bounds = [number.strip() for number in (first, last or first)]
        if all(bound.isascii() and bound.isdecimal() and len(bound) < 12 for bound in bounds):
            found.update(range(int(bounds[0]), min(int(bounds[1]), completions - 1) + 1))
    return frozenset(found)
