# SPDX-License-Identifier: Apache-2.0
"""What one supervisor has around it: settings, identity, journal, console, signals, scratch files."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from resilient import settings as settings_
from resilient.checkpoint import layout
from resilient.checkpoint.arena import Slot, create_arenas
from resilient.checkpoint.volume import Volume, disk_of
from resilient.core import history
from resilient.core.causes import Verdict
from resilient.core.events import Debit
from resilient.core.evidence import Past
from resilient.core.hangs import Bounds
from resilient.core.job import Job
from resilient.core.ledger import Ledger, opening_ledger
from resilient.core.policy import Terms
from resilient.core.redact import Redactor, clean_argv, clean_url, secrets_of, secrets_of_argv
from resilient.core.rule import Rule
from resilient.core.rules import RULES
from resilient.core.usage import NOTHING_USED
from resilient.core.user_rules import with_user_rules
from resilient.errors import SettingsError
from resilient.facts import Platform
from resilient.launch import Launch
from resilient.settings import Effective, Settings
from resilient.supervisor import descendants
from resilient.supervisor.console import Console
from resilient.supervisor.control import Control
from resilient.supervisor.group import Member, Place
from resilient.supervisor.journal import Journal
from resilient.supervisor.output import Lines
from resilient.supervisor.signals import Signals
from resilient.supervisor.store_link import Identity
from resilient.toml_files import read_rules
from resilient.version import version

COUNTERS_BOUND: Final = 20
"""Failures of an index up to which the controller's own counting bounds a loop (contract, invariant 4)."""
LAST_WAIT_S: Final = 20.0
LEFTOVER_GRACE_S: Final = 2.0
_SCRATCH: Final = "scratch-"


