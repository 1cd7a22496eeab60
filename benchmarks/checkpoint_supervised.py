# SPDX-License-Identifier: Apache-2.0
"""Our side of ``checkpoint.py``: the script under ``resilient run``, and what its journal says of it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_figures import ENDED, Samples, saved
from checkpoint_limits import drop_caches, read_all
from checkpoint_runs import Workload, disk_bytes, journal, lines, run, supervised, worker

KILLED_EVERY = 2
"""Steps between two snapshots of a training that is killed."""
SETTLES = 3
"""Steps after the last of them, in which it becomes whole."""


def measure_saves(
    directory: Path, workload: Workload, *, saves: int, every: int, pause: int, warm_up: int, limit_s: float
) -> Samples:
    """Saves ``every`` so many steps; begun where the step before them ends, durable when the journal says so."""
    command = worker(
        "ours", directory, workload, "--what=saves", f"--saves={saves}", f"--every={every}", f"--pause={pause}"
    )
    store = directory / "checkpoints"
    flags = ["--checkpoints", store, "--every", every, "--snapshot-every", every, "--keep", 1]
    finished = run(supervised(command, directory, *flags), directory, threads=workload.threads, limit_s=limit_s + 60)
    if finished is None:
        return {}
    steps = finished.result["steps"]
    found = list(_saves(journal(directory), steps, every))
    counted = found[warm_up:-1]
    return {
        **saved(steps, found, warm_up),
        "told_s": [save["told"] for save in counted],
        "memory_bytes": [float(finished.memory_bytes)],
        "disk_bytes": [float(disk_bytes(store / "checkpoints"))],
    }


def _saves(entries: list[dict[str, Any]], steps: list[list[float]], every: int) -> Iterator[dict[str, float]]:
    """The saves of the cadence; the state that is saved when all steps are done is none of them."""
    stalls = {entry["step"]: entry["stall_s"] for entry in entries if entry["kind"] == "snapshot"}
    for entry in entries:
        if entry["kind"] == "checkpoint" and entry["step"] < len(steps) and entry["step"] % every == 0:
            step = entry["step"]
            yield {
                "begun": steps[step - 1][ENDED],
                "durable": entry["m"] - entry["prune_s"],
                "told": stalls.get(step, 0.0),
            }


@dataclass
class Restores:
    """What a run that is started again and again tells of its restores."""

    figures: Samples = field(default_factory=dict)
    saved: dict[int, list[float]] = field(default_factory=dict)
    """Fingerprints of the states that were saved, by step."""

    def add(self, figure: str, directory: Path, *, fetches: bool) -> None:
        """Take in all restores of one supervisor.

        What its saver fetched from the store while the worker was still starting counts like any other reading; a
        journal that does not tell it gives no figure.
        """
        entries = journal(directory)
        fetched = [entry["seconds"] for entry in entries if entry["kind"] == "fetched"]
        restored = [entry for entry in entries if entry["kind"] == "restored" and entry["step"] and "load_s" in entry]
        for entry in restored:
            parts = {"read": entry["read_s"], "load": entry["load_s"], **({"fetched": fetched[0]} if fetched else {})}
            for name, seconds in parts.items():
                self.figures.setdefault(f"{figure}: {name}", []).append(seconds)
            if fetched or not fetches:
                self.figures.setdefault(figure, []).append(sum(parts.values()))
        self._compare(figure, directory)

    def _compare(self, figure: str, directory: Path) -> None:
        """The script's own notes: was it the state that had been saved, and for how long did it wait in ``Run``."""
        states = directory / "states.jsonl"
        for note in lines(states):
            if note["what"] == "saved":
                self.saved[note["step"]] = note["fingerprint"]
            elif self.saved.get(note["step"]) != note["fingerprint"]:
                raise SystemExit(
                    f"cannot trust resilient: what it restored of step {note['step']} is not what it saved"
                )
            else:
                self.figures.setdefault(f"{figure}: waited", []).append(note["waited_s"])
        states.unlink(missing_ok=True)


def restore_from_memory(directory: Path, workload: Workload, *, restores: int, limit_s: float) -> dict[str, Samples]:
    """The worker is killed again and again, under one supervisor that keeps nothing on disk."""
    more = ["--what=killed", f"--every={KILLED_EVERY}", f"--pause={SETTLES}", f"--saves={restores}"]
    command = supervised(worker("ours", directory, workload, *more), directory, "--snapshot-every", KILLED_EVERY)
    if run(command, directory, limit_s=limit_s + 60 * restores) is None:
        return {}
    found = Restores()
    found.add("warm_s", directory, fetches=False)
    return {"resilient, memory": found.figures}


def restore_from_durable(directory: Path, workload: Workload, *, restores: int, limit_s: float) -> dict[str, Samples]:
    """Started with an empty store, then twice with more steps, its files read once before, or dropped; and again.

    What a restore costs is how much later the first step ends than in the start without one beside it. So a part that
    goes on while the worker still imports torch costs nothing, and new memory for Adam's moments, which a training
    without a restore takes in its first step, costs no more than there.
    """
    store, found = directory / "checkpoints", Restores()
    flags = ["--checkpoints", store, "--every", "24h", "--snapshot-every", "24h", "--keep", 1]
    for _ in range(restores):
        shutil.rmtree(store, ignore_errors=True)
        fresh_s = 0.0
        for number, (figure, prepare) in enumerate((("", read_all), ("warm_s", read_all), ("cold_s", drop_caches)), 1):
            if figure:
                prepare(store)
            shutil.rmtree(directory / "journal", ignore_errors=True)
            command = worker("ours", directory, workload, "--what=stopped", f"--every={KILLED_EVERY * number}")
            finished = run(supervised(command, directory, *flags), directory, limit_s=limit_s)
            if finished is None:
                return {}
            first_s = finished.result["steps"][0][ENDED] - finished.begun - finished.result["noted_s"]
            if figure:
                found.figures.setdefault(figure.replace("_s", "_later_s"), []).append(first_s - fresh_s)
            else:
                fresh_s = first_s
            found.add(figure, directory, fetches=True)
    return {"resilient, durable": found.figures}
