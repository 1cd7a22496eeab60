# SPDX-License-Identifier: Apache-2.0
"""What takes long to make and is only read: once for all processes of a session."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock

Once: TypeAlias = Callable[[str, Callable[[Path], object]], Path]
"""Gives the folder of that name, which whoever came first has filled."""


def once_in(together: Path) -> Once:
    """Folders below one that all processes know."""

    def filled(name: str, fill: Callable[[Path], object]) -> Path:
        folder = together / f"once-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                begun = Path(tempfile.mkdtemp(dir=together))
                fill(begun)
                begun.rename(folder)
        return folder

    return filled
