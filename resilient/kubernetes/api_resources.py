# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in a container's requests and limits (``validateContainerResourceRequirements``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from resilient.kubernetes.api_problems import Key, Problem, contradiction, invalid, mapping, required
from resilient.kubernetes.building import PartPath

_NUMBER: Final = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?[0-9]{1,3})?")
_UNITS: Final = {
    unit: Decimal(1000) ** power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}
_UNITS_2: Final = {unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
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


def resources(given: Mapping[str, Any], path: PartPath) -> Iterator[Problem]:
    """Requests against limits."""
    limits, requests = mapping(given.get("limits")), mapping(given.get("requests"))
    for group, amounts in (("limits", limits), ("requests", requests)):
        for name, value in amounts.items():
            yield from _amount(name, value, (*path, group, Key(name)))
    for name, value in requests.items():
        wanted, most = quantity(value), quantity(limits.get(name))
        where = (*path, "requests")
        if wanted is None:
            continue
        if name not in limits and is_extended(name):
            yield required(
                "device-limit-missing", (*path, "limits"), "Limit must be set for non overcommitable resources"
            )
        elif most is not None and is_extended(name) and wanted != most:
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
