# SPDX-License-Identifier: Apache-2.0
"""Whether there is anything to run at all, found out before a worker is started."""

from __future__ import annotations

from collections.abc import Mapping

from resilient.core.events import CannotRun
from resilient.core.exit_codes import ExitCode
from resilient.launch import Launch
from resilient.supervisor.processes import check_command, missing_script


def cannot_run(launch: Launch, environ: Mapping[str, str], *, is_first: bool) -> CannotRun | None:
    """The command as a shell would judge it.

    The script that Python is to run is asked for before the first start only: one that was there may come back, as
    files on a mount do, and a fault that comes back climbs.
    """
    code = check_command(launch.command, environ)
    if code is not None:
        what = "no such command" if code == ExitCode.NOT_FOUND else "not executable"
        return CannotRun(code=code, why=f"cannot run {launch.command[0]!r}: {what}")
    script = missing_script(launch.command) if launch.is_python and is_first else None
    if script is not None:
        return CannotRun(code=ExitCode.CONFIG_FAULT, why=f"cannot run {script!r}: no such file")
    return None
