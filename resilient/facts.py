# SPDX-License-Identifier: Apache-2.0
"""What the surroundings tell a process without being asked: the pod, the launcher, the devices.

Unlike settings these are nobody's wish: what is missing or cannot be read is unknown
(``None``). Only what budgets are added up by, the submission and the index, is refused
where it is given and wrong: they would silently begin anew. The environment is handed in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient.core.redact import clean_url
from resilient.errors import SettingsError

PLATFORM_VARIABLES: Final = (
    "RESILIENT_SUBMISSION",
    "RESILIENT_INDEX",
    "RESILIENT_FAILURE_COUNT",
    "RESILIENT_IGNORED_COUNT",
    "RESILIENT_NODE",
    "RESILIENT_POD",
    "RESILIENT_NAMESPACE",
    "RESILIENT_POD_UID",
)
"""What a manifest passes through the downward API; the last for the API server, and for `--snapshots`."""

INTERNAL_PREFIX: Final = "RESILIENT_INTERNAL_"
"""What a supervisor tells its workers, and nobody else may."""
LINK_VARIABLE: Final = INTERNAL_PREFIX + "LINK"
ERROR_FILE_VARIABLE: Final = INTERNAL_PREFIX + "ERROR_FILE"
LATE: Final = ".late"
"""After the name of a worker's error record: what its interpreter remembered of an exception as it ended."""
STACKS_VARIABLE: Final = INTERNAL_PREFIX + "STACKS"

