# SPDX-License-Identifier: Apache-2.0
"""What workers print: passed on with a prefix, whole lines at a time, and its end kept as evidence.

Bytes are passed on as they are; nothing is decoded but for the evidence. A carriage
return stays one, so that a progress bar redraws in place (in the evidence only its
last state is kept), and a very long line is passed on in pieces. In both cases the
line stays *open*: when somebody else writes meanwhile it is ended first, and what
follows begins a new line with its own prefix.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Final

TAIL_BYTES: Final = 64 << 10
PIECE: Final = 64 << 10
"""A line that grows beyond this is passed on before its end has come."""
_KEPT_OF_A_LINE: Final = 4 << 10
"""Of a long line the evidence keeps this much: what went wrong stands at its beginning."""
_CUT: Final = b" [...]"
# A return at the very end waits for the next byte, which may be its newline.
_LINE_END: Final = re.compile(rb"\r?\n|\r(?=[^\n])")

Sink = Callable[[bytes], object]


class Lines:
    """Where the output of all workers meets: nobody's bytes land inside a line of somebody else."""

    def __init__(self) -> None:
        self._open: Relay | None = None

    def relay(self, sink: Sink, *, prefix: str = "", tail_bytes: int = TAIL_BYTES) -> Relay:
        """A relay that writes to ``sink``, with ``prefix`` before every line."""
        return Relay(self, sink, prefix=prefix, tail_bytes=tail_bytes)

    def is_open(self, relay: Relay) -> bool:
        """Whether what ``relay`` writes next continues a line of its own."""
        return self._open is relay

    def put(self, relay: Relay, data: bytes, *, leaves_open: bool) -> None:
        """Write for ``relay``, after ending the line that somebody else has left open."""
        if self._open is not None and self._open is not relay:
            self._open.sink(b"\n")
        relay.sink(data)
        self._open = relay if leaves_open else None


class Relay:
    """One stream of one worker; made by ``Lines.relay``."""

    def __init__(self, lines: Lines, sink: Sink, *, prefix: str, tail_bytes: int) -> None:
        self.sink: Final = sink
        self._prefix = prefix.encode()
        self._lines = lines
        self._buffer = bytearray()
        self._searched = 0
        self._last_end = b"\n"
        """What followed the last bytes written: a newline, a return, or nothing (the line goes on)."""
        self._tail = _Tail(tail_bytes)

    def feed(self, data: bytes) -> None:
        """Take what was read from the worker's pipe."""
        self._buffer += data
        out: list[bytes] = []
        start = 0
        while match := _LINE_END.search(self._buffer, max(start, self._searched)):
            end = b"\r" if match.group() == b"\r" else b"\n"
            self._take(bytes(self._buffer[start : match.start()]), end, out)
            start = match.end()
        while len(self._buffer) - start > PIECE:
            size = _whole_characters(self._buffer[start : start + PIECE + 1], PIECE)
            self._take(bytes(self._buffer[start : start + size]), b"", out)
            start += size
        del self._buffer[:start]
        # All of it has been searched, but for a return at its end.
        self._searched = max(0, len(self._buffer) - 1)
        self._write(out)

    def finish(self) -> None:
        """The pipe is at its end: so is its last line."""
        out: list[bytes] = []
        if self._buffer or self._lines.is_open(self):
            self._take(bytes(self._buffer).removesuffix(b"\r"), b"\n", out)
        self._tail.end_line()
        self._buffer.clear()
        self._searched = 0
        self._write(out)

    def tail(self) -> str:
        """The last complete lines, within the bound; bytes that are not UTF-8 are replaced."""
        return self._tail.text()

    def _take(self, data: bytes, end: bytes, out: list[bytes]) -> None:
        continues = self._last_end == b"" and (bool(out) or self._lines.is_open(self))
        out += [b"" if continues else self._prefix, data, end]
        self._last_end = end
        self._tail.add(data, end)

    def _write(self, out: list[bytes]) -> None:
        if out:
            self._lines.put(self, b"".join(out), leaves_open=self._last_end != b"\n")


class _Tail:
    """The last lines of a stream, as a terminal would show them."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._line = bytearray()
        """Beginning of the line that is coming in."""
        self._returned = False
        """A carriage return came: the next bytes overwrite the line."""

    def add(self, data: bytes, end: bytes) -> None:
        if self._returned and data:
            self._line.clear()
            self._returned = False
        self._line += data[: max(0, _KEPT_OF_A_LINE + 1 - len(self._line))]
        if end == b"\r":
            self._returned = True
        if end == b"\n":
            self._append()

    def end_line(self) -> None:
        if self._line:
            self._append()

    def text(self) -> str:
        return b"".join(line + b"\n" for line in self._lines).decode(errors="replace")

    def _append(self) -> None:
        line = bytes(self._line)
        if len(line) > _KEPT_OF_A_LINE:
            line = line[: _whole_characters(line, _KEPT_OF_A_LINE)] + _CUT
        self._line.clear()
        self._returned = False
        self._lines.append(line)
        self._size += len(line) + 1
        while self._size > self._bound:
            self._size -= len(self._lines.popleft()) + 1


def _whole_characters(data: bytes | bytearray, size: int) -> int:
    """The most bytes up to ``size`` after which ``data`` can be cut without splitting a UTF-8 character."""
    for cut in range(size, max(0, size - 4), -1):
        if cut == len(data) or data[cut] & 0xC0 != 0x80:
            return cut
    return size  # not UTF-8
