# SPDX-License-Identifier: Apache-2.0
"""One Job of somebody's while the contract is added to it.

What is there and agrees is kept; what contradicts the contract and cannot be told from a wish is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from resilient import settings
from resilient.core.backstop import FAULTS_PER_DEVICE_DAY, Plan
from resilient.core.pod_status import PodAccess
from resilient.core.redact import Redactor
from resilient.errors import SettingsError
from resilient.kubernetes import documents, downward, names, pod, writing
from resilient.kubernetes.aliases import Places
from resilient.kubernetes.api_resources import is_extended
from resilient.kubernetes.documents import Document
from resilient.kubernetes.submission import check_time, check_url

GRACE_S: Final = 120
UNLIMITED: Final = 2**31 - 1
"""What ``backoffLimit`` is by default beside a limit for each index."""
_INITS: Final = ("tini", "dumb-init", "catatonit")
_SHELLS: Final = ("sh", "bash", "dash", "zsh", "ash")
_CONTAINER: Final = ("spec", "template", "spec", "containers", 0)
"""How far in most of it stands, where a line has less room."""
_SHOWN_CHARS: Final = 300
_COUNTERS: Final = ("completions", "parallelism", "backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes")
_OF_JOB: Final = frozenset((*_COUNTERS, "completionMode", "podReplacementPolicy", "podFailurePolicy"))
_OF_ACCOUNT: Final = ("serviceAccountName", "automountServiceAccountToken")
_OF_POD: Final = frozenset(("restartPolicy", "terminationGracePeriodSeconds", "tolerations", "volumes", *_OF_ACCOUNT))
_OF_CONTAINER: Final = frozenset(
    ("command", "env", "volumeMounts", "terminationMessagePolicy", "restartPolicy", "restartPolicyRules")
)
_JOURNAL: Final = "resilient-journal"
_SHM: Final = "resilient-shm"
_SNAPSHOTS: Final = "resilient-snapshots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What the manifest itself does not say."""

    container: str | None = None
    """The training's, where a pod has several."""
    checkpoints: str | None = None
    grace_s: int | None = None
    """``None``: what the manifest says, else 120 s."""
    days: float = 30.0
    faults_per_device_day: float = FAULTS_PER_DEVICE_DAY
    restart_rules: bool = False
    sidecars: bool = False
    permissions: bool = False
    """Let the pods annotate themselves, write Events and read their own status."""
    namespace: str | None = None
    """Where the permissions are to hold, if the manifest does not say it."""

    def __post_init__(self) -> None:
        check_time(GRACE_S if self.grace_s is None else self.grace_s, self.days, self.faults_per_device_day)
        if self.checkpoints is not None:
            check_url(self.checkpoints)


