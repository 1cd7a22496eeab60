# SPDX-License-Identifier: Apache-2.0
"""The command line: reads what was asked, hands it on, and turns errors into exit codes.

``run`` and ``config`` take torchrun's flags besides ours, so ``resilient.launch`` reads
theirs. What carries a verb out is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

from resilient import launch, settings
from resilient.core.exit_codes import ExitCode
from resilient.core.words import ACTIONS
from resilient.errors import ResilientError, SettingsError

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
  --quick        only what resilient run looks at before it starts: nothing that needs torch, the store or the network
  --devices N    devices that must be visible [as many as NVIDIA_VISIBLE_DEVICES lists]
  --peers A,B    host names that must resolve [MASTER_ADDR]
"""
_EXPLAIN: Final = """\
It reads the journal that resilient run has written, beside the checkpoints or in a directory of its own."""
_SAVE: Final = """\
It asks the supervisor of the run, on this machine, which saves at the next common step of all ranks. Nothing is
waited for: exit code 0 says that it was asked, 115 that it could not be."""
_STOP: Final = """\
It asks the supervisor of the run, on this machine. To end a run for good, delete its Job instead."""
_CHECKPOINTS: Final = """\
Exit codes: 0; 1 where something is damaged or could not be deleted; 115 where the question cannot be answered."""
_FORMATS: Final = """\
torch: one file for torch.load(weights_only=True); safetensors: one file of tensors;
dcp: a directory for torch.distributed.checkpoint"""
_CLASSIFY: Final = """\
In words on a terminal, else as JSON. Exit code 0 whatever the verdict is; 115 where a file cannot be read.
A verdict asks for an action:

"""
_RULES: Final = """\
Exit code 0; 115 where rules of your own are wrong, and with --check nothing else is printed."""
_WIDTH: Final = 120


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


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are settings errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"cannot read the command line: {message}; see {self.prog} --help")


_Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["run"]:
        return _run(argv[1:])
    return _shown(lambda: _print(argv))


def _print(argv: list[str]) -> int:
    """Carry out what answers on stdout and is over then."""
    if argv[:1] == ["config"]:
        return _config(argv[1:])
    if argv[:1] == ["doctor"]:
        return _doctor(argv[1:])
    asked = _parser().parse_args(argv)
    return _VERBS[asked.verb](asked)


