# SPDX-License-Identifier: Apache-2.0
"""How long Kubernetes waits: the Job controller before a new pod, the kubelet before a container in place.

Facts from ``pkg/controller/job/backoff_utils.go`` and client-go's ``flowcontrol.Backoff``.
"""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 10.0
LONGEST_POD_S: Final = 600.0
LONGEST_CONTAINER_S: Final = 300.0
FORGOTTEN_AFTER_S: Final = 600.0
"""A container that was left alone by the kubelet for so long is restarted at once again."""


def pod_delay_s(failures: int) -> float:
    """From the end of the last of so many failures to the next pod."""
    return min(LONGEST_POD_S, FIRST_S * 2.0 ** min(failures - 1, 16)) if failures > 0 else 0.0


def remaining_s(failures: int, last_failure_s: float | None, now_s: float) -> float:
    """What is left of that delay."""
    if failures <= 0 or last_failure_s is None:
        return 0.0
    return max(0.0, last_failure_s + pod_delay_s(failures) - now_s)


def container_delay_s(backoff_s: float, backed_off_s: float | None, ended_s: float) -> tuple[float, float]:
    """The delay before this restart of a container, and the one before its next."""
    if backed_off_s is None or ended_s - backed_off_s > FORGOTTEN_AFTER_S:
        return 0.0, FIRST_S
    return backoff_s, min(LONGEST_CONTAINER_S, 2 * backoff_s)
