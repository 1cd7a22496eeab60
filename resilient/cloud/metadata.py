# SPDX-License-Identifier: Apache-2.0
"""One question to a metadata service: plain HTTP to the link-local address that all clouds have it at.

No name is looked up, no proxy is used and no redirection followed: what is asked never leaves the machine's own link.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ADDRESS: Final = ("169.254.169.254", 80)
TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 1 << 16


class NoAnswer(Exception):
    """The service did not answer, or not as it is documented; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What it said; ``text`` is ``None`` where there is nothing under that path (404)."""

    text: str | None
    etag: str | None = None


class Metadata:
    """The service of this machine."""

    def __init__(self, address: tuple[str, int] = ADDRESS) -> None:
        self._address = address

    def ask(
        self, path: str, headers: Mapping[str, str], *, method: str = "GET", timeout_s: float = TIMEOUT_S
    ) -> Answer:
        """Ask once; ``NoAnswer`` for whatever is no answer."""
        connection = http.client.HTTPConnection(*self._address, timeout=timeout_s)
        try:
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
            body = response.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{path.partition('?')[0]}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if response.status == http.client.NOT_FOUND:
            return Answer(text=None)
        if response.status != http.client.OK:
            raise NoAnswer(f"{path.partition('?')[0]}: HTTP status {response.status}")
        return Answer(text=body.decode("utf-8", "replace").strip(), etag=response.getheader("ETag"))
