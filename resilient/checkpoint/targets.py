# SPDX-License-Identifier: Apache-2.0
"""What stands at a path where a person means a run, for the complaint that there is none."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

_KINDS: Final[Mapping[str, Callable[[int], bool]]] = {
    "a directory": stat.S_ISDIR,
    "a file": stat.S_ISREG,
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


def why_not(path: Path, what: str = "directory") -> str:
    """Why there is no ``what``, in words, without opening anything: some of what it may be would never answer."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "it leads nowhere" if path.is_symlink() else f"there is no such {what}"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    kind = next((kind for kind, fits in _KINDS.items() if fits(mode)), "something else")
    return f"it is {kind}, not a {what}"
