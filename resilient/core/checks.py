# SPDX-License-Identifier: Apache-2.0
"""All checks of a preflight, in the order in which they are shown."""

from __future__ import annotations

from typing import Final

from resilient.core.checks_deny_list import DENY_LIST_CHECKS
from resilient.core.checks_devices import DEVICE_CHECKS
from resilient.core.checks_host import HOST_CHECKS
from resilient.core.checks_store import STORE_CHECKS

CHECKS: Final = (*DEVICE_CHECKS, *HOST_CHECKS, *STORE_CHECKS, *DENY_LIST_CHECKS)
