# SPDX-License-Identifier: Apache-2.0
"""Every setting, where each value came from, and the only reader of the environment.

A field of ``Settings`` is the whole declaration: its flag (``--keep``), its variable
(``RESILIENT_KEEP``), its key in the platform's file and its row in the README follow
from its name. Later layers win: default < platform file < ``Run()`` < environment < flags.
Every value is checked when its layer is read, so that a wrong one is refused before
anything starts, also where a later layer would have hidden it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from resilient.core.cadence import Every
from resilient.core.cloud import Cloud
from resilient.core.on_code_fault import OnCodeFault
from resilient.core.pod_status import PodAccess
from resilient.core.redact import clean_url
from resilient.core.retention import Best, Rules
from resilient.errors import SettingsError
from resilient.facts import INTERNAL_PREFIX, LINK_VARIABLE, PLATFORM_VARIABLES, read_platform, read_worker
from resilient.facts import Platform as Platform
from resilient.facts import WorkerFacts as WorkerFacts
from resilient.kinds import (
    AUTO_EVERY,
    BANDWIDTH,
    BATCHES,
    BEST,
    CODE_FAULT,
    COUNT,
    DURATION,
    NOTICES,
    PATH,
    POD_API,
    RESTARTS,
    SOME,
    SWITCH,
    TIMEOUT,
    Kind,
)
from resilient.toml_files import read_toml

PLATFORM_FILE: Final = Path("/etc/resilient/config.toml")
PREFIX: Final = "RESILIENT_"
GRACE_S: Final = "RESILIENT_GRACE_S"
"""What a generated manifest writes: ``terminationGracePeriodSeconds``, as plain seconds."""

# The kubelet describes every Service of the namespace to every container; one may be called "resilient".
_SERVICE_LINK: Final = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?$")


def _about(kind: Kind, meaning: str, *, unset: str = "", in_run: bool = False) -> Mapping[str, Any]:
    return {"kind": kind, "meaning": meaning, "unset": unset, "in_run": in_run}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run can be told. Times are in seconds."""

    checkpoints: str | None = field(
        default=None,
        metadata=_about(
            PATH, "Where checkpoints are kept: a directory or an fsspec URL.", unset="none are kept", in_run=True
        ),
    )
    every: Every | None = field(
        default=Every(seconds=300.0),
        metadata=_about(
            AUTO_EVERY, "How often a checkpoint is made durable: steps, a duration, or `auto`.", in_run=True
        ),
    )
    snapshot_every: Every | None = field(
        default=None,
        metadata=_about(
            AUTO_EVERY,
            "How often a snapshot is taken in memory; `auto`: as often as pays (3.5 % at most).",
            in_run=True,
        ),
    )
    keep: int = field(default=3, metadata=_about(COUNT, "How many checkpoints are kept, the newest.", in_run=True))
    keep_every: int | None = field(
        default=None,
        metadata=_about(
            SOME, "Beside these the first checkpoint at or after each multiple of so many steps.", in_run=True
        ),
    )
    keep_best: Best | None = field(
        default=None,
        metadata=_about(
            BEST, "Beside these the best by a metric of `run.metric`: `val_loss:min:3`, `accuracy:max:1`.", in_run=True
        ),
    )
    hang_floor: float = field(
        default=60.0, metadata=_about(DURATION, "A step that takes no longer than this is never called hung.")
    )
    idle_timeout: float = field(
        default=1800.0,
        metadata=_about(DURATION, "How long a worker may stand still outside a step before it counts as hung."),
    )
    hang_timeout: float | None = field(
        default=None,
        metadata=_about(TIMEOUT, "The same for a worker that constructs no `Run`; `none`: silence never ends it."),
    )
    max_restarts: int | None = field(
        default=None,
        metadata=_about(
            RESTARTS, "Restarts that a submission may have; `none`: the built-in budgets alone bound them."
        ),
    )
    max_time_without_progress: float = field(
        default=86400.0,
        metadata=_about(DURATION, "How long devices may be held without a new checkpoint before a fault ends the job."),
    )
    store_patience: float = field(
        default=600.0, metadata=_about(DURATION, "How long a checkpoint store that does not answer is asked again.")
    )
    pod_patience: float = field(
        default=1800.0,
        metadata=_about(DURATION, "How long the other pods of a run are waited for before this one ends with 197."),
    )
    save_bandwidth: int | None = field(
        default=None,
        metadata=_about(
            BANDWIDTH, "How fast checkpoints are written, all ranks together: `200MB/s`, `1GiB/s`, `none`."
        ),
    )
    grace: float = field(
        default=30.0,
        metadata=_about(DURATION, "From SIGTERM to the platform's SIGKILL; `RESILIENT_GRACE_S`: in plain seconds."),
    )
    preemption_notices: Cloud | None = field(
        default=None,
        metadata=_about(
            NOTICES,
            "Whose notices before a machine is taken away are heard, as SIGTERM: `aws`, `azure`, `gcp`, `auto`.",
        ),
    )
    pod_api: PodAccess | None = field(
        default=None,
        metadata=_about(
            POD_API,
            "What is asked of Kubernetes: `read` the own pod's status; `write` the verdict about it as well.",
        ),
    )
    journal: str | None = field(
        default=None, metadata=_about(PATH, "Directory of the local journal.", unset="a new directory below TMPDIR")
    )
    snapshots: str | None = field(
        default=None,
        metadata=_about(
            PATH,
            "Where a snapshot outlives the container after 193 and 197: a volume in memory, with `RESILIENT_POD_UID`.",
            unset="none",
        ),
    )
    termination_log: str | None = field(
        default=None,
        metadata=_about(PATH, "File for the last word of a run.", unset="/dev/termination-log where writable"),
    )
    deny_list: str | None = field(
        default=None,
        metadata=_about(
            PATH, "The platform's own list of nodes and devices to keep off: a file or fsspec URL.", unset="none"
        ),
    )
    rules: str | None = field(
        default=None,
        metadata=_about(PATH, "A TOML file with rules of your own on whose fault a failure is.", unset="none"),
    )
    on_code_fault: OnCodeFault = field(
        default=OnCodeFault.CONFIRM,
        metadata=_about(
            CODE_FAULT, "At a code fault after the first step: `confirm` by one restart, `stop`, `restart`."
        ),
    )
    skip_bad_batches: int = field(
        default=0,
        metadata=_about(BATCHES, "Batches that may be left out because the same fault came back in them.", in_run=True),
    )
    fresh: bool = field(
        default=False, metadata=_about(SWITCH, "Begin at step 0 although there are checkpoints; they are left alone.")
    )
    observe: bool = field(
        default=False, metadata=_about(SWITCH, "Judge and report failures, but act as torchrun would.")
    )

    @property
    def retention(self) -> Rules:
        """Which checkpoints stay."""
        return Rules(keep=self.keep, every=self.keep_every, best=self.keep_best)


