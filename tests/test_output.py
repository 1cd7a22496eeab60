# SPDX-License-Identifier: Apache-2.0
"""What workers print reaches us whole, by lines, and its end is kept."""

from __future__ import annotations

import random

import pytest

from resilient.supervisor.output import PIECE, Lines, Relay


@pytest.fixture
def lines() -> Lines:
    return Lines()


def chunks(data: bytes, seed: int) -> list[bytes]:
    """``data`` cut at random places."""
    cuts = sorted(random.Random(seed).choices(range(len(data) + 1), k=min(40, len(data))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def relayed(data: list[bytes], prefix: str = "[rank0] ") -> tuple[bytes, Relay]:
    """What one relay writes for these reads."""
    out: list[bytes] = []
    relay = Lines().relay(out.append, prefix=prefix)
    for chunk in data:
        relay.feed(chunk)
    relay.finish()
    return b"".join(out), relay


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("data", "shown", "kept"),
    [
        (b"a\nb\n", b"> a\n> b\n", "a\nb\n"),
        (b"no end", b"> no end\n", "no end\n"),
        ("größe 日本語\n🚀\n".encode(), "> größe 日本語\n> 🚀\n".encode(), "größe 日本語\n🚀\n"),
        (b"dos\r\n\r\nend\r", b"> dos\n> \n> end\n", "dos\n\nend\n"),
        (b"\r 10%\r 20%\r 30%\nok\n", b"> \r>  10%\r>  20%\r>  30%\n> ok\n", " 30%\nok\n"),
        (b"10%\r20%\r\nok\n", b"> 10%\r> 20%\n> ok\n", "20%\nok\n"),
        (b"\xff\xfe\x00\x1b[31m\n[/x]\n", b"> \xff\xfe\x00\x1b[31m\n> [/x]\n", "\ufffd\ufffd\x00\x1b[31m\n[/x]\n"),
        (b"", b"", ""),
    ],
)
def test_chunks_make_no_difference(data: bytes, shown: bytes, kept: str, seed: int) -> None:
    """However the pipe cuts it, the same bytes come out, prefixed by the line, and the same text is kept."""
    out, relay = relayed(chunks(data, seed), prefix="> ")
    assert out == shown
    assert relay.tail() == kept


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_come_through_unchanged(seed: int) -> None:
    """Without a prefix what comes out is what went in, but for the form of line ends."""
    data = random.Random(seed).randbytes(5000) + b"\n"
    out, _ = relayed(chunks(data, seed), prefix="")
    assert out == data.replace(b"\r\n", b"\n")


def test_a_huge_line_is_passed_on_in_bounded_memory() -> None:
    """10 MB without a newline: written as they come, one prefix, no byte changed, the beginning kept."""
    text = "é" * 5_000_000
    data = b"x" + text.encode()
    out: list[bytes] = []
    relay = Lines().relay(out.append, prefix="[rank0] ")
    held = 0
    for start in range(0, len(data), 50_001):
        relay.feed(data[start : start + 50_001])
        held = max(held, min(start + 50_001, len(data)) + len("[rank0] ") - sum(map(len, out)))
    relay.finish()
    assert b"".join(out) == b"[rank0] " + data + b"\n"
    assert held <= PIECE + 8
    assert relay.tail().startswith("xéé")
    assert relay.tail().endswith("é [...]\n")
    for piece in out[:-1]:
        piece.decode()  # no character is cut


def test_many_single_bytes_are_not_searched_again_and_again() -> None:
    """A line that comes byte by byte is put together."""
    out, _ = relayed([b"x"] * 30_000 + [b"\n"])
    assert out == b"[rank0] " + b"x" * 30_000 + b"\n"


def test_the_tail_keeps_the_last_whole_lines(lines: Lines) -> None:
    """The evidence is bounded, ends with the last line, and holds no half line."""
    relay = lines.relay(lambda data: None, tail_bytes=100)
    relay.feed(b"".join(b"line %04d\n" % n for n in range(1000)))
    assert relay.tail() == "".join(f"line {n:04d}\n" for n in range(990, 1000))
    relay.feed(b"half")
    assert "half" not in relay.tail()
    relay.finish()
    assert relay.tail().endswith("line 0999\nhalf\n")


def test_empty_lines_count(lines: Lines) -> None:
    """A flood of newlines does not grow the tail beyond its bound."""
    relay = lines.relay(lambda data: None, tail_bytes=100)
    relay.feed(b"\n" * 100_000)
    assert relay.tail() == "\n" * 100


def test_lines_of_two_ranks_never_mix(lines: Lines) -> None:
    """Half a line waits for its other half, whoever writes meanwhile."""
    out: list[bytes] = []
    zero, one = lines.relay(out.append, prefix="[rank0] "), lines.relay(out.append, prefix="[rank1] ")
    zero.feed(b"he")
    one.feed(b"wor")
    zero.feed(b"llo\n")
    one.feed(b"ld\n")
    assert b"".join(out) == b"[rank0] hello\n[rank1] world\n"


def test_a_line_left_open_is_ended_before_somebody_else_writes(lines: Lines) -> None:
    """A bar, or a piece of a huge line, is not written into; what follows has its prefix again."""
    out: list[bytes] = []
    zero, one = lines.relay(out.append, prefix="0 "), lines.relay(out.append, prefix="1 ")
    zero.feed(b"10%\r20%\r")
    one.feed(b"line\n")
    zero.feed(b"30%\r.")
    zero.finish()
    assert b"".join(out) == b"0 10%\r\n1 line\n0 20%\r0 30%\r0 .\n"
    out.clear()
    zero.feed(b"a" * (PIECE + 1))
    one.feed(b"line\n")
    zero.feed(b"b\n")
    assert b"".join(out) == b"0 " + b"a" * PIECE + b"\n1 line\n0 ab\n"


def test_the_line_is_ended_where_it_was_begun(lines: Lines) -> None:
    """stdout and stderr may lie apart: the newline goes to the stream whose line is open."""
    out: list[bytes] = []
    err: list[bytes] = []
    bar, text = lines.relay(err.append), lines.relay(out.append)
    bar.feed(b"10%\r20%\r")
    text.feed(b"loss 3\n")
    bar.finish()
    text.finish()
    assert (b"".join(out), b"".join(err)) == (b"loss 3\n", b"10%\r\n20%\n")


def test_finish_adds_nothing_to_what_is_whole(lines: Lines) -> None:
    """A stream that ended with a newline, or was ended by somebody else's, gets no empty line."""
    out: list[bytes] = []
    zero, one = lines.relay(out.append, prefix="0 "), lines.relay(out.append, prefix="1 ")
    zero.feed(b"bar\r ")
    one.feed(b"x\n")
    zero.feed(b"\r\n")
    zero.finish()
    zero.finish()
    assert b"".join(out) == b"0 bar\r\n1 x\n0  \n"
