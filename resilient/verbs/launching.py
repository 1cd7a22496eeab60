# SPDX-License-Identifier: Apache-2.0
"""Verbs that take torchrun's flags besides ours, so that ``resilient.launch`` reads them: run, config, doctor."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from resilient import launch, settings
from resilient.core.exit_codes import ExitCode
from resilient.errors import SettingsError
from resilient.verbs.answers import shown
from resilient.verbs.parsing import Verbs

_RUN_USAGE: Final = """\
usage: resilient run [flags] train.py [arguments]      a script
       resilient run [flags] -m pkg.train [arguments]  a module
       resilient run [flags] --no-python ./program     a program
       resilient run [flags] -- any command            anything; a torchrun in it is unwrapped

Start workers, restart them in place when they fail, and exit with a code that tells Kubernetes what to do.
torchrun's flags and PET_* variables are read as torchrun reads them: -m, --no-python, --standalone,
--nproc-per-node N|cpu|gpu|auto, --max-restarts, --master-port and the others.
"""
_CONFIG_USAGE: Final = """\
usage: resilient config [--json] [flags of resilient run]

Print every setting that would hold for a run with these flags, its default, and where it comes from:
default < /etc/resilient/config.toml < Run() < RESILIENT_* < flags. (What a script gives to Run() is not known here.)
"""
DOCTOR_SWITCHES: Final = ("json", "quick")
DOCTOR_VALUES: Final = ("devices", "peers")
_DOCTOR_USAGE: Final = """\
usage: resilient doctor [--json] [--quick] [--devices N] [--peers A,B,...] [flags of resilient run]

Look whether a training with these flags can run on this machine: devices, compute, collectives, memory, disks,
limits, the checkpoint store, clocks and names. Each look is a process of its own with a limit in time.
Exit code: 0 if nothing failed (warnings are allowed), else 198 (this node), 115 (a setting, or what the store
answered) or 193 (the store refuses or does not answer); the first of these where several failed.

  --json         the findings as JSON
  --quick        only what resilient run looks at before it starts: nothing that needs torch, the store or the network,
                 but for a --deny-list, which is read
  --devices N    devices that must be visible [as many as NVIDIA_VISIBLE_DEVICES lists]
  --peers A,B    host names that must resolve [MASTER_ADDR]
"""
_WIDTH: Final = 120


def add(verbs: Verbs) -> None:
    """For the list of commands only: their words are read by the functions below."""
    verbs.add_parser("run", help="start training and supervise it", add_help=False)
    verbs.add_parser("doctor", help="look whether a training can run here, before it does", add_help=False)
    verbs.add_parser("config", help="print every setting, its default and where it comes from", add_help=False)


def run(argv: list[str]) -> int:
    if not sys.platform.startswith("linux"):
        raise SettingsError(
            f"cannot supervise on {sys.platform}: it needs pidfds, subreapers and memfds, which only Linux has; "
            "run the script with plain python, where it still saves and resumes"
        )
    from resilient.supervisor.main import refused, run_command

    environ = settings.environment()
    try:
        if "help" not in launch.scan_run(argv).flags:
            return run_command(launch.parse(argv, environ), environ)
    except SettingsError as error:
        refused(ExitCode.CONFIG_FAULT, str(error), argv, environ)
        raise
    except OSError as error:  # neither a setting nor a bug: this node has no space, descriptors or processes
        why = f"cannot supervise: {error}; look for what this node is short of"
        refused(ExitCode.INTERNAL, why, argv, environ)
        print(f"resilient: {why}", file=sys.stderr)
        return ExitCode.INTERNAL
    except Exception as error:
        why = f"the supervisor failed: {type(error).__name__}: {error}; please report it"
        refused(ExitCode.INTERNAL, why, argv, environ)
        raise
    return shown(_run_help)


def _run_help() -> int:
    print(_RUN_USAGE + "\n" + _flags_help(), end="")
    return ExitCode.FINISHED


def config(argv: list[str]) -> int:
    scan = launch.scan_run(argv, program="resilient config", more=("json",))
    if "help" in scan.flags:
        print(_CONFIG_USAGE + "\n" + _flags_help(), end="")
        return ExitCode.FINISHED
    effective = settings.load(flags=launch.setting_flags(scan))
    rows = [
        (name, effective.text(name), settings.shown(name, declared.default), effective.origins[name])
        for name, declared in settings.FIELDS.items()
    ]
    if "json" in scan.flags:
        keys = ("value", "default", "origin")
        print(json.dumps({name: dict(zip(keys, rest, strict=True)) for name, *rest in rows}, indent=2))
    else:
        print(_columns([("SETTING", "VALUE", "DEFAULT", "ORIGIN"), *rows]))
    return ExitCode.FINISHED


def doctor(argv: list[str]) -> int:
    scan = launch.scan_run(argv, program="resilient doctor", more=DOCTOR_SWITCHES, more_values=DOCTOR_VALUES)
    if "help" in scan.flags:
        print(_DOCTOR_USAGE + "\n" + _flags_help(), end="")
        return ExitCode.FINISHED
    from resilient.preflight.doctor import subject_of
    from resilient.report.examination import doctor_command

    environ = settings.environment()
    effective = settings.load(flags=launch.setting_flags(scan), environ=environ)
    subject = subject_of(scan.flags, effective.settings, environ)
    return doctor_command(subject, environ, quick="quick" in scan.flags, as_json="json" in scan.flags)


def _flags_help() -> str:
    flags = {
        name: f"  {settings.flag(name)} {declared.metadata['kind'].placeholder}"
        for name, declared in settings.FIELDS.items()
    }
    room = _WIDTH - max(map(len, flags.values())) - 2
    rows: list[tuple[str, str]] = []
    for name, declared in settings.FIELDS.items():
        default = "" if settings.is_switch(name) else f" [{settings.shown(name, declared.default)}]"
        lines = textwrap.wrap(declared.metadata["meaning"].replace("`", "") + default, room)
        rows += zip((flags[name], *[""] * len(lines)), lines, strict=False)
    return "flags, each also as RESILIENT_NAME in the environment:\n" + _columns(rows) + "\n"


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Aligned text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


ANSWERS: Final[Mapping[str, Callable[[list[str]], int]]] = {"config": config, "doctor": doctor}
"""Those that answer on stdout and are over then."""
