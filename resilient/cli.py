# SPDX-License-Identifier: Apache-2.0
"""The command line: reads what was asked, hands it on, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence

from resilient.core.exit_codes import ExitCode
from resilient.errors import ResilientError
from resilient.verbs import checkpoints, cluster, launching, manifest, runs, verdicts
from resilient.verbs.answers import shown
from resilient.verbs.parsing import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the contract's."""
    if argv is None and sys.argv[1:2] == ["run"]:
        # It waits until the supervisor can note it: before that it would kill, or get lost (PID 1 ignores it).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except ResilientError as error:
        print(f"resilient: {error}", file=sys.stderr)
        return ExitCode.CONFIG_FAULT
    except KeyboardInterrupt:
        return 130
    except Exception:  # the top of the program: a bug of ours must not look like a worker's failure
        traceback.print_exc()
        print("resilient: cannot go on: a bug in resilient itself; please report the lines above", file=sys.stderr)
        return ExitCode.INTERNAL


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["run"]:
        return launching.run(argv[1:])
    return shown(lambda: _answer(argv))


def _answer(argv: list[str]) -> int:
    """Carry out what answers on stdout and is over then."""
    reads_itself = {**launching.ANSWERS, **manifest.ANSWERS}.get(argv[0]) if argv else None
    if reads_itself is not None:
        return reads_itself(argv[1:])
    asked = _parser().parse_args(argv)
    code: int = asked.carry_out(asked)
    return code


def _parser() -> argparse.ArgumentParser:
    from resilient import __version__

    parser = Parser(
        prog="resilient",
        description="Make PyTorch training survive failures.",
        epilog="RUN is the directory or URL of the checkpoints, or the directory of the journal.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"resilient {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=Parser)
    for group in (launching, runs, checkpoints, verdicts, manifest, cluster):
        group.add(verbs)
    return parser
