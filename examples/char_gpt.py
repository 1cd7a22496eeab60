# SPDX-License-Identifier: Apache-2.0
"""A character-level GPT, trained on the sources of Python's own standard library.

Plain PyTorch, but for the import, ``Run``, ``@run.step`` and ``run.batches``: however it is started, after a failure it
goes on where it was, and it ends with the same bits as if there had been none.

    resilient run --nproc-per-node 2 examples/char_gpt.py --steps 1000
    torchrun --nproc-per-node 2 examples/char_gpt.py --steps 1000
    python examples/char_gpt.py --steps 1000
"""

import argparse
import hashlib
import json
import os
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

import resilient

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
RANK, LOCAL_RANK = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
WORLD_SIZE, LOCAL_WORLD_SIZE = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))


class Text(Dataset[tuple[Tensor, Tensor]]):
    """Windows of ASCII text; the target of a window is the same window, one character further on."""

    def __init__(self, window: int, size: int = 1_000_000) -> None:
        sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        text = bytearray(b"".join(path.read_bytes() for path in sources)[:size])
        self.characters = torch.frombuffer(text, dtype=torch.uint8).clamp(max=127).long()
        self.window = window

    def __len__(self) -> int:
        return (len(self.characters) - 1) // self.window

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start, end = index * self.window, (index + 1) * self.window
        return self.characters[start:end], self.characters[start + 1 : end + 1]


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        widen, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.feed = nn.Sequential(widen, nn.GELU(), narrow, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = (part.transpose(1, 2) for part in split.unbind(2))
        dropout = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(self.feed_norm(x))


class GPT(nn.Module):
    """Characters in, logits of the next character out."""

    def __init__(self, layers: int, width: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.character, self.position = nn.Embedding(128, width), nn.Embedding(window, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)

    def forward(self, characters: Tensor) -> Tensor:
        positions = torch.arange(characters.shape[1], device=characters.device)
        x = self.blocks(self.character(characters) + self.position(positions))
        return self.head(self.norm(x))


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """A fingerprint of every bit that was trained: parameters and optimizer state."""
    moments = [tensor for state in optimizer.state_dict()["state"].values() for tensor in state.values()]
    everything = [tensor.detach().cpu().numpy().tobytes() for tensor in [*model.parameters(), *moments]]
    return hashlib.sha256(b"".join(everything)).hexdigest()


def main(options: argparse.Namespace) -> None:
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    on_gpu = torch.cuda.device_count() >= LOCAL_WORLD_SIZE
    device = torch.device("cuda", LOCAL_RANK) if on_gpu else torch.device("cpu")
    if WORLD_SIZE > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")

    text = Text(options.window)
    sampler: Sampler[int] | None = DistributedSampler(text, seed=options.seed) if WORLD_SIZE > 1 else None
    loader = DataLoader(text, batch_size=options.batch, shuffle=sampler is None, sampler=sampler, drop_last=True)
    model = GPT(options.layers, options.width, options.heads, options.window, options.dropout).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)
    torch.manual_seed(options.seed + RANK)  # every rank drops out other neurons

    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    run = resilient.Run(state=state, checkpoints=options.checkpoints, every=options.every)

    # DDP alone lays its gradients out anew after a process's first step, and on three ranks and more that changes the
    # order of their sums, so the bits.
    network = resilient.exact_ddp(DistributedDataParallel(model)) if WORLD_SIZE > 1 else model
    print(f"rank {RANK} of {WORLD_SIZE} on {device}, process {os.getpid()}", flush=True)

    @run.step
    def train_step(batch: list[Tensor]) -> Tensor:
        characters, targets = (part.to(device) for part in batch)
        loss = cross_entropy(network(characters).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    loss = torch.tensor(float("nan"))  # stays so in a process that starts after the last step
    for batch in run.batches(loader, steps=options.steps):
        loss = train_step(batch)
        scheduler.step()
        if RANK == 0 and scheduler.last_epoch % 10 == 0:
            print(f"step {scheduler.last_epoch}/{options.steps}, loss {loss.item():.3f}", flush=True)

    if RANK == 0 and options.digest:
        options.digest.write_text(json.dumps({"sha256": digest(model, optimizer), "loss": loss.item()}))
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"steps": 1000, "batch": 16, "window": 64, "layers": 4, "width": 128, "heads": 4, "seed": 0}
    for name, default in {**sizes, "lr": 1e-3, "dropout": 0.1}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--every", default="5min", help="how often to save; steps or a duration; default: %(default)s")
    parser.add_argument("--checkpoints", default="runs/char-gpt", help="where to; path or URL; default: %(default)s")
    parser.add_argument("--digest", type=Path, help="file for the SHA-256 of all that was trained, and the last loss")
    main(parser.parse_args())
