# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in a claim of storage (``ValidatePersistentVolumeClaimSpec``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from resilient.kubernetes.api_problems import (
    Key,
    Problem,
    contradiction,
    forbidden,
    inside,
    invalid,
    items,
    mapping,
    required,
    unless_one_of,
    unsupported,
)
from resilient.kubernetes.api_resources import NO_QUANTITY, quantity
from resilient.kubernetes.building import PartPath

_MODES: Final = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_VOLUME_MODES: Final = ("Block", "Filesystem")


def claim_spec(spec: Mapping[str, Any], path: PartPath) -> Iterator[Problem]:
    """Of a claim that is made from a template."""
    modes, where = items(spec.get("accessModes")), (*path, "accessModes")
    if not modes:
        yield required("claim-modes", where, "at least 1 access mode is required")
    for mode in modes:
        if mode not in _MODES:
            yield unsupported("claim-modes", where, mode, _MODES)
    if "ReadWriteOncePod" in modes and any(mode in _MODES[:-1] for mode in modes):
        yield forbidden("claim-modes", where, "may not use ReadWriteOncePod with other access modes")
    yield from _size(mapping(inside(spec, "resources", "requests")), (*path, "resources"))
    yield from unless_one_of("claim-volume-mode", (*path, "volumeMode"), spec.get("volumeMode"), _VOLUME_MODES)


def _size(requests: Mapping[str, Any], path: PartPath) -> Iterator[Problem]:
    size, named = requests.get("storage"), (*path, Key("storage"))
    if size is None:
        yield required("claim-size", path, named=named)
        return
    amount = quantity(size)
    if amount is None:
        yield contradiction("quantity-malformed", (*path, "requests", "storage"), NO_QUANTITY)
    elif amount <= 0:
        yield invalid("claim-size", (*path, "requests", "storage"), str(size), "must be greater than zero", named=named)
