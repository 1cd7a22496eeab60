# SPDX-License-Identifier: Apache-2.0
"""The check of a platform's own deny list, which ``resilient run`` obeys and nobody of us writes."""

from __future__ import annotations

from typing import Final

from resilient.core.denied import Denied
from resilient.core.measured import DenyListFacts
from resilient.core.preflight import Asked, Check, Judgement, counted, fail, ok, warn

DENY_LIST: Final = "deny-list"
LEMONS: Final = "https://arxiv.org/abs/2410.21680"
"""Some nodes fail again and again; platforms take them out."""


def _deny_list(facts: DenyListFacts, asked: Asked) -> Judgement:
    do = "correct --deny-list, or that file; a start goes on without what cannot be read"
    if facts.why:
        return warn(f"{facts.url} cannot be read: {facts.why}", do)
    ours = [each for each in facts.denials if (each.suspect.kind, each.suspect.name) == (Denied.NODE, facts.node)]
    if ours:
        return fail(str(ours[0]), "have the node looked at, or ask who keeps that list")
    found = f"{facts.entries} on it" if facts.entries else "it is empty"
    if facts.unread:
        return warn(f"{counted(facts.unread, 'line')} of {facts.url} cannot be read, {found}", do)
    return ok(found if facts.node is None else f"{found}, and not this node")


DENY_LIST_CHECKS: Final = (
    Check(
        id=DENY_LIST,
        looks_at="the platform's deny list",
        probes=("deny-list",),
        judge=_deny_list,
        do="look at its URL; a start goes on without it",
        source=LEMONS,
    ),
)
