# SPDX-License-Identifier: Apache-2.0
"""Trainings that change their state in all the ways that scripts do, and keep a digest of it at each step."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from trees import raw

import resilient
from resilient.training import snapshots
from resilient.training.copying import Copying

STEPS = 8


class Latest(Copying):
    """Copies as late as it may: when somebody waits for it already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._awaited = threading.Event()

    def run(self, then: Callable[[], object] = lambda: None) -> bool:
        while not self._awaited.wait(0.1) and threading.main_thread().is_alive():
            pass  # a script that has raised waits for its threads, and nobody for the copy
        return super().run(then)

    def fence(self) -> None:
        self._awaited.set()
        super().fence()


class Training:
    """A model with a buffer and an optimizer; ``make_step`` is what the decorated function does."""

    def __init__(self) -> None:
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.number = 0
        self.build()

    def build(self) -> None:
        """What a kind adds."""

    def state(self) -> dict[str, object]:
        return {"model": self.model, "optimizer": self.optimizer}

    def backward(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.model(batch).square().mean()
        loss.backward()
        return loss

    def make_step(self, batch: Tensor) -> None:
        self.optimizer.zero_grad()
        self.backward(batch)
        self.optimizer.step()

    def after(self) -> None:
        """What the loop's body does behind the step."""


class Scaling(Training):
    """Of mixed precision: some steps are skipped, and the scale changes."""

    def build(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def state(self) -> dict[str, object]:
        return {**super().state(), "scaler": self.scaler}

    def make_step(self, batch: Tensor) -> None:
        self.optimizer.zero_grad()
        if self.number % 3 == 1:
            batch = batch * float("inf")
        self.scaler.scale(self.model(batch).square().mean()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Accumulating(Training):
    """Several backwards for one step of the optimizer, within a step."""

    def make_step(self, batch: Tensor) -> None:
        self.optimizer.zero_grad()
        for part in batch.split(2):
            self.backward(part)
        self.optimizer.step()


class AccumulatingOverCalls(Training):
    """The optimizer steps in every other call only."""

    def make_step(self, batch: Tensor) -> None:
        self.backward(batch)
        if self.number % 2:
            self.optimizer.step()
            self.optimizer.zero_grad()


class SteppingBehind(Training):
    """The decorated function makes gradients only; what they change is changed by hand in the body of the loop."""

    def make_step(self, batch: Tensor) -> None:
        self.backward(batch)

    def after(self) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)  # type: ignore[arg-type]  # after backward it has a gradient


class TwoOptimizers(Training):
    """One of which steps before the other's backward, and that changes what the first has copied."""

    def build(self) -> None:
        self.other = nn.Linear(2, 3)
        self.second = torch.optim.SGD(self.other.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.second, 0.9)

    def state(self) -> dict[str, object]:
        return {**super().state(), "other": self.other, "second": self.second, "scheduler": self.scheduler}

    def make_step(self, batch: Tensor) -> None:
        super().make_step(batch)
        self.second.zero_grad()
        self.other(self.model(batch)).square().mean().backward()
        self.second.step()
        self.scheduler.step()


class Averaging(Training):
    """Of which an average is kept."""

    def build(self) -> None:
        self.average = AveragedModel(self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))

    def state(self) -> dict[str, object]:
        return {**super().state(), "average": self.average}


class AveragingBehind(Averaging):
    """In the body of the loop."""

    def after(self) -> None:
        self.average.update_parameters(self.model)


class AveragingInside(Averaging):
    """In the step, behind the optimizer's."""

    def make_step(self, batch: Tensor) -> None:
        super().make_step(batch)
        self.average.update_parameters(self.model)


class AveragingBefore(Averaging):
    """In the step, before the optimizer's: while it is being copied."""

    def make_step(self, batch: Tensor) -> None:
        self.average.update_parameters(self.model)
        super().make_step(batch)


class Changing(Training):
    """A parameter is changed by hand at the beginning of the step."""

    def make_step(self, batch: Tensor) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(0.99)
        super().make_step(batch)


class Clipping(Training):
    """Weights are kept small through ``.data``, of which no version counter knows."""

    def make_step(self, batch: Tensor) -> None:
        for parameter in self.model.parameters():
            parameter.data.clamp_(-0.1, 0.1).mul_(0.99)
        super().make_step(batch)


class Renormalising(Training):
    """An embedding that changes its weights in forward."""

    def build(self) -> None:
        self.model = nn.Sequential(nn.Embedding(5, 4, max_norm=0.5), nn.Flatten(), nn.Linear(16, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)

    def backward(self, batch: Tensor) -> Tensor:
        return super().backward(batch.abs().mul(3).long() % 5)


class Own:
    """An optimizer that is not torch's."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)
        self.moments = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for parameter, moment in zip(self.parameters, self.moments, strict=True):
            moment.mul_(0.9).add_(parameter.grad)
            parameter.data.sub_(0.1 * moment)  # raises no version

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments = state["moments"]


class Foreign(Training):
    """Its optimizer is not torch's."""

    def build(self) -> None:
        self.optimizer = Own(self.model.parameters())


class Compiled(Training):
    """The optimizer's step is compiled; what calls it is no Python any more."""

    backend = "eager"

    def build(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, foreach=True)
        self.compiled = torch.compile(self.optimizer.step, backend=self.backend)

    def make_step(self, batch: Tensor) -> None:
        self.optimizer.zero_grad()
        self.backward(batch)
        self.compiled()  # type: ignore[no-untyped-call]  # what torch.compile gives has no types


class CompiledGraph(Compiled):
    """And functionalised: its mutations are copies at the end."""

    backend = "aot_eager"


class Searching(Training):
    """An optimizer that evaluates several times within its step."""

    def build(self) -> None:
        self.optimizer = torch.optim.LBFGS(self.model.parameters(), max_iter=3)

    def make_step(self, batch: Tensor) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            return self.backward(batch)

        self.optimizer.step(closure)


class Reshaping(Training):
    """A tensor of the state stays at its place and is read in another way: transposed, shrunk and grown again."""

    def build(self) -> None:
        self.kept = {"it": torch.arange(6.0).reshape(2, 3), "queue": torch.arange(8.0)}

    def state(self) -> dict[str, object]:
        return {**super().state(), "kept": self.kept}

    def make_step(self, batch: Tensor) -> None:
        super().make_step(batch)
        self.kept["it"].t_()
        self.kept["queue"].resize_(1 + self.number % 8)


class Growing(Training):
    """A layer is added between two steps, and the optimizer has it from then on; a new process begins without."""

    def after(self) -> None:
        if self.number == 4:
            self.grow()

    def grow(self) -> None:
        added = nn.Linear(2, 2)
        self.model.append(added)  # type: ignore[operator]  # it is a Sequential
        self.optimizer.add_param_group({"params": list(added.parameters())})


class GrowingRenormalising(Growing):
    """What is added may change its weights in forward."""

    def grow(self) -> None:
        assert isinstance(self.model, nn.Sequential)
        self.model[0].register_module("table", nn.Embedding(2, 2, max_norm=1.0))


KINDS: Mapping[str, type[Training]] = {
    kind.__name__: kind
    for kind in (
        Training, Scaling, Accumulating, AccumulatingOverCalls, SteppingBehind, TwoOptimizers, AveragingBehind,
        AveragingInside, AveragingBefore, Changing, Clipping, Renormalising, Foreign, Compiled, CompiledGraph,
        Searching, Reshaping, Growing, GrowingRenormalising,
    )
}  # fmt: skip


def digest_of(value: object) -> str:
    """Of every bit of a state, in order."""
    if isinstance(value, Tensor):
        return hashlib.sha256(raw(value) + f"{value.dtype} {tuple(value.shape)}".encode()).hexdigest()
    if isinstance(value, Mapping):
        return hashlib.sha256(repr([(key, digest_of(item)) for key, item in value.items()]).encode()).hexdigest()
    if isinstance(value, (list, tuple)):
        return hashlib.sha256(repr([digest_of(item) for item in value]).encode()).hexdigest()
    return repr(value)


def digest_of_state(state: Mapping[str, Any]) -> str:
    """Of all that a script has given to ``Run``, by its own ``state_dict``."""
    return digest_of({name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in state.items()})


def train(kind: str, folder: Path, steps: int = STEPS, *, late: bool = True, grown: bool = False) -> None:
    """Note the digest of the state that is resumed from, and of that behind each step, where its boundary is."""
    if late:
        vars(snapshots)["Copying"] = Latest
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    torch.set_num_threads(1)
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # what is not restored differs
    training = KINDS[kind]()
    if grown:
        training.grow()  # type: ignore[attr-defined]  # asked of kinds that grow only
    run = resilient.Run(state=training.state())
    note(folder / ("trained" if run.resumed_from is None else "restored"), training, run)
    step: Callable[[Tensor], None] = run.step(training.make_step)
    for batch in run.batches([torch.randn(4, 4) for _ in range(3)], steps=steps):
        training.number = run.step_number
        step(batch)
        training.after()
        note(folder / "trained", training, run)


def note(folder: Path, training: Training, run: resilient.Run) -> None:
    folder.mkdir(exist_ok=True)
    (folder / str(run.step_number)).write_text(digest_of_state(training.state()))


def bits(folder: Path, step: int) -> tuple[str, str]:
    """What was restored, and what there was when it was saved."""
    return (folder / "restored" / str(step)).read_text(), (folder / "trained" / str(step)).read_text()
