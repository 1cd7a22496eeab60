# SPDX-License-Identifier: Apache-2.0
"""What lies where in a run's directory, and the records in it; pure.

    run.json                                     RunRecord
    attempts/<attempt>.json                      AttemptRecord, created exclusively: the claim
    checkpoints/<attempt>-<step>[.<try>]/        fresh for every try at saving
        tensors-<rank>.safetensors           parameters and optimizer state, once for all ranks that have the same
        rank-<rank>.safetensors              all that is the rank's own
        manifest.json                            Manifest; last, and only it makes a checkpoint
    journal/<submission>/<pod>/<number>.jsonl
    debits/<submission>/<index>/<attempt>.json   Debit
    deny/<node or device>.json                   DenialRecord
    committed.json                               CommittedMark
    finished.json                                FinishedMark

What is read back is untrusted: its digest, size, schema, ranges and names are checked, and
everything wrong is a :class:`CheckpointError` that says what. Every record but the segments of
a journal ends with a digest of what comes before it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from resilient.checkpoint.seal import sealed, unsealed
from resilient.core import wire
from resilient.core.batch import MOST_OUT, Batch, is_sound
from resilient.core.denied import Denied
from resilient.core.retention import METRICS, is_metric
from resilient.core.usage import Usage
from resilient.errors import CheckpointError

FORMAT: Final = 2
"""1 had no digests in its records."""
RUN: Final = "run.json"
FINISHED: Final = "finished.json"
COMMITTED: Final = "committed.json"
MANIFEST: Final = "manifest.json"
ATTEMPTS: Final = "attempts"
CHECKPOINTS: Final = "checkpoints"
DEBITS: Final = "debits"
DENY: Final = "deny"
RECORD_LIMIT: Final = 64 << 10
CLAIM_LIMIT: Final = 512 << 10
"""A claim names all batches that are left out: up to ``MOST_OUT``, with ``MOST_NOTED`` samples."""
MANIFEST_LIMIT: Final = 16 << 20
"""About 100 000 ranks."""
SEGMENT_LIMIT: Final = 64 << 20

_HIGHEST: Final = 1 << 62
_NUMBER: Final = r"(0|[1-9][0-9]{0,17})"
_CHECKPOINT: Final = re.compile(rf"{_NUMBER}-{_NUMBER}(?:\.([1-9][0-9]{{0,8}}))?")
_COMPONENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_DENIAL_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_LONGEST_STEM: Final = 200
_DIGEST: Final = re.compile(r"[a-z0-9_]{1,32}:[0-9a-f]{16,128}")


class CheckpointName(NamedTuple):
    """What the name of a checkpoint says; sorts as a restore prefers."""

    attempt: int
    step: int
    again: int
    """How often this save had been tried before, or a number that was drawn for it."""

    def __str__(self) -> str:
        return f"{self.attempt}-{self.step}" + (f".{self.again}" if self.again else "")


def parse_checkpoint(name: str) -> CheckpointName:
    """The parts of a checkpoint's name."""
    match = _CHECKPOINT.fullmatch(name)
    if match is None:
        raise CheckpointError(f"cannot use {name[:80]!r} as a checkpoint: its name is not <attempt>-<step>")
    return CheckpointName(int(match[1]), int(match[2]), int(match[3] or 0))


def fresh_name(attempt: int, step: int) -> str:
    """A name for a directory that several savers share, who need not look which names are free."""
    drawn = 1 + secrets.randbelow(10**8)  # what a saver counts on from it is a name too
    return str(CheckpointName(_natural(attempt, "attempt"), _natural(step, "step"), drawn))


def component(text: str, what: str) -> str:
    """``text``, if it can be one part of a name in any store."""
    if not _COMPONENT.fullmatch(text):
        raise CheckpointError(
            f"cannot use {text[:80]!r} as {what}: it becomes part of a path; use letters, digits, '.', '_' and '-'"
        )
    return text


def attempt_path(attempt: int) -> str:
    """Where the claim of an attempt lies."""
    return f"{ATTEMPTS}/{_natural(attempt, 'attempt')}.json"


def checkpoint_path(name: str, file: str) -> str:
    """Where a file of a checkpoint lies."""
    parse_checkpoint(name)
    return f"{CHECKPOINTS}/{name}/{component(file, 'file name')}"


def rank_file(rank: int) -> str:
    """Name of the image that is a rank's own."""
    return f"rank-{_natural(rank, 'rank')}.safetensors"


