# SPDX-License-Identifier: Apache-2.0
"""What ``checkpoint.py`` starts under ``resilient run``: a training script as anybody would write it.

``saves``: it trains, saving every ``--every`` steps, and notes when each step began and ended. ``killed``: each attempt
but the last kills itself, to be restored from memory. ``stopped``: it makes so many steps and ends; with more of them
it is started again, and goes on from what is durable.
"""

import json
import os
import signal
import time
from pathlib import Path

from checkpoint_training import WARM_UP, Training, arguments, training_of, watch_memory, write_result

import resilient

ENDLESS = 10**9


def note(directory: Path, what: str, step: int, training: Training, **more: float) -> None:
    """One line for whoever compares what was saved with what was restored."""
    line = {"what": what, "step": step, "fingerprint": training.fingerprint(), **more}
    with open(directory / "states.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def saving(run: resilient.Run, training: Training, directory: Path, saves: int, every: int, pause: int) -> None:
    """The last save is looked at for its memory, and is over when training ends."""
    step = run.step(training.step)
    last = every * (WARM_UP + saves + 1)
    for batch in run.batches(training.batches, steps=last + pause):
        step(batch)
        if run.step_number == last - 1:
            watch_memory(directory)


def killed(run: resilient.Run, training: Training, directory: Path, restores: int, every: int, pause: int) -> None:
    """Killed long enough after a snapshot for it to be whole, and nothing else to be going on."""
    step = run.step(training.step)
    first = run.step_number
    end = (first // every + 2) * every + pause
    for batch in run.batches(training.batches, steps=ENDLESS):
        step(batch)
        if run.step_number % every == 0:
            note(directory, "saved", run.step_number, training)
        if run.attempt > restores:
            break
        if run.step_number == end:
            os.kill(os.getpid(), signal.SIGKILL)


def stopped(run: resilient.Run, training: Training, directory: Path, steps: int) -> None:
    step = run.step(training.step)
    for batch in run.batches(training.batches, steps=steps):
        step(batch)
    note(directory, "saved", run.step_number, training)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--what", choices=["saves", "killed", "stopped"], required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between two saves, or in all")
    options = parser.parse_args()
    training = training_of(options)
    begun = time.monotonic()
    run = resilient.Run(state={"model": training.model, "optimizer": training.optimizer})
    ready = time.monotonic()
    if run.resumed_from is not None:
        note(options.directory, "restored", run.step_number, training, waited_s=ready - begun)
    noted_s = time.monotonic() - ready
    if options.what == "saves":
        saving(run, training, options.directory, options.saves, options.every, options.pause)
    elif options.what == "killed":
        killed(run, training, options.directory, options.saves, options.every, options.pause)
    else:
        stopped(run, training, options.directory, options.every)
    write_result(options.directory, steps=training.times, size_bytes=training.size_bytes(), noted_s=noted_s)


if __name__ == "__main__":
    main()
