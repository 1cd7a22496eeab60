# SPDX-License-Identifier: Apache-2.0
"""The worker's collectives, told to the supervisor when it asks, from torch's flight recorder as JSON.

The recorder is on by default. At its own time-out torch writes a pickle of it, which
nobody here reads; the JSON can be had only from within the process, so a thread waits
to be asked: while the main thread waits in a collective, Python can still run.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import torch.distributed

from resilient.core.collectives import Collectives, from_recorder
from resilient.link.attach import Attachment
from resilient.link.messages import Communicated, ask_path

_NCCL: Final = "_dump_nccl_trace_json"
_OTHERS: Final = "_dump_fr_trace_json"
"""NCCL has a recorder of its own; the other has what gloo and the rest do."""
_WHY_CHARS: Final = 200


def answer_when_asked(link: Attachment, directory: str, index: int) -> None:
    """Start the thread; a directory without the FIFO is of a supervisor that does not ask."""
    path = ask_path(directory, index)
    if path.is_fifo():
        threading.Thread(target=_answer, args=(link, path), name="resilient-collectives", daemon=True).start()


def tell(link: Attachment, *, dying: bool = False) -> None:
    """Say how far this rank is in its groups; one that is dying asks no GPU, which may be why it dies."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    groups: list[Collectives] = []
    why = ""
    for name in (_OTHERS,) if dying else (_NCCL, _OTHERS):
        dump = getattr(torch._C._distributed_c10d, name, None)
        try:
            groups += from_recorder(dump()) if dump is not None else ()
        except Exception as error:  # torch's own, of a GPU that is broken: nothing is known, and that is all
            why = f"{type(error).__name__}: {error}"[:_WHY_CHARS]
    link.send(Communicated(groups=tuple(groups), why=why))


def _answer(link: Attachment, path: Path) -> None:
    while True:
        try:
            with open(path, "rb") as fifo:  # somebody opens it to write,
                fifo.read()  # and closes it
        except OSError:
            return  # the supervisor is gone, and its directory with it
        tell(link)
