# SPDX-License-Identifier: Apache-2.0
"""Digests are what they say they are, in one piece or in many, and no other algorithm passes for one."""

import pytest

from resilient.checkpoint.digest import Digest, digest, matches
from resilient.errors import CheckpointError

EMPTY = "xxh3_128:99aa06d3014798d86001c324468d497f"
"""Of nothing, by the reference implementation: `xxh128sum /dev/null`."""


def test_the_algorithm_is_the_one_it_is_called() -> None:
    """Any other tool that knows XXH3 can check a checkpoint."""
    assert digest(b"") == EMPTY


def test_chunks_make_the_digest_of_the_whole() -> None:
    """However a file is cut, and whatever kind of memory it is in."""
    data = bytes(range(256)) * 40
    growing = Digest()
    for start in range(0, len(data), 999):
        growing.update(memoryview(data)[start : start + 999])
    assert growing.text() == digest(data) == digest(bytearray(data))


def test_one_bit_is_noticed() -> None:
    """The last one too."""
    data = bytearray(1000)
    text = digest(data)
    assert matches(data, text)
    data[-1] ^= 1
    assert not matches(data, text)


@pytest.mark.parametrize(
    "text", ["", EMPTY.removeprefix("xxh3_128:"), "sha256:" + "0" * 64, EMPTY + "0", EMPTY.upper(), EMPTY + "\n"]
)
def test_another_algorithm_is_refused(text: str) -> None:
    """It is neither right nor wrong, and must not be taken for either."""
    with pytest.raises(CheckpointError, match=r"^cannot verify: .+; do "):
        matches(b"", text)
