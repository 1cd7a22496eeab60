# SPDX-License-Identifier: Apache-2.0
"""Verbs of the classifier: classify, rules."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.core.words import ACTIONS
from resilient.toml_files import read_rules
from resilient.verbs.parsing import Verbs, add_json, command

_CLASSIFY: Final = """\
In words on a terminal, else as JSON. Exit code 0 whatever the verdict is; 115 where a file, a record or a field of one
cannot be read, which is named, and the rest is judged.
A verdict asks for an action:

"""
_RULES: Final = """\
Exit code 0; 115 where rules of your own are wrong, and with --check nothing else is printed."""


def _actions() -> str:
    """The words for what a verdict asks for, as classify and the rules use them."""
    width = max(len(action.value) for action in ACTIONS)
    return "\n".join(f"  {action.value.ljust(width)}  {meaning}" for action, meaning in ACTIONS.items())


def add(verbs: Verbs) -> None:
    judging = command(
        verbs, "classify", "say what ended a training, and whose fault it was, from its log", _CLASSIFY + _actions()
    )
    judging.add_argument("file", metavar="FILE", nargs="?", default="-", help="a log; - for stdin, the default")
    judging.add_argument(
        "--jsonl",
        action="store_true",
        help='FILE holds records, one a line: {"id", "exit_code", "signal", "stderr", "ranks": how many}',
    )
    rules = command(verbs, "rules", "print the rules of the classifier in order, with their sources", _RULES)
    add_json(rules)
    rules.add_argument("--check", metavar="TOML", help="read these rules of your own, and say what is wrong with them")
    judging.set_defaults(carry_out=_classify)
    rules.set_defaults(carry_out=_rules)
    for parser in (judging, rules):
        parser.add_argument("--rules", metavar="TOML", help="with rules of your own")


def _classify(asked: argparse.Namespace) -> int:
    from resilient.report import verdicts

    own = read_rules(Path(asked.rules)) if asked.rules else ()
    return verdicts.classify_command(asked.file, jsonl=asked.jsonl, own=own)


def _rules(asked: argparse.Namespace) -> int:
    if asked.check:
        count = len(read_rules(Path(asked.check)))
        print(f"{asked.check}: {count} {'rule' if count == 1 else 'rules'}, and each example selects its own")
        return ExitCode.FINISHED
    from resilient.report import verdicts

    own = read_rules(Path(asked.rules)) if asked.rules else ()
    return verdicts.rules_command(own, as_json=asked.json)
