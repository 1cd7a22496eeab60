# SPDX-License-Identifier: Apache-2.0
"""Objects come back in type and value, all others are refused, and no text does anything but be read."""

import enum
import json
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import objects, same

from resilient.checkpoint.objects import decode, encode
from resilient.checkpoint.objects_reader import MAX_DEPTH
from resilient.errors import CheckpointError

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    """An int that is more than an int."""

    RED = 1


class Name(str):
    """A str that is more than a str."""

    __slots__ = ()


@settings(max_examples=300)
@given(objects)
def test_objects_come_back(value: object) -> None:
    """What is read is what was written: types, order, bits; and the text is plain ASCII."""
    text = encode(value)
    assert text.isascii()
    assert same(decode(text), value)
    assert encode(decode(text)) == text


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("-inf"), -0.0, 5e-324, 1e300, True, 1, 1.0, 10**5000, -(2**63), 2**63, 2**53 + 1,
        "\ud800\udc00", "\U00010000", "$tuple", {"$tuple": [1]}, {"$": 1, "a": 2}, {"": {}}, {1: "a", "1": "b"},
        {None: 3},
        {True: 0, 2.5: 1, b"b": 2, (1, ("x",)): 3, np.int64(7): 4}, {float("nan"): 1}, {10**5000: 1},
        deque([1, 2], 2), deque(maxlen=0), deque([1]), Counter({"b": 2, "a": -1}), OrderedDict([("b", 1), ("a", 2)]),
        defaultdict(None, {"a": 1}), defaultdict(int, {"a": 1}), frozenset({(1, 2)}), {"b", "a", b"a", 1, None},
        np.float64("nan"), np.bool_(True), np.array(3), np.zeros((0, 4), ">i2"), np.arange(6).reshape(2, 3).T,
        np.array([1 + 2j], np.complex64), [[], (), {}, set()],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_corners_come_back(value: object) -> None:
    """Values that JSON, or a careless encoding of it, would change."""
    assert same(decode(encode(value)), value)


def test_the_versions_of_modules_come_back() -> None:
    """A module's state_dict carries them in an attribute, and load_state_dict reads them there."""
    state = torch.nn.BatchNorm1d(2).state_dict()
    saved = OrderedDict((name, 0) for name in state)
    vars(saved)["_metadata"] = vars(state)["_metadata"]
    found = decode(encode(saved))
    assert same(found, saved)
    assert vars(found)["_metadata"][""] == {"version": 2}


def test_arrays_that_come_back_can_be_written_to() -> None:
    """A state that is loaded is changed by the next step."""
    found = decode(encode(np.zeros(2)))
    assert isinstance(found, np.ndarray)
    found[0] = 1.0
    assert found.tolist() == [1.0, 0.0]


