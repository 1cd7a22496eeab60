# SPDX-License-Identifier: Apache-2.0
"""Verbs on the checkpoints of a run: list, verify, show, prune, export."""

from __future__ import annotations

import argparse
from typing import Final

from resilient import settings
from resilient.verbs.parsing import Parser, Verbs, add_json, command

_CHECKPOINTS: Final = """\
Exit codes: 0; 1 where something is damaged or could not be deleted; 115 where the question cannot be answered."""
_FORMATS: Final = """\
torch: one file for torch.load(weights_only=True); safetensors: one file of tensors;
dcp: a directory for torch.distributed.checkpoint"""


def add(verbs: Verbs) -> None:
    parser = command(verbs, "checkpoints", "list, verify, show, prune and export what a run has saved", _CHECKPOINTS)
    parser.set_defaults(carry_out=_checkpoints)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    listing = command(actions, "list", "every checkpoint, and the one that is restored next")
    verify = command(actions, "verify", "read everything and compare digests; exit 1 where something is damaged")
    show = command(actions, "show", "the manifest and the tensors of one checkpoint")
    prune = command(actions, "prune", "delete all but what is to be kept; exit 1 where something could not be")
    export = command(actions, "export", "verify one checkpoint and write it for others, to a new path")
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
    add_json(listing, verify, show, prune)


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
