# SPDX-License-Identifier: Apache-2.0
"""What supervisors say to each other comes over the wire as it was said, and what is none of it is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from filled import filled

from resilient.core import wire
from resilient.supervisor.pod_words import FROM_LEADER, TO_LEADER, Word

EVERY: dict[str, type[Word]] = {**TO_LEADER, **FROM_LEADER}


@pytest.mark.parametrize("name", EVERY)
def test_a_word_is_heard_as_it_was_said(name: str) -> None:
    """With every field of it filled, and of all that is in it; whoever has no use for it refuses it."""
    word = filled(EVERY[name])
    defaults = {f.name: f.default for f in dataclasses.fields(word) if f.default is not dataclasses.MISSING}
    assert all(getattr(word, field) != default for field, default in defaults.items())
    line = wire.encode(word)
    assert line.count(b"\n") == 1
    for kinds in (TO_LEADER, FROM_LEADER):
        if name in kinds:
            assert wire.decode(line, kinds) == word
        else:
            with pytest.raises(ValueError, match="not one of the expected types"):
                wire.decode(line, kinds)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrong", [{"a": []}, [[]], "x", 1.5, None, True])
def test_no_field_takes_what_does_not_belong_there(name: str, wrong: object) -> None:
    """A wrong type in one field is a word that was never said; a field that is missing or unknown too."""
    data: dict[str, Any] = wire.to_data(filled(EVERY[name]))
    kinds = {name: EVERY[name]}
    hints = {field.name: str(field.type) for field in dataclasses.fields(EVERY[name])}
    for field, hint in hints.items():
        fits = (type(wrong).__name__ in hint.split(" | ")) or (wrong is None and "None" in hint)
        if not fits:
            with pytest.raises(ValueError, match=field):
                wire.decode(json.dumps({**data, field: wrong}), kinds)
    with pytest.raises(ValueError, match="unknown field 'more'"):
        wire.decode(json.dumps({**data, "more": wrong}), kinds)
    del data["address"]
    with pytest.raises(ValueError, match="'address' is missing"):
        wire.decode(json.dumps(data), kinds)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"Begin"', "{}", '{"type": 7}', '{"type": ["Begin"]}', '{"type": "Letter"}',
     '{"type": "Begin"}', "[" * 100_000, '{"type": "Left", "pod": ' + "1" * 5000 + ', "address": "x", "why": "y"}',
     "\ud800", "Begin(pod=0)"],
)  # fmt: skip
@pytest.mark.parametrize("kinds", [TO_LEADER, FROM_LEADER])
def test_garbage_is_no_word(text: str, kinds: dict[str, type[Word]]) -> None:
    """``ValueError``, and nothing else: that is what a mail drops."""
    with pytest.raises(ValueError, match=r"\w"):
        wire.decode(text, kinds)
