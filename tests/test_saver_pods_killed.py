# SPDX-License-Identifier: Apache-2.0
"""Savers of two pods that make one checkpoint, either of them killed at every operation."""

import contextlib
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pod_savers import EACH, IMAGES, NAME, Pod, Savers, begin, judge, reply_to, save
from test_saver_ahead import files, usable

from resilient.checkpoint.requests import Done, Saved
from resilient.link.channel import Closed


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[tuple[Pod, Pod]]:
    """Snapshots of four ranks in two pods."""
    pods = Pod(tmp_path), Pod(tmp_path, first=EACH)
    for pod in pods:
        pod.put(IMAGES)
    yield pods
    for pod in pods:
        pod.close()


# As in test_saver.py, counted from where the files of a certain step are begun.
KILL = """
import itertools, os, signal
from resilient.checkpoint.vault import Vault
calls, armed = itertools.count(1), []
def counted(real):
    def call(*args, **kwargs):
        if armed and next(calls) == {nth}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("write", "pwrite", "fsync", "mkdir", "link", "unlink", "rmdir", "replace"):
    setattr(os, name, counted(getattr(os, name)))
write_share = Vault.write_share
def arming(vault, share):
    if share.manifest.step == 5:
        armed.append(True)
    return write_share(vault, share)
Vault.write_share = arming
"""


def save_until_killed(savers: Savers, pods: tuple[Pod, Pod]) -> tuple[Any, Any]:
    """As supervisors do: it holds only if every part is there. ``None`` of a saver that is dead."""
    saving = begin(savers.holder, pods[0], 5, NAME)
    part, whole = None, None
    with contextlib.suppress(Closed):
        part = reply_to(savers.guest, begin(savers.guest, pods[1], 5, NAME))
    with contextlib.suppress(Closed):
        judge(savers.holder, 5, whole=isinstance(part, Done))
        whole = reply_to(savers.holder, saving)
    return whole, part


@pytest.mark.parametrize("killed", [0, 1], ids=["holder", "guest"])
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_whichever_saver_is_killed_a_checkpoint_loads(
    tmp_path: Path, pods: tuple[Pod, Pod], killed: int, stride: int
) -> None:
    """At any operation: the one before, or the new one if all of it is there, and the next save clears up."""
    before, seen = "1-1.9", set()
    for nth in itertools.count(1, stride):
        url = tmp_path / str(nth)
        script = KILL.format(nth=nth)
        with Savers(pods, url, ("", script) if killed else (script, "")) as savers:
            assert save(savers, pods, 1, before).name == before
            whole, part = save_until_killed(savers, pods)
        code = savers.processes[killed].process.returncode
        assert code in (0, -signal.SIGKILL)  # to give the run back is an operation as well
        newest = usable(url)
        seen.add(newest[0])
        assert newest[-1] == before
        assert (newest[0] == NAME) >= isinstance(whole, Saved)
        assert isinstance(part, Done) >= (newest[0] == NAME)
        with Savers(pods, url) as savers:
            assert save(savers, pods, 10, "1-10.3").name == "1-10.3"
        assert usable(url) == ["1-10.3", *newest]
        assert {file.split("/")[1] for file in files(url)} == {"1-10.3", *newest}
        if code == 0:
            break
    assert seen == {before, NAME}
    assert nth > stride
