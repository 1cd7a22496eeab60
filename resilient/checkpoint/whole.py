# SPDX-License-Identifier: Apache-2.0
"""A whole checkpoint in one piece of memory, for ranks of another number than saved it.

It begins with the manifest, as it is stored; then come all files in the order in which that lists them, each on a page.
So whoever has the manifest knows where everything lies, and what digest it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resilient.checkpoint import layout
from resilient.checkpoint.digest import matches
from resilient.checkpoint.layout import Manifest
from resilient.errors import CheckpointError
from resilient.link.board import Extent, on_page


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Where everything lies."""

    manifest: Manifest
    head: bytes
    offsets: Mapping[str, int]
    """Of each file."""
    size_bytes: int

    @classmethod
    def of(cls, manifest: Manifest) -> Whole:
        """The plan for a checkpoint."""
        return cls._laid_out(manifest, layout.encode(manifest))

    @classmethod
    def read(cls, view: memoryview, contents: Extent) -> Whole:
        """What lies in memory that begins with ``contents``; CheckpointError where that is not so."""
        head = bytes(view[: contents.size])
        if len(head) != contents.size or not matches(head, contents.digest):
            raise CheckpointError("cannot read the checkpoint in memory: its manifest does not have its digest")
        whole = cls._laid_out(layout.decode(head, Manifest, "the manifest in memory"), head)
        if whole.size_bytes > len(view):
            raise CheckpointError("cannot read the checkpoint in memory: it is longer than the memory that it lies in")
        return whole

    @classmethod
    def _laid_out(cls, manifest: Manifest, head: bytes) -> Whole:
        offsets: dict[str, int] = {}
        at = len(head)
        for file in manifest.files:
            offsets[file.file] = on_page(at)
            at = offsets[file.file] + file.size
        return cls(manifest=manifest, head=head, offsets=offsets, size_bytes=at)

    def image(self, view: memoryview, file: str) -> memoryview:
        """The bytes of a file."""
        begin = self.offsets[file]
        return view[begin : begin + self.manifest.file(file).size]