def plain(node: Any) -> Any:
    """A tree as dicts, lists and scalars."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items()}
    return [plain(item) for item in node] if isinstance(node, list) else node


def refused(document: Document, why: str, do: str) -> SettingsError:
    """The complaint; ``why`` may quote the manifest."""
    shown = Redactor().clean(why, _SHOWN_CHARS).replace("\n", " ")
    return SettingsError(f"cannot add the contract to {document.name}: {shown}; {do}")


def mapping(document: Document, part: Any, what: str) -> Any:
    """A part that must be a mapping."""
    if not isinstance(part, Mapping):
        raise refused(document, f"a {what} in it is no mapping, or missing", "complete it first")
    return part


def mappings(document: Document, part: Any, what: str) -> list[Any]:
    """A part that must be a list of mappings, or missing."""
    items = part or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise refused(document, f"its {what} are no list of mappings", "correct it first")
    for item in items:
        if any(not isinstance(item[key], str | None) for key in ("name", "key") if key in item):
            raise refused(document, f"one of its {what} has a name that is no text", "put it into quotes")
    return items


class JobDraft:
    """One Job's spec while the contract is added to it."""

    def __init__(
        self, spec: Any, asked: Addition, document: Document, uid: str, pods: int | None, notes: list[str]
    ) -> None:
        self._spec, self._asked, self._document, self._uid, self._notes = spec, asked, document, uid, notes
        self._pods = pods
        self._granted: Mapping[str, object] = {}
        self._template = mapping(document, spec.get("template"), "template of a Job")
        self._pod = mapping(document, self._template.get("spec"), "pod template")
        self._container = self._find_container()
        self._check_shape()
        is_one = (pods or spec.get("completions", spec.get("parallelism", 1))) == 1
        self._outlives = asked.restart_rules and is_one  # no pod of several has all snapshots
        self._keeps_snapshots = self._outlives and not self._says("RESILIENT_SNAPSHOTS", "--snapshots")

    @property
    def pod(self) -> Mapping[str, Any]:
        """The pod's spec."""
        return self._pod  # type: ignore[no-any-return]  # a mapping of ruamel's

    def grant(self, fields: Mapping[str, object]) -> None:
        """What the pod has to say of its account and token."""
        self._granted = fields

    def complete(self) -> Plan:
        """All of the contract, part by part; what the backstop was sized by."""
        plan = self._counters()
        self._policy()
        self._end_of_pod()
        self._placing()
        self._mounts()
        self._environment()
        self._command()
        return plan

    @property
    def places(self) -> Places:
        """Where something may change."""
        metadata = self._template.get("metadata")
        return {
            id(self._spec): _OF_JOB,
            id(self._template): () if metadata else ("metadata",),
            id(metadata): ("labels", "annotations"),
            id(self._pod): _OF_POD,
            id(self._container): _OF_CONTAINER,
        }

    def _check_shape(self) -> None:
        """Parts that are added to are what the API has there; the rest is not looked at."""
        document = self._document
        for place, keys in ((self._pod, ("volumes", "tolerations")), (self._container, ("env", "volumeMounts"))):
            for key in keys:
                mappings(document, place.get(key), key)
        metadata = mapping(document, self._template.get("metadata") or {}, "metadata of a pod template")
        for key in ("labels", "annotations"):
            mapping(document, metadata.get(key) or {}, key)
        for key in ("command", "args"):
            words = self._container.get(key) or []
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise refused(document, f"its {key} is no list of words", "write it as one, with quotes where needed")

    def _find_container(self) -> Any:
        listed = mappings(self._document, self._pod.get("containers"), "containers")
        if not all(each.get("name") for each in listed):
            raise refused(self._document, "a container of it has no name", "give it one")
        containers = {str(each["name"]): each for each in listed}
        wanted = self._asked.container
        if wanted is None and len(containers) == 1:
            return next(iter(containers.values()))
        if wanted in containers:
            return containers[wanted]
        known = ", ".join(containers) or "none"
        raise refused(self._document, f"its containers are {known}", "name the training's with --container")

    def _counters(self) -> Plan:
        spec = self._spec
        parallel = spec.get("parallelism", 1)
        pods = self._pods or spec.get("completions", parallel)
        if self._pods is None and pods != parallel:
            why = f"it has {spec.get('completions')} completions and a parallelism of {parallel}"
            raise refused(self._document, why, "a training needs all its pods at a time: make them equal")
        if type(pods) is not int or pods < 1:
            raise refused(self._document, f"it has {pods!r} pods", "give it a number of them: 1 or more")
        plan = Plan(
            devices=pods * max(1, devices_of(self._container)),
            days=self._asked.days,
            faults_per_device_day=self._asked.faults_per_device_day,
        )
        put(spec, "completionMode", "Indexed", before="template")
        if self._pods is None:
            put(spec, "completions", pods, before="template")
            put(spec, "parallelism", pods, before="template")
        for key, value in (("backoffLimitPerIndex", plan.backstop), ("maxFailedIndexes", 0)):
            if key not in spec:
                put(spec, key, value, before="template")
        if "backoffLimit" in spec and spec["backoffLimit"] != UNLIMITED:
            spec["backoffLimit"] = UNLIMITED
        put(spec, "podReplacementPolicy", "Failed", before="template")
        return plan

    def _policy(self) -> None:
        name, rules = self._container["name"], self._asked.restart_rules
        policy = writing.plain(pod.failure_policy(name, restart_rules=rules))
        existing = self._spec.get("podFailurePolicy")
        if existing is None:
            put(self._spec, "podFailurePolicy", policy, before="template")
        elif plain(existing) != policy:
            why = "it has a podFailurePolicy of its own, and rules of two minds cannot be told apart"
            raise refused(self._document, why, "remove it, or compare it with resilient manifest job")
        wanted = {"restartPolicy": "Never", "restartPolicyRules": writing.plain(pod.restart_rules())} if rules else {}
        for key, value in wanted.items():
            if key in self._container and plain(self._container[key]) != value:
                raise refused(self._document, f"its container has a {key} of its own", "remove it, or --restart-rules")
            if key not in self._container:
                put(self._container, key, value)

    def _end_of_pod(self) -> None:
        put(self._pod, "restartPolicy", "Never", before="containers")
        if self._asked.grace_s is not None or "terminationGracePeriodSeconds" not in self._pod:
            put(self._pod, "terminationGracePeriodSeconds", self._asked.grace_s or GRACE_S, before="containers")
        if "terminationMessagePolicy" not in self._container:
            put(self._container, "terminationMessagePolicy", "FallbackToLogsOnError")
        for key, value in self._granted.items():
            put(self._pod, key, value, before="containers")

    def _placing(self) -> None:
        if not self._asked.sidecars:
            metadata = _within(self._template, "metadata", {}, before="spec")
            labels = _within(metadata, "labels", {})
            annotations = _within(metadata, "annotations", {})
            for place, key, value in ((labels, *pod.NO_ISTIO), (annotations, *pod.NO_LINKERD)):
                place.setdefault(key, value)
        tolerations = _within(self._pod, "tolerations", [])
        tolerated = {each.get("key") for each in tolerations}
        for toleration in writing.plain(pod.tolerations()):
            if toleration["key"] not in tolerated:
                tolerations.append(_tree(toleration, ("tolerations", 0)))

    def _mounts(self) -> None:
        mounts = _within(self._container, "volumeMounts", [])
        volumes = _within(self._pod, "volumes", [])
        mounted = {str(each.get("mountPath")).rstrip("/") for each in mounts}
        wanted = [(_JOURNAL, pod.JOURNAL, {}), (_SHM, "/dev/shm", {"medium": "Memory"})]
        if self._keeps_snapshots:
            wanted.append((_SNAPSHOTS, pod.SNAPSHOTS, {"medium": "Memory"}))
        for name, path, source in wanted:
            if path not in mounted:
                mounts.append(_tree({"name": name, "mountPath": path}, ("volumeMounts", 0)))
                volumes.append(_tree({"name": name, "emptyDir": source}, ("volumes", 0)))

    def _environment(self) -> None:
        env = _within(self._container, "env", [])
        known = {each.get("name"): each for each in env}
        grace = str(self._pod["terminationGracePeriodSeconds"])
        told: dict[str, Any] = {
            "RESILIENT_CHECKPOINTS": self._checkpoints(known),
            "RESILIENT_JOURNAL": pod.JOURNAL,
            settings.GRACE_S: grace,
        }
        fields = {"RESILIENT_SUBMISSION": self._uid, **downward.COUNTERS, **downward.PLACE}
        if self._keeps_snapshots:
            told["RESILIENT_SNAPSHOTS"] = pod.SNAPSHOTS
        if self._granted:
            told[downward.POD_API_SETTING] = PodAccess.WRITE.value
        if self._outlives or self._granted:
            fields |= downward.POD_UID
        for name, value in told.items():
            if value is not None and name not in known:
                env.append(_tree({"name": name, "value": names.literal(value)}, ("env", 0)))
        if settings.GRACE_S in known and known[settings.GRACE_S].get("value") != grace:
            put(known[settings.GRACE_S], "value", grace)
        for name, path in fields.items():
            if name not in known:
                env.append(_tree(writing.plain(pod.from_field(name, path)), ("env", 0)))

    def _says(self, variable: str, flag: str) -> bool:
        """Whether the manifest itself has a setting."""
        words = [*(self._container.get("command") or ()), *(self._container.get("args") or ())]
        return flag in words or variable in {each.get("name") for each in self._container.get("env") or ()}

    def _checkpoints(self, known: Mapping[str, Any]) -> str | None:
        """Where checkpoints go; None where the manifest says so already."""
        asked = self._asked.checkpoints
        if asked is None and self._says("RESILIENT_CHECKPOINTS", "--checkpoints"):
            return None
        if asked is None:
            why = "where checkpoints go is not said in it"
            raise refused(self._document, why, "give a URL, or a path on a volume of its, with --checkpoints")
        if "RESILIENT_CHECKPOINTS" in known and known["RESILIENT_CHECKPOINTS"].get("value") != asked:
            raise refused(self._document, "it sets RESILIENT_CHECKPOINTS already", "leave --checkpoints out")
        lost = {each.get("name") for each in self._pod.get("volumes") or () if "emptyDir" in each}
        kept = [each for each in self._container.get("volumeMounts") or () if each.get("name") not in lost]
        if "://" not in asked and not any(_holds(mount, asked) for mount in kept):
            why = f"no volume that outlives the pod is mounted at or above {asked}"
            raise refused(self._document, why, "mount one, or give a URL")
        return asked

    def _command(self) -> None:
        command = self._container.get("command")
        if not command:
            why = f"container {self._container['name']} has no command, so it runs its image's entry point"
            raise refused(self._document, why, "write that out as `command`, so that resilient run can stand before it")
        at = _after_init(command)
        if command[at : at + 2] == ["resilient", "run"]:
            return
        if at < len(command) and PurePath(command[at]).name in _SHELLS:
            self._notes.append(
                "the command is a shell's: it is supervised as one process; put exec before the training in it, or "
                "call it without the shell, for verdicts on single ranks"
            )
        for word in reversed(("resilient", "run", "--")):
            command.insert(at, word)


