# SPDX-License-Identifier: Apache-2.0
"""``resilient run``: sets the scene, supervises, and leaves with a reason."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from resilient import settings
from resilient.core import commands as cm
from resilient.core.exit_codes import ExitCode
from resilient.core.redact import Redactor, secrets_of, secrets_of_argv
from resilient.kubernetes import termination
from resilient.launch import Launch
from resilient.supervisor import descendants, ending, processes, telling
from resilient.supervisor.loop import Supervisor
from resilient.supervisor.scene import Scene, set_up

TERMINATION_LOG: Final = Path("/dev/termination-log")


def run_command(launch: Launch, environ: Mapping[str, str]) -> int:
    """Supervise a command to its end; returns the exit code of the contract."""
    gc.freeze()  # what was imported stays: it is not to be looked through again, the last time when all is over
    _open_standard_streams()
    processes.allow_descriptors(launch.nproc)
    processes.become_subreaper()
    scene = set_up(launch, environ)
    try:
        for note in launch.notes:
            scene.say(note)
        return _supervise(scene)
    finally:
        scene.close()


def refused(code: ExitCode, said: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Say in the pod's status as well why nothing was started."""
    redactor = Redactor((*secrets_of(environ), *secrets_of_argv(argv)))
    why, _, do = redactor.clean(said, 4096).partition("; ")
    unknown = dict.fromkeys(("run", "submission", "step", "rank", "rule", "node", "journal"))
    data = termination.message(code, why, do, attempt=0, **unknown)
    # Settings cannot be asked: one of them may be what is wrong.
    _write_termination(environ.get(settings.variable("termination_log")), data)


def _write_termination(named: str | None, data: bytes) -> str | None:
    path = Path(named) if named is not None else TERMINATION_LOG
    return termination.write(path, data) if named is not None or path.exists() else None


def _open_standard_streams() -> None:
    """Whoever closed one of them meant silence, not that a pipe or file of ours takes its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _supervise(scene: Scene) -> int:
    supervisor = Supervisor(scene)
    try:
        try:
            exit_ = supervisor.run()
        except Exception as error:  # the last line of defence: a bug of ours has an exit code of its own
            scene.journal.write("note", rank=None, text=traceback.format_exc())
            scene.say(traceback.format_exc())
            exit_ = cm.Exit(
                code=ExitCode.INTERNAL,
                why=f"the supervisor failed: {type(error).__name__}: {error}",
                do="please report it with the journal",
            )
        supervisor.leave_snapshot(exit_.code)
        _leave(scene, supervisor, exit_)
    finally:
        descendants.end(scene.place.token, grace_s=0.0)
        supervisor.close()
    if scene.volume is not None:
        scene.volume.keep()  # last: whoever is killed before has left nothing
    return int(exit_.code)


def _leave(scene: Scene, supervisor: Supervisor, exit_: cm.Exit) -> None:
    """The reason goes to the journal, to the termination message and to the last lines of stderr."""
    verdict = supervisor.last.verdict if supervisor.last and exit_.code != ExitCode.FINISHED else None
    job = supervisor.job
    checkpoints = scene.settings.checkpoints
    # A store that was never open holds nothing of this supervisor.
    target = checkpoints if checkpoints is not None and supervisor.ships else str(scene.journal_dir)
    name = termination.exit_name(exit_.code)
    scene.journal.write("exit", code=exit_.code, name=name, why=exit_.why, do=exit_.do)
    data = telling.line(scene, job, verdict, exit_.why, exit_.do, code=exit_.code)
    supervisor.tell(telling.report(scene, data, exit_.why, exit_.do, code=exit_.code, last=True))
    problem = _write_termination(scene.settings.termination_log, data)
    if problem is not None:
        scene.say(problem)
    words = ending.last_words(
        exit_.code,
        exit_.why,
        exit_.do,
        target=target,
        attempts=job.launch,
        highest_step=job.ledger.highest_step,
        durable_step=job.ledger.committed_step,
        verdict=verdict,
        in_kubernetes=scene.platform.in_kubernetes,
        unrecorded=exit_.unrecorded,
        has_store=job.has_store,
    )
    scene.console.write(2, scene.redactor.clean(words, 8192).encode())