def tensors_file(rank: int) -> str:
    """Name of the image of parameters and optimizer state; ``rank``: the lowest that has these bytes."""
    return f"tensors-{_natural(rank, 'rank')}.safetensors"


def debits_path(submission: str, index: int) -> str:
    """Directory of the debits of one index of one submission."""
    return f"{DEBITS}/{component(submission, 'submission')}/{_natural(index, 'index')}"


def deny_path(name: str) -> str:
    """Where the entry of a node or device lies."""
    if not is_denial_name(name):
        raise CheckpointError(f"cannot keep {name[:80]!r} off: it is no name of a node and no UUID of a device")
    # The name of a node may be as long as the longest file name.
    short = name if len(name) <= _LONGEST_STEM else f"{name[:_LONGEST_STEM]}-{zlib.crc32(name.encode()):08x}"
    return f"{DENY}/{short}.json"


def is_denial_name(name: str) -> bool:
    """Whether a node or device can have this name."""
    return _DENIAL_NAME.fullmatch(name) is not None


def segment_path(submission: str, pod: str, number: int) -> str:
    """Where a shipped segment of a journal lies."""
    return f"journal/{component(submission, 'submission')}/{component(pod, 'pod')}/{_natural(number, 'segment')}.jsonl"


def _natural(value: int, what: str) -> int:
    if not 0 <= value < _HIGHEST:
        raise CheckpointError(f"cannot use {value} as {what}: it is out of range")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The identity of a run."""

    version: int = FORMAT
    id: str
    created_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One launch of the workers, claimed by whoever created this."""

    version: int = FORMAT
    attempt: int
    submission: str
    index: int
    pod: str
    host: str
    claimed_s: float
    token: str
    """Random: tells one's own claim, whose answer was lost, from another's."""
    began_from: str | None
    """The checkpoint it began from; ``None`` for an empty beginning."""
    held_s: float
    """Seconds for which devices had been held without a newly committed step when it began."""
    restarts: int = 0
    """Of the workers, from the beginning of the submission to that of this attempt."""
    restarts_since_commit: int = 0
    fresh_from: int = 0
    """The attempt with which the present history began; checkpoints of lower ones are left alone."""
    skipped: tuple[Batch, ...] = ()
    """Batches that it leaves out, and every attempt that goes on from what it saves. Nothing is saved before this is
    durable, so no checkpoint was made without a batch that is not on record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One image."""

    file: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFiles:
    """Which images are the state of one rank."""

    tensors: str
    own: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Makes a directory a checkpoint."""

    version: int = FORMAT
    run: str
    submission: str
    attempt: int
    step: int
    began_from: str | None
    world_size: int
    ranks: tuple[RankFiles, ...]
    """Of rank 0, 1, ..."""
    files: tuple[FileRecord, ...]
    """Every file once."""
    created_s: float
    versions: Mapping[str, str]
    """Of python, torch and so on, for whoever has to read it in a year."""
    determinism: Mapping[str, str]
    """Settings under which its bits were made."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the training had measured last when it was taken."""

    def file(self, name: str) -> FileRecord:
        """Size and digest of a file that a rank has."""
        return next(file for file in self.files if file.file == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Debit:
    """An exit that a controller may ignore or repeat, on record before it is taken."""

    version: int = FORMAT
    submission: str
    index: int
    attempt: int
    code: int
    step: int
    """Highest step completed by then."""
    fingerprint: str
    held_s: float
    """Seconds for which devices had been held without a newly committed step."""
    wall_s: float
    why: str
    node: str | None = None
    """The machine of the pod that left, where it is known."""
    fault_step: int | None = None
    """Step that the culprit of the last fault had entered."""
    times: int = 1
    """It had struck there, without progress in between."""
    strikes: int = 0
    """Restarts in place that this fault has had without progress."""
    batch: Batch | None = None
    """The batch that it was at."""
    forgiven: bool = False
    """A person has cleared the fault: it is neither history nor a rung that was tried."""
    restarts: int = 0
    """Of the workers since the submission began, with the one that this exit leads to."""
    restarts_since_commit: int = 0
    """The same since a step was committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenialRecord:
    """A node or device that the run keeps off for a while."""

    version: int = FORMAT
    kind: Denied
    name: str
    rule: str
    """Of the verdict."""
    evidence: str
    written_s: float
    expires_s: float
    submission: str
    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedMark:
    """The work is done; only this makes a new start exit 0 without a step."""

    version: int = FORMAT
    steps: int | None
    """Steps asked for, where they are known."""
    reached: int
    how: str
    submission: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedMark:
    """A step was made durable: a listing without any is that of a wrong place, whatever else is there."""

    version: int = FORMAT
    attempt: int
    step: int


def usage_of(record: AttemptRecord | Debit) -> Usage:
    """What its submission had used of its budgets."""
    return Usage(held_s=record.held_s, restarts=record.restarts, restarts_since_commit=record.restarts_since_commit)


Record = RunRecord | AttemptRecord | Manifest | Debit | DenialRecord | FinishedMark | CommittedMark
R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    """The record as it is stored, checked like one that is read: nothing is written that could not be read back."""
    data = sealed(wire.encode(record))
    decode(data, type(record), type(record).__name__)
    return data


def decode(data: bytes, kind: type[R], where: str) -> R:
    """The record in ``data``; ``where`` is for the error."""
    try:
        body, is_sealed = unsealed(data)
        value = json.loads(body.decode())
        _check_version(value, is_sealed=is_sealed)
        record = wire.from_data(value, kind)
        if value.get("type", kind.__name__) != kind.__name__:
            raise ValueError(f"it is a {str(value['type'])[:40]!r}")
        _check_ranges(record)
        if isinstance(record, Manifest):
            _check_files(record)
            _check_metrics(record)
        if isinstance(record, DenialRecord) and not is_denial_name(record.name):
            raise ValueError("it names neither a node nor a device")
    except (ValueError, RecursionError, CheckpointError) as error:
        raise CheckpointError(f"cannot read {where}: {str(error)[:300]}; it was damaged or is not ours") from error
    return record


def _check_version(value: object, *, is_sealed: bool) -> None:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    version = value.get("version")
    if type(version) is not int or version < 1:
        raise ValueError("it has no format version")
    if version > FORMAT:
        raise ValueError(f"it has format {version} and this release reads up to {FORMAT}; use a newer resilient")
    if version > 1 and not is_sealed:
        raise ValueError("its digest is missing")


def _check_ranges(record: object) -> None:
    for field in dataclasses.fields(record):  # type: ignore[arg-type]  # all records are dataclasses
        value = getattr(record, field.name)
        if isinstance(value, (int, float)) and not (math.isfinite(value) and 0 <= value < _HIGHEST):
            raise ValueError(f"{field.name} is out of range")
        if field.name == "began_from" and value is not None:
            parse_checkpoint(value)
        if field.name in ("submission", "pod"):
            component(value, field.name)
        if not all(is_sound(batch) for batch in (value if type(value) is tuple else [value]) if type(batch) is Batch):
            raise ValueError(f"{field.name} is out of range")
    if isinstance(record, AttemptRecord) and sum(batch.count for batch in record.skipped) > MOST_OUT:
        raise ValueError("skipped is out of range")


def _check_files(manifest: Manifest) -> None:
    """Two files for each rank, under names that ranks' files have, and none that is nobody's."""
    count = len(manifest.ranks)
    if count != manifest.world_size or not count:
        raise ValueError(f"it does not list the files of ranks 0 to {manifest.world_size - 1}")
    for rank, files in enumerate(manifest.ranks):
        if files.own != rank_file(rank) or not _is_tensors_file(files.tensors, rank):
            raise ValueError(f"a file of rank {rank} has a foreign name")
    for file in manifest.files:
        _check_ranges(file)
        if not _DIGEST.fullmatch(file.digest):
            raise ValueError(f"the digest of {file.file[:80]!r} is malformed")
    named = [name for files in manifest.ranks for name in (files.tensors, files.own)]
    listed = [file.file for file in manifest.files]
    if len(listed) != len(set(listed)) or set(listed) != set(named):
        raise ValueError("its files are not those of its ranks")


def _check_metrics(manifest: Manifest) -> None:
    """Finite numbers, of either sign, under names that metrics have."""
    if len(manifest.metrics) > METRICS:
        raise ValueError(f"it has more than {METRICS} metrics")
    for name, value in manifest.metrics.items():
        if not (is_metric(name) and math.isfinite(value)):
            raise ValueError(f"the metric {name[:80]!r} has a foreign name, or is no finite number")


def _is_tensors_file(name: str, rank: int) -> bool:
    """Whether the lowest rank that has these tensors may be the one in the name."""
    match = re.fullmatch(rf"tensors-{_NUMBER}\.safetensors", name)
    return match is not None and int(match[1]) <= rank