def devices_of(container: Mapping[str, Any]) -> int:
    """How many devices a container asks for."""
    resources = container.get("resources")
    limits = resources.get("limits") if isinstance(resources, Mapping) else None
    counts = [str(limits[name]) for name in limits if is_extended(str(name))] if isinstance(limits, Mapping) else []
    return sum(int(count) for count in counts if re.fullmatch(r"[0-9]{1,6}", count))


def _after_init(command: list[Any]) -> int:
    """Where the training's own command begins behind an init."""
    if PurePath(str(command[0])).name not in _INITS:
        return 0
    at = 1
    while at < len(command) and str(command[at]).startswith("-"):
        at += 1
        if command[at - 1] == "--":
            break
    return at


def _holds(mount: Mapping[str, Any], path: str) -> bool:
    return PurePath(path).is_relative_to(str(mount.get("mountPath"))) and ".." not in PurePath(path).parts


def put(place: Any, key: str, value: Any, *, before: str = "") -> None:
    """A key with its only right value; a new one goes before another, where that is there."""
    if key in place:
        if place[key] != value:
            place[key] = _tree(value, (key,))
        return
    place.insert(list(place).index(before) if before in place else len(place), key, _tree(value, (key,)))


def _within(place: Any, key: str, empty: Any, *, before: str = "") -> Any:
    """What is below a key, made where it is not."""
    if not place.get(key):
        put(place, key, None, before=before)
        place[key] = documents.fresh(empty)
    return place[key]


def _tree(value: Any, path: writing.Path) -> Any:
    return writing.styled(value, (*_CONTAINER, *path)) if isinstance(value, dict | list) else value
