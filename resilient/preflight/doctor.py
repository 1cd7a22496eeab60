# SPDX-License-Identifier: Apache-2.0
"""The preflight: which probes are sent, with which limits, and the report on what they brought back."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient import settings as settings_
from resilient import torchrun
from resilient.core.checks import CHECKS
from resilient.core.preflight import Asked, Finding, Report, judge
from resilient.core.redact import Redactor, secrets_of
from resilient.errors import SettingsError
from resilient.facts import count_devices
from resilient.preflight.checkup import measure
from resilient.preflight.errand import Errand
from resilient.settings import Settings

QUICK_S: Final = 20.0
"""For what takes milliseconds. A machine that is so busy that Python starts in seconds must not be taken for sick."""
DRIVER_S: Final = 60.0
"""NVML sets itself up in seconds; without persistence mode the driver wakes each device first."""
NAME_S: Final = 30.0
"""A resolver asks each of up to three servers twice, for 5 s each time (resolv.conf(5))."""
STORE_PATIENCE_S: Final = 30.0
"""A person waits; `resilient run` asks for as long as ``--store-patience`` says."""
STORE_CALL_S: Final = 90.0
"""The deadline of the last call of the store's client, and loading that client."""
TORCH_S: Final = 180.0
"""Importing torch alone takes 20 s where the file system is slow; NCCL sets itself up in up to a minute."""
SUM_S: Final = 60.0
DENY_LIST_S: Final = 30.0
"""One small file, and loading the client of its store; every start waits for it."""
_TEXT: Final = 1000
ALONE: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""So that a probe of torch's can fork: no pool of threads, and no CUDA before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is examined."""

    journal: str
    temporary: str
    checkpoints: str | None = None
    store_patience_s: float = STORE_PATIENCE_S
    peers: Sequence[str] = ()
    ranks: int = 1
    devices: int | None = None
    node: str | None = None
    deny_list: str | None = None
    """The platform's."""


def doctor(
    checkpoints: str | None = None,
    *,
    journal: str | None = None,
    peers: Sequence[str] = (),
    ranks: int = 1,
    devices: int | None = None,
    quick: bool = False,
) -> Report:
    """Look whether a training can run here, in well under a minute unless something hangs.

    ``checkpoints`` is where it will keep them, ``journal`` the directory of its journal,
    ``peers`` host names that must resolve, ``ranks`` how many workers this machine gets, and
    ``devices`` how many devices must be visible. ``quick`` leaves out what needs torch, the
    store or the network. ``report.code`` is 0, or the exit code that a start would end with.
    """
    environ = settings_.environment()
    temporary = temporary_of(environ)
    subject = Subject(
        journal=journal or temporary,
        temporary=temporary,
        checkpoints=checkpoints,
        peers=tuple(peers),
        ranks=ranks,
        devices=devices,
    )
    return examine(subject, environ, quick=quick)


def examine(subject: Subject, environ: Mapping[str, str], *, quick: bool) -> Report:
    """Measure in two waves, since what loads torch would slow the others down; then judge."""
    if not sys.platform.startswith("linux"):
        raise SettingsError(
            f"cannot examine this machine: {sys.platform} has neither memfds nor cgroups; do it where the training runs"
        )
    first = quick_errands(subject) | (deny_list_errands(subject) if quick else {})
    measured = {**measure(first, environ)}
    if not quick:
        measured |= measure(network_errands(subject), environ)
        measured |= measure(torch_errands(subject), {**environ, **ALONE})
    return report(measured, subject, environ)


def report(measured: Mapping[str, object], subject: Subject, environ: Mapping[str, str]) -> Report:
    """The findings, in words that hold no secret."""
    found = judge(CHECKS, measured, Asked(ranks=subject.ranks, devices=subject.devices))
    redactor = Redactor(secrets_of(environ))
    return Report(findings=tuple(_clean(finding, redactor) for finding in found.findings))


def quick_errands(subject: Subject) -> dict[str, Errand]:
    """What takes well below a second together."""
    return {
        "devices": Errand(probe="devices", limit_s=DRIVER_S),
        "host": Errand(probe="host", limit_s=QUICK_S),
        "journal": _folder(subject.journal),
        "temporary": _folder(subject.temporary),
    }


def _folder(path: str) -> Errand:
    return Errand(probe="folder", limit_s=QUICK_S, given={"path": path})


def network_errands(subject: Subject) -> dict[str, Errand]:
    errands: dict[str, Errand] = {}
    if subject.checkpoints is not None:
        patience_s = min(subject.store_patience_s, STORE_PATIENCE_S)
        given = {"url": subject.checkpoints, "patience_s": patience_s}
        errands["store"] = Errand(probe="store", limit_s=patience_s + STORE_CALL_S, given=given)
    errands |= deny_list_errands(subject)
    if subject.peers:
        limit_s = NAME_S * len(subject.peers)
        errands["names"] = Errand(probe="names", limit_s=limit_s, given={"hosts": list(subject.peers)})
    return errands


def deny_list_errands(subject: Subject) -> dict[str, Errand]:
    """Nothing where the platform keeps none."""
    if subject.deny_list is None:
        return {}
    given = {"url": subject.deny_list, "node": subject.node}
    return {"deny-list": Errand(probe="deny-list", limit_s=DENY_LIST_S, given=given)}


def torch_errands(subject: Subject) -> dict[str, Errand]:
    return {
        "torch": Errand(probe="torch", limit_s=TORCH_S),
        "all-reduce": Errand(
            probe="all-reduce", limit_s=TORCH_S, given={"ranks": max(2, min(subject.ranks, 8)), "limit_s": SUM_S}
        ),
    }


def _clean(finding: Finding, redactor: Redactor) -> Finding:
    def clean(text: str) -> str:
        return " ".join(redactor.clean(text, _TEXT).split())

    return replace(finding, found=clean(finding.found), do=clean(finding.do))


def temporary_of(environ: Mapping[str, str]) -> str:
    """Where temporary files are meant to go. ``tempfile`` would try to write there (and a dead mount hold us), and take
    another directory where it cannot."""
    return next((environ[name] for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)), "/tmp")


def handed_out(environ: Mapping[str, str]) -> int | None:
    """How many devices the platform gave to this container, where it says so: NVIDIA's device plugin lists them."""
    given = [entry.strip() for entry in environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",")]
    whole = all(re.fullmatch(r"GPU-[0-9a-fA-F-]{8,64}", entry) for entry in given)
    return len(set(given)) if whole else None


def subject_of(flags: Mapping[str, str], settings: Settings, environ: Mapping[str, str]) -> Subject:
    """What a command line asks to be examined; ``flags`` are torchrun's and the doctor's own."""
    asked = {**torchrun.from_environment(environ), **flags}
    temporary = temporary_of(environ)
    return Subject(
        journal=settings.journal or temporary,
        temporary=temporary,
        checkpoints=settings.checkpoints,
        store_patience_s=settings.store_patience,
        peers=_peers(flags.get("peers") or asked.get("master-addr") or environ.get("MASTER_ADDR", "")),
        ranks=torchrun.count_workers(asked, lambda kind: count_devices(kind, environ)),
        devices=_devices(flags["devices"]) if "devices" in flags else handed_out(environ),
        node=settings_.platform(environ).node,
        deny_list=settings.deny_list,
    )


def _devices(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text):
        raise SettingsError(f"cannot use --devices {text}: it is not a number of devices; give 0 or more")
    return int(text)


def _peers(text: str) -> tuple[str, ...]:
    """Host names as they are listed; an address with a port is not one."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
