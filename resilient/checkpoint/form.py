# SPDX-License-Identifier: Apache-2.0
"""Whether a saved state fits the live one, judged before anything is written.

Owns what "form" means: types, the keys of mappings, shapes and dtypes of tensors. Values are not
form, and what is empty or None in the live state has no form yet: a new optimizer has no state, a
history no entries.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from resilient.checkpoint.objects import Path, render
from resilient.checkpoint.tensors import Flat, TensorName, skeleton, tensor_of

# A counter or a learning rate may turn from 0 to 0.5, and a tuple come back from a file as a list.
_FAMILIES: Final[Mapping[type, str]] = {
    **dict.fromkeys((bool, int, float), "number"),
    **dict.fromkeys((dict, OrderedDict, defaultdict), "dict"),
    **dict.fromkeys((list, tuple, deque), "list"),
    **dict.fromkeys((set, frozenset), "set"),
    Counter: "Counter",
    TensorName: "tensor",
    np.ndarray: "array",
}
_STRUCTURED: Final = frozenset({"tensor", "dict", "list"})


def compare(saved: Flat, live: Flat, *, path: Path = ("state",)) -> list[str]:
    """List what makes ``saved`` unfit to be loaded into ``live``, in words; nothing where it fits."""
    return list(_Comparison(saved, live).walk(skeleton(saved), skeleton(live), path))


class _Comparison:
    def __init__(self, saved: Flat, live: Flat) -> None:
        self._saved = saved
        self._live = live
        self._sources: dict[str, str] = {}

    def walk(self, saved: object, live: object, path: Path) -> Iterator[str]:
        if isinstance(saved, TensorName) and isinstance(live, TensorName):
            yield from self._tensors(saved.name, live.name, path)
        elif live is None or (saved is None and not isinstance(live, TensorName)):
            return
        elif (was := _family(saved)) != (now := _family(live)):
            yield f"{render(path)}: {was} in the checkpoint, {now} now"
        elif isinstance(saved, dict) and isinstance(live, dict) and now == "dict":
            yield from self._mappings(saved, live, path)
        elif isinstance(saved, (list, tuple, deque)) and isinstance(live, (list, tuple, deque)):
            yield from self._sequences(list(saved), list(live), path)
        elif isinstance(saved, np.ndarray) and isinstance(live, np.ndarray) and saved.dtype != live.dtype:
            yield f"{render(path)}: array of {saved.dtype} in the checkpoint, of {live.dtype} now"

    def _tensors(self, saved_name: str, live_name: str, path: Path) -> Iterator[str]:
        saved, live = tensor_of(self._saved, saved_name), tensor_of(self._live, live_name)
        if saved.shape != live.shape:
            yield f"{render(path)}: shape {tuple(saved.shape)} in the checkpoint, {tuple(live.shape)} now"
        if saved.dtype != live.dtype:
            yield f"{render(path)}: {saved.dtype} in the checkpoint, {live.dtype} now"
        source = self._saved.aliases.get(saved_name, saved_name)
        target = self._live.aliases.get(live_name, live_name)
        if self._sources.setdefault(target, source) != source:
            yield f"{render(path)}: a tensor of its own in the checkpoint, tied to {target} now"

    def _mappings(self, saved: Mapping[object, object], live: Mapping[object, object], path: Path) -> Iterator[str]:
        if not live:
            return
        yield from (f"{render((*path, key))}: only in the checkpoint" for key in saved if key not in live)
        yield from (f"{render((*path, key))}: not in the checkpoint" for key in live if key not in saved)
        for key in live:
            if key in saved:
                yield from self.walk(saved[key], live[key], (*path, key))

    def _sequences(self, saved: list[object], live: list[object], path: Path) -> Iterator[str]:
        # A list of numbers or words is data, and may be of any length.
        if live and len(saved) != len(live) and any(_family(item) in _STRUCTURED for item in (*saved, *live)):
            yield f"{render(path)}: {len(saved)} items in the checkpoint, {len(live)} now"
        for index, (was, now) in enumerate(zip(saved, live, strict=False)):
            yield from self.walk(was, now, (*path, index))


def _family(value: object) -> str:
    if isinstance(value, np.generic):
        return "number"
    return _FAMILIES.get(type(value), type(value).__name__)