# These become parts of paths in the store: nothing that could leave its directory.
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_SHOWN_CHARS: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What Kubernetes says of the pod."""

    in_kubernetes: bool
    submission: str | None
    """The JobSet's uid, else the Job's controller-uid: what budgets belong to."""
    index: int | None
    """Completion index of the pod in its Job."""
    failure_count: int | None
    """Failures of this index that its controller has counted."""
    ignored_count: int | None
    """Failures of this index that its controller was told to ignore."""
    node: str | None
    pod: str | None
    namespace: str | None
    pod_uid: str | None = None
    """What tells the pod from another of its name."""

    @property
    def unnamed_pod(self) -> str:
        """What is missing to find the own pod at the API server; nothing where it can be found."""
        fields = {
            "RESILIENT_POD": ("metadata.name", self.pod),
            "RESILIENT_NAMESPACE": ("metadata.namespace", self.namespace),
            "RESILIENT_POD_UID": ("metadata.uid", self.pod_uid),
        }
        missing = {name: path for name, (path, value) in fields.items() if value is None}
        do = " and ".join(f"{path} into {name}" for name, path in missing.items())
        what = f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set"
        return f"cannot tell which pod this is: {what}; project {do}" if missing else ""


def read_platform(environ: Mapping[str, str]) -> Platform:
    """Read the downward API's variables; ``SettingsError`` where budgets would belong to nobody."""
    return Platform(
        in_kubernetes=bool(environ.get("KUBERNETES_SERVICE_HOST") or environ.get("RESILIENT_SUBMISSION")),
        submission=_submission(environ),
        index=_index(environ),
        failure_count=_number(environ, "RESILIENT_FAILURE_COUNT"),
        ignored_count=_ignored(environ),
        node=_name(environ, "RESILIENT_NODE"),
        pod=_name(environ, "RESILIENT_POD"),
        namespace=_name(environ, "RESILIENT_NAMESPACE"),
        pod_uid=_name(environ, "RESILIENT_POD_UID"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """What a launcher, ours or another, has told a worker; a process of its own has rank 0 of 1."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_addr: str | None
    master_port: int | None
    run_id: str | None
    """``TORCHELASTIC_RUN_ID``."""
    restart_count: int
    """``TORCHELASTIC_RESTART_COUNT``."""
    launch: str
    """What the workers of one launch share, and no other launch on this machine at this time."""
    torchelastic_error_file: str | None
    link_fd: int | None
    """Descriptor of the supervisor's socket; ``None`` where no supervisor is above us."""
    error_file: str | None
    """Where our supervisor wants the error record."""
    stacks: str | None
    """How our supervisor wants stacks dumped."""
    cublas_workspace: str | None = None
    """``CUBLAS_WORKSPACE_CONFIG``."""


def read_worker(environ: Mapping[str, str]) -> WorkerFacts:
    """Read what the launcher of this process has set."""
    rank = _number(environ, "RANK") or 0
    world_size = _number(environ, "WORLD_SIZE") or 1
    # Launchers that leave this out run on one node.
    local_world_size = _number(environ, "LOCAL_WORLD_SIZE") or world_size
    link_fd = _number(environ, LINK_VARIABLE)
    # Our nodes have as many workers each. With --virtual-local-rank LOCAL_RANK is 0 for everybody.
    alike = local_world_size == world_size or link_fd is not None
    local_rank = rank % local_world_size if alike else _number(environ, "LOCAL_RANK") or 0
    run_id = environ.get("TORCHELASTIC_RUN_ID") or None
    restart_count = _number(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    # The parent would tell launches apart as well, but a wrapper script may stand between it and the worker.
    shared = f"{run_id} {environ.get('MASTER_ADDR')} {environ.get('MASTER_PORT')} {restart_count}"
    return WorkerFacts(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world_size,
        master_addr=environ.get("MASTER_ADDR") or None,
        master_port=_number(environ, "MASTER_PORT"),
        run_id=run_id,
        restart_count=restart_count,
        launch=shared if world_size > 1 else f"process {os.getpid()}",
        torchelastic_error_file=environ.get("TORCHELASTIC_ERROR_FILE") or None,
        link_fd=link_fd,
        error_file=environ.get(ERROR_FILE_VARIABLE) or None,
        stacks=environ.get(STACKS_VARIABLE) or None,
        cublas_workspace=environ.get("CUBLAS_WORKSPACE_CONFIG") or None,
    )


def cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_devices(kind: str, environ: Mapping[str, str], dev: Path = Path("/dev")) -> int:
    """How many workers ``--nproc-per-node cpu|gpu|auto`` means here, without torch; 0 where there are none."""
    if kind == "cpu":
        return cpus()
    gpus = _count_gpus(environ.get("CUDA_VISIBLE_DEVICES"), dev)
    return gpus if kind == "gpu" or gpus else cpus()


def _count_gpus(visible: str | None, dev: Path) -> int:
    nodes = sum(1 for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    if visible is None or not nodes:
        return nodes
    entries = [entry.strip() for entry in visible.split(",")]
    # CUDA reads this list up to the first entry that is no device.
    wrong = (at for at, entry in enumerate(entries) if not entry or entry.startswith("-"))
    return next(wrong, len(entries))


def _ignored(environ: Mapping[str, str]) -> int | None:
    """The Job controller sets this annotation only above 0, and the downward API gives an empty text then."""
    if environ.get("RESILIENT_IGNORED_COUNT") == "" and _number(environ, "RESILIENT_FAILURE_COUNT") is not None:
        return 0
    return _number(environ, "RESILIENT_IGNORED_COUNT")


def _submission(environ: Mapping[str, str]) -> str | None:
    submission = _name(environ, "RESILIENT_SUBMISSION")
    if submission is None:
        why = "it is no name of letters, digits, '.', '_' and '-', of at most 253 characters"
        _refuse_given(environ, "RESILIENT_SUBMISSION", why, "pass the uid of the JobSet or Job")
    return submission


def _index(environ: Mapping[str, str]) -> int | None:
    index = _number(environ, "RESILIENT_INDEX")
    if index is None:
        why = "it is not a whole number of at most 9 digits"
        _refuse_given(environ, "RESILIENT_INDEX", why, "pass the completion index of the pod: 0 or more")
    return index


def _refuse_given(environ: Mapping[str, str], variable: str, why: str, do: str) -> None:
    """Say what is wrong with a value that could not be read; an empty one is not given."""
    value = environ.get(variable, "").strip()
    if value:
        raise SettingsError(
            f"cannot use {clean_url(value)[:_SHOWN_CHARS]!r} for {variable}: {why}; {do}, or leave it out"
        )


def _name(environ: Mapping[str, str], variable: str) -> str | None:
    value = environ.get(variable, "").strip()
    return value if _NAME.fullmatch(value) else None


def _number(environ: Mapping[str, str], variable: str) -> int | None:
    value = environ.get(variable, "").strip()
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else None
