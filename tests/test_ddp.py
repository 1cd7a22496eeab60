# SPDX-License-Identifier: Apache-2.0
"""Tests of sums over ranks: the same bits after a resume, whatever DDP does with its buckets."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import resilient
from resilient.errors import SettingsError
from resilient.training.ddp import Extent, Place, grouped, lies_together

RANKS = Path(__file__).with_name("ddp_ranks.py")
LIMIT_S = 220.0
DISTURBED = {("plain", 3), ("plain", 4)}
"""Where DDP alone does not come back to its bits; if that is mended one day, exact_ddp can go."""


def started(directory: Path, *arguments: str) -> str:
    """What the ranks have to say."""
    environ = {**os.environ, "PYTHONPATH": str(RANKS.parents[1]), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, str(RANKS), str(directory), *arguments]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # no rank is left
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    return said


def last(said: str) -> Any:
    """gloo of torch 2.8 talks on stdout before it."""
    return json.loads(said.splitlines()[-1])


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, tuple[str, str]]]:
    """Of each number of ranks and case, the whole training and the resumed one."""
    found = last(started(tmp_path_factory.mktemp("ranks"), "bits", "2", "3", "4"))
    return {int(ranks): {name: tuple(pair) for name, pair in cases.items()} for ranks, cases in found.items()}


@pytest.mark.timeout(240)  # the ranks of all numbers and cases run in the first
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(
    "case",
    ["plain", "exact", "buckets", "views", "accumulated", "static graph", "dtypes", "out of order", "unused"],
)
def test_a_resumed_training_has_the_bits_of_a_whole_one(
    digests: dict[int, dict[str, tuple[str, str]]], case: str, ranks: int
) -> None:
    """In new processes and another group, in whatever way DDP is used; without us, on 2 ranks only."""
    whole, resumed = digests[ranks][case]
    assert (whole == resumed) is ((case, ranks) not in DISTURBED)


@pytest.mark.timeout(240)
def test_on_two_ranks_nothing_changes(digests: dict[int, dict[str, tuple[str, str]]]) -> None:
    """Two addends have no order: gradients are divided and rounded as DDP does, or these would differ."""
    assert digests[2]["exact"] == digests[2]["plain"]


@pytest.mark.timeout(240)
def test_bits_do_not_depend_on_how_ddp_is_told_to_keep_gradients(
    digests: dict[int, dict[str, tuple[str, str]]],
) -> None:
    """Of the module and ``bucket_cap_mb`` alone."""
    for ranks in (2, 3, 4):
        assert digests[ranks]["views"] == digests[ranks]["buckets"] == digests[ranks]["static graph"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_compiled_module_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """Inside DDP, where it is split at DDP's buckets."""
    whole, resumed = last(started(tmp_path, "compiled", "3"))["3"]["compiled"]
    assert whole == resumed


def test_a_lost_rank_is_an_error_and_no_hang(tmp_path: Path) -> None:
    """What the collective says comes through the futures to whoever called backward."""
    told = started(tmp_path, "lose")
    assert told.startswith("RuntimeError: ")
    assert "gloo" in told


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_is_no_ddp_is_refused() -> None:
    """The model itself, by mistake."""
    with pytest.raises(SettingsError, match="cannot make Linear exact: it is no DistributedDataParallel"):
        resilient.exact_ddp(nn.Linear(1, 1))  # type: ignore[type-var]  # the wrong type is the test


@pytest.mark.usefixtures("alone")
def test_a_second_hook_is_refused() -> None:
    """DDP has one; ours given twice is one too many as well."""
    network = resilient.exact_ddp(DistributedDataParallel(nn.Linear(1, 1)))
    with pytest.raises(SettingsError, match="it has a communication hook already"):
        resilient.exact_ddp(network)


@pytest.mark.usefixtures("alone")
def test_gradients_that_are_there_already_are_refused() -> None:
    """They were summed in another order."""
    network = DistributedDataParallel(nn.Linear(1, 1))
    network(torch.ones(1, 1)).sum().backward()
    with pytest.raises(SettingsError, match="it has gradients"):
        resilient.exact_ddp(network)
    network.zero_grad()
    resilient.exact_ddp(network)


@pytest.mark.usefixtures("alone")
def test_sparse_gradients_are_refused() -> None:
    """They are not laid out at all; what to do instead is said."""
    model = nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Linear(2, 1))
    with pytest.raises(SettingsError, match=r"the gradients of 0 are sparse.*find_unused_parameters=True"):
        resilient.exact_ddp(DistributedDataParallel(model))


def test_groups_are_filled_in_reverse_order_and_by_kind() -> None:
    """As DDP fills its buckets: the first small, and closed by the parameter that fills it."""
    sizes = [9, 4, 4, 4, 1, 1]
    assert grouped([Extent("a", size) for size in sizes], (2, 8)) == [[5, 4], [3, 2], [1, 0]]
    assert grouped([Extent("ab"[index % 2], 4) for index in range(5)], (8, 8)) == [[4, 2], [3, 1], [0]]
    assert grouped([], (8, 8)) == []


def test_what_lies_together_is_not_copied() -> None:
    """One after the other, in one buffer."""
    one, other = torch.empty(9), torch.empty(9)
    assert lies_together([Place(one, 0, 2), Place(one, 2, 3), Place(one, 5, 1)])
    assert not lies_together([Place(one, 2, 3), Place(one, 0, 2)])
    assert not lies_together([Place(one, 0, 2), Place(other, 2, 3)])


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_benchmark_compares_every_way() -> None:
    """Its figures depend on the machine and are nobody's promise here."""
    command = [sys.executable, str(RANKS.parents[1] / "benchmarks" / "exact_ddp.py"), "--json"]
    environ = {**os.environ, "PYTHONPATH": str(RANKS.parents[1])}
    done = subprocess.run(
        [*command, "--ranks", "2", "--blocks", "2", "--steps", "1"],
        env=environ,
        stdout=subprocess.PIPE,
        timeout=LIMIT_S,
        check=True,
    )
    for ways in json.loads(done.stdout)["results"].values():
        assert set(ways) == {"plain", "find_unused_parameters", "exact_ddp"}
        assert ways["plain"]["ratio"] == 1.0
        assert all(found["median_ms"] > 0 for found in ways.values())
