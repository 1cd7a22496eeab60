# SPDX-License-Identifier: Apache-2.0
"""Digests of images and files; sole owner of xxhash."""

from __future__ import annotations

import re
from typing import Final

import xxhash

from resilient.errors import CheckpointError

Buffer = bytes | bytearray | memoryview
PREFIX: Final = "xxh3_128:"
_FORM: Final = re.compile(r"xxh3_128:[0-9a-f]{32}")


class Digest:
    """A digest that grows chunk by chunk."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, chunk: Buffer) -> None:
        """Take in the next bytes."""
        self._state.update(chunk)

    def text(self) -> str:
        """The digest so far, as it is written in a manifest."""
        return PREFIX + self._state.hexdigest()


def digest(buffer: Buffer) -> str:
    """The digest of all of ``buffer``."""
    return PREFIX + xxhash.xxh3_128(buffer).hexdigest()


def is_digest(text: str) -> bool:
    """Whether ``text`` is the digest of anything."""
    return _FORM.fullmatch(text) is not None


def matches(buffer: Buffer, text: str) -> bool:
    """Whether ``buffer`` has the digest ``text``."""
    if not is_digest(text):
        raise CheckpointError(
            f"cannot verify: {text[:40]!r} is not an xxh3_128 digest; do use the version of resilient that wrote it"
        )
    return digest(buffer) == text
