# SPDX-License-Identifier: Apache-2.0
"""Verbs about what a cluster would do: simulate."""

from __future__ import annotations

import argparse
from typing import Final

from resilient.errors import SettingsError
from resilient.verbs.parsing import Verbs, add_json, command

_SIMULATE: Final = """\
FILE holds a Job, CronJob, JobSet, TrainJob (with its runtime) or training runtime; - is stdin. No cluster is asked.
The clock is simulated. Pods run from the moment they are made until their ending, and for ever without one.

An ENDING is [JOB/]INDEX=[CONTAINER:]CODE@TIME, * being every index, then after commas other containers' codes,
conditions of the pod, and when it was deleted before that:
  0=194@1h                                        index 0 ends with 194 after an hour
  '*=0@2d'                                        every index ends well after two days
  node-0/1=195@90s,DisruptionTarget,deleted@60s   index 1 of that Job is evicted after a minute, and saves
Endings of an index come in the order of their times, each to what runs there then, or as soon as something does.
Pods of a Job without indexes take them in turn. Exit code 0 whatever becomes of the Job; with --vectors 1 where a case
differs; 115 where something cannot be read."""


def add(verbs: Verbs) -> None:
    parser = command(verbs, "simulate", "say what Kubernetes would do when pods end like that", _SIMULATE)
    parser.set_defaults(carry_out=_simulate)
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help="manifests; all documents of all files belong together"
    )
    parser.add_argument(
        "--name", default="", help="the workload that is meant, as NAME or KIND/NAME, where there are more"
    )
    parser.add_argument(
        "--ending", metavar="ENDING", action="append", default=[], help="how a pod ends; may be given many times"
    )
    parser.add_argument(
        "--endings",
        metavar="FILE",
        help='a JSON list of {"index", "code", "at", "codes", "conditions", "deleted", "job"}',
    )
    parser.add_argument(
        "--suspended",
        metavar="FROM..TO",
        action="append",
        default=[],
        help="when spec.suspend is true, as Kueue has it",
    )
    parser.add_argument("--journal", metavar="RUN", help="the endings that the pods of this run had")
    parser.add_argument("--as-kubectl", action="store_true", help="what kubectl would show in the end")
    parser.add_argument(
        "--vectors", metavar="FILE", help="evaluate cases of Kubernetes' own tests instead, and compare"
    )
    add_json(parser)


def _simulate(asked: argparse.Namespace) -> int:
    from resilient.report import simulation

    if asked.vectors is not None:
        return simulation.vectors_command(asked.vectors, as_json=asked.json)
    if not asked.files:
        raise SettingsError("cannot simulate: no manifest was given; name a file, or - for stdin")
    if asked.json and asked.as_kubectl:
        raise SettingsError("cannot print --json and --as-kubectl at once; choose one")
    what = simulation.Asked(
        files=asked.files,
        name=asked.name,
        endings=asked.ending,
        endings_file=asked.endings,
        journal=asked.journal,
        suspensions=asked.suspended,
    )
    return simulation.simulate_command(what, "json" if asked.json else "kubectl" if asked.as_kubectl else "timeline")
