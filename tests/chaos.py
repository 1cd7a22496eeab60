# SPDX-License-Identifier: Apache-2.0
"""Trains once undisturbed and once under SIGKILLs, and compares every bit of what comes out.

    python tests/chaos.py --ranks 2 --kills 5 --seed 7 --store DIR
    python tests/chaos.py --pods 2 --ranks 1 --kills 20 --seed 7 --store DIR

Victims and moments are drawn from the seed. A run that fails prints them, so that it can be tried again; what the
processes said lies in DIR.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import chaos_pods
from chaos_run import RESULT, Failed, Run, send

Undisturbed: TypeAlias = Callable[[int, int], Path]
"""The folder of a training of so many ranks and steps under no kills."""
FIRST, LAST = 3, 25
"""Fewest and most new steps between two kills."""
LOOK_S = 0.001
MOMENTS = ("step", "snapshot", "save", "start", "restore")
EARLIER = 2
"""Fewest checkpoints that an undisturbed run leaves beside its last one."""
PARENTS = ("supervisor", "parents", "all")
"""Victims after which somebody has to start the run again."""
VICTIMS = ("worker", "worker", "worker", "worker", "supervisor", "saver", "parents", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What is to be killed, and when."""

    victim: str
    """``worker``, ``supervisor``, ``saver``, ``parents`` (both of these) or ``all``, as when power fails."""
    rank: int
    """Of the worker that is killed, or watched for the moment."""
    moment: str
    """In a ``step``; while a ``snapshot`` is taken or a ``save`` goes on; at the ``start`` or in the ``restore`` of
    workers that replace killed ones."""
    after: int
    """New steps before it."""
    pause_s: float
    """From the moment to the kill."""


def plan(seed: int, ranks: int, kills: int) -> list[Kill]:
    """The kills of a seed. Few kills are of different kinds, and the first is always a worker's."""
    draw = random.Random(f"{seed} {ranks} {kills}")
    drawn: list[Kill] = []
    victims: list[str] = []
    moments: list[str] = []
    for number in range(kills):
        victims = victims or draw.sample(VICTIMS, len(VICTIMS))
        moments = moments or draw.sample(MOMENTS, len(MOMENTS))
        kill = Kill(
            victim="worker" if number == 0 else victims.pop(),
            rank=draw.randrange(ranks),
            moment=moments.pop(),
            after=draw.randint(FIRST, LAST),
            pause_s=draw.choice((0.0, 0.001, 0.05)) * draw.random(),
        )
        drawn.append(kill)
    return drawn


def steps_for(kills: int) -> int:
    """Enough for every kill, also for those that wait for a save."""
    return 80 + 40 * kills


