# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in a container's requests and limits.

Facts from ``pkg/apis/core/validation/validation.go`` (``ValidateContainerResourceRequirements`` and
``validateContainerResourceName``) and ``pkg/apis/core/helper/helpers.go``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    Key,
    Problem,
    contradiction,
    forbidden,
    invalid,
    invalids,
    mapping,
    required,
)
from resilient.kubernetes.building import PartPath

_NUMBER: Final = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?[0-9]{1,3})?")
_UNITS: Final = {
    unit: Decimal(1000) ** power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}
_UNITS_2: Final = {unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
_HUGE_PAGES: Final = "hugepages-"
_OF_CONTAINERS: Final = ("cpu", "memory", "ephemeral-storage")
_OF_OTHERS: Final = ("storage", "pods", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
"""Of claims, nodes and quotas; those that people write here."""
NO_QUANTITY: Final = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


def quantity(value: object) -> Decimal | None:
    """A number of something, such as ``16Gi``; None for what is no quantity."""
    found = _NUMBER.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if found is None or isinstance(value, bool):
        return None
    unit = found[2] or ""
    try:
        if unit[:1] in ("e", "E") and len(unit) > 1 and unit not in _UNITS_2:
            return Decimal(found[1] + unit)
        return Decimal(found[1]) * {**_UNITS, **_UNITS_2}[unit]
    except InvalidOperation:
        return None


def is_extended(name: str) -> bool:
    """Whether a resource is a device or the like, of which there is no half and no promise without holding it."""
    return "/" in name and not name.partition("/")[0].endswith("kubernetes.io")


def _is_fixed(name: str) -> bool:
    """Whether no more may be promised than there is, so that what is asked for is the limit."""
    return is_extended(name) or name.startswith(_HUGE_PAGES)


def resources(given: Mapping[str, Any], path: PartPath) -> Iterator[Problem]:
    """Requests against limits."""
    limits, requests = mapping(given.get("limits")), mapping(given.get("requests"))
    for group, amounts in (("limits", limits), ("requests", requests)):
        for name, value in amounts.items():
            yield from invalids("resource-name", (*path, group, Key(name)), name, _name(name))
            yield from _amount(name, value, (*path, group, Key(name)))
    asked = {*limits, *requests}
    if any(name.startswith(_HUGE_PAGES) for name in asked) and not asked & {"cpu", "memory"}:
        yield forbidden("huge-pages", path, "HugePages require cpu or memory")
    for name, value in requests.items():
        wanted, most = quantity(value), quantity(limits.get(name))
        where = (*path, "requests")
        if wanted is None:
            continue
        if name not in limits and _is_fixed(name):
            yield required(
                "device-limit-missing", (*path, "limits"), "Limit must be set for non overcommitable resources"
            )
        elif most is not None and _is_fixed(name) and wanted != most:
            yield invalid("request-over-limit", where, str(value), f"must be equal to {name} limit of {limits[name]}")
        elif most is not None and wanted > most:
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            yield invalid("request-over-limit", where, str(value), why)


def _amount(name: str, value: object, path: PartPath) -> Iterator[Problem]:
    amount = quantity(value)
    if amount is None:
        yield contradiction("quantity-malformed", path, NO_QUANTITY)
    elif amount < 0:
        yield invalid("quantity-malformed", path, str(value), "must be greater than or equal to 0")
    elif is_extended(name) and amount != int(amount):
        yield invalid("quantity-malformed", path, str(value), "must be an integer")
    elif name.startswith(_HUGE_PAGES) and not _is_whole(amount, quantity(name.removeprefix(_HUGE_PAGES))):
        why = f"{value} is not positive integer multiple of {name}"
        yield invalid("huge-pages", path, str(value), why)


def _is_whole(amount: Decimal, page: Decimal | None) -> bool:
    """Whether it is a number of pages; of a page without a size nobody knows."""
    return not page or Fraction(amount) % Fraction(page) == 0


def _name(name: str) -> list[str]:
    if complaints := api_names.qualified(name):
        return complaints
    if "/" in name:
        is_device = not is_extended(name) or not api_names.qualified(f"requests.{name}")
        return [] if is_device else ["doesn't follow extended resource name standard"]
    if name in _OF_CONTAINERS or name.startswith(_HUGE_PAGES):
        return []
    unknown = [] if name in _OF_OTHERS else ["must be a standard resource type or fully qualified"]
    return [*unknown, "must be a standard resource for containers"]
