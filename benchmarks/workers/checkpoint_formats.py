# SPDX-License-Identifier: Apache-2.0
"""How a training's state goes to disk and comes back by what people use today, each as its documentation says.

Everything here is synchronous; ``checkpoint_peers.py`` has what goes on behind the training.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoint_training import Training
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

State = dict[str, Any]
Save = Callable[[Training, Path], None]


def state_of(training: Training) -> State:
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}


def sync_tree(path: Path) -> None:
    """Everything below ``path`` is durable on return."""
    for found in (path.parent, path, *path.rglob("*")):
        descriptor = os.open(found, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_torch(training: Training, path: Path) -> None:
    path.mkdir()
    torch.save(state_of(training), path / "state.pt")


def save_safetensors(training: Training, path: Path) -> None:
    """The format knows tensors and text only: the rest goes into its header, as JSON."""
    state = state_of(training)
    tensors = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    for number, moments in state["optimizer"]["state"].items():
        tensors.update({f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()})
    path.mkdir()
    groups = json.dumps(state["optimizer"]["param_groups"])
    save_file(tensors, path / "state.safetensors", metadata={"param_groups": groups})


def save_dcp(training: Training, path: Path) -> None:
    save(state_of(training), storage_writer=FileSystemWriter(path), no_dist=True)


def put_in(training: Training, state: State) -> None:
    """The model's tensors are copied, the optimizer keeps the ones that it is given."""
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])


def load_torch(training: Training, path: Path) -> None:
    put_in(training, torch.load(path / "state.pt", weights_only=True))


def load_torch_mapped(training: Training, path: Path) -> None:
    put_in(training, torch.load(path / "state.pt", weights_only=True, mmap=True))


def load_safetensors(training: Training, path: Path) -> None:
    tensors = load_file(path / "state.safetensors")
    with safe_open(path / "state.safetensors", framework="pt") as file:
        groups = json.loads(file.metadata()["param_groups"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = tensor
    model = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    put_in(training, {"model": model, "optimizer": {"state": moments, "param_groups": groups}})


def copied(loaded: Save) -> Save:
    """With the optimizer's state in memory of its own.

    Where a file is mapped that state still is the file: nothing of it has been read when ``load_state_dict`` returns,
    and the first step would do so page by page. The parameters were copied into the model's.
    """

    def load_all(training: Training, path: Path) -> None:
        loaded(training, path)
        for moments in training.optimizer.state.values():
            moments.update({name: value.clone() for name, value in moments.items() if isinstance(value, Tensor)})

    return load_all


def load_dcp(training: Training, path: Path) -> None:
    """DCP reads into tensors that are there, so the optimizer's state has to be made first."""
    moments = {
        number: {
            "step": torch.zeros(()),
            "exp_avg": torch.empty_like(parameter),
            "exp_avg_sq": torch.empty_like(parameter),
        }
        for number, parameter in enumerate(training.model.parameters())
    }
    groups = training.optimizer.state_dict()["param_groups"]
    state: State = {"model": training.model.state_dict(), "optimizer": {"state": moments, "param_groups": groups}}
    load(state, storage_reader=FileSystemReader(path), no_dist=True)
    put_in(training, state)


SAVES: dict[str, Save] = {"torch_save": save_torch, "safetensors": save_safetensors, "dcp": save_dcp}
LOADS: dict[str, tuple[str, Save]] = {
    "torch_load": ("torch_save", load_torch),
    "torch_load_mapped": ("torch_save", load_torch_mapped),
    "torch_load_mapped_copied": ("torch_save", copied(load_torch_mapped)),
    "safetensors_mapped": ("safetensors", load_safetensors),
    "safetensors_copied": ("safetensors", copied(load_safetensors)),
    "dcp_load": ("dcp", load_dcp),
}
"""What was saved by whom, and how it is loaded."""


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """A process group of one, which peers that work in processes of their own ask for."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.init_process_group("gloo", init_method=f"file://{directory / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