FIELDS: Final = {declared.name: declared for declared in dataclasses.fields(Settings)}
RUN_SETTINGS: Final = tuple(name for name, declared in FIELDS.items() if declared.metadata["in_run"])
"""What ``Run()`` takes: what describes the training, not the place it runs in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One value as somebody gave it: text, or what TOML or Python hold."""

    name: str
    value: object
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The settings that hold, and where each of them came from."""

    settings: Settings
    origins: Mapping[str, str]

    def text(self, name: str) -> str:
        """The value as a person would write it, without credentials."""
        return shown(name, getattr(self.settings, name))


def environment() -> dict[str, str]:
    """A copy of this process's environment; everybody else is handed one."""
    return dict(os.environ)


def platform(environ: Mapping[str, str] | None = None) -> Platform:
    """What Kubernetes says of this pod."""
    return read_platform(os.environ if environ is None else environ)


def worker_facts(environ: Mapping[str, str] | None = None) -> WorkerFacts:
    """What the launcher of this process has told it."""
    return read_worker(os.environ if environ is None else environ)


def forget_link() -> None:
    """Keep the supervisor's link from the children of this process: there is one ``Run`` at its end."""
    os.environ.pop(LINK_VARIABLE, None)


def load(
    *,
    flags: Iterable[Given] = (),
    run: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    platform_file: Path = PLATFORM_FILE,
) -> Effective:
    """The effective settings; ``environ`` is this process's own where none is passed."""
    given = os.environ if environ is None else environ
    return resolve((from_platform(platform_file), from_run(run or {}), from_environment(given), tuple(flags)))


def resolve(layers: Iterable[Iterable[Given]]) -> Effective:
    """Lay later layers over earlier ones, then check what the values mean together."""
    values: dict[str, object] = {}
    origins = dict.fromkeys(FIELDS, "default")
    for given in (given for layer in layers for given in layer):
        values[given.name] = parse(given)
        origins[given.name] = given.origin
    effective = Effective(settings=Settings(**values), origins=origins)  # type: ignore[arg-type]  # parsed by kind
    _check_together(effective)
    return effective


def parse(given: Given) -> object:
    """The value of one setting; ``SettingsError`` names who gave it."""
    kind: Kind = FIELDS[given.name].metadata["kind"]
    try:
        return kind.parse(given.value)
    except ValueError as error:
        value = clean_url(str(given.value))
        raise SettingsError(f"cannot use {value!r} for {given.name} ({given.origin}): {error}") from error


