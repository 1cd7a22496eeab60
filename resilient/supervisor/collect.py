# SPDX-License-Identifier: Apache-2.0
"""Turns what an attempt left behind into evidence; every text passes the redaction boundary here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from resilient.core import wire
from resilient.core.batch import is_sound
from resilient.core.collectives import from_watchdog
from resilient.core.devices import DeviceEvidence
from resilient.core.error_text import from_torchelastic
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, Hang, RankEvidence
from resilient.core.kernel_log import about
from resilient.core.pod_status import PodDevice
from resilient.core.redact import Redactor
from resilient.facts import LATE
from resilient.link.board import Board
from resilient.supervisor.group import Member
from resilient.supervisor.leavings import read_whole
from resilient.supervisor.samples import Sample
from resilient.supervisor.watching import place

FILE_LIMIT: Final = 1 << 20
_TEXT: Final = 16 << 10
_TRACEBACK: Final = 64 << 10
_TAIL: Final = 8 << 10
_WORD: Final = 200

T = TypeVar("T")


def evidence(
    members: Sequence[Member],
    board: Board,
    redactor: Redactor,
    *,
    hang: Hang | None,
    before: Sample | None,
    after: Sample,
    not_started: str | None = None,
    devices: Sequence[Sequence[DeviceEvidence]] = (),
    kernel: Sequence[str] = (),
    announced: Sequence[str] = (),
    pod: Sequence[PodDevice] = (),
) -> Evidence:
    """Everything that is known of an attempt whose workers have all ended; ``devices`` by rank.

    ``not_started`` says why the rank after the last member could not be started, where that was so.
    """
    kills = None
    if before is not None and before.oom_kills is not None and after.oom_kills is not None:
        kills = max(0, after.oom_kills - before.oom_kills)
    ranks = [
        dataclasses.replace(
            _rank(member, board, redactor),
            devices=tuple(_cleaned(one, redactor) for one in theirs),
            kernel_log=_last_lines("\n".join(about(kernel, [one.device for one in theirs])), redactor),
        )
        for member, theirs in zip(members, devices or ((),) * len(members), strict=True)
    ]
    if not_started is not None:
        ranks.append(RankEvidence(rank=len(members), order=0, not_started=redactor.clean(not_started, _TEXT)))
    return Evidence(
        ranks=tuple(ranks),
        hang=hang,
        oom_kills=kills,
        shm_used_fraction=after.shm_used_fraction,
        disk_used_fraction=after.disk_used_fraction,
        announced=tuple(announced),
        pod_devices=tuple(pod),
    )


def _rank(member: Member, board: Board, redactor: Redactor) -> RankEvidence:
    pulse = board.pulse(member.rank)
    exit_ = member.exit
    stderr = redactor.clean(member.stderr.tail(), _TRACEBACK, tail=True)
    error = read_error(member.error_file, member.torchelastic_file, redactor)
    return RankEvidence(
        rank=member.rank,
        exit_code=exit_.code if exit_ else None,
        signal=exit_.signal if exit_ else None,
        order=member.order,
        stopped=member.stopped,
        error=error,
        stderr_tail=stderr,
        stdout_tail=_last_lines(member.stdout.tail(), redactor),
        nccl_log=_last_lines(member.nccl_log(), redactor),
        step=pulse.entered if pulse.opened else None,
        completed=pulse.done if pulse.opened else None,
        place=place(pulse),
        # The worker itself knows what was in it, and which one a worker of its loader had.
        batch=error.batch if error is not None and error.batch is not None else board.batch(member.rank),
        collectives=tuple(_cleaned(group, redactor) for group in member.collectives or ()) or from_watchdog(stderr),
    )


def _last_lines(text: str, redactor: Redactor) -> str:
    """As much as is worth the time that cleaning takes."""
    return redactor.clean(text if len(text) <= _TAIL else text[-_TAIL:].partition("\n")[2], _TAIL, tail=True)


def read_error(ours: Path, torchelastic: Path, redactor: Redactor) -> ErrorRecord | None:
    """The worker's own record, else what torchelastic's ``@record`` wrote, else ``None``."""
    text = _read(ours) or _read(ours.with_name(ours.name + LATE))
    record = None
    if text is not None:
        try:
            record = wire.from_data(json.loads(text), ErrorRecord)
        except (ValueError, RecursionError):
            record = None
    if record is None or not record.chain:
        text = _read(torchelastic)
        record = from_torchelastic(text) if text is not None else None
    return None if record is None else _cleaned_record(record, redactor)


def _cleaned_record(record: ErrorRecord, redactor: Redactor) -> ErrorRecord:
    def clean(text: str | None) -> str | None:
        return None if text is None else redactor.clean(text, _TEXT)

    chain = tuple(
        ErrorLink(
            type=redactor.clean(link.type, 200),
            message=redactor.clean(link.message, _TEXT),
            bases=tuple(redactor.clean(base, 200) for base in link.bases[:32]),
        )
        for link in record.chain[:64]
    )
    return dataclasses.replace(
        record,
        chain=chain,
        traceback=redactor.clean(record.traceback, _TRACEBACK, tail=True),
        frame=clean(record.frame),
        function=clean(record.function),
        host=clean(record.host),
        batch=record.batch if record.batch is not None and is_sound(record.batch) else None,
    )


def _cleaned(word: T, redactor: Redactor) -> T:
    """A dataclass of the wire with all of its texts cleaned: what a driver or a library says is text like any other."""

    def clean(data: object) -> object:
        if isinstance(data, str):
            return redactor.clean(data, _WORD)
        if isinstance(data, dict):
            return {key: clean(value) for key, value in data.items()}
        return [clean(item) for item in data] if isinstance(data, list) else data

    return wire.from_data(clean(wire.to_data(word)), type(word))


def _read(path: Path) -> str | None:
    data = read_whole(path, FILE_LIMIT)
    return None if data is None else data.decode(errors="replace")


def as_fields(sample: Sample) -> Mapping[str, object]:
    """A sample for the journal."""
    return dataclasses.asdict(sample)
