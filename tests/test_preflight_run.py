# SPDX-License-Identifier: Apache-2.0
"""``resilient run`` looks at the machine before it trains: quickly, without torch, and on record where it refuses."""

import json
from pathlib import Path

import mounts
import pytest
from recorded_driver import recorded
from supervised import HEAD, Folder

SCRIPT = "print('trained')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_sound_machine_is_looked_at_once_and_quickly(folder: Folder) -> None:
    """The journal says what was looked at; a person hears of warnings only."""
    script = folder.script(SCRIPT)
    ended = folder.run(script)
    assert ended.code == 0, ended.stderr
    (entry,) = ended.entries("preflight")
    assert set(entry["looked_at"]) >= {"shm", "memory", "open-files", "memlock", "journal-disk", "temporary-disk"}
    assert not {"compute", "all-reduce", "store"} & set(entry["looked_at"])
    assert ended.stderr.count("resilient: preflight: ") == len(entry["findings"])
    kinds = [one["kind"] for one in ended.journal]
    assert kinds.index("preflight") < kinds.index("workers")


@pytest.mark.parametrize("with_store", [True, False])
def test_a_node_whose_gpu_is_lost_is_refused(tmp_path: Path, with_store: bool) -> None:
    """198 before anything is started, on record, with the reason in the termination message."""
    folder = Folder(tmp_path, **recorded(tmp_path, "nvml.h100(0), nvml.Gpu(1, lost=True)"))
    store = ["--checkpoints", str(folder.checkpoints)] if with_store else []
    ended = folder.run(*store, folder.script(SCRIPT))
    assert ended.code == 198, ended.stderr
    assert ended.attempts == 0
    assert "trained" not in ended.stdout
    assert "cannot reach GPU 1" in ended.termination["why"]
    debits = [*tmp_path.rglob("debits/**/*.json")]
    assert [json.loads(debit.read_bytes())["code"] for debit in debits] == [198]


def test_under_observe_a_suspect_node_is_used(tmp_path: Path) -> None:
    """It is said, and left to torchrun's ways."""
    folder = Folder(tmp_path, **recorded(tmp_path, "nvml.h100(0), nvml.Gpu(1, lost=True)"))
    ended = folder.run("--observe", folder.script(SCRIPT))
    assert ended.code == 0, ended.stderr
    assert "started all the same (--observe)" in ended.stderr


def test_a_warning_is_said_and_nothing_more(tmp_path: Path) -> None:
    """A hot GPU trains all the same."""
    hot = "nvml.h100(0, nvmlDeviceGetCurrentClocksEventReasons=0x80)"
    folder = Folder(tmp_path, **recorded(tmp_path, hot))
    ended = folder.run(folder.script(SCRIPT))
    assert ended.code == 0, ended.stderr
    assert "resilient: preflight: clocks and throttling: clocks are held back: GPU 0" in ended.stderr
    (entry,) = ended.entries("preflight")
    assert [(finding["check"], finding["grade"]) for finding in entry["findings"]] == [("device-clocks", "warn")]


XID_13 = "NVRM: Xid (PCI:0000:18:00): 13, pid=7, name=python3, Graphics Exception"


def test_a_suspected_device_computes_before_it_is_used_again(tmp_path: Path) -> None:
    """By a probe that loads torch; the supervisor restarts the workers when the answer was right."""
    folder = Folder(tmp_path, **recorded(tmp_path, "nvml.h100(0), nvml.h100(1)"))
    ended = folder.run(folder.script(f"{HEAD}\nif once('failed'):\n    sys.exit({XID_13!r})\n"))
    assert ended.code == 0, ended.stderr
    assert ended.rules == ["xid-program"]
    first, second = (set(entry["looked_at"]) for entry in ended.entries("preflight"))
    assert "compute" not in first
    assert second >= first | {"compute"}


def test_a_disk_for_temporary_files_that_is_full_is_a_warning(folder: Folder) -> None:
    """Training may never need it."""
    with mounts.small(folder.path / "small", 1 << 14) as full:
        (full / "filler").write_bytes(bytes(1 << 14))
        ended = folder.run(folder.script(SCRIPT), TMPDIR=str(full))
    assert ended.code == 0, ended.stderr
    assert "preflight: disk of temporary files: " in ended.stderr
