# SPDX-License-Identifier: Apache-2.0
"""Two pods, any process of which is killed anywhere, end with the bits of one pod that nobody disturbs."""

from pathlib import Path

import chaos_pods
import pytest
from chaos import Undisturbed, steps_for

pytestmark = pytest.mark.timeout(600)


def test_kills_in_two_pods_change_no_bit(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """One supervisor is killed, and the other one asked to leave; both come again."""
    check_kills(undisturbed, tmp_path, kills=2, seed=1277)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_in_two_pods_change_no_bit(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Workers, supervisors, savers and mailboxes, alone and together."""
    check_kills(undisturbed, tmp_path, kills=12, seed=4)


def check_kills(undisturbed: Undisturbed, directory: Path, kills: int, seed: int) -> None:
    steps = steps_for(kills)
    drawn = chaos_pods.plan(seed, pods=2, ranks=1, kills=kills)
    run = chaos_pods.compare(undisturbed(2, steps), directory / "disturbed", 2, 1, steps, drawn)
    assert sum("about to" in line for line in run.history) == kills
