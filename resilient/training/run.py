# SPDX-License-Identifier: Apache-2.0
"""``resilient.Run``: what a training script sees of all this.

Owns the order of things in a worker: check the state, attach to the host, agree
on what to resume from, load it; then count steps, pass boundaries, take
snapshots; and at the end hand over the last state.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from numbers import Real
from typing import Any, Final, NoReturn, ParamSpec, SupportsFloat, TypeVar

import torch
from torch.utils.data import IterableDataset

from resilient import settings
from resilient.checkpoint import tensors
from resilient.core.exit_codes import ExitCode
from resilient.core.grammar import type_of
from resilient.core.retention import METRICS, is_metric
from resilient.errors import ResilientError, SettingsError
from resilient.link import attach
from resilient.link.messages import (
    AlreadyFinished,
    AtEnd,
    FinalSlot,
    FromHost,
    Go,
    Hello,
    Note,
    PhaseNamed,
    Restored,
    SaveEnded,
    Steps,
)
from resilient.supervisor import stacks
from resilient.training import flight, handshake, restore, rng, sharing, signals, surroundings
from resilient.training.batches import Position, source_of
from resilient.training.boundary import Boundary
from resilient.training.error_record import LastWords
from resilient.training.iterables import say
from resilient.training.leaving import WayOut
from resilient.training.progress import Progress
from resilient.training.restore import Candidate
from resilient.training.shares import regrouped
from resilient.training.snapshots import Fence, Snapshots
from resilient.training.state import owned, parts_of
from resilient.training.stream import Stream
from resilient.version import version

P = ParamSpec("P")
R = TypeVar("R")
PHASES: Final = 32
_built: list[int] = []
"""Process in which a Run was built; a child forked from it has this too."""


class Run:
    """The training of this worker: saved as it goes, and resumed where it was.

    ``state`` names what is to be saved: anything with ``state_dict`` and ``load_state_dict``, a DataLoader (whose
    position ``batches`` keeps), or a dict or list of plain data, which is restored in place. When this returns,
    everything in it is as it was after the step that is resumed from.

    ``checkpoints`` is a path or fsspec URL; ``every`` says how often to save there and ``snapshot_every`` how often
    to memory, as a number of steps (``100``) or a duration (``"5min"``); ``keep`` is how many checkpoints stay,
    beside the first at or after each multiple of ``keep_every`` steps and the best by a metric, as in
    ``keep_best="val_loss:min:3"``. ``skip_bad_batches`` is how many batches may be left out because the same fault
    came back in them; a fault that comes back in one more ends the job.
    RESILIENT_* variables and the flags of ``resilient run`` go before what is given here.
    """

    def __init__(
        self,
        state: Mapping[str, object],
        *,
        checkpoints: str | os.PathLike[str] | None = None,
        every: int | str | None = None,
        snapshot_every: int | str | None = None,
        keep: int | None = None,
        keep_every: int | None = None,
        keep_best: str | None = None,
        skip_bad_batches: int | None = None,
        **unknown: NoReturn,
    ) -> None:
        if _built:
            raise SettingsError("cannot build a second Run: a worker has one; give all of its state to the first")
        self._facts = facts = settings.worker_facts()
        self._last_words = LastWords(
            rank=facts.rank,
            path=facts.error_file,
            torchelastic_path=facts.torchelastic_error_file,
            supervised=facts.link_fd is not None,
        )
        self._last_words.install()
        given: dict[str, object] = {"checkpoints": checkpoints, "every": every, "snapshot_every": snapshot_every}
        given |= {"keep": keep, "keep_every": keep_every, "keep_best": keep_best}
        given["skip_bad_batches"] = skip_bad_batches
        given = {name: value for name, value in given.items() if value is not None} | unknown
        try:
            texts = self._checked(state, given)
        except ResilientError:
            attach.tell_refused(facts)
            raise
        self._attach(facts, texts)

    def _checked(self, state: Mapping[str, object], given: Mapping[str, object]) -> Mapping[str, str]:
        """Refuse what cannot work, before anything is started for it; gives the settings as texts."""
        texts = settings.run_texts(given)
        self._state = dict(state) if isinstance(state, Mapping) else {}
        self._parts = parts_of(state)
        self._resumed_from: int | None = None
        self._stream: Stream | None = None
        self._loader: object = None
        self._data: dict[str, Any] | None = None
        self._now: dict[str, Any] | None = None
        self._phases: dict[str, int] = {}
        captured = self._capture_parts()
        flat = tensors.flatten(captured, path=("state",))  # refuses what cannot be saved, by its path
        sharing.refuse_unrestorable(self._parts, captured)
        if self._facts.rank == 0 and (told := sharing.unsaved(self._parts, captured)):
            warnings.warn(told, stacklevel=3)
        self._devices = frozenset(t.device.index for t in flat.tensors.values() if t.device.type == "cuda")
        return texts

    def _attach(self, facts: settings.WorkerFacts, texts: Mapping[str, str]) -> None:
        self._link = link = attach.attach(facts)
        _built.append(os.getpid())
        settings.forget_link()
        fence: Fence = [None]
        self._snapshots = Snapshots(link, self._parts, self._capture_own, fence)
        way_out = WayOut()
        self._boundary = Boundary(link, self._snapshots, way_out)
        self._progress = Progress(
            link.board, link.index, begin=self._put_generators_back, boundary=self._boundary.act, fence=fence
        )
        signals.install(link.board, link.index, way_out, supervised=link.supervised, host_is_gone=link.host_is_gone)
        self._last_words.step = lambda: self._progress.entered
        self._last_words.batch = lambda messages: self._stream.told(messages) if self._stream else None
        without_stacks = _register_stacks(facts, link.index)
        if facts.stacks and facts.world_size > 1:
            flight.answer_when_asked(link, facts.stacks, link.index)
            self._last_words.farewell = lambda: flight.tell(link, dying=True)
        self._progress.open()
        atexit.register(self._progress.leave)
        link.send(
            Hello(
                rank=facts.rank,
                world_size=facts.world_size,
                local_rank=facts.local_rank,
                pid=os.getpid(),
                settings=texts,
                started_ns=time.monotonic_ns(),
                versions=surroundings.versions(version()),
                determinism=surroundings.determinism(facts.cublas_workspace),
            )
        )
        if without_stacks:
            link.send(Note(text=without_stacks))
        begin, candidate = handshake.agree(link, self._parts, self._snapshots.arenas.slots)
        self._attempt = self._snapshots.attempt = begin.attempt
        self._skipped = begin.skipped
        self._keeps = link.supervised or begin.checkpoints is not None
        if candidate is None:
            link.send(Restored(step=0))
            return
        begun = time.monotonic()
        self._load(candidate)
        took_s = time.monotonic() - begun
        size_bytes = candidate.size_bytes
        link.send(Restored(step=candidate.step, read_s=candidate.read_s, load_s=took_s, size_bytes=size_bytes))

    def _load(self, candidate: Candidate) -> None:
        restore.load(candidate, self._parts)
        # Copies: the next snapshots are written over the memory that the candidate lies in.
        own = owned({"rng": candidate.rng, "data": candidate.data})
        self._now, self._data = own["rng"], own["data"]
        self._resumed_from = candidate.step
        if candidate.saved_by is not None and self._link.rank == 0:
            ranks = f"{candidate.saved_by} ranks have saved it, and there are {self._facts.world_size} now"
            self._link.send(Note(text=f"resumed from {candidate.name}: {ranks}"))
        if not self._link.supervised and self._link.index == 0:
            sys.stderr.write(f"resilient: resumed from step {candidate.step}, checkpoint {candidate.name}\n")
        self._progress.resume(candidate.step)

    def _put_generators_back(self) -> None:
        """Last of all before the first step: what the script drew while it was being set up is undone."""
        if self._now is not None:
            rng.restore(self._now)
            self._now = None

    # What the host is given.

    def _capture_parts(self) -> dict[str, object]:
        return {name: part.capture() for name, part in self._parts.items()}

    def _capture_own(self) -> dict[str, Any]:
        """What a rank needs besides the parts to go on from this boundary; it lies apart from the user's names."""
        data = self._stream.position().to_tree() if self._stream else self._data
        # Generators that were not put back yet (no step since the restore) are still to be resumed from.
        generators = self._now if self._now is not None else rng.capture(rng.devices_in_use(self._devices))
        return {"step": self._progress.done, "rng": generators, "data": data}

    # What the script uses.

    @property
    def step_number(self) -> int:
        """Steps completed, in this and all earlier attempts."""
        return self._progress.done

    @property
    def attempt(self) -> int:
        """Number of this launch of the workers; the first of a run is 1."""
        return self._attempt

    @property
    def resumed_from(self) -> int | None:
        """The step that this attempt went on from; ``None`` when it began from nothing."""
        return self._resumed_from

    def step(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate the function that makes one step: one call is one step, of one counter for the whole run."""
        return self._progress.wrap(function)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """``with run.phase("eval"):`` names what goes on outside of steps, which then has a time bound of its own."""
        if not isinstance(name, str) or not 0 < len(name) <= 100:
            raise SettingsError(f"cannot enter phase {name!r}: a name is 1 to 100 characters")
        number = self._phases.get(name)
        if number is None:
            number = len(self._phases)
            if number >= PHASES:
                raise SettingsError(f"cannot enter phase {name!r}: a run has at most {PHASES}; use fixed names")
            self._phases[name] = number
            self._link.send(PhaseNamed(number=number, name=name))
        return self._progress.phase(number)

    def metric(self, name: str, value: SupportsFloat) -> None:
        """Say what was measured: the last value on rank 0 goes with each checkpoint, and ``keep_best`` goes by it.

        ``name`` is a letter and up to 99 of letters, digits and ``_./-``; a run has at most 64. A value that is not
        finite takes the one before away, so that a checkpoint never counts as the best by a loss of NaN.
        """
        if not isinstance(name, str) or not is_metric(name):
            raise SettingsError(f"cannot use {name!r} as a metric: use a letter, then letters, digits and '_./-'")
        if isinstance(value, bool) or not isinstance(value, Real):
            raise SettingsError(f"cannot use {type_of(value)} for {name}: give a number; of a tensor, item()")
        self._snapshots.metrics.pop(name, None)
        if len(self._snapshots.metrics) >= METRICS:
            raise SettingsError(f"cannot add the metric {name}: a run has at most {METRICS}; use fixed names")
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond all floats
            return
        if math.isfinite(number):
            self._snapshots.metrics[name] = number

    def batches(self, loader: Any, *, steps: int) -> Iterator[Any]:
        """Give batches, epoch after epoch, until the run has made ``steps`` steps in all; none if it has already.

        ``loader`` is a DataLoader, a list of batches, or what has ``state_dict`` and ``load_state_dict`` itself. Its
        position is saved and found again, ``set_epoch`` is called on its samplers, and random draws in the workers of a
        DataLoader over a map-style data set are seeded for each batch.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise SettingsError(f"cannot make steps={steps!r}: it is the number of steps of the run; use 1 or more")
        if self._progress.driven:
            raise SettingsError("cannot nest run.batches: another loop of this run is going on; finish it first")
        stream = self._stream_of(loader)
        self._link.send(Steps(total=steps))
        answer = self._answer(Go, AlreadyFinished)
        if isinstance(answer, AlreadyFinished):
            self._progress.finish()
            sys.stderr.write(f"resilient: the {answer.steps} steps of this run were done by an earlier submission\n")
            raise SystemExit(int(ExitCode.FINISHED))
        return self._iterate(stream, steps)

    # Batches.

    def _stream_of(self, loader: Any) -> Stream:
        if self._stream is not None:
            if loader is not self._loader:
                raise SettingsError("cannot change the loader: a run has one position; use one loader for run.batches")
            return self._stream
        self._refuse_double_position(loader)
        position = Position.from_tree(self._data) if self._data else Position(seed=torch.initial_seed())
        position = regrouped(position, loader, warn=self._facts.rank == 0)
        self._stream = Stream(
            source_of(loader, seed=position.seed, rank=self._facts.rank),
            position,
            skipped=self._skipped,
            board=(self._link.board, self._link.index),
            say=self._say_of_data,
            warn=self._warn_of_data,
        )
        self._loader = loader
        return self._stream

    def _say_of_data(self, text: str) -> None:
        """Each rank has samples of its own in it, which the journal gets; people are told once."""
        self._link.send(Note(text=text))
        if self._facts.rank == 0:  # what is left out is left out by all
            say(f"warning: {text}")

    def _warn_of_data(self, text: str) -> None:
        if self._facts.rank == 0:
            self._say_of_data(text)

    def _refuse_double_position(self, loader: Any) -> None:
        """A sampler in ``state`` would go on where it was and be skipped forward once more."""
        batch_sampler = getattr(loader, "batch_sampler", None)
        kept = [getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
        if isinstance(getattr(loader, "dataset", None), IterableDataset):
            kept.append(loader.dataset)
        for name, value in self._state.items():
            if value is not None and any(value is one for one in kept):
                raise SettingsError(
                    f"cannot use state[{name!r}]: run.batches keeps the position of the loader's "
                    f"{type(value).__name__}; leave it out"
                )

    def _iterate(self, stream: Stream, steps: int) -> Iterator[Any]:
        progress = self._progress
        begun = progress.done
        passed = -1
        progress.drive(by_batches=True)
        try:
            while progress.done < steps:
                # No boundary while several batches are gathered for one step: gradients may be accumulating.
                if progress.done != passed:
                    passed = progress.done
                    stream.where.begin_step()
                    progress.pass_boundary()
                batch = stream.next(self._now)
                self._now = None
                yield batch
                if not progress.decorated:
                    raise SettingsError("cannot count steps: no function is decorated; write @run.step above yours")
        finally:
            stream.close()
            progress.drive(by_batches=False)
        if progress.done > begun and self._keeps:
            self._hand_over(progress.done)
        progress.finish()

    def _hand_over(self, step: int) -> None:
        """All steps are done: the last state is saved like any other; a stop ordered now finds the work finished."""
        self._snapshots.finish()
        self._link.send(AtEnd(step=step))
        try:
            answer = self._answer(FinalSlot)
        except handshake.HostGone:  # the supervisor's end is ours as well; without one the work is done all the same
            is_saved = False
        else:
            if answer.slot is None:
                return
            self._snapshots.take(step, answer.slot, last=True)
            is_saved = self._link.supervised or self._boundary.saved(step)
        if not is_saved:
            gone = f": the {self._link.host} has ended" if self._link.host_is_gone() else ""
            sys.stderr.write(f"resilient: the last state, of step {step}, could not be saved{gone}\n")

    def _answer(self, *kinds: type[FromHost]) -> Any:
        """The host's answer; how an earlier save ended may come before it."""
        while True:
            answer = handshake.receive(self._link)
            if isinstance(answer, kinds):
                return answer
            if not isinstance(answer, SaveEnded):
                raise handshake.unexpected(answer)


def _register_stacks(facts: settings.WorkerFacts, index: int) -> str:
    """Why this worker, by its number in the pod, cannot tell where it stands; it trains all the same."""
    try:
        if facts.stacks:
            stacks.register(facts.stacks, index)
    except OSError as error:
        return f"goes on without stacks: {error}"
    return ""
