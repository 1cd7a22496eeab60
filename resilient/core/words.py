# SPDX-License-Identifier: Apache-2.0
"""A verdict in words for people: one line, one paragraph, the evidence.

The sentence itself is the rule's; what a cause and an action mean is said here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from resilient.core.causes import Action, Cause, Confidence, Verdict

CAUSES: Final[Mapping[Cause, str]] = {
    Cause.USER_CODE: "a fault of the code",
    Cause.USER_DATA: "a fault of the data",
    Cause.CONFIG_OR_ENVIRONMENT: "a wrong setting or environment",
    Cause.OUT_OF_MEMORY_DEVICE: "too little memory on the device",
    Cause.OUT_OF_MEMORY_HOST: "too little memory on the host",
    Cause.DEVICE_FAULT: "a broken device or node",
    Cause.INTERCONNECT_FAULT: "a broken link between devices",
    Cause.NETWORK_OR_PEER: "the network or a lost peer",
    Cause.HANG_OR_COLLECTIVE_TIMEOUT: "ranks that waited in vain",
    Cause.STORAGE: "storage",
    Cause.PREEMPTED: "a request to leave",
    Cause.FRAMEWORK_BUG: "a bug of the framework or compiler",
    Cause.NUMERIC_INSTABILITY: "numbers that are not finite",
    Cause.AMBIGUOUS: "unknown",
}
ACTIONS: Final[Mapping[Action, str]] = {
    Action.STOP: "the same would happen again: correct it before starting again.",
    Action.RESTART_IN_PLACE: "start the workers again where they are.",
    Action.RESCHEDULE: "move the work to another node, and have this one looked at.",
    Action.CHECKPOINT_AND_EXIT: "save and leave; it can go on from there when there is room.",
    Action.INVESTIGATE: "try once more in place; if it comes back, try elsewhere.",
}
_CONFIDENCES: Final[Mapping[Confidence, str]] = {
    Confidence.HIGH: "This is certain as far as the evidence goes",
    Confidence.MEDIUM: "This is likely",
    Confidence.LOW: "This is a guess",
}


def headline(verdict: Verdict) -> str:
    """One line."""
    return f"{CAUSES[verdict.cause]}: {verdict.why}"


def paragraph(verdict: Verdict) -> str:
    """Who is to blame, how sure that is, what to do: what the headline leaves open."""
    if verdict.cause is Cause.AMBIGUOUS:
        sure = f"The evidence does not decide whose fault it was (rule {verdict.rule})."
    else:
        sure = f"{_CONFIDENCES[verdict.confidence]} (rule {verdict.rule})."
    return f"{_blame(verdict)}{sure} Action {verdict.action.value}: {ACTIONS[verdict.action]}"


def further(verdict: Verdict) -> list[str]:
    """The evidence that the headline does not quote already."""
    return [line for line in verdict.evidence if line not in verdict.why]


def _blame(verdict: Verdict) -> str:
    if verdict.culprit is None:
        return ""
    node = f" on {verdict.node}" if verdict.node else ""
    device = f" ({verdict.device})" if verdict.device else ""
    return f"To blame is rank {verdict.culprit}{node}{device}. "
