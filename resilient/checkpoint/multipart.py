# SPDX-License-Identifier: Apache-2.0
"""One large file to S3: its parts side by side, and an object only when all of them are there.

s3fs sends the parts of an open file one after another, and its ``pipe_file`` breaks an upload off while parts are
still on their way, which then stay behind (the AWS API reference, "AbortMultipartUpload"). So the parts are sent
here, by its public ``call_s3``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from resilient.checkpoint.pieces import each_piece
from resilient.checkpoint.store_errors import Missing
from resilient.checkpoint.throttle import Throttle
from resilient.errors import StoreError

PART: Final = 8 << 20
AT_ONCE: Final = 16
"""Parts under way in one process. Each is copied once to be sent, so uploads take 128 MiB of memory at most; more only
for files beyond 70 GiB, whose parts are larger."""
_MOST_PARTS: Final = 9_000
"""S3 allows 10 000 parts of one upload."""

Call = Callable[..., Mapping[str, Any]]
"""A method of the S3 API with its parameters, tried again where that is worth it; raises :class:`StoreError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an upload goes."""

    bucket: str
    key: str
    call: Call
    size: Callable[[], int]
    """The size of the object that is there now."""
    throttle: Throttle
    room: threading.BoundedSemaphore
    """Held by each part while it is in memory; shared by all uploads."""


def part_size(size: int) -> int:
    """Bytes of each part of a file but the last."""
    return max(PART, -(-size // _MOST_PARTS))


def upload(target: Target, data: memoryview) -> None:
    """Make an object of ``data``; on any error there is none, and no part of it."""
    address = {"Bucket": target.bucket, "Key": target.key}
    address["UploadId"] = target.call("create_multipart_upload", **address)["UploadId"]
    part = part_size(len(data))
    sent: dict[int, dict[str, Any]] = {}

    def send(start: int, end: int) -> None:
        number = start // part + 1
        target.throttle.take(end - start)
        with target.room:
            answer = target.call("upload_part", PartNumber=number, Body=bytes(data[start:end]), **address)
        sent[number] = {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        each_piece(len(data), part, AT_ONCE, send)
        _complete(target, address, [sent[number] for number in sorted(sent)], len(data))
    except BaseException:
        with contextlib.suppress(StoreError):  # the rule of the bucket for incomplete uploads is left then
            target.call("abort_multipart_upload", **address)
        raise


def _complete(target: Target, address: Mapping[str, str], parts: list[dict[str, Any]], size: int) -> None:
    """Ask for the object. An upload that is gone was completed, if it is ours that is there: the answer was lost."""
    try:
        target.call("complete_multipart_upload", MultipartUpload={"Parts": parts}, **address)
    except Missing:
        if target.size() != size:
            raise
