# SPDX-License-Identifier: Apache-2.0
"""The rules, in order: for each rank the first that holds decides.

The order is the argument. The user's rulings come first, then what the driver
and the fabric say, then the exception that the worker died of (first those whose
message or own type names a cause, then those with a type that everybody raises),
then signals and lines without an exception, and last what an exit code can tell.
"""

from __future__ import annotations

from typing import Final

from resilient.core.rule import Rule
from resilient.core.rules_carried import CARRIED_RULES
from resilient.core.rules_cuda import CUDA_RULES
from resilient.core.rules_cut import CUT_OFF_RULES
from resilient.core.rules_device import COUNT_RULES, DEVICE_RULES
from resilient.core.rules_driver import DRIVER_RULES, LATE_DRIVER_RULES
from resilient.core.rules_exit import EXIT_RULES, HANG_RULES, REFUSED_RULES
from resilient.core.rules_host import HOST_RULES, LOADER_RULES
from resilient.core.rules_kubelet import KUBELET_RULES, LATE_KUBELET_RULES
from resilient.core.rules_link import IB_RULES, MISUSE_RULES, NVLINK_DOMAIN_RULES
from resilient.core.rules_log import ACTOR_RULES, HEAP_RULES, LAST_LOG_RULES, LOG_RULES
from resilient.core.rules_makers import DEVICE_TEXT_RULES, OTHER_MAKERS_RULES
from resilient.core.rules_numbers import NUMBER_RULES
from resilient.core.rules_peer import ABORT_RULES, PEER_RULES
from resilient.core.rules_platform import PLATFORM_RULES
from resilient.core.rules_python import EXCEPTION_RULES, LAST_EXCEPTION_RULES, RULING_RULES, TYPE_RULES
from resilient.core.rules_setup import LAST_SETUP_RULES, RAISED_SETUP_RULES, SETUP_RULES
from resilient.core.rules_storage import STORAGE_RULES
from resilient.core.rules_wait import WAIT_RULES

RULES: Final[tuple[Rule, ...]] = (
    *RULING_RULES,
    *DEVICE_RULES,
    *DRIVER_RULES,
    *COUNT_RULES,
    *KUBELET_RULES,
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
    *WAIT_RULES,
    *PEER_RULES,
    *ACTOR_RULES,
    *NUMBER_RULES,
    *RAISED_SETUP_RULES,
    *EXCEPTION_RULES,
    *DEVICE_TEXT_RULES,
    *LOG_RULES,
    *SETUP_RULES,
    *CARRIED_RULES,
    *TYPE_RULES,
    *LAST_EXCEPTION_RULES,
    *ABORT_RULES,
    *LATE_DRIVER_RULES,
    *LATE_KUBELET_RULES,
    *HOST_RULES,
    *REFUSED_RULES,
    *LAST_LOG_RULES,
    *LAST_SETUP_RULES,
    *CUT_OFF_RULES,
    *EXIT_RULES,
)
