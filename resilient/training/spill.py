# SPDX-License-Identifier: Apache-2.0
"""Writing a snapshot to disk where memory has no room for it, with no more memory than a few MiB.

Past the page cache where the file system allows that: pages that wait to be written count against the
container's memory as well, and cgroup v1 kills before it writes them out.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import Final

import torch

from resilient.checkpoint import image
from resilient.checkpoint.digest import Digest
from resilient.checkpoint.direct import drop, put
from resilient.checkpoint.pair import Pair
from resilient.checkpoint.tensors import Flat
from resilient.link.board import PAGE_BYTES, Extent

BUFFER_BYTES: Final = 16 << 20


def write(fd: int, tensors: Flat, own: Flat, plan: Pair) -> tuple[Extent, Extent]:
    """Write both images into the file behind ``fd``, which has room for them; the training waits."""
    direct = _reopened(fd)
    try:
        return (
            _write_image((direct, fd), tensors, plan.tensors, 0),
            _write_image((direct, fd), own, plan.own, plan.own_offset),
        )
    finally:
        os.close(direct)


def _reopened(fd: int) -> int:
    """The same file once more, as others hold this descriptor and have no use for its flags."""
    path = f"/proc/self/fd/{fd}"
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _write_image(fds: tuple[int, int], flat: Flat, layout: image.Layout, offset: int) -> Extent:
    buffer = mmap.mmap(-1, BUFFER_BYTES)
    digest, filled, at = Digest(), 0, offset
    with memoryview(buffer) as view:
        for piece in _pieces(flat, layout):
            rest = piece
            while rest:
                count = min(len(rest), BUFFER_BYTES - filled)
                view[filled : filled + count] = rest[:count]
                rest, filled = rest[count:], filled + count
                if filled == BUFFER_BYTES:
                    at, filled = at + _flush(fds, view, filled, at, digest), 0
        _flush(fds, view, filled, at, digest)
    return Extent(size=layout.size_bytes, digest=digest.text())


def _flush(fds: tuple[int, int], view: memoryview, filled: int, at: int, digest: Digest) -> int:
    """Write whole pages, as direct writes must be: what is behind the end of an image is of no meaning."""
    digest.update(view[:filled])
    whole = view[: -(-filled // PAGE_BYTES) * PAGE_BYTES]
    direct, buffered = fds
    put(direct, buffered, whole, at)
    drop(buffered, at, len(whole))
    return filled


def _pieces(flat: Flat, layout: image.Layout) -> Iterator[memoryview]:
    """The bytes of an image, in order."""
    yield memoryview(layout.header)
    for name in layout.spans:  # planned in the order in which they lie
        flattened = flat.tensors[name].detach().resolve_conj().resolve_neg().reshape(-1)
        step = max(1, BUFFER_BYTES // flattened.element_size())
        for start in range(0, flattened.numel(), step):
            yield _bytes_of(flattened[start : start + step].cpu())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, copied: a view would not keep it alive."""
    return memoryview(ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()))
