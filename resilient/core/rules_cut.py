# SPDX-License-Identifier: Apache-2.0
"""Rules about a log that breaks off in a traceback: the file of the innermost frame is all that is left.

Only rows, and the last to be asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import Family, Rule, log_rule
from resilient.core.symptoms import Symptoms

_FRAME: Final = re.compile(r'^ {0,8}File "([^"\n]{1,400})", line \d{1,9}', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CutOff:
    """A log whose last traceback has lost its last line, and the file that it stood in."""

    pattern: re.Pattern[str]
    carrier: str | None = None
    """The only exception that is left: it carries others, and what is cut off is their tracebacks."""

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the path of the innermost frame that is left."""
        names = {link.type.rpartition(".")[2] for link in symptoms.chain}
        cut_off = names == ({self.carrier} if self.carrier else set())
        frames = _FRAME.findall(symptoms.lanes[Lane.LOG]) if cut_off else []
        return frames[-1] if frames and self.pattern.search(frames[-1]) else None


def _cut_off(name: str, cause: Cause, action: Action, why: str, files: str, example: str) -> Rule:
    return log_rule(
        name,
        cause,
        action,
        why + ", in a traceback whose last line is missing",
        CutOff(re.compile(rf"[/\\](?:{files})(?:[/\\.]|$)")),
        f'Traceback (most recent call last):\n  File "/usr/lib/python3/{example}", line 7, in f',
        "https://docs.python.org/3/library/traceback.html",
        confidence=Confidence.LOW,
        family=Family.EXCEPTION,
    )


CUT_OFF_RULES: Final = (
    _cut_off(
        "cut-off-data",
        Cause.USER_DATA,
        Action.STOP,
        "a library was reading data",
        r"tarfile|zipfile|gzip|lzma|bz2|PIL|pyarrow|datasets|webdataset|csv|json[/\\]decoder|h5py|soundfile",
        "tarfile.py",
    ),
    _cut_off(
        "cut-off-store",
        Cause.STORAGE,
        Action.RESTART_IN_PLACE,
        "a client was talking to a store or hub",
        r"fsspec|s3fs|gcsfs|adlfs|botocore|urllib3|requests|aiohttp|huggingface_hub",
        "site-packages/botocore/endpoint.py",
    ),
    _cut_off(
        "cut-off-peer",
        Cause.NETWORK_OR_PEER,
        Action.RESTART_IN_PLACE,
        "torch was talking to a peer or the store",
        r"rendezvous|c10d_rendezvous_backend|distributed_c10d",
        "site-packages/torch/distributed/distributed_c10d.py",
    ),
)
