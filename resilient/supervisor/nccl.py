# SPDX-License-Identifier: Apache-2.0
"""NCCL's own log of each worker: where it is written, and read back when the worker has ended.

NCCL prints warnings only if it is asked to, and then to stdout, in the midst of what the
script prints. Unless the user has said where they go they come into a file of the
worker's, below the directory of its attempt. Whoever sets ``NCCL_DEBUG`` or
``NCCL_DEBUG_FILE``, in the environment or in a file of NCCL's own, keeps what was set;
where the environment names a file it is read as well.
"""

from __future__ import annotations

import glob
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from resilient.supervisor.leavings import read_tail

LIMIT: Final = 16 << 10
_MOST_FILES: Final = 16
"""A launcher under us starts several processes as one worker."""
_DEBUG: Final = "NCCL_DEBUG"
_DEBUG_FILE: Final = "NCCL_DEBUG_FILE"
_SET: Final = re.compile(rf"^\s*(?:{_DEBUG}|{_DEBUG_FILE})\s*=", re.MULTILINE)
_CONFIGURATION: Final = Path("/etc/nccl.conf")
_MOST_CHARS: Final = 64 << 10
_DUMP: Final = "TORCH_NCCL_DUMP_ON_TIMEOUT"


def variables(folder: Path, rank: int, base: Mapping[str, str]) -> dict[str, str]:
    """What a worker is told beside what the user has said."""
    told = {} if _DUMP in base else {_DUMP: "1"}
    if not is_users(base):
        # NCCL puts in host and process (several may be one worker) and reads %% as a percent sign.
        path = str(folder).replace("%", "%%")
        told |= {_DEBUG: "WARN", _DEBUG_FILE: f"{path}/nccl-{rank}.%h.%p"}
    return told


def is_users(base: Mapping[str, str]) -> bool:
    """The user has said how NCCL is to log; the environment would override what his files say."""
    if _DEBUG in base or _DEBUG_FILE in base:
        return True
    own = base.get("NCCL_CONF_FILE") or f"{base.get('HOME', '')}/.nccl.conf"
    return any(_SET.search(_text(path)) for path in (Path(own), _CONFIGURATION))


def _text(path: Path) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(_MOST_CHARS)
    except OSError:
        return ""


def read_log(folder: Path, rank: int, pid: int, base: Mapping[str, str]) -> str:
    """The last lines that NCCL has logged for a worker."""
    if is_users(base):
        return _users_log(base.get(_DEBUG_FILE, ""), pid)
    paths = sorted(folder.glob(f"{glob.escape(f'nccl-{rank}')}.*"))[:_MOST_FILES]
    return "".join(read_tail(path, LIMIT).decode(errors="replace") for path in paths)[-LIMIT:]


def _users_log(pattern: str, pid: int) -> str:
    """The same from the user's file, which all workers share unless its name has the process in it."""
    if not pattern:
        return ""
    host = re.sub("[%/]", "-", socket.gethostname().partition(".")[0])
    known = {"%h": host, "%p": str(pid), "%%": "%"}
    path = Path(re.sub("%[hp%]", lambda found: known[found[0]], pattern))
    lines = read_tail(path, LIMIT).decode(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if f":{pid}:" in line)