def shown(name: str, value: object) -> str:
    """A value of a setting as text, without credentials."""
    metadata = FIELDS[name].metadata
    unset = metadata["unset"] if value is None else ""
    return clean_url(unset or metadata["kind"].format(value))


def from_platform(path: Path = PLATFORM_FILE) -> tuple[Given, ...]:
    """The layer of the cluster's administrators; none where the file does not exist."""
    try:
        table = read_toml(path, "one `name = value` a line")
    except (FileNotFoundError, NotADirectoryError):
        return ()
    for name in table.keys() - FIELDS.keys():
        raise SettingsError(f"cannot use {name!r} in {path}: no such setting; {_instead(name, FIELDS)}")
    return tuple(Given(name=name, value=value, origin=str(path)) for name, value in table.items())


def from_run(values: Mapping[str, object]) -> tuple[Given, ...]:
    """The layer of the training script; ``None`` means not given."""
    for name in values.keys() - set(RUN_SETTINGS):
        raise SettingsError(f"cannot use {name!r} in Run(): not a setting of it; {_instead(name, RUN_SETTINGS)}")
    return tuple(
        Given(name=name, value=value, origin=f"Run({name}=)") for name, value in values.items() if value is not None
    )


def run_texts(values: Mapping[str, object]) -> dict[str, str]:
    """What ``Run()`` was given, checked, as text that ``from_run`` reads back the same."""
    return {given.name: FIELDS[given.name].metadata["kind"].format(parse(given)) for given in from_run(values)}


def from_environment(environ: Mapping[str, str]) -> tuple[Given, ...]:
    """The layer of the container: RESILIENT_*, and what is understood besides. Empty means not given."""
    found = {name: value.strip() for name, value in environ.items() if value.strip()}
    known = {variable(name): name for name in FIELDS}
    for name in sorted(found):
        if name.startswith(PREFIX) and name not in {*known, *PLATFORM_VARIABLES, GRACE_S} and not _is_foreign(name):
            raise SettingsError(f"cannot use {name}: no such setting; {_instead(name, known)}")
    layer = []
    if "PET_MAX_RESTARTS" in found:  # torchrun's own name for its flag
        layer.append(Given(name="max_restarts", value=found["PET_MAX_RESTARTS"], origin="PET_MAX_RESTARTS"))
    if GRACE_S in found:
        layer.append(_grace(found[GRACE_S]))
    layer += [Given(name=name, value=found[key], origin=key) for key, name in known.items() if key in found]
    return tuple(layer)


def flag(name: str) -> str:
    """``keep`` -> ``--keep``."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """``keep`` -> ``RESILIENT_KEEP``."""
    return PREFIX + name.upper()


def is_switch(name: str) -> bool:
    """Whether the flag of this setting takes no value."""
    return FIELDS[name].metadata["kind"] is SWITCH


def settings_table() -> str:
    """All settings as a Markdown table."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for name, declared in FIELDS.items():
        in_run = f", `Run({name}=)`" if name in RUN_SETTINGS else ""
        rows.append(f"| `{flag(name)}`{in_run} | {shown(name, declared.default)} | {declared.metadata['meaning']} |")
    return "\n".join(rows) + "\n"


def _grace(text: str) -> Given:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,3})?", text):
        raise SettingsError(f"cannot use {text!r} for grace ({GRACE_S}): not a number of seconds; write for example 30")
    return Given(name="grace", value=f"{text}s", origin=GRACE_S)


def _is_foreign(name: str) -> bool:
    return name.startswith(INTERNAL_PREFIX) or _SERVICE_LINK.search(name) is not None


def _instead(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else "choose from " + ", ".join(names)


def _check_together(effective: Effective) -> None:
    settings = effective.settings
    if settings.grace < 1:
        _contradiction(effective, "grace", "nothing can be saved in less than 1s; give the pod more time to end")
    if settings.hang_floor > settings.idle_timeout:
        _contradiction(
            effective,
            "hang_floor",
            f"it is longer than idle_timeout, {effective.text('idle_timeout')} ({effective.origins['idle_timeout']}), "
            "so a step could stand still longer than what is outside of one; lower the one or raise the other",
        )

    if settings.skip_bad_batches and settings.on_code_fault is OnCodeFault.STOP:
        why = "with on_code_fault=stop no fault comes back, and none is found to be a batch's; use confirm or restart"
        _contradiction(effective, "skip_bad_batches", why)


def _contradiction(effective: Effective, name: str, why: str) -> None:
    raise SettingsError(f"cannot use {effective.text(name)} for {name} ({effective.origins[name]}): {why}")
