# SPDX-License-Identifier: Apache-2.0
"""The rules, in order: for each rank the first that holds decides.

The order is the argument. The user's rulings come first, then what the driver
and the fabric say, then the exception that the worker died of (from those that
name a cause to those that name a type), then signals and lines without an
exception, and last what an exit code can tell.
"""

from __future__ import annotations

from typing import Final

from resilient.core.rule import Rule
from resilient.core.rules_cuda import CUDA_RULES
from resilient.core.rules_cut import CUT_OFF_RULES
from resilient.core.rules_device import COUNT_RULES, DEVICE_RULES
from resilient.core.rules_driver import DRIVER_RULES, LATE_DRIVER_RULES
from resilient.core.rules_exit import EXIT_RULES, HANG_RULES
from resilient.core.rules_host import HOST_RULES, LOADER_RULES
from resilient.core.rules_link import IB_RULES, MISUSE_RULES, NVLINK_DOMAIN_RULES
from resilient.core.rules_log import ACTOR_RULES, HEAP_RULES, LAST_LOG_RULES, LOG_RULES
from resilient.core.rules_makers import DEVICE_TEXT_RULES, OTHER_MAKERS_RULES
from resilient.core.rules_peer import ABORT_RULES, PEER_RULES
from resilient.core.rules_platform import PLATFORM_RULES
from resilient.core.rules_python import EXCEPTION_RULES, LAST_EXCEPTION_RULES, RULING_RULES
from resilient.core.rules_storage import STORAGE_RULES

RULES: Final[tuple[Rule, ...]] = (
    *RULING_RULES,
    *DEVICE_RULES,
    *DRIVER_RULES,
    *COUNT_RULES,
    *PLATFORM_RULES,
    *IB_RULES,
    *NVLINK_DOMAIN_RULES,
    *HANG_RULES,
    *MISUSE_RULES,
    *CUDA_RULES,
    *OTHER_MAKERS_RULES,
    *HEAP_RULES,
    *LOADER_RULES,
    *STORAGE_RULES,
    *PEER_RULES,
    *ACTOR_RULES,
    *EXCEPTION_RULES,
    *DEVICE_TEXT_RULES,
    *LOG_RULES,
    *LAST_EXCEPTION_RULES,
    *ABORT_RULES,
    *LATE_DRIVER_RULES,
    *HOST_RULES,
    *LAST_LOG_RULES,
    *CUT_OFF_RULES,
    *EXIT_RULES,
)
