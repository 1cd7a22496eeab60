# SPDX-License-Identifier: Apache-2.0
"""The project's own corpus: failures that really happen, judged from what the processes left behind.

Every rank prints hundreds of ordinary lines before it fails, some with words that would mislead, and the victim is
often the first to end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from namespaces import NOT_PERMITTED
from once import Once

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.classify import classify
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.log_text import read_log

SCRIPT = Path(__file__).with_name("failing_ranks.py")

# What must come out: rule, cause, action, and the rank to blame where one is.
EXPECTED: dict[str, tuple[str, Cause, Action, int | None]] = {
    "peer_killed": ("sigkill", Cause.AMBIGUOUS, Action.RESTART_IN_PLACE, 1),
    "peer_stopped": ("gloo-timeout", Cause.HANG_OR_COLLECTIVE_TIMEOUT, Action.INVESTIGATE, 1),
    "peer_asleep": ("gloo-timeout", Cause.HANG_OR_COLLECTIVE_TIMEOUT, Action.INVESTIGATE, 1),
    "desynchronised": ("collective-mismatch", Cause.USER_CODE, Action.STOP, None),
    "different_sizes": ("collective-mismatch", Cause.USER_CODE, Action.STOP, None),
    "shape_error": ("shape-mismatch", Cause.USER_CODE, Action.STOP, 1),
    "store_vanished": ("sigkill", Cause.AMBIGUOUS, Action.RESTART_IN_PLACE, 0),
    "loader_killed": ("loader-killed-unseen", Cause.OUT_OF_MEMORY_HOST, Action.STOP, 0),
    "loader_crashed": ("loader-crashed", Cause.AMBIGUOUS, Action.INVESTIGATE, 0),
    "damaged_checkpoint": ("checkpoint-damaged", Cause.STORAGE, Action.INVESTIGATE, 0),
    "damaged_safetensors": ("checkpoint-damaged", Cause.STORAGE, Action.INVESTIGATE, 0),
    "unfit_checkpoint": ("state-dict", Cause.USER_CODE, Action.STOP, 0),
    "dcp_without_a_checkpoint": ("checkpoint-not-there", Cause.CONFIG_OR_ENVIRONMENT, Action.STOP, 0),
    "dcp_with_a_damaged_file": ("checkpoint-damaged", Cause.STORAGE, Action.INVESTIGATE, 0),
    "dcp_damaged_for_one_rank": ("checkpoint-damaged", Cause.STORAGE, Action.INVESTIGATE, None),
    "dcp_of_another_model": ("state-dict", Cause.USER_CODE, Action.STOP, 0),
    "dcp_without_a_key": ("state-dict", Cause.USER_CODE, Action.STOP, 0),
    "dcp_on_a_full_disk": ("storage-full", Cause.STORAGE, Action.INVESTIGATE, 0),
    "no_host_memory": ("host-allocation-failed", Cause.OUT_OF_MEMORY_HOST, Action.STOP, 0),
    "uneven_ends": ("gloo-peer-lost", Cause.NETWORK_OR_PEER, Action.RESTART_IN_PLACE, 1),
    "loader_without_shared_memory": ("shared-memory", Cause.CONFIG_OR_ENVIRONMENT, Action.STOP, 0),
    "shared_memory_full": ("sigbus-shared-memory", Cause.CONFIG_OR_ENVIRONMENT, Action.STOP, 0),
    "out_of_memory": ("host-out-of-memory", Cause.OUT_OF_MEMORY_HOST, Action.STOP, 0),
    "loader_out_of_memory": ("loader-out-of-memory", Cause.OUT_OF_MEMORY_HOST, Action.STOP, 0),
    "disk_full": ("storage-full", Cause.STORAGE, Action.INVESTIGATE, 0),
}
ON_A_GPU: dict[str, tuple[str, Cause, Action, int | None]] = {
    "device_assert": ("cuda-assert", Cause.USER_CODE, Action.STOP, 0),
    "illegal_access": ("cuda-memory-access", Cause.AMBIGUOUS, Action.INVESTIGATE, 0),
    "no_device_memory": ("torch-out-of-memory", Cause.OUT_OF_MEMORY_DEVICE, Action.STOP, 0),
}
UNCHECKED = "desynchronised_unseen"
"""Without torch's checks it is chance whether a rank waits in vain first, or loses a peer that has."""
SILENT = {"shared_memory_full", "out_of_memory"}
"""They end without a word: no log can tell why."""
BY_TRY = {Action.RESTART_IN_PLACE, Action.INVESTIGATE}
ORDINARY = [f"[{step:05d}] loss 0.0033 lr 3.0e-04 grad_norm 0.71 eta 0:10:00" for step in range(300)]


def play(folder: Path, names: Sequence[str]) -> str:
    """Play scenes; what a supervisor would know of them, as JSON."""
    command = [sys.executable, str(SCRIPT), str(folder), *names]
    before = shared_tensors()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=580, text=True)
    for path in shared_tensors() - before:  # a loader's worker that is killed cannot take its own away
        if not Path(f"/proc/{path.name.split('_')[1]}").exists():
            path.unlink(missing_ok=True)
    return done.stdout


