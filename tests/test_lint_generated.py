# SPDX-License-Identifier: Apache-2.0
"""The linter and the generator are of one mind: what the one writes, the other has nothing to say about."""

from __future__ import annotations

from typing import Any

import pytest
from submissions import submission

from resilient.kubernetes import documents, lint
from resilient.kubernetes.manifest import write

ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "restarted in place": {"restart_rules": True},
    "with sidecars": {"sidecars": True},
    "on a store": {"claim": None, "checkpoints": "s3://bucket/run"},
    "queued, without devices": {"queue": "gpus", "devices": 0},
    "with much state": {"state": "20Gi", "shm": "16Gi", "cpu": "16", "grace_s": 600, "namespace": "team-a"},
}
PODS = {"job": 1, "indexed": 4, "jobset": 4, "runtime": 4, "cluster-runtime": 4}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kind", PODS)
def test_nothing_is_said_about_what_is_generated(kind: str, asked: str) -> None:
    """By the text that people apply; something in it is judged each time."""
    text = write(kind, submission(pods=PODS[kind], **ASKED[asked]))
    found = documents.read(text, "manifest.yaml")
    assert lint.check(found) == []
    assert lint.kinds(found)[0]
