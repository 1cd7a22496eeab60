# SPDX-License-Identifier: Apache-2.0
"""Requests to the savers of all pods at once: each of them has the memory of its own ranks only.

A checkpoint is made together: every saver writes the files of its ranks into one directory, and that of pod 0 the
manifest once all have said that theirs are there, and all ranks that they had not changed. What is read back each
reads for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.requests import REPLIES, Done, Failed, Fetch, Fetched, Judge, Reply, Request, Save
from resilient.core import wire
from resilient.supervisor.pod_words import LEADER, Answered, Ask

Then = Callable[[Reply], None]
Submit = Callable[[Callable[[int], Request], Then], None]
Say = Callable[[int, object], None]
_OURS: Final = 1 << 40
"""From here on saves are numbered that nobody else judges."""


@dataclass(slots=True)
class _Saving:
    """A save that all pods take part in."""

    ahead: int
    judged: bool | None
    """Whether every rank has found its part unchanged; ``None``: it is not known yet."""
    parts: set[int]
    """Pods that have yet to say that their files are there."""
    over: bool = False
    """Judged for the savers as well."""
    failed: Failed | None = None
    """Why a part is missing."""


@dataclass(slots=True)
class _Fetching:
    """A checkpoint that all pods read."""

    then: Then
    pods: set[int]
    """Those that have not answered; 0 is our own."""
    fetched: dict[int, Fetched] = field(default_factory=dict)
    failed: Failed | None = None


class Spread:
    """Of one supervisor."""

    def __init__(self, count: int, *, say: Say, pods: Callable[[], Collection[int]], submit: Submit) -> None:
        """``count`` pods, our own among them; ``submit`` asks the own saver."""
        self._count = count
        self._say = say
        self._pods = pods
        self._submit = submit
        self._asked: dict[int, tuple[int, Then]] = {}
        """By number the pod that was asked, and who waits for its answer."""
        self._numbers = 0
        self._saves: dict[int, _Saving] = {}
        self._held: list[tuple[Fetch, Then]] = []
        """Until all pods are there."""

    def submit(self, make: Callable[[int], Request], then: Then) -> None:
        """Ask the own saver, and the others where the request is about the memory of all ranks."""
        request = make(0)
        match request:
            case Save():
                self._save(request, then)
            case Judge():
                self._judge(request, then)
            case Fetch() if len(self._pods()) < self._count - 1:
                self._held.append((request, then))
            case Fetch():
                self._fetch(request, then)
            case _:
                self._submit(make, then)

    def assembled(self) -> None:
        """All pods are there."""
        held, self._held = self._held, []
        for request, then in held:
            self._fetch(request, then)

    def answered(self, pod: int, word: Answered) -> None:
        """The saver of a pod has answered."""
        asked, then = self._asked.get(word.number, (None, None))
        if asked != pod or then is None:
            return
        del self._asked[word.number]
        then(_reply(pod, word.text))

    def lost(self, pod: int) -> None:
        """A pod is gone, and answers nothing any more."""
        for number in [number for number, (asked, _) in self._asked.items() if asked == pod]:
            _, then = self._asked.pop(number)
            then(_failed(f"pod {pod} is gone"))

    def _ask(self, pod: int, request: Request, then: Then) -> None:
        self._numbers += 1
        self._asked[self._numbers] = (pod, then)
        text = wire.encode(request).decode()
        self._say(pod, Ask(pod=0, address=LEADER, number=self._numbers, text=text))

    # Saving.

    def _save(self, asked: Save, then: Then) -> None:
        pods = {*self._pods()}
        if len(pods) < self._count - 1:
            # Another saver would not help, so at the end of a run nobody tries again.
            then(replace(_failed("not all pods of the run are there"), kind="unreachable"))
            return
        self._numbers += 1
        known = asked.ahead is None
        ahead = asked.ahead if asked.ahead is not None else _OURS + self._numbers
        saving = _Saving(ahead=ahead, judged=True if known else None, parts=pods)
        self._saves[ahead] = saving
        whole = replace(asked, directory=layout.fresh_name(asked.attempt, asked.step), ahead=ahead)

        def ended(reply: Reply) -> None:
            self._saves.pop(ahead, None)
            if not isinstance(reply, Failed):
                then(reply)
                return
            self._drop(saving)  # what the others still write is of no use
            then(reply if saving.failed is None else replace(saving.failed, id=reply.id))

        def part_of(pod: int) -> Then:
            return lambda reply: self._part(saving, pod, reply)

        self._submit(lambda number: replace(whole, id=number), ended)
        for pod in sorted(pods):
            self._ask(pod, replace(whole, part=True), part_of(pod))

    def _part(self, saving: _Saving, pod: int, reply: Reply) -> None:
        saving.parts.discard(pod)
        if isinstance(reply, Failed):
            saving.failed = saving.failed or replace(reply, why=f"pod {pod}: {reply.why}")
        self._judge_savers(saving)

    def _judge(self, asked: Judge, then: Then) -> None:
        saving = self._saves.get(asked.ahead)
        if saving is not None:
            saving.judged = asked.whole
            self._judge_savers(saving)
        then(Done(id=asked.id))

    def _judge_savers(self, saving: _Saving) -> None:
        """The own saver commits once all parts are there and all ranks have judged, and nobody does once one is not."""
        if saving.over:
            return
        if saving.failed is not None or saving.judged is False:
            self._drop(saving)
        elif saving.judged and not saving.parts:
            saving.over = True
            ahead = saving.ahead
            self._submit(lambda number: Judge(id=number, ahead=ahead, whole=True), lambda reply: None)

    def _drop(self, saving: _Saving) -> None:
        if saving.over:
            return
        saving.over = True
        judge = Judge(id=0, ahead=saving.ahead, whole=False)
        self._submit(lambda number: replace(judge, id=number), lambda reply: None)
        for pod in sorted(saving.parts & {*self._pods()}):
            self._ask(pod, judge, lambda reply: None)

    # Reading.

    def _fetch(self, asked: Fetch, then: Then) -> None:
        fetching = _Fetching(then=then, pods={0, *self._pods()})

        def answer(pod: int) -> Then:
            return lambda reply: self._fetched(fetching, pod, reply)

        self._submit(lambda number: replace(asked, id=number), answer(0))
        for pod in sorted(self._pods()):
            self._ask(pod, asked, answer(pod))

    def _fetched(self, fetching: _Fetching, pod: int, reply: Reply) -> None:
        fetching.pods.discard(pod)
        if isinstance(reply, Fetched):
            fetching.fetched[pod] = reply
        elif isinstance(reply, Failed):
            fetching.failed = fetching.failed or reply
        if fetching.pods:
            return
        fetching.then(_joined(fetching.fetched) if fetching.failed is None else fetching.failed)


def _joined(fetched: dict[int, Fetched]) -> Reply:
    """One answer for all ranks."""
    replies = [fetched[pod] for pod in sorted(fetched)]
    first = replies[0]
    if any(reply.contents != first.contents for reply in replies):
        return _failed("the pods have read other contents of one checkpoint")
    return replace(
        first,
        records=tuple(record for reply in replies for record in reply.records),
        seconds=max(reply.seconds for reply in replies),
        size_bytes=sum(reply.size_bytes for reply in replies),
    )


def _reply(pod: int, text: str) -> Reply:
    try:
        return wire.decode(text, REPLIES)
    except ValueError as error:
        return _failed(f"pod {pod} gives no answer that makes sense: {error}")


def _failed(why: str) -> Failed:
    """As if a saver had died: it is asked for again, and says nothing of the store or what is in it."""
    return Failed(id=0, why=why, answered=False, kind="internal")