def _shown(command: Callable[[], int]) -> int:
    """The code of a command that prints, of which nobody may read the rest: ``... list | head``."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # at the interpreter's exit it would be too late to say anything about it
    except BrokenPipeError:  # what is still to be flushed must not raise once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _parser() -> argparse.ArgumentParser:
    from resilient import __version__

    parser = _Parser(
        prog="resilient",
        description="Make PyTorch training survive failures.",
        epilog="RUN is the directory or URL of the checkpoints, or the directory of the journal.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"resilient {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=_Parser)
    verbs.add_parser("run", help="start training and supervise it", add_help=False)
    explain = _command(verbs, "explain", "tell what happened to a run, why, and what it cost", _EXPLAIN)
    explain.add_argument("--submission", metavar="NAME", help="an earlier start of the run; default: the newest")
    explain.add_argument("--json", action="store_true", help="the same as JSON")
    save = _command(verbs, "save", "have a run save a checkpoint now and go on", _SAVE)
    stop = _command(verbs, "stop", "have a run save a checkpoint and end; Kubernetes will start its pod again", _STOP)
    for verb in (explain, save, stop):
        verb.add_argument("run", metavar="RUN", help="directory or URL of the checkpoints, or directory of the journal")
    _add_checkpoints(
        _command(verbs, "checkpoints", "list, verify, show, prune and export what a run has saved", _CHECKPOINTS)
    )
    _add_verdicts(verbs)
    verbs.add_parser("doctor", help="look whether a training can run here, before it does", add_help=False)
    verbs.add_parser("config", help="print every setting, its default and where it comes from", add_help=False)
    return parser


def _command(verbs: _Verbs, name: str, summary: str, more: str = "") -> _Parser:
    """A command whose help begins with what it does, as the list of commands says it."""
    description = f"{summary[:1].upper()}{summary[1:]}."
    return verbs.add_parser(
        name,
        help=summary,
        description=f"{description}\n{more}".rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_checkpoints(parser: _Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser)
    listing = _command(actions, "list", "every checkpoint, and the one that is restored next")
    verify = _command(actions, "verify", "read everything and compare digests; exit 1 where something is damaged")
    show = _command(actions, "show", "the manifest and the tensors of one checkpoint")
    prune = _command(actions, "prune", "delete all but what is to be kept; exit 1 where something could not be")
    export = _command(actions, "export", "verify one checkpoint and write it for others, to a new path")
    for action in (listing, verify, show, prune, export):
        action.add_argument("url", metavar="URL", help="directory or URL of the checkpoints")
    named = "<attempt>-<step>, or latest: what is restored next"
    verify.add_argument("names", metavar="NAME", nargs="*", help=f"{named}; all where none is given")
    for action in (show, export):
        action.add_argument("name", metavar="NAME", help=named)
    show.add_argument("--rank", type=int, help="only this one; default: all")
    prune.add_argument("--keep", required=True, metavar="N", help="the newest N stay")
    for name in ("keep_every", "keep_best"):
        meaning = settings.FIELDS[name].metadata["meaning"].replace("`", "")
        prune.add_argument(settings.flag(name), metavar="RULE", help=meaning)
    prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    export.add_argument("--to", required=True, metavar="PATH", help="a new file, or directory for dcp, of this machine")
    export.add_argument("--format", required=True, choices=("torch", "safetensors", "dcp"), help=_FORMATS)
    export.add_argument("--rank", type=int, default=0, help="default: 0")
    export.add_argument("--part", metavar="NAME", help="only this entry of Run(state=), such as model")
    for action in (listing, verify, show, prune):
        action.add_argument("--json", action="store_true", help="the same as JSON")


def _actions() -> str:
    """The words for what a verdict asks for, as classify and the rules use them."""
    width = max(len(action.value) for action in ACTIONS)
    return "\n".join(f"  {action.value.ljust(width)}  {meaning}" for action, meaning in ACTIONS.items())


def _add_verdicts(verbs: _Verbs) -> None:
    judging = _command(
        verbs, "classify", "say what ended a training, and whose fault it was, from its log", _CLASSIFY + _actions()
    )
    judging.add_argument("file", metavar="FILE", nargs="?", default="-", help="a log; - for stdin, the default")
    judging.add_argument(
        "--jsonl",
        action="store_true",
        help='FILE holds records, one a line: {"id", "exit_code", "signal", "stderr", "ranks"}',
    )
    rules = _command(verbs, "rules", "print the rules of the classifier in order, with their sources", _RULES)
    rules.add_argument("--json", action="store_true", help="the same as JSON")
    rules.add_argument("--check", metavar="TOML", help="read these rules of your own, and say what is wrong with them")
    for parser in (judging, rules):
        parser.add_argument("--rules", metavar="TOML", help="with rules of your own")


def _explain(asked: argparse.Namespace) -> int:
    from resilient.report.story import explain_command

    return explain_command(asked.run, asked.submission, as_json=asked.json)


def _control(asked: argparse.Namespace) -> int:
    from resilient.supervisor.control import control_command

    return control_command(asked.verb, asked.run)


def _classify(asked: argparse.Namespace) -> int:
    from resilient.report import verdicts

    own = settings.read_rules(Path(asked.rules)) if asked.rules else ()
    return verdicts.classify_command(asked.file, jsonl=asked.jsonl, own=own)


def _rules(asked: argparse.Namespace) -> int:
    if asked.check:
        count = len(settings.read_rules(Path(asked.check)))
        print(f"{asked.check}: {count} {'rule' if count == 1 else 'rules'}, and each example selects its own")
        return ExitCode.FINISHED
    from resilient.report import verdicts

    own = settings.read_rules(Path(asked.rules)) if asked.rules else ()
    return verdicts.rules_command(own, as_json=asked.json)


def _checkpoints(asked: argparse.Namespace) -> int:
    from resilient.report import checkpoints

    match asked.action:
        case "list":
            return checkpoints.list_command(asked.url, as_json=asked.json)
        case "verify":
            return checkpoints.verify_command(asked.url, asked.names, as_json=asked.json)
        case "show":
            return checkpoints.show_command(asked.url, asked.name, asked.rank, as_json=asked.json)
        case "prune":
            given = {name: getattr(asked, name) for name in ("keep", "keep_every", "keep_best")}
            flags = [
                settings.Given(name=name, value=value, origin=f"flag {settings.flag(name)}")
                for name, value in given.items()
                if value is not None
            ]
            rules = settings.load(flags=flags).settings.retention
            return checkpoints.prune_command(asked.url, rules, dry_run=asked.dry_run, as_json=asked.json)
    return checkpoints.export_command(
        asked.url, asked.name, to=asked.to, kind=asked.format, rank=asked.rank, part=asked.part
    )


_VERBS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "checkpoints": _checkpoints,
    "classify": _classify,
    "explain": _explain,
    "rules": _rules,
    "save": _control,
    "stop": _control,
}
"""What carries out a command line that argparse has read."""


def _run(argv: list[str]) -> int:
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
    return _shown(_run_help)


def _run_help() -> int:
    print(_RUN_USAGE + "\n" + _flags_help(), end="")
    return ExitCode.FINISHED


def _config(argv: list[str]) -> int:
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


def _doctor(argv: list[str]) -> int:
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
