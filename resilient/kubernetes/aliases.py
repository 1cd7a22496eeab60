# SPDX-License-Identifier: Apache-2.0
"""What stands in several places of a document by an anchor and its aliases, and so cannot be changed in one of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Places = Mapping[int, Collection[str]]
"""Parts of a tree, by identity, and their keys that may change."""


class Rest:
    """All of a tree but what may change in it."""

    def __init__(self, tree: Any, places: Places) -> None:
        self._places = places
        self._met: set[int] = set()
        self.is_shared = False
        """One of the places stands in the tree more than once."""
        self.data = self._without(tree)

    def _without(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._without(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        left_out = self._places.get(id(node), ())
        if left_out:
            self.is_shared = self.is_shared or id(node) in self._met
            self._met.add(id(node))
        return {key: self._without(value) for key, value in node.items() if key not in left_out}
