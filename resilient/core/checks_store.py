# SPDX-License-Identifier: Apache-2.0
"""Checks of the checkpoint store: whether it takes, gives back and lets go, and whether it agrees about the time."""

from __future__ import annotations

from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.core.grammar import remedy_apart
from resilient.core.measured import StoreFacts
from resilient.core.preflight import Asked, Check, Grade, Judgement, fail, ok, skip, warn

SKEW_REFUSED_S: Final = 900.0
"""S3 refuses what a clock signed that is further off: ``MaxAllowedSkewMilliseconds`` of ``RequestTimeTooSkewed``."""
SKEW_SEEN_S: Final = 5.0
"""The journals of several pods are laid beside each other by their clocks."""
SKEWED_CODE: Final = "RequestTimeTooSkewed"
SLOW_S: Final = 10.0
"""Five small requests, each of which a store that is near answers in a fraction of a second."""
WRONG: Final = frozenset({"settings", "corrupt", "damaged", "missing", "refused"})
"""Answers that no waiting cures: 115. Any other is retried by ``resilient run``, and then is 193."""
ADVISED: Final = frozenset({"settings", "locked", "denied", "missing"})
"""Whose messages end with what to do; an error of a store may end in anything."""

ERRORS: Final = "https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"


def _store(store: StoreFacts, asked: Asked) -> Judgement:
    if store.kind:
        wrong = store.kind in WRONG
        found, do = remedy_apart(store.why) if store.kind in ADVISED else (store.why, "")
        usual = "correct the URL or create what it names" if wrong else "see the reason; the store's side must change"
        return fail(found, do or usual, ExitCode.CONFIG_FAULT if wrong else ExitCode.RESTART)
    if store.made_in:
        found = f"{store.url} does not exist yet and can be made in {store.made_in}"
        return warn(found, "nothing where it is new; else check the mount")
    found = f"wrote, read and deleted in {store.url} in {store.seconds:.2f} s"
    return ok(found) if store.seconds < SLOW_S else warn(f"{found}: slow", "look at the network, or use a nearer store")


def _clock(store: StoreFacts, asked: Asked) -> Judgement:
    do = "have the node's clock set (chrony, systemd-timesyncd)"
    if store.code == SKEWED_CODE:
        return fail("the store refuses requests, as this node's clock differs by more than 15 minutes", do)
    if store.skew is None:
        return skip("the store says no time" if not store.kind else "the store could not be asked")
    ahead = "behind" if store.skew > 0 else "ahead of"
    found = f"this clock is {abs(store.skew):.1f} s {ahead} the store's"
    if abs(store.skew) > SKEW_REFUSED_S:
        return fail(found, do)
    return warn(found, do) if abs(store.skew) > SKEW_SEEN_S else ok("it agrees with the store's")


STORE_CHECKS: Final = (
    Check(
        id="store",
        looks_at="checkpoint store",
        probes=("store",),
        judge=_store,
        refusal=ExitCode.RESTART,
        late=Grade.FAIL,
        broken=Grade.FAIL,
        do="check that the store can be reached, and its mount",
        source="https://filesystem-spec.readthedocs.io/en/latest/api.html",
    ),
    Check(
        id="clock",
        looks_at="clock against the store",
        probes=("store",),
        judge=_clock,
        follows=True,
        do="see the check of the store",
        source=ERRORS,
    ),
)
