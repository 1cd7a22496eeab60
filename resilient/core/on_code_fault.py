# SPDX-License-Identifier: Apache-2.0
"""The words for what is done about a fault of the code: workers read this setting, and need no policy."""

from __future__ import annotations

import enum


class OnCodeFault(str, enum.Enum):
    """What is done about a verdict that the same code would fail again."""

    CONFIRM = "confirm"
    """Stop before the first step; later restart once, and stop if it comes back at the same step."""
    STOP = "stop"
    """Stop at once."""
    RESTART = "restart"
    """Restart within the budgets, as for any other fault."""
