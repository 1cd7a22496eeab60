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
    Action.STOP: "The same would happen again: correct it before starting again.",
    Action.RESTART_IN_PLACE: "Start the workers again where they are.",
    Action.RESCHEDULE: "Move the work to another node, and have this one looked at.",
    Action.CHECKPOINT_AND_EXIT: "Save and leave; it can go on from there when there is room.",
    Action.INVESTIGATE: "Try once more in place; if it comes back, try elsewhere.",
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
    """What happened, who is to blame, how sure that is, what to do."""
    sentence = verdict.why[:1].upper() + verdict.why[1:]
    sentence += "" if sentence.endswith((".", "!", "?")) else "."
    if verdict.cause is Cause.AMBIGUOUS:
        sure = f"The evidence does not decide whose fault it was (rule {verdict.rule})."
    else:
        sure = f"{_CONFIDENCES[verdict.confidence]}: {CAUSES[verdict.cause]}, by rule {verdict.rule}."
    return f"{sentence} {_blame(verdict)}{sure} {ACTIONS[verdict.action]}"


def _blame(verdict: Verdict) -> str:
    if verdict.culprit is None:
        return ""
    node = f" on {verdict.node}" if verdict.node else ""
    return f"To blame is rank {verdict.culprit}{node}. "