@dataclass(slots=True, kw_only=True)
class Scene:
    """Everything that exists once in a supervisor's life."""

    launch: Launch
    variables: Mapping[str, str]
    """The environment that we were started in."""
    effective: Effective
    rules: tuple[Rule, ...]
    """The classifier's table."""
    platform: Platform
    submission: str
    pod: str
    journal_dir: Path
    scratch: Path
    redactor: Redactor
    journal: Journal
    console: Console
    lines: Lines
    signals: Signals
    control: Control
    place: Place
    terminal: bool
    volume: Volume | None
    """Where a snapshot may outlive the container."""
    _slots: dict[int, list[Slot]]
    past: list[Past] = field(default_factory=list)
    """Earlier faults of the run, the oldest first."""

    @property
    def settings(self) -> Settings:
        return self.effective.settings

    @property
    def saver_environ(self) -> Mapping[str, str]:
        """The saver needs the credentials of the store; it is not a worker."""
        return self.variables

    def terms(self) -> Terms:
        """What the policy must know."""
        settings, platform = self.settings, self.platform
        counters = (platform.failure_count, platform.ignored_count)
        bound = None not in counters and sum(count or 0 for count in counters) <= COUNTERS_BOUND
        return Terms(
            in_kubernetes=platform.in_kubernetes,
            counters_bound=bound,
            observe=settings.observe,
            node=platform.node,
            pods=self.launch.nodes,
            pod=self.launch.node,
            pod_patience_s=settings.pod_patience,
            on_code_fault=settings.on_code_fault,
            max_restarts=settings.max_restarts,
            max_time_without_progress_s=settings.max_time_without_progress,
            settle_s=settings.store_patience,
            grace_s=settings.grace,
        )

    def local_debits(self) -> Sequence[layout.Debit]:
        """Exits of this submission that the journal's directory holds, the oldest first."""
        return [row for row in self.journal.local_debits() if row.submission == self.submission]

    def first_ledger(self, mine: Sequence[layout.Debit]) -> Ledger:
        """What this submission has spent, by the debits that the journal's directory holds where there is no store."""
        debits = self.on_record(mine)
        usage = debits[-1].usage if debits else NOTHING_USED
        return opening_ledger(Ledger(), committed_step=0, usage=usage, debits=debits, now=time.monotonic())

    def on_record(self, rows: Sequence[layout.Debit]) -> tuple[Debit, ...]:
        """What earlier pods of this submission put on record, in the core's words; their faults are remembered."""
        debits = tuple(
            Debit(
                code=row.code,
                step=row.step,
                fingerprint=row.fingerprint,
                usage=layout.usage_of(row),
                node=row.node,
                fault_step=row.fault_step,
                times=row.times,
                strikes=row.strikes,
                batch=row.batch,
                forgiven=row.forgiven,
            )
            for row in rows
        )
        self.past[:0] = history.on_record(debits)
        return debits

    def remember(self, verdict: Verdict, ledger: Ledger) -> None:
        """A fault of this supervisor's workers, for the verdict on the next one."""
        reached = ledger.highest_step if ledger.steps_known else None
        self.past.append(history.remember(verdict, node=verdict.node or self.platform.node, reached=reached))
        del self.past[: -history.KEPT]

    def bounds(self, tick_s: float) -> Bounds:
        """What the hang rules must know."""
        settings = self.settings
        return Bounds(
            hang_floor_s=settings.hang_floor,
            idle_timeout_s=settings.idle_timeout,
            hang_timeout_s=settings.hang_timeout,
            tick_s=tick_s,
        )

    def identity(self) -> Identity:
        """Who opens the run."""
        return Identity(
            submission=self.submission,
            index=self.launch.node if self.platform.index is None else self.platform.index,
            pod=self.pod,
            journal=str(self.journal_dir.absolute()),
            in_kubernetes=self.platform.in_kubernetes,
            is_guest=self.launch.node > 0,
        )

    def resolve(self, run: Mapping[str, str]) -> Effective:
        """The settings in force, now that ``Run()`` has spoken as well."""
        self.effective = settings_.load(flags=self.launch.setting_flags, run=run, environ=self.variables)
        return self.effective

    def make_slots(self, in_memory: Callable[[int, int], Slot] | None) -> dict[int, list[int]]:
        """The arena of every rank: memory that outlives its workers, and the container where ``in_memory`` gives it."""
        made = {} if in_memory is None else {"in_memory": in_memory}
        self._slots = create_arenas(self.launch.nproc, self.journal_dir, **made)
        return {rank: [slot.fd for slot in slots] for rank, slots in self._slots.items()}

    def give_back(self, number: int) -> None:
        """Free the memory of a slot, of every rank."""
        for slots in self._slots.values():
            slots[number].give_back()

    def write(self, kind: str, fields: Mapping[str, object]) -> None:
        """An entry of the journal."""
        self.journal.write(kind, **fields)

    def say(self, text: str) -> None:
        """A line of our own for whoever reads the log."""
        for line in self.redactor.clean(text, 4096).splitlines():
            self.console.write(2, f"resilient: {line}\n".encode())

    def journal_hello(self, member: Member, pid: int, started_ns: int) -> None:
        """How long a worker took to come up."""
        now = time.monotonic()
        started = started_ns / 1e9
        self.journal.write(
            "hello",
            rank=member.rank,
            pid=pid,
            import_s=round(max(0.0, started - member.spawned_at), 3),
            construct_s=round(max(0.0, now - started), 3),
        )

    def seconds_left(self, job: Job) -> float:
        """How long the end may still take."""
        if job.must_end_at is None:
            return LAST_WAIT_S
        return max(0.0, job.must_end_at - 0.5 - time.monotonic())

    def close(self) -> None:
        """Leave nothing behind but the journal."""
        self.control.close()
        self.signals.close()
        self.journal.close()
        for slot in (slot for slots in self._slots.values() for slot in slots):
            slot.close()
        if self.volume is not None:
            self.volume.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.console.close(timeout_s=5.0)


