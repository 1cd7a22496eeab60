# SPDX-License-Identifier: Apache-2.0
"""The flags of the verb ``manifest``, and what its help says of them."""

from __future__ import annotations

import argparse
from typing import Final

from resilient.core import backstop
from resilient.verbs.parsing import Parser

KINDS: Final = ("job", "indexed", "jobset", "runtime", "cluster-runtime")
USAGE: Final = """\
resilient manifest [KIND] --image IMAGE --memory SIZE (--checkpoints URL | --claim NAME) [flags] -- COMMAND
       resilient manifest --from FILE [flags]
       resilient manifest --check FILE... [--json]"""
_ABOUT: Final = """\
Write, to stdout, a manifest whose rules act on the exit codes of resilient run; add them to one that you have; or
check some.

KIND: job, one pod [default]; indexed, an Indexed Job of several pods; jobset, a JobSet; runtime, a TrainingRuntime of
Kubeflow Trainer with a TrainJob; cluster-runtime, a ClusterTrainingRuntime.
COMMAND: a script with its arguments, any command, or flags of resilient run and then one of both."""
WITH_FROM: Final = frozenset(
    {"source", "container", "checkpoints", "grace", "days", "faults_per_device_day", "restart_rules", "sidecars"}
    | {"rbac", "namespace"}
)
"""What a manifest cannot say itself."""


def parser() -> Parser:
    """What is read before ``--``."""
    reading = Parser(
        prog="resilient manifest",
        usage=USAGE,
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    reading.add_argument("kind", nargs="?", choices=KINDS, default="job", metavar="KIND", help="default: job")
    _add_training(reading)
    _add_size(reading)
    _add_cluster(reading)
    _add_patch(reading)
    _add_existing(reading)
    _add_check(reading)
    return reading


def _add_training(reading: Parser) -> None:
    group = reading.add_argument_group("the training")
    group.add_argument("--image", help="with Python, the training and resilient in it")
    group.add_argument("--name", help="default: the script's")
    group.add_argument("--checkpoints", metavar="URL", help="where checkpoints go; with a claim a path in its mount")
    group.add_argument("--claim", metavar="NAME", help="a PersistentVolumeClaim for them, mounted at /checkpoints")
    group.add_argument("--env", metavar="NAME=VALUE", action="append", default=[], help="a variable; may be repeated")
    group.add_argument(
        "--secret", metavar="NAME", action="append", default=[], help="a Secret whose keys are variables"
    )
    group.add_argument(
        "--secret-env",
        metavar="NAME=SECRET:KEY",
        action="append",
        default=[],
        help="a variable from one key of a Secret",
    )


def _add_size(reading: Parser) -> None:
    group = reading.add_argument_group("its size")
    group.add_argument("--pods", type=int, default=1, metavar="N", help="default: 1")
    group.add_argument("--devices", type=int, default=1, metavar="N", help="of each pod; 0 for none [1]")
    group.add_argument("--device-resource", default="nvidia.com/gpu", metavar="NAME", help="[nvidia.com/gpu]")
    group.add_argument("--cpu", metavar="N", help="processors that a pod asks for")
    group.add_argument("--memory", metavar="SIZE", help="what a pod needs by itself, /dev/shm included: 176Gi")
    group.add_argument(
        "--state", metavar="SIZE", help="parameters and optimizer state of all ranks of a pod: snapshots take it twice"
    )
    group.add_argument("--shm", metavar="SIZE", help="the most that /dev/shm may take [half of the memory]")
    group.add_argument("--grace", default="2min", metavar="TIME", help="for one step and one save after SIGTERM [2min]")
    group.add_argument("--days", type=float, default=30.0, metavar="N", help="that the run is planned for [30]")
    group.add_argument(
        "--faults-per-device-day",
        type=float,
        default=backstop.FAULTS_PER_DEVICE_DAY,
        metavar="RATE",
        help=f"[{backstop.FAULTS_PER_DEVICE_DAY}: {backstop.SOURCE}]",
    )


def _add_cluster(reading: Parser) -> None:
    group = reading.add_argument_group("its cluster")
    group.add_argument("--namespace", metavar="NAME", help="default: whatever kubectl is set to")
    group.add_argument("--queue", metavar="NAME", help="a LocalQueue of Kueue, which lets it start")
    group.add_argument("--user", type=int, default=65532, metavar="UID", help="that the container runs as [65532]")
    group.add_argument(
        "--restart-rules",
        action="store_true",
        help="have the kubelet restart the container in place, from its snapshot: Kubernetes 1.35 and newer",
    )
    group.add_argument(
        "--rbac",
        action="store_true",
        help="a Role for the pod's own annotation, Events and its own status; with --namespace, unless --from says it",
    )
    group.add_argument("--sidecars", action="store_true", help="let Istio and Linkerd inject their containers")


def _add_patch(reading: Parser) -> None:
    group = reading.add_argument_group("what is still to be otherwise")
    group.add_argument("--patch", metavar="FILE", help="a part of the manifest, merged into it; - is stdin")
    group.add_argument(
        "--patch-type",
        choices=("strategic", "merge"),
        default="strategic",
        help="lists merged by their items' names, as kubectl patch does, or replaced (RFC 7386) [strategic]",
    )


def _add_existing(reading: Parser) -> None:
    group = reading.add_argument_group("a manifest that you have")
    group.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="add the contract to its Job, CronJob, JobSet or TrainingRuntime, and change nothing else; - for stdin",
    )
    group.add_argument("--container", metavar="NAME", help="the training's, where a pod has several")


def _add_check(reading: Parser) -> None:
    group = reading.add_argument_group("manifests to check", "Exit code 1 where one is refused or breaks the contract.")
    group.add_argument(
        "--check",
        nargs="*",
        metavar="FILE",
        help="say what the API server would refuse and where the exit codes would not be acted on; - for stdin",
    )
    add_check_flags(group)


def add_check_flags(group: argparse._ActionsContainer) -> None:
    """What goes with --check."""
    group.add_argument("--vectors", metavar="FILE", help="check the cases of a file of vectors, and say which agree")
    group.add_argument("--json", action="store_true", help="the findings as JSON")
