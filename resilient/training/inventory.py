# SPDX-License-Identifier: Apache-2.0
"""What a snapshot consists of: the state of a rank taken apart, again and again, while the training waits.

What a witness vouches for is taken apart once and looked at again at a glance. The rest is small: schedulers,
generators, the position in the data, learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from resilient.checkpoint import pair
from resilient.checkpoint.objects import encode_fields
from resilient.checkpoint.tensors import Flat, Gathering
from resilient.training import steady
from resilient.training.sharing import refuse_unrestorable
from resilient.training.state import OptimizerPart, Part
from resilient.training.witness import Witness, witness_of


class Inventory:
    """Gives the two flat states of a snapshot: see :mod:`resilient.checkpoint.pair`."""

    def __init__(self, parts: Mapping[str, Part], own: Callable[[], Mapping[str, object]]) -> None:
        """``own`` gives what is the rank's own, apart from the user's names."""
        self._parts = parts
        self._own = own
        self._base: _Base | None = None
        self.looks = 0
        """How often all was looked at anew."""

    def take(self, *, closely: bool) -> tuple[Flat, Flat]:
        """The state as it is now; its tensors are those of the training.

        ``closely``: look at all that could have changed in place. Else :meth:`is_as_taken` does so, and may be asked
        from another thread.
        """
        base = self._base
        is_known = base is not None and base.holds(closely=closely)
        if base is None or not is_known:
            base, self._base = _Base(self._parts), None
            self.looks += 1
        gathering = Gathering(behind=base.behind_of(self._parts), after=base.gathering)
        texts = {name: self._encoded(name, part, base, gathering) for name, part in self._parts.items()}
        own = encode_fields({name: gathering.encode(tree, ("run", name)) for name, tree in self._own().items()})
        if not is_known and gathering.has_views():
            # What the training has made since it began, as optimizers do, was not there when Run was built.
            refuse_unrestorable(self._parts, {name: part.capture() for name, part in self._parts.items()})
        self._base = base
        objects = encode_fields({"state": encode_fields(texts), "run": own})
        return base.joined(gathering, objects)

    def is_as_taken(self) -> bool:
        """Whether what was only glanced at has the shape and place that it was taken for; if not, it is forgotten."""
        holds = self._base is not None and self._base.gathering.are_as_they_were()
        if not holds:
            self._base = None
        return holds

    def _encoded(self, name: str, part: Part, base: _Base, gathering: Gathering) -> str:
        text, path = base.texts.get(name), ("state", name)
        if text is None:
            return gathering.encode(part.capture(), path)
        if isinstance(part, OptimizerPart):
            groups = gathering.encode(base.groups_of(name, part), (*path, "param_groups"))
            return encode_fields({"state": text, "param_groups": groups})
        return text


class _Base:
    """All that has a witness."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.texts: dict[str, str] = {}
        self._witnesses: list[Witness] = []
        self._numbers: dict[str, list[list[int]]] = {}
        self._behind = steady.behind(parts)
        self.gathering = Gathering(behind=self._behind)
        for name, part in parts.items():
            if (witness := witness_of(part)) is not None:
                self._witnesses.append(witness)
                self.texts[name] = self._encoded(name, part)
        self._first, self._own = pair.split(self.gathering.flat(""))

    def _encoded(self, name: str, part: Part) -> str:
        captured: Any = part.capture()
        if not isinstance(part, OptimizerPart):
            return self.gathering.encode(captured, ("state", name))
        self._numbers[name] = [group["params"] for group in captured["param_groups"]]
        return self.gathering.encode(captured["state"], ("state", name, "state"))

    def holds(self, *, closely: bool) -> bool:
        if not all(witness.holds() for witness in self._witnesses):
            return False
        return self.gathering.are_as_they_were() if closely else self.gathering.lie_where_they_lay()

    def behind_of(self, parts: Mapping[str, Part]) -> Collection[int]:
        """Ids of what changes in an optimizer's step only; one without a witness may keep others than it did."""
        known = all(name in self.texts for name, part in parts.items() if isinstance(part, OptimizerPart))
        return self._behind if known else steady.behind(parts)

    def groups_of(self, name: str, part: OptimizerPart) -> list[dict[str, Any]]:
        """As ``Optimizer.state_dict`` gives them."""
        groups = zip(part.optimizer.param_groups, self._numbers[name], strict=True)
        return [{**{k: v for k, v in group.items() if k != "params"}, "params": numbers} for group, numbers in groups]

    def joined(self, rest: Gathering, objects: str) -> tuple[Flat, Flat]:
        """With what came afterwards; the first of both is the very same as long as it can be."""
        first, own = pair.split(rest.flat(objects))
        if first.tensors:
            behind = {*self._first.behind, *first.behind}
            first = Flat(
                tensors={**self._first.tensors, **first.tensors},
                aliases={},
                objects="",
                behind=behind,
                wrapped={**self._first.wrapped, **first.wrapped},
            )
        else:
            first = self._first
        tensors: dict[str, Tensor] = {**self._own.tensors, **own.tensors}
        return first, Flat(tensors=tensors, aliases={**self._own.aliases, **own.aliases}, objects=objects)
