# SPDX-License-Identifier: Apache-2.0
"""How often an operation is tried again: every policy of the project, by name; sole owner of tenacity.

Only what was not answered is tried again. A refusal (no permission, disk full, no such
bucket) is the same a second later, and is for a person or the ladder to act on.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import tenacity
from tenacity.stop import stop_base

from resilient.errors import StoreError

_POD_API_S = 60.0


def store_small(patience_s: float, leaving: threading.Event) -> tenacity.Retrying:
    """For one small object: first again after up to 0.2 s, then at most every 5 s."""
    return _policy(patience_s, leaving, first_s=0.2, most_s=5.0)


def store_save(patience_s: float, leaving: threading.Event, *, apart_s: Callable[[], float]) -> tenacity.Retrying:
    """For a whole checkpoint, which costs bandwidth each time: at most every 30 s. ``apart_s``: how long something else
    than the store was waited for so far."""
    return _policy(patience_s, leaving, first_s=1.0, most_s=30.0, apart_s=apart_s)


def store_part(leaving: threading.Event) -> tenacity.Retrying:
    """For one part of a large file: a hiccup must not cost all the other parts. Soon given up, as the whole is tried
    again too: at most 5 times, with 8 s of waiting in all, and nothing is begun again after 30 s."""
    return _policy(30.0, leaving, first_s=0.5, most_s=5.0, most_attempts=5)


def pod_api(
    leaving: threading.Event, again_s: Callable[[BaseException], float | None], failed: Callable[[], None]
) -> tenacity.Retrying:
    """For one request to the API server: soon given up, as the next failure has news of its own. ``again_s`` says how
    long the server wants to be left alone, and ``None`` of what would end the same; who is told to wait for longer
    than the patience gives up at once. ``failed`` is called before each wait."""
    jitter = tenacity.wait_random_exponential(multiplier=0.5, max=8.0)

    def wait_s(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return jitter(state) + ((again_s(error) if error is not None else None) or 0.0)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: again_s(error) is not None),
        wait=wait_s,
        before_sleep=lambda state: failed(),
        stop=tenacity.stop_any(
            tenacity.stop_before_delay(_POD_API_S),
            tenacity.stop_when_event_set(leaving),
            tenacity.stop_after_attempt(6),
        ),
        sleep=tenacity.sleep_using_event(leaving),
        reraise=True,
    )


def _policy(
    patience_s: float,
    leaving: threading.Event,
    *,
    first_s: float,
    most_s: float,
    most_attempts: int = sys.maxsize,
    apart_s: Callable[[], float] = lambda: 0.0,
) -> tenacity.Retrying:
    """Full jitter, so that the ranks of many pods do not come back together; ends early when ``leaving`` is set."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_unanswered),
        wait=tenacity.wait_random_exponential(multiplier=first_s, max=most_s),
        stop=tenacity.stop_any(
            _StopAfter(patience_s, apart_s),
            tenacity.stop_when_event_set(leaving),
            tenacity.stop_after_attempt(most_attempts),
        ),
        sleep=tenacity.sleep_using_event(leaving),
        reraise=True,
    )


class _StopAfter(stop_base):
    """Once so many seconds have passed, without those that are reckoned ``apart``."""

    def __init__(self, patience_s: float, apart_s: Callable[[], float]) -> None:
        self._patience_s = patience_s
        self._apart_s = apart_s

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return (retry_state.seconds_since_start or 0.0) - self._apart_s() >= self._patience_s


def _unanswered(error: BaseException) -> bool:
    return isinstance(error, StoreError) and not error.answered
