# SPDX-License-Identifier: Apache-2.0
"""What a manifest is to submit: one training, its place and its size. Everything is checked when it is constructed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

from resilient import launch, settings
from resilient.core.backstop import FAULTS_PER_DEVICE_DAY, Plan
from resilient.core.redact import clean_url
from resilient.core.secret_names import promises_secret
from resilient.errors import SettingsError
from resilient.facts import PLATFORM_VARIABLES
from resilient.kubernetes import names
from resilient.kubernetes.downward import POD_API_SETTING

CLAIM_MOUNT: Final = "/checkpoints"
SNAPSHOT_SLOTS: Final = 2
"""One is kept while the other is written, for each rank."""
MAILBOX: Final = "512Mi"
"""For the process that carries letters between several pods' supervisors. It loads torch and nothing else: 221 MiB
with torch 2.13 for processors, 145 of them its own, and more with one for devices."""
_MOST_PODS: Final = 10_000
"""The API server allows an Indexed Job more completions only with fewer of them in parallel."""
_GIVEN_BY_US: Final = {
    "checkpoints": "give it to resilient manifest instead",
    "journal": "leave it out",
    "grace": "give it to resilient manifest instead",
    "snapshots": "give --restart-rules to resilient manifest instead",
    "termination_log": "leave it out",
}
"""Settings that the manifest says to Kubernetes as well, and what to do."""
_OWN_VARIABLES: Final = frozenset({*PLATFORM_VARIABLES, settings.GRACE_S, *map(settings.variable, _GIVEN_BY_US)})
_LOCAL: Final = ("file", "local")
_NOBODYS: Final = "memory"
_NO_ENV: Final[Mapping[str, str]] = MappingProxyType({})
_NOBODY_ELSE: Final = 77_777
"""A number of workers that nobody asks for, so that it is known who has not been asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One training for the cluster. Sizes are Kubernetes quantities, such as ``256Gi``."""

    name: str
    image: str
    command: tuple[str, ...]
    """What ``resilient run`` is given: its flags and a script, or any command."""
    memory: str
    """What a pod needs without resilient, /dev/shm included."""
    checkpoints: str | None = None
    """A URL; with ``claim`` a path below /checkpoints."""
    claim: str | None = None
    """A PersistentVolumeClaim for the checkpoints."""
    namespace: str | None = None
    pods: int = 1
    devices: int = 1
    """Of each pod; 0 trains on processors."""
    device_resource: str = "nvidia.com/gpu"
    cpu: str | None = None
    state: str | None = None
    """What the state of all ranks of a pod takes once: parameters, optimizer and the rest."""
    shm: str | None = None
    """The most that /dev/shm may take; half of ``memory`` if it is not given, as Linux has it."""
    grace_s: int = 120
    days: float = 30.0
    faults_per_device_day: float = FAULTS_PER_DEVICE_DAY
    queue: str | None = None
    """A LocalQueue of Kueue."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Secrets whose every key becomes a variable."""
    secret_env: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """A variable from one key of a Secret: name -> (secret, key)."""
    uid: int = 65532
    sidecars: bool = False
    """Let service meshes inject their containers."""
    restart_rules: bool = False
    """Have the kubelet restart the container in place: Kubernetes 1.35 and newer."""
    permissions: bool = False
    """Let the pod annotate itself, write Events and read its own status."""

    def __post_init__(self) -> None:
        _check_names(self)
        _check_sizes(self)
        _check_place(self)
        _check_environment(self)
        parsed(self.command, self.env)

    @property
    def plan(self) -> Plan:
        """What the backstop budgets are sized by."""
        devices = self.pods * max(1, self.devices)
        return Plan(devices=devices, days=self.days, faults_per_device_day=self.faults_per_device_day)

    @property
    def keeps_snapshots(self) -> bool:
        """Whether snapshots outlive a container in its pod; those of several pods do not, as no pod has them all."""
        return self.restart_rules and self.pods == 1

    @property
    def memory_limit(self) -> str:
        """The training's own memory, the snapshots beside it, and what several pods need to hear from each other."""
        mailbox = names.size(MAILBOX, "mailbox") if self.pods > 1 else 0
        return names.quantity(names.size(self.memory, "memory") + self.arena_bytes + mailbox)

    @property
    def arena_bytes(self) -> int:
        """What the snapshots take; 0 where it was not said."""
        return SNAPSHOT_SLOTS * names.size(self.state, "state") if self.state else 0

    @property
    def shm_limit(self) -> str:
        """The most that /dev/shm may take."""
        return self.shm or names.quantity(names.size(self.memory, "memory") // 2)

    @property
    def checkpoints_url(self) -> str:
        """Where the run's checkpoints are, as the container sees it."""
        return self.checkpoints or f"{CLAIM_MOUNT}/{self.name}"


def parsed(words: tuple[str, ...], env: Mapping[str, str] = _NO_ENV) -> launch.Launch:
    """The launch that these words ask ``resilient run`` for, on one pod; refuses what it would refuse.

    ``env`` may have torchrun's own variables.
    """
    pet = {name: value for name, value in env.items() if name.startswith("PET_")}
    environ = {"PET_NPROC_PER_NODE": "auto", **pet}  # the weakest of all who can say a number
    asked = launch.parse(words, environ, count=lambda kind: _NOBODY_ELSE)
    settings.resolve([asked.setting_flags])
    for given in asked.setting_flags:
        if given.name in _GIVEN_BY_US:
            raise SettingsError(
                f"cannot use {settings.flag(given.name)} in the command: the manifest says it to Kubernetes as well; "
                f"{_GIVEN_BY_US[given.name]}"
            )
    return asked


def says_workers(asked: launch.Launch) -> bool:
    """Whether the command itself says how many workers it wants, or must not be started more than once."""
    return asked.nproc != _NOBODY_ELSE or not asked.is_python


def run_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command as a person types it, as ``resilient run`` is to be given it."""
    if words[:2] == ("resilient", "run"):
        return words[2:]
    return words if words[:1] and words[0].startswith("-") else ("--", *words)


def name_of(words: tuple[str, ...]) -> str:
    """A name for a training that was given none: its script's."""
    script = next((word for word in words if word.endswith(".py")), "training")
    name = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(script).stem.lower()).strip("-")[:40].rstrip("-")
    return name if name[:1].isalpha() else "training"


