# SPDX-License-Identifier: Apache-2.0
"""After which verdicts a machine is examined before it is used again."""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.rule import Family, Rule
from resilient.core.rules import RULES

_OF_DEVICES: Final = frozenset({Cause.DEVICE_FAULT, Cause.INTERCONNECT_FAULT})


def _casts_doubt(rule: Rule) -> bool:
    """What the driver said, whoever is to blame; a CUDA error that has two owners; whatever blames a device."""
    two_owners = rule.family is Family.CUDA and rule.action is Action.INVESTIGATE
    return rule.family in (Family.DRIVER, Family.KUBELET) or two_owners or rule.cause in _OF_DEVICES


DOUBTFUL: Final = frozenset(rule.id for rule in RULES if _casts_doubt(rule))


def suspects_device(verdict: Verdict) -> bool:
    """Whether a device may be to blame."""
    return verdict.rule in DOUBTFUL or verdict.cause in _OF_DEVICES
