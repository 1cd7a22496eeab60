# SPDX-License-Identifier: Apache-2.0
"""Which version of resilient this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Of the installed distribution; run from a source tree, the one being worked on."""
    try:
        return metadata.version("resilient-training")
    except metadata.PackageNotFoundError:
        return "0.1.0"