def _check_names(given: Submission) -> None:
    names.label(given.name, "the name")
    names.image(given.image, "the image")
    names.resource(given.device_resource, "the resource of the devices")
    if given.namespace is not None:
        names.namespace(given.namespace, "the namespace")
    if given.queue is not None:
        names.queue(given.queue, "the queue")
    if given.claim is not None:
        names.subdomain(given.claim, "the claim")
    for word in given.command:
        names.word(word, "the command")
    if given.permissions and given.namespace is None:
        raise SettingsError(
            "cannot write a RoleBinding: the service account's namespace is not given; give --namespace"
        )


def _check_sizes(given: Submission) -> None:
    names.whole(given.pods, "the number of pods", least=1, most=_MOST_PODS)
    names.whole(given.devices, "the devices of a pod", least=0, most=1024)
    check_time(given.grace_s, given.days, given.faults_per_device_day)
    names.whole(given.uid, "the user", least=1, most=2**31 - 1)
    if given.cpu is not None:
        names.cpu(given.cpu, "the processors")
    memory = names.size(given.memory, "the memory")
    if given.state is not None:
        names.size(given.state, "the size of the state")
    if given.shm is not None:
        shm = names.size(given.shm, "/dev/shm")
        if shm > memory or shm >= memory + given.arena_bytes:
            raise names.refused(given.shm, "/dev/shm", f"it is not less than the memory, {given.memory}", "give a part")


def check_time(grace_s: int, days: float, faults_per_device_day: float) -> None:
    """Refuse times that cannot be meant."""
    names.whole(grace_s, "the grace period in seconds", least=1, most=7 * 86_400)
    for value, what, most in (
        (days, "the days", 3650.0),
        (faults_per_device_day, "the faults a device and day", 100.0),
    ):
        if not 0 < value <= most:
            raise names.refused(str(value), what, f"it is not above 0 and at most {most:g}", "give a number between")


def check_url(url: str) -> None:
    """Refuse what is no place for checkpoints, or would write a secret into a manifest."""
    names.word(url, "the checkpoints")
    settings.parse(settings.Given(name="checkpoints", value=url, origin="--checkpoints"))
    if clean_url(url) != url:
        raise SettingsError(
            f"cannot write {clean_url(url)} into a manifest: it holds a secret; leave that out, and name a Secret with "
            "--secret, whose keys become variables"
        )


def _check_place(given: Submission) -> None:
    if given.checkpoints is None and given.claim is None:
        raise SettingsError(
            "cannot write a manifest: where the checkpoints go is not said; give a URL with --checkpoints, "
            "or a PersistentVolumeClaim with --claim"
        )
    if given.checkpoints is None:
        return
    check_url(given.checkpoints)
    scheme, mark, place = given.checkpoints.partition("://")
    is_url = bool(mark) and scheme not in _LOCAL
    if is_url and (scheme == _NOBODYS or not place.strip("/")):
        why = "it names no place" if scheme != _NOBODYS else "it is the memory of one process"
        raise names.refused(given.checkpoints, "the checkpoints", why, "write for example s3://bucket/run-42")
    if given.claim is not None and (is_url or not _below_mount(given.checkpoints)):
        why = f"the claim is mounted at {CLAIM_MOUNT}"
        raise names.refused(given.checkpoints, "the checkpoints", why, f"give a path below {CLAIM_MOUNT}, or no claim")
    if given.claim is None and not is_url:
        why = "a path within the pod ends with the pod"
        raise names.refused(given.checkpoints, "the checkpoints", why, "give a URL, or a claim with --claim")


def _below_mount(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return parts[:2] == ("/", CLAIM_MOUNT[1:]) and ".." not in parts


def _check_environment(given: Submission) -> None:
    for name in (*given.env, *given.secret_env):
        names.variable(name, "a variable")
        if name in _OWN_VARIABLES:
            do = next((do for own, do in _GIVEN_BY_US.items() if settings.variable(own) == name), "leave it out")
            raise SettingsError(f"cannot set {name}: the manifest says it, to Kubernetes as well; {do}")
    if both := sorted(given.env.keys() & given.secret_env.keys()):
        raise SettingsError(f"cannot set {both[0]} twice: as a value and from a Secret; leave one out")
    for name, value in given.env.items():
        names.word(value, f"the variable {name}")
        if promises_secret(name, variable=True):
            raise SettingsError(
                f"cannot write the value of {name} into a manifest: its name promises a secret, and manifests are read "
                f"by many; put it into a Secret and give --secret-env {name}=SECRET:KEY"
            )
    wanted = settings.resolve([settings.from_environment(given.env), parsed(given.command, given.env).setting_flags])
    if wanted.settings.pod_api is not None and not given.permissions:
        raise SettingsError(
            f"cannot set {POD_API_SETTING} alone: the pod has neither a token nor the right to ask; give --rbac, or "
            "leave it out"
        )
    for secret in given.secrets:
        names.subdomain(secret, "a Secret")
    for secret, at in given.secret_env.values():
        names.subdomain(secret, "a Secret")
        names.key(at, "a key")