def test_the_text_does_not_depend_on_the_process() -> None:
    """Sets of strings are ordered differently under another hash seed; their text is not."""
    code = (
        "import sys; from resilient.checkpoint.objects import encode; words = 'abcdefghij'; "
        "print(encode([set(words), frozenset(words), {frozenset(words): 1}]))"
    )
    root = str(Path(__file__).parents[1])
    texts = {
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": root})
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: None, "function"),
        (object(), "object"),
        (Point(1, 2), "plain tuple"),
        (Colour.RED, "plain int"),
        (Name("x"), "plain str"),
        (torch.Generator(), "Generator"),
        (torch.nn.Linear(1, 1), "put its state_dict() there"),
        (np.array([object()]), "array of plain numbers"),
        (np.array(["text"]), "array of plain numbers"),
        (np.datetime64("2024-01-01"), "datetime64"),
        (np.ma.masked_array([1]), "MaskedArray"),
        (np.longdouble(1), "numpy"),
        (defaultdict(lambda: 0), "defaultdict"),
        (bytearray(b"x"), "bytearray"),
        (range(3), "range"),
        (1j, "complex"),
        ({"inner": {1, Point(1, 2)}}, "Point"),
        ({Point(1, 2): 1}, "Point"),
        ({torch.float32: 1}, "dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_refused_with_its_path(value: object, says: str) -> None:
    """The person reads what it is, where it is and what to do."""
    with pytest.raises(CheckpointError) as caught:
        encode({"scheduler": [0, {"fn": value}]})
    message = str(caught.value)
    assert message.startswith("cannot save state['scheduler'][1]['fn']")
    assert says in message
    assert "; do " in message


def test_an_attribute_that_would_be_lost_is_refused() -> None:
    """An OrderedDict can carry more than its items."""
    value: OrderedDict[str, int] = OrderedDict()
    vars(value)["extra"] = 1
    with pytest.raises(CheckpointError, match="attribute 'extra'"):
        encode(value)


def _frozen(inner: object) -> object:
    return frozenset([inner])


def test_cycles_and_depth_are_refused() -> None:
    """A structure that contains itself ends in a sentence, not in a RecursionError."""
    cycle: list[object] = []
    cycle.append(cycle)
    makers: list[Callable[[object], object]] = [lambda x: [x], lambda x: (x,), lambda x: {0: x}, _frozen]
    for make in makers:
        deep: object = 0
        for _ in range(5000):
            deep = make(deep)
        with pytest.raises(CheckpointError, match="nested deeper"):
            encode(deep)
    with pytest.raises(CheckpointError, match="nested deeper"):
        encode(cycle)


def test_what_is_written_is_not_too_deep_to_be_read() -> None:
    """The limits of writing and reading are one."""
    deep: object = 0
    for _ in range(MAX_DEPTH - 1):
        deep = {1: deep}
    assert same(decode(encode(deep)), deep)


@pytest.mark.parametrize(
    "text",
    [
        "", "nul", "[1", "NaN", "Infinity", "1e999", "9" * 21, "-" + "9" * 5000, '{"a":1,"a":2}',
        '{"$tuple":[1],"x":2}',
        '{"$tuple":1}', '{"$tuple":{"a":1}}', '{"$no such tag":1}', '{"$builtins.eval":"1"}', '{"$":1}',
        '{"$tensor":"a"}',
        '{"$int":"12"}', '{"$int":1}', '{"$float":"1.5"}', '{"$float":1}', '{"$float":[]}', '{"$bytes":"*"}',
        '{"$bytes":1}',
        '{"$bytes":"\\u00e9"}', '{"$str":"/w=="}', '{"$set":[1,1]}', '{"$set":[[]]}', '{"$set":[{"$tuple":[[]]}]}',
        '{"$frozenset":1}', '{"$dict":1}', '{"$dict":[[1]]}', '{"$dict":[[1,2],[true,3]]}', '{"$dict":[[[],1]]}',
        '{"$Counter":[1]}', '{"$OrderedDict":[]}', '{"$OrderedDict":[[],1,2]}', '{"$defaultdict":["eval",[]]}',
        '{"$defaultdict":[[],[]]}', '{"$deque":[1,[1,2]]}', '{"$deque":[true,[]]}', '{"$deque":[-1,[]]}',
        '{"$deque":[99999999999999999999,[]]}', '{"$numpy":["|O",null,""]}', '{"$numpy":["<f4",null,""]}',
        '{"$numpy":["<f4",[2],"AAAAAA=="]}',
        '{"$numpy":["<f4",[-1],"AAAAAA=="]}', '{"$numpy":["<f4",[true],"AAAAAA=="]}',
        '{"$numpy":["|b1",null,"Ag=="]}', '{"$numpy":["<f8",[0,9223372036854775807,3],""]}', '{"$numpy":[[],null,""]}',
        '{"$numpy":["<f4",' + "[" * 70 + "]" * 70 + ',""]}', '{"$numpy":["<f4",[' + "0," * 70 + '0],""]}',
        "[" * 100 + "]" * 100, "[" * 100_000, '{"a":' * 100_000, '{"$tuple":[' * 100 + "]}" * 100,
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    """Whatever the text, the reader gives a value of the list or a CheckpointError."""
    with pytest.raises(CheckpointError, match=r"^cannot read the objects of a checkpoint: .+; do "):
        decode(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=2)
            | st.sampled_from(
                ["$int", "$numpy", "$dict", "$set", "$deque", "$OrderedDict", "$Counter", "$bytes", "$str"]
            ),
            inner,
            max_size=2,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300)
@given(json_values)
def test_no_json_crashes_the_reader(data: object) -> None:
    """Random JSON with real tags in it is read or refused, nothing else."""
    try:
        value = decode(json.dumps(data))
    except CheckpointError:
        return
    assert same(decode(encode(value)), value)
