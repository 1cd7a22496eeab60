# SPDX-License-Identifier: Apache-2.0
"""Whose machine this is."""

from __future__ import annotations

import enum
from typing import Final

# The firmware's maker, and what Azure writes as the chassis' tag on every machine (Hyper-V elsewhere has others).
_AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"


class Cloud(str, enum.Enum):
    """Whose metadata service is asked."""

    AUTO = "auto"
    """The one that made the machine, by its firmware."""
    AWS = "aws"
    AZURE = "azure"
    GCP = "gcp"


def maker(vendor: str, chassis_tag: str) -> Cloud | None:
    """Whose machine this is, by what its firmware says."""
    if vendor.startswith("Amazon EC2"):
        return Cloud.AWS
    if vendor.startswith("Google"):
        return Cloud.GCP
    return Cloud.AZURE if chassis_tag.strip() == _AZURE_TAG else None
