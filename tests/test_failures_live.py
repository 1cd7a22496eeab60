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
from pathlib import Path
from typing import Any

import pytest

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.classify import classify
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.log_text import read_log

NOT_PERMITTED = 77
SCRIPT = Path(__file__).with_name("failing_ranks.py")

# What must come out: rule, cause, action, and the rank to blame where one is.
EXPECTED: dict[str, tuple[str, Cause, Action, int | None]] = {
    "peer_killed": ("sigkill", Cause.AMBIGUOUS, Action.RESTART_IN_PLACE, 1),
    "peer_stopped": ("gloo-timeout", Cause.HANG_OR_COLLECTIVE_TIMEOUT, Action.INVESTIGATE, 1),
    "desynchronised": ("collective-mismatch", Cause.USER_CODE, Action.STOP, None),
    "shape_error": ("shape-mismatch", Cause.USER_CODE, Action.STOP, 1),
    "store_vanished": ("sigkill", Cause.AMBIGUOUS, Action.RESTART_IN_PLACE, 0),
    "loader_killed": ("loader-killed-unseen", Cause.OUT_OF_MEMORY_HOST, Action.STOP, 0),
    "loader_crashed": ("loader-crashed", Cause.AMBIGUOUS, Action.INVESTIGATE, 0),
    "damaged_checkpoint": ("checkpoint-damaged", Cause.STORAGE, Action.INVESTIGATE, 0),
    "unfit_checkpoint": ("state-dict", Cause.USER_CODE, Action.STOP, 0),
    "dcp_without_a_checkpoint": ("checkpoint-not-there", Cause.CONFIG_OR_ENVIRONMENT, Action.STOP, 0),
    "dcp_with_a_damaged_file": ("checkpoint-damaged", Cause.STORAGE, Action.INVESTIGATE, 0),
    "no_host_memory": ("host-allocation-failed", Cause.OUT_OF_MEMORY_HOST, Action.STOP, 0),
    "uneven_ends": ("gloo-peer-lost", Cause.NETWORK_OR_PEER, Action.RESTART_IN_PLACE, 1),
    "loader_without_shared_memory": ("shared-memory", Cause.CONFIG_OR_ENVIRONMENT, Action.STOP, 0),
    "disk_full": ("storage-full", Cause.STORAGE, Action.INVESTIGATE, 0),
}
BY_TRY = {Action.RESTART_IN_PLACE, Action.INVESTIGATE}


def play(folder: Path, names: Sequence[str]) -> dict[str, tuple[RankEvidence, ...]]:
    """Play scenes, and gather what a supervisor would know of their ranks."""
    command = [sys.executable, str(SCRIPT), str(folder), *names]
    before = shared_tensors()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    for path in shared_tensors() - before:  # a loader's worker that is killed cannot take its own away
        if not Path(f"/proc/{path.name.split('_')[1]}").exists():
            path.unlink(missing_ok=True)
    return {name: gather(endings) for name, endings in json.loads(done.stdout).items()}


def shared_tensors() -> set[Path]:
    """What loaders have put into shared memory, by the process that did."""
    return set(Path("/dev/shm").glob("torch_*_*_*"))


def gather(endings: Sequence[dict[str, Any]]) -> tuple[RankEvidence, ...]:
    """The evidence of one scene, in the order in which its ranks ended."""
    return tuple(
        RankEvidence(
            rank=ending["rank"],
            exit_code=ending["code"],
            signal=ending["signal"],
            order=order,
            stopped=ending["stopped"],
            stderr_tail=ending["stderr"],
        )
        for order, ending in enumerate(endings)
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RankEvidence, ...]]:
    """All scenes that any machine can play, once."""
    return play(tmp_path_factory.mktemp("scenes"), list(EXPECTED))


@pytest.fixture
def scene(request: pytest.FixtureRequest, played: dict[str, tuple[RankEvidence, ...]]) -> tuple[RankEvidence, ...]:
    """One scene; those that mount a disk of their own are not played on every machine."""
    ranks = played[request.getfixturevalue("name")]
    if any(rank.exit_code == NOT_PERMITTED for rank in ranks):
        pytest.skip("this machine does not let us mount a tiny /dev/shm")
    return ranks


def told(verdict: Verdict) -> tuple[str, Cause, Action]:
    """What a verdict says, but for whom."""
    return verdict.rule, verdict.cause, verdict.action


@pytest.mark.parametrize("name", EXPECTED)
def test_a_real_failure_is_judged_right(name: str, scene: tuple[RankEvidence, ...]) -> None:
    """With what a supervisor sees: each rank's words, how and in which order they ended."""
    *expected, culprit = EXPECTED[name]
    verdict = classify(Evidence(ranks=scene))
    assert told(verdict) == tuple(expected), verdict.why
    assert culprit is None or verdict.culprit == culprit


@pytest.mark.parametrize("name", EXPECTED)
def test_the_log_alone_leads_to_the_same_action(name: str, scene: tuple[RankEvidence, ...]) -> None:
    """All ranks in one file, and nobody to say who ended how: who is to blame may be lost, what to do is not."""
    action = EXPECTED[name][2]
    log = "".join(rank.stderr_tail for rank in scene)
    verdict = classify(read_log(log, world_size=len(scene)))
    assert verdict.action is action or {verdict.action, action} <= BY_TRY, verdict.why


@pytest.mark.parametrize("name", EXPECTED)
def test_the_log_of_torchrun_leads_to_the_same_action(name: str, scene: tuple[RankEvidence, ...]) -> None:
    """As torchrun writes it: each line with the rank that printed it."""
    action = EXPECTED[name][2]
    lines = (f"[rank{rank.rank}]: {line}" for rank in scene for line in rank.stderr_tail.splitlines())
    verdict = classify(read_log("\n".join(lines), world_size=len(scene)))
    assert verdict.action is action or {verdict.action, action} <= BY_TRY, verdict.why


def test_a_counter_that_stood_still_clears_the_oom_killer(played: dict[str, tuple[RankEvidence, ...]]) -> None:
    """The same death of a loader's worker is no lack of memory where the container's counter is known."""
    ranks = played["loader_killed"]
    assert classify(Evidence(ranks=ranks, oom_kills=0)).rule == "loader-killed"
    assert classify(Evidence(ranks=ranks, oom_kills=1)).rule == "loader-out-of-memory"