class Killer:
    """Kills processes of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def kill(self, kill: Kill) -> None:
        """Wait for the moment, and kill."""
        run = self._run
        goal = run.highest + kill.after
        run.wait_for(lambda event: event.step >= goal)
        if not run.history:
            # The first is always survived in memory; later ones come whether something is there or not.
            self._await_snapshot()
        run.find_saver()
        met = self._await_moment(kill)
        time.sleep(kill.pause_s)  # not to wait for something, but to be somewhere else in it each time
        saver, old = run.saver, run.pids[kill.rank]
        self._strike(kill)
        if kill.moment == "save" and met and kill.victim == "worker":
            # Workers are back before their last save has ended: a store that hangs must not keep them.
            run.wait_for(lambda event: event.rank == kill.rank and event.pid != old)
        send(saver, signal.SIGCONT)
        run.note(f"{kill.victim}, {kill.moment}{'' if met else ' (missed)'}: {kill}")
        if kill.victim in PARENTS:
            run.start()

    def _await_moment(self, kill: Kill) -> bool:
        """Wait for the moment; False if there was none."""
        run = self._run
        if kill.moment == "snapshot":
            run.wait_for(lambda event: event.what == "capture" and event.rank == kill.rank)
        elif kill.moment == "save":
            return self._hold_saver()
        elif kill.moment in ("start", "restore"):
            self._await_snapshot()  # without one there may be nothing to restore
            first = (kill.rank + 1) % run.ranks
            run.note(f"worker {first}, before the next")
            old, what = run.pids[kill.rank], "start" if kill.moment == "start" else "load"
            send(run.pids[first], signal.SIGKILL)
            run.wait_for(lambda event: event.rank == kill.rank and event.pid != old and event.what == what)
        return True

    def _await_snapshot(self) -> None:
        """Wait until all ranks have one of this life: only the journal tells, so it is looked at with each word."""
        run = self._run
        run.wait_for(lambda event: run.count("snapshot") > 0)

    def _hold_saver(self) -> bool:
        """Stop the saver in the middle of a save: there is no event for that, so look often."""
        run = self._run
        last, broken_off = run.highest + 2 * LAST, run.unfinished()
        while run.highest < last and run.saver is not None:
            if run.unfinished() - broken_off:
                send(run.saver, signal.SIGSTOP)
                if run.unfinished() - broken_off:
                    return True
                send(run.saver, signal.SIGCONT)
            run.listen(LOOK_S)
        return False

    def _strike(self, kill: Kill) -> None:
        run = self._run
        if kill.victim == "worker":
            send(run.pids[kill.rank], signal.SIGKILL)
        if kill.victim in PARENTS:
            run.supervisor.kill()
        if kill.victim in ("saver", "parents", "all"):
            send(run.saver, signal.SIGKILL)
        if kill.victim == "all":
            for pid in run.pids.values():
                send(pid, signal.SIGKILL)
        if kill.victim in PARENTS:
            run.supervisor.wait()


def train(directory: Path, ranks: int, steps: int, kills: Sequence[Kill] = ()) -> Run:
    """Train under kills to the end; raises ``Failed`` if the run is not as promised."""
    with Run(directory, ranks, steps) as run:
        try:
            run.start()
            killer = Killer(run)
            for kill in kills:
                killer.kill(kill)
            if not kills:
                run.wait_for(lambda event: run.count("checkpoint") >= EARLIER)
            run.hurry()
            code = run.end()
            if code != 0:
                raise Failed(f"exit code {code}; see {directory}/output.{run.life}")
            run.check_restores()
            run.check_leftovers()
        except Failed as error:
            raise Failed("\n  ".join([str(error), *run.history])) from error
        return run


def compare(undisturbed: Path, directory: Path, ranks: int, kills: int, seed: int) -> Run:
    """Train under the kills of a seed; raises ``Failed`` unless every bit is that of the undisturbed training."""
    run = train(directory, ranks, steps_for(kills), plan(seed, ranks, kills))
    try:
        run.check_bits(undisturbed / RESULT)
    except Failed as error:
        raise Failed("\n  ".join([str(error), *run.history, *run.check_restores()])) from error
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--ranks", type=int, default=2, help="of each pod; default: %(default)s")
    parser.add_argument("--kills", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--store", type=Path, required=True, help="directory that does not exist yet")
    options = parser.parse_args()
    pods, ranks, kills, seed = options.pods, options.ranks, options.kills, options.seed
    try:
        whole = train(options.store / "undisturbed", pods * ranks, steps_for(kills)).directory
        disturbed = options.store / "disturbed"
        if pods > 1:
            drawn = chaos_pods.plan(seed, pods, ranks, kills)
            several = chaos_pods.compare(whole, disturbed, pods, ranks, steps_for(kills), drawn)
            told = [*several.history, *several.restores()]
        else:
            run = compare(whole, disturbed, ranks, kills, seed)
            told = [*run.history, *run.check_restores()]
    except Failed as error:
        print(f"seed {seed}: {error}", file=sys.stderr)
        return 1
    print("\n".join([*told, "the same bits"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
