# SPDX-License-Identifier: Apache-2.0
"""A record that ends with a digest of itself: what was damaged since is no record, and not one of something else."""

from __future__ import annotations

import re
from typing import Final

from resilient.checkpoint.digest import digest, matches

_SEAL: Final = re.compile(rb',"digest":"([a-z0-9_]{1,32}:[0-9a-f]{16,128})"\}\n\Z')


def sealed(text: bytes) -> bytes:
    """A record of one line, with its digest as the last field."""
    body = text.rstrip()
    return b'%s,"digest":"%s"}\n' % (body[:-1], digest(body).encode())


def unsealed(data: bytes) -> tuple[bytes, bool]:
    """What was sealed, and whether it was; ``ValueError`` if it is not what it was then."""
    seal = _SEAL.search(data)
    if seal is None:
        return data, False
    body = data[: seal.start()] + b"}"
    if not matches(body, seal[1].decode()):
        raise ValueError("its digest differs")
    return body, True