def set_up(launch: Launch, environ: Mapping[str, str]) -> Scene:
    """Check every setting, then make what a supervisor needs; nothing is started."""
    effective = settings_.load(flags=launch.setting_flags, environ=environ)
    own = effective.settings.rules
    rules = RULES if own is None else with_user_rules(read_rules(Path(own)))
    platform = settings_.platform(environ)
    submission = platform.submission or f"local-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    journal_dir = _journal_dir(effective.settings, submission)
    redactor = Redactor((*secrets_of(environ), *secrets_of_argv(launch.command)))
    journal = Journal(journal_dir, redactor, wall=time.time, monotonic=time.monotonic)
    control = Control(journal_dir)  # refuses a directory that a living supervisor uses: what is in it is ours
    scratch = _make_scratch(journal_dir)
    run = _run_text(launch, effective.settings)
    run_id = launch.run_id or secrets.token_hex(8)
    terminal = launch.nproc == 1 and os.isatty(0) and os.isatty(1)
    restarts = effective.settings.max_restarts
    place = Place(
        launch=launch,
        run_id=run_id,
        base=environ,
        token=descendants.new_token(run),
        scratch=scratch,
        terminal=terminal,
        max_restarts=Terms().restarts_between_commits if restarts is None else restarts,
    )
    volume = _volume(effective.settings, platform) if launch.nodes == 1 else None
    scene = Scene(
        launch=launch,
        variables=environ,
        effective=effective,
        rules=rules,
        platform=platform,
        submission=submission,
        pod=platform.pod or re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip("-.") or "pod",
        journal_dir=journal_dir,
        scratch=scratch,
        redactor=redactor,
        journal=journal,
        console=Console(),
        lines=Lines(),
        signals=Signals(),
        control=control,
        place=place,
        terminal=terminal,
        volume=volume,
        _slots={},
    )
    _write_start(scene)
    _warn_of_disk(scene)
    if launch.nodes > 1 and effective.settings.snapshots is not None:
        scene.say("snapshots of several pods do not outlive their containers: --snapshots has no effect")
    left = descendants.end_leftovers(run, grace_s=LEFTOVER_GRACE_S)
    if left:
        scene.say(f"ended {left} processes of this run, whose supervisor had been killed")
    return scene


def _volume(settings: Settings, platform: Platform) -> Volume | None:
    if settings.snapshots is None:
        return None
    if platform.pod_uid is None:
        raise SettingsError(
            f"cannot keep snapshots in {settings.snapshots}: RESILIENT_POD_UID does not say which pod this is; project "
            "metadata.uid into it, as resilient manifest --restart-rules does, or leave --snapshots out"
        )
    return Volume(Path(settings.snapshots).absolute())


def _warn_of_disk(scene: Scene) -> None:
    """Snapshots go there too, at the price of a disk: a person may want that, or may not know it."""
    kind = None if scene.volume is None else disk_of(scene.volume.directory)
    if scene.volume is not None and kind is not None:
        text = (
            f"--snapshots {scene.volume.directory} is on {kind}, not in memory, so that every snapshot is written to a "
            "disk; mount an emptyDir with medium: Memory there"
        )
        scene.journal.write("note", rank=None, text=text)
        scene.say(text)


def _make_scratch(journal_dir: Path) -> Path:
    """A private directory for what workers write; those of killed supervisors go."""
    for stale in journal_dir.glob(f"{_SCRATCH}*"):
        shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=journal_dir))


def _run_text(launch: Launch, settings: Settings) -> str:
    """What every start of this run has, as far as it is known before ``Run()`` speaks."""
    named = settings.checkpoints or settings.journal
    return named if named is not None else "\0".join([os.getcwd(), *launch.command])


def _journal_dir(settings: Settings, submission: str) -> Path:
    if settings.journal is not None:
        return Path(settings.journal).absolute()
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise SettingsError(
            "cannot keep a journal: no directory for temporary files can be written; set TMPDIR, or give --journal"
        ) from error
    return Path(folder) / f"resilient-{os.getuid()}" / submission


def _write_start(scene: Scene) -> None:
    checkpoints = scene.settings.checkpoints
    scene.journal.write(
        "start",
        run=scene.place.run_id,
        submission=scene.submission,
        index=scene.platform.index,
        in_kubernetes=scene.platform.in_kubernetes,
        pod=scene.pod,
        node=scene.platform.node,
        failure_count=scene.platform.failure_count,
        ignored_count=scene.platform.ignored_count,
        pid=os.getpid(),
        command=list(clean_argv(scene.launch.command)),
        ranks=scene.launch.nproc,
        nodes=scene.launch.nodes,
        node_rank=scene.launch.node,
        checkpoints=None if checkpoints is None else clean_url(checkpoints),
        version=version(),
        settings={name: scene.effective.text(name) for name in scene.effective.origins},
    )
