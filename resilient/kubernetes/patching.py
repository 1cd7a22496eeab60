# SPDX-License-Identifier: Apache-2.0
"""What a person wants otherwise in a generated manifest: strategic merge patches, as kubectl has them, or JSON's.

The JSON merge patch is RFC 7386. Which lists are merged by which key is Kubernetes' own table
(``x-kubernetes-patch-merge-key`` in its API's description); JobSet's list of replicated Jobs is merged by name too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from resilient.errors import SettingsError
from resilient.kubernetes.documents import Document
from resilient.settings import GRACE_S

STRATEGIC: Final = "strategic"
MERGE: Final = "merge"
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "evictionResponders": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),
    "replicatedJobs": ("name",),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""The key by which a list is merged; ``ports`` are a container's or a Service's."""
SETS: Final = frozenset({"finalizers"})
"""Lists of words that are added to."""
_DIRECTIVE: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_IDENTITY: Final = ("apiVersion", "kind", "metadata.name", "metadata.namespace")
_TRAININGS: Final = ("Job", "JobSet", "TrainingRuntime", "ClusterTrainingRuntime")


def patched(trees: Sequence[Any], patches: Sequence[Document], kind: str) -> list[Any]:
    """The objects after all patches, each applied to the object of its kind; without one, to the training."""
    done = list(trees)
    for patch in patches:
        at = _target(done, patch)
        before, after = done[at], _apply(done[at], patch, kind)
        for name in _IDENTITY:
            if _identity(before, name) != _identity(after, name):
                raise _refused(patch, f"it changes {name}", "give it to resilient manifest as a flag")
        _check_grace(after, patch)
        done[at] = after
    return done


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386: mappings are merged, null removes, all else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    old = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            old.pop(key, None)
        else:
            old[key] = merged(old.get(key), value)
    return old


def _apply(tree: Any, patch: Document, kind: str) -> Any:
    if kind == MERGE:
        return merged(tree, patch.data)
    return _Strategic(patch).mapping(tree, patch.data)


def _target(trees: Sequence[Any], patch: Document) -> int:
    """Which object a patch is for."""
    if not isinstance(patch.data, Mapping):
        raise _refused(patch, "it is no mapping", "write it as a part of the object that it changes")
    kind = patch.data.get("kind")
    name = _identity(patch.data, "metadata.name")
    fits = [
        at
        for at, tree in enumerate(trees)
        if (tree["kind"] == kind if kind else tree["kind"] in _TRAININGS) and name in (None, tree["metadata"]["name"])
    ]
    if not fits:
        kinds = ", ".join(f"{tree['kind']} {tree['metadata']['name']}" for tree in trees)
        raise _refused(
            patch, f"nothing in the manifest is {kind or 'a training'} {name or ''}".rstrip(), f"patch one of {kinds}"
        )
    return fits[-1]


def _identity(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _check_grace(node: Any, patch: Document) -> None:
    """A pod that believes in another grace period than its own is killed while it saves."""
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    if isinstance(node, Mapping) and "terminationGracePeriodSeconds" in node:
        grace = str(node["terminationGracePeriodSeconds"])
        env = [each for container in node.get("containers") or () for each in container.get("env") or ()]
        if any(each.get("value", grace) != grace for each in env if each.get("name") == GRACE_S):
            raise _refused(patch, f"it makes the grace period another than {GRACE_S}", "give --grace instead")
    for child in children:
        _check_grace(child, patch)


def _refused(patch: Document, why: str, do: str) -> SettingsError:
    return SettingsError(f"cannot apply the patch {patch.name}: {why}; {do}")


class _Strategic:
    """Kubernetes' strategic merge patch."""

    def __init__(self, patch: Document) -> None:
        self._patch = patch

    def mapping(self, target: Any, patch: Mapping[str, Any]) -> Any:
        """Merge a mapping, with its directives."""
        directive = patch.get(_DIRECTIVE, "merge")
        given = {key: value for key, value in patch.items() if not key.startswith("$")}
        unknown = [key for key in patch if key.startswith("$") and key not in (_DIRECTIVE, _RETAIN)]
        if unknown or directive not in ("merge", "replace", "delete"):
            what = unknown[0] if unknown else f"{_DIRECTIVE}: {directive}"
            raise _refused(self._patch, f"it has {what}", "use $patch: merge, replace or delete, or $retainKeys")
        if directive == "delete":
            return {}
        old = dict(target) if isinstance(target, Mapping) and directive == "merge" else {}
        if _RETAIN in patch:
            old = {key: value for key, value in old.items() if key in patch[_RETAIN]}
        for key, value in given.items():
            if value is None:
                old.pop(key, None)
            else:
                old[key] = self._value(key, old.get(key), value)
        return old

    def _value(self, key: str, old: Any, new: Any) -> Any:
        if isinstance(new, Mapping):
            return self.mapping(old, new)
        if not isinstance(new, list):
            return new
        if key in SETS and isinstance(old, list):
            return [*old, *(each for each in new if each not in old)]
        if key in KEYS and all(isinstance(each, Mapping) for each in new):
            return self._list(key, old if isinstance(old, list) else [], new)
        return [each for each in new if each != {_DIRECTIVE: "replace"}]  # as such a list is in any case

    def _list(self, key: str, old: list[Any], new: list[Any]) -> list[Any]:
        """Items merged by their key; new ones come last, where kubectl's would come first or last as it happens."""
        if any(each == {_DIRECTIVE: "replace"} for each in new):
            return [self.mapping({}, each) for each in new if each != {_DIRECTIVE: "replace"}]
        items = list(old)
        for each in new:
            name = next((name for name in KEYS[key] if name in each), None)
            if name is None:
                raise _refused(self._patch, f"an item of {key} has no {KEYS[key][0]}", "name the item that it changes")
            at = next((at for at, item in enumerate(items) if item.get(name) == each[name]), None)
            if each.get(_DIRECTIVE) == "delete":
                items = [item for item in items if item.get(name) != each[name]]
            elif at is None:
                items.append(self.mapping({}, each))
            else:
                items[at] = self.mapping(items[at], each)
        return items
