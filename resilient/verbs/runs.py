# SPDX-License-Identifier: Apache-2.0
"""Verbs on a run: explain, save, stop, forgive."""

from __future__ import annotations

import argparse
from typing import Final

from resilient.verbs.parsing import Verbs, add_json, command

_EXPLAIN: Final = """\
It reads the journal that resilient run has written, beside the checkpoints or in a directory of its own."""
_SAVE: Final = """\
It asks the supervisor of the run, on this machine, which saves at the next common step of all ranks. Nothing is
waited for: exit code 0 says that it was asked, 115 that it could not be."""
_STOP: Final = """\
It asks the supervisor of the run, on this machine. To end a run for good, delete its Job instead."""

_FORGIVE: Final = """\
The next start reads what is left; a platform's own list is never written. Exit code 0, also where nothing is held
against the run; 115 where an entry that is named is not there."""


def add(verbs: Verbs) -> None:
    explain = command(verbs, "explain", "tell what happened to a run, why, and what it cost", _EXPLAIN)
    explain.add_argument("--submission", metavar="NAME", help="an earlier start of the run; default: the newest")
    add_json(explain)
    explain.set_defaults(carry_out=_explain)
    save = command(verbs, "save", "have a run save a checkpoint now and go on", _SAVE)
    stop = command(verbs, "stop", "have a run save a checkpoint and end; Kubernetes will start its pod again", _STOP)
    for verb in (save, stop):
        verb.set_defaults(carry_out=_control)
    forgive = command(
        verbs,
        "forgive",
        "list what a run holds against nodes, devices, faults and samples, and clear entries",
        _FORGIVE,
    )
    clears = forgive.add_argument_group("what is cleared; without any of these all entries are listed")
    clears.add_argument("--node", metavar="NAME", help="take this node off the run's deny list")
    clears.add_argument("--device", metavar="UUID", help="take this device off the run's deny list")
    clears.add_argument(
        "--fingerprint", metavar="NAME", help="forget exits for this fault: neither history nor a rung that was tried"
    )
    clears.add_argument(
        "--sample",
        metavar="NAME",
        help="train on it again although it was left out: the index of a sample, or EPOCH/BATCH; the run must not be "
        "running",
    )
    add_json(forgive)
    forgive.set_defaults(carry_out=_forgive)
    for verb in (explain, save, stop, forgive):
        verb.add_argument("run", metavar="RUN", help="directory or URL of the checkpoints, or directory of the journal")


def _explain(asked: argparse.Namespace) -> int:
    from resilient.report.story import explain_command

    return explain_command(asked.run, asked.submission, as_json=asked.json)


def _forgive(asked: argparse.Namespace) -> int:
    from resilient.report.forgiving import forgive_command

    wanted = {kind: getattr(asked, kind) for kind in ("node", "device", "fingerprint", "sample")}
    return forgive_command(
        asked.run, {kind: name for kind, name in wanted.items() if name is not None}, as_json=asked.json
    )


def _control(asked: argparse.Namespace) -> int:
    from resilient.supervisor.control import control_command

    return control_command(asked.verb, asked.run)
