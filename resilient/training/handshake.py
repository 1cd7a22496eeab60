# SPDX-License-Identifier: Apache-2.0
"""From ``Hello`` to ``Go``: how a worker learns what to resume from.

The worker says ``Hello``. The host answers ``Begin`` once all local workers have
said it, then ``Try`` as often as it has candidates, and the worker answers each
with ``Tried``. ``Go`` names the candidate to be loaded, the one that was tried
last, or none; when it is loaded the worker says ``Restored``. Instead of any of
its words the host may say ``Refuse``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from resilient.checkpoint.arena import Slot
from resilient.errors import CheckpointError, ResilientError
from resilient.link.attach import Attachment
from resilient.link.board import ON_DISK, SLOTS
from resilient.link.channel import Closed
from resilient.link.messages import Begin, FromHost, Go, Refuse, Tried, Try
from resilient.training import regroup, restore
from resilient.training.restore import Candidate
from resilient.training.state import Part


class HostGone(ResilientError):
    """The host ended while its answer was needed."""


def receive(attachment: Attachment) -> FromHost:
    """The host's next word; ``Refuse`` ends this process, and so does a host that is gone."""
    try:
        answer = attachment.channel.receive()
    except Closed as error:
        raise HostGone(f"cannot go on: the {attachment.host} ended; look at its last lines") from error
    if isinstance(answer, Refuse):
        sys.stderr.write(f"resilient: {answer.why}\n")
        raise SystemExit(answer.code)
    return answer


def agree(attachment: Attachment, parts: Mapping[str, Part], slots: Sequence[Slot]) -> tuple[Begin, Candidate | None]:
    """Try what the host names until it says which one all ranks load; nothing is loaded here."""
    begin = receive(attachment)
    if not isinstance(begin, Begin):
        raise unexpected(begin)

    def read(order: Try) -> Candidate:
        if order.contents is not None:
            shared = Slot.from_fd(attachment.shared_fds[order.slot - SLOTS], on_disk=order.slot in ON_DISK)
            return regroup.read(order, shared, parts, attachment.rank)
        record = attachment.board.record(attachment.index, order.slot)
        if record is None or record.step != order.step:
            raise CheckpointError(f"cannot restore {order.name}: slot {order.slot} holds no state of step {order.step}")
        try:
            return restore.read(order.name, record, slots[order.slot], parts, ranks=attachment.board.rows)
        except restore.Damaged:
            attachment.board.void(attachment.index, order.slot)
            raise

    return begin, _try_all(attachment, read)


def _try_all(attachment: Attachment, read: Callable[[Try], Candidate]) -> Candidate | None:
    candidate: Candidate | None = None
    while True:
        answer = receive(attachment)
        if isinstance(answer, Go):
            break
        if not isinstance(answer, Try):
            raise unexpected(answer)
        candidate, why = _try(answer, read)
        attachment.send(Tried(name=answer.name, ok=candidate is not None, why=why))
    if not answer.name:
        return None
    if candidate is None or (candidate.name, candidate.step) != (answer.name, answer.step):
        raise CheckpointError(f"cannot restore {answer.name}: it is not the candidate that was tried last")
    return candidate


def _try(order: Try, read: Callable[[Try], Candidate]) -> tuple[Candidate | None, str]:
    try:
        return read(order), ""
    except Exception as error:  # whatever is wrong with it, the host names the next candidate
        return None, f"{error}" if isinstance(error, ResilientError) else f"{type(error).__name__}: {error}"


def unexpected(answer: FromHost) -> ResilientError:
    """The error for a word of the host's that does not belong here."""
    return ResilientError(f"cannot go on: the host said {type(answer).__name__} where it does not belong")
