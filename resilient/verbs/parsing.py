# SPDX-License-Identifier: Apache-2.0
"""How command lines are read: the same manners for every verb."""

from __future__ import annotations

import argparse
from typing import NoReturn, TypeAlias

from resilient.errors import SettingsError


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are settings errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"cannot read the command line: {message}; see {self.prog} --help")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def command(verbs: Verbs, name: str, summary: str, more: str = "") -> Parser:
    """A command whose help begins with what it does, as the list of commands says it."""
    description = f"{summary[:1].upper()}{summary[1:]}."
    return verbs.add_parser(
        name,
        help=summary,
        description=f"{description}\n{more}".rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_json(*parsers: Parser) -> None:
    """For programs that read the answer."""
    for parser in parsers:
        parser.add_argument("--json", action="store_true", help="the same as JSON")