def shared_tensors() -> set[Path]:
    """What loaders have put into shared memory, by the process that did."""
    return set(Path("/dev/shm").glob("torch_*_*_*"))


def gather(ranks: Sequence[dict[str, Any]], oom_kills: int | None, shm_used_fraction: float | None) -> Evidence:
    """The evidence of one scene, its ranks in the order in which they ended."""
    return Evidence(
        ranks=tuple(
            RankEvidence(
                rank=ending["rank"],
                exit_code=ending["code"],
                signal=ending["signal"],
                order=order,
                stopped=ending["stopped"],
                stderr_tail=ending["stderr"],
            )
            for order, ending in enumerate(ranks)
        ),
        oom_kills=oom_kills,
        shm_used_fraction=shm_used_fraction,
    )


@pytest.fixture(scope="session")
def played(once: Once) -> dict[str, Evidence]:
    """All scenes that this machine can play."""

    def fill(folder: Path) -> None:
        gpu = list(ON_A_GPU) if torch.cuda.is_available() else []
        (folder / "scenes.json").write_text(play(folder, [*EXPECTED, UNCHECKED, *gpu]))

    scenes = json.loads((once("scenes", fill) / "scenes.json").read_text())
    return {name: gather(**scene) for name, scene in scenes.items()}


@pytest.fixture
def scene(request: pytest.FixtureRequest, played: dict[str, Evidence]) -> Evidence:
    """One scene; those that need a GPU, a mount or a control group are not played on every machine."""
    name = request.getfixturevalue("name")
    if name not in played:
        pytest.skip("torch sees no GPU here")
    if any(rank.exit_code == NOT_PERMITTED for rank in played[name].ranks):
        pytest.skip("this machine does not let us mount a tiny /dev/shm, or make a control group")
    return played[name]


def told(verdict: Verdict) -> tuple[str, Cause, Action]:
    """What a verdict says, but for whom."""
    return verdict.rule, verdict.cause, verdict.action


GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ON_A_GPU]
every_scene = pytest.mark.parametrize("name", [*EXPECTED, *GPU])
every_log = pytest.mark.parametrize("name", [*(name for name in EXPECTED if name not in SILENT), *GPU])


@every_scene
def test_a_real_failure_is_judged_right(name: str, scene: Evidence) -> None:
    """With what a supervisor sees: each rank's words, how and in which order they ended."""
    *expected, culprit = (EXPECTED | ON_A_GPU)[name]
    verdict = classify(scene)
    assert told(verdict) == tuple(expected), verdict.why
    assert culprit is None or verdict.culprit == culprit


def test_what_nothing_tells_apart_from_a_lost_peer_is_tried_again(played: dict[str, Evidence]) -> None:
    """Different collectives whose sizes fit: all ranks suffer, and none says why."""
    scene = played[UNCHECKED]
    for verdict in (classify(scene), classify(read_log("\n".join(plain(scene)), world_size=2))):
        assert verdict.rule in ("gloo-timeout", "gloo-peer-lost"), verdict.why
        assert verdict.action in BY_TRY


def judge(name: str, scene: Evidence, lines: Sequence[str]) -> None:
    """A log must lead to the same action; who is to blame may be lost in it."""
    action = (EXPECTED | ON_A_GPU)[name][2]
    verdict = classify(read_log("\n".join(lines), world_size=len(scene.ranks)))
    assert verdict.action is action or {verdict.action, action} <= BY_TRY, verdict.why


@every_log
def test_the_log_alone_leads_to_the_same_action(name: str, scene: Evidence) -> None:
    """All ranks in one file, and nobody to say who ended how."""
    judge(name, scene, plain(scene))


@every_log
def test_ordinary_output_on_both_sides_changes_nothing(name: str, scene: Evidence) -> None:
    """Hundreds of lines before, and hundreds after it by whatever else writes into the same file."""
    judge(name, scene, [*ORDINARY, *plain(scene), *ORDINARY])


@every_log
def test_the_log_of_torchrun_leads_to_the_same_action(name: str, scene: Evidence) -> None:
    """As torchrun writes it: each line with the rank that printed it."""
    judge(name, scene, [f"[rank{rank.rank}]: {line}" for rank in scene.ranks for line in lines_of(rank)])


@pytest.mark.parametrize("name", SILENT)
def test_where_not_a_word_was_said_a_log_decides_nothing(name: str, scene: Evidence) -> None:
    """Nothing is made up of hundreds of ordinary lines."""
    verdict = classify(read_log("\n".join(plain(scene))))
    assert told(verdict) == ("unknown", Cause.AMBIGUOUS, Action.INVESTIGATE), verdict.why


def plain(scene: Evidence) -> list[str]:
    return [line for rank in scene.ranks for line in lines_of(rank)]


def lines_of(rank: RankEvidence) -> list[str]:
    return rank.stderr_tail.splitlines()


def test_a_counter_that_stood_still_clears_the_oom_killer(played: dict[str, Evidence]) -> None:
    """The same death of a loader's worker is no lack of memory where the container's counter is known."""
    scene = played["loader_killed"]
    assert classify(replace(scene, oom_kills=0)).rule == "loader-killed"
    assert classify(replace(scene, oom_kills=1)).rule == "loader-out-of-memory"
