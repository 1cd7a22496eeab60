# SPDX-License-Identifier: Apache-2.0
"""Letters between pods, carried by real processes over a real store on this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from supervised import LIMIT_S
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not listed, and documented

from resilient import settings
from resilient.link.channel import Channel, Closed
from resilient.supervisor import programs
from resilient.supervisor.mail import QUIET
from resilient.supervisor.mailbox import LETTER_LIMIT, LINE_LIMIT, TOLD, Connected, Cut, Letter, Post, Told, Will

FIRST = "pod-0"
SECOND = "pod-1-0123456789abcdef"


@dataclass
class Box:
    """A mailbox, as its supervisor has it."""

    process: subprocess.Popen[bytes]
    channel: Channel[Told]

    def told(self) -> Told:
        """The next that it says."""
        return self.channel.receive()

    def letters(self, count: int) -> list[str]:
        """The next letters, with nothing else between them."""
        told = [self.told() for _ in range(count)]
        assert all(isinstance(each, Letter) for each in told), told
        return [each.text for each in told if isinstance(each, Letter)]

    def post(self, to: str, text: str) -> None:
        self.channel.send(Post(to=to, text=text))

    def abandon(self) -> None:
        """Be gone, as a supervisor that was killed is; the mailbox ends by itself."""
        self.channel.close()

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)

    def until_closed(self) -> list[Told]:
        """All that is still said, until nothing can come any more."""
        said = []
        try:
            while True:
                said.append(self.told())
        except Closed:
            return said


class Boxes:
    """Mailboxes at one port, none of which outlives the test."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("", 0))
            self.port = int(probe.getsockname()[1])
        self.all: list[Box] = []

    def start(self, queue: str) -> Box:
        role = "holds" if queue == FIRST else "joins"
        arguments = ("localhost", str(self.port), queue, role)
        process, ours = programs.start("resilient.supervisor.mailbox", arguments, {**settings.environment(), **QUIET})
        box = Box(process, Channel(ours, TOLD, limit=LINE_LIMIT))
        self.all.append(box)
        return box


@pytest.fixture
def boxes() -> Iterator[Boxes]:
    started = Boxes()
    yield started
    for box in started.all:
        box.channel.close()
    assert {box.wait() for box in started.all} <= {0, -signal.SIGKILL}, "each ends with its supervisor"


def connected(boxes: Boxes) -> tuple[Box, Box]:
    """The mailbox of the first pod, and of one that was there before it."""
    second = boxes.start(SECOND)
    first = boxes.start(FIRST)
    assert (first.told(), second.told()) == (Connected(), Connected())
    return first, second


def test_letters_come_in_order_whole_and_after_a_supervisor_its_will(boxes: Boxes) -> None:
    """Both ways, also the longest one, that is quoted at every character; SIGTERM to every process ends none."""
    first, second = connected(boxes)
    for box in (first, second):
        box.process.send_signal(signal.SIGTERM)
    texts = [*map(str, range(200)), "", 'of "quotes" \\ and\nlines, \U0001f525', "\\" * LETTER_LIMIT, "last"]
    for text in texts:
        first.post(SECOND, text)
        second.post(FIRST, text)
    second.channel.send(Will(to=FIRST, text="an earlier will"))
    second.channel.send(Will(to=FIRST, text="gone"))
    assert second.letters(len(texts)) == texts
    assert first.letters(len(texts)) == texts
    second.abandon()
    assert first.letters(1) == ["gone"]
    assert second.wait() == 0


def test_a_letter_that_no_supervisor_writes_is_dropped(boxes: Boxes) -> None:
    """Whatever somebody puts into the store: one that would be too long where it is quoted cuts nobody off."""
    first, second = connected(boxes)
    store = TCPStore("localhost", boxes.port, is_master=False)
    store.queue_push(FIRST, "\1" * (LETTER_LIMIT // 2))
    second.post(FIRST, "the next")
    assert first.letters(1) == ["the next"]


def test_a_store_that_is_killed_is_heard_of(boxes: Boxes) -> None:
    """Nobody can hold another one beside it; and who has lost it says so, and ends."""
    first, second = connected(boxes)
    third = boxes.start(FIRST)
    refused = third.told()
    assert isinstance(refused, Cut)
    assert str(boxes.port) in refused.why
    first.process.kill()
    lost = second.told()
    assert isinstance(lost, Cut)
    assert lost.why.startswith("the store of pod 0 is gone: ")
    for box in (second, third):
        assert not box.until_closed()
        assert box.wait() == 0


def test_what_is_posted_right_before_the_end_is_read(boxes: Boxes) -> None:
    """The store outlives its supervisor until then; the will is the last letter of all."""
    first, second = connected(boxes)
    texts = [f"{number} {'x' * 10_000}" for number in range(100)]
    first.channel.send(Will(to=SECOND, text="the will"))
    for text in texts:
        first.post(SECOND, text)
    first.abandon()
    assert second.letters(len(texts) + 1) == [*texts, "the will"]
    [lost] = second.until_closed()
    assert isinstance(lost, Cut)
    assert (first.wait(), second.wait()) == (0, 0)


def test_who_waits_for_a_store_ends_with_its_supervisor(boxes: Boxes) -> None:
    """Before there is any: nothing is said, and nobody is left."""
    waiting = boxes.start(SECOND)
    waiting.abandon()
    assert waiting.wait() == 0
