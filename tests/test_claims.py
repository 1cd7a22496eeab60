# SPDX-License-Identifier: Apache-2.0
"""A claim names all that is left out, and must be read back however much that is."""

from pathlib import Path

import pytest

from resilient.checkpoint.layout import AttemptRecord
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import newest_claim
from resilient.checkpoint.vault import Vault
from resilient.core.batch import MOST_OUT, MOST_SAMPLES, Batch, shortened
from resilient.errors import CheckpointError

FAR = 1 << 50


def claim(attempt: int, skipped: tuple[Batch, ...]) -> AttemptRecord:
    return AttemptRecord(
        attempt=attempt,
        submission="sub",
        index=0,
        pod="pod",
        host="host",
        claimed_s=1.0,
        token="t",
        began_from=None,
        held_s=0.0,
        skipped=skipped,
    )


def test_a_claim_with_all_that_may_be_left_out_can_be_read_back(tmp_path: Path) -> None:
    """The newest claim is the record of what no later attempt may train on: of the oldest only samples are dropped."""
    vault = Vault(open_store(str(tmp_path)), clock=lambda: 1.0)
    out = tuple(Batch(epoch=n, first=FAR, of=FAR, samples=(FAR,) * MOST_SAMPLES) for n in range(MOST_OUT))
    kept = shortened(out)
    assert [batch.numbers for batch in kept] == [batch.numbers for batch in out]
    assert (kept[-1].samples, kept[0].samples, kept[0].more) == (out[-1].samples, (), MOST_SAMPLES)
    assert shortened(kept) == kept
    vault.claim(claim(1, ()))
    for _ in range(2):  # tried again, it is ours
        vault.claim(claim(2, kept))
    aside: list[str] = []
    assert newest_claim(vault.store, aside) == claim(2, kept)
    assert aside == []
    with pytest.raises(CheckpointError, match="skipped is out of range"):
        vault.claim(claim(3, (*kept, out[0])))
