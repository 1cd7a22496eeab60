# SPDX-License-Identifier: Apache-2.0
"""Manifests as text: read as kubectl reads them, with lines, within limits, and written again as they were."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.errors import SettingsError
from resilient.kubernetes import building, documents
from resilient.kubernetes.documents import Document, read

MANIFESTS = sorted((Path(__file__).parents[1] / "examples").rglob("*.yaml"))
HELM = """\
# Source: chart/templates/a.yaml
---
# nothing was enabled here
---
# Source: chart/templates/job.yaml
apiVersion: batch/v1
kind: Job   # the one
metadata: {name: "a"}
spec:
    template:
        spec:
            containers:
            - name: t   # first
              args: ['a', "b", yes, 012]

            - name: u
--- # with a word
{a: 1}
...
# after
b: 2
---
"""


def data_of(text: str | bytes) -> Any:
    """The data of a text with one document."""
    (document,) = read(text, "x.yaml")
    return document.data


def refusal(text: str | bytes) -> str:
    """Why a text is not read."""
    with pytest.raises(SettingsError) as caught:
        read(text, "x.yaml")
    return str(caught.value)


def test_documents_have_data_and_lines() -> None:
    """Each part's line is that of its key or item, and that of what surrounds it where it is missing."""
    job, flow, bare = read(HELM, "x.yaml")
    assert job.data["metadata"] == {"name": "a"}
    assert (flow.data, bare.data) == ({"a": 1}, {"b": 2})
    containers = ("spec", "template", "spec", "containers")
    assert [job.line(()), job.line(("kind",)), job.line(("metadata", "name"))] == [6, 7, 8]
    assert [job.line((*containers, 0)), job.line((*containers, 0, "args", 3)), job.line((*containers, 1))] == [
        13,
        14,
        16,
    ]
    assert job.line((*containers, 1, "env", 0, "name")) == 16
    assert job.line(("status",)) == 6
    assert (flow.line(("a",)), bare.line(("b",))) == (18, 21)


@pytest.mark.parametrize("text", [HELM, *(path.read_text() for path in MANIFESTS)])
def test_what_is_read_can_be_written_again(text: str) -> None:
    """The texts of the documents are the file, and an unchanged tree gives the document's text."""
    found = read(text, "x.yaml")
    assert "".join(document.head + document.body + document.tail for document in found) == text
    for document in found:
        if "    template" not in document.body:  # four spaces become two
            assert documents.dump(documents.tree(document), document) == document.head + document.body + document.tail


def test_an_edited_tree_keeps_the_rest() -> None:
    """Comments, order, quotes and bare words stay; what is new is quoted where kubectl would misread it."""
    text = "# why\nb: yes  # bare\na: 'q'\nmode: 0644\nlist:\n- one  # first\n- two\nlong: " + "word " * 60 + "end\n"
    (document,) = read(text, "x.yaml")
    edited = documents.tree(document)
    assert documents.dump(edited, document) == text
    edited["new"] = documents.fresh({"values": ["on", "012", "120", "word", 7], "none": None})
    edited["list"].append("y")
    written = documents.dump(edited, document)
    assert [line for line in text.splitlines() if line not in written.splitlines()] == []
    assert data_of(written) == {
        **data_of(text),
        "list": ["one", "two", "y"],
        "new": {"values": ["on", "012", "120", "word", 7], "none": None},
    }


def test_words_are_read_as_kubectl_reads_them() -> None:
    """Which is neither YAML 1.2 nor quite 1.1: no sexagesimal numbers, no dates."""
    bare = "yes, On, n, ~, 0644, 0o17, 0x1f, -0b11, 1_000, 1e3, .5, 12:30, 2024-01-02, 1.2.3, +.inf, 0x, 08, y"
    assert data_of(f"[{bare}]")[:-3] == (
        [True, True, False, None, 420, 15, 31, -3, 1000, 1000.0, 0.5, "12:30", "2024-01-02", "1.2.3", math.inf]
    )
    assert data_of(f"[{bare}]")[-3:] == ["0x", 8.0, True]
    assert data_of("['yes', \"012\", !!str 7, !!float 7, !custom 7, !!binary aGk=]") == [
        "yes",
        "012",
        "7",
        7.0,
        "7",
        "hi",
    ]
    assert data_of("18446744073709551616") == float(1 << 64)
    assert data_of("{1: a, on: b, 2.5: c}") == {"1": "a", "true": "b", "2.5": "c"}


def test_anchors_and_merges() -> None:
    """An alias repeats; of merged mappings the earlier wins, and what is written out wins over both."""
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz:\n  c: 3\n  <<: [*x, *y]\nk: &k name\n*k : *x\n"
    assert data_of(text)["z"] == {"a": 1, "b": 1, "c": 3}
    assert data_of(text)["name"] == {"a": 1, "b": 1}
    assert data_of("'<<': 1") == {"<<": 1}


def test_json_is_read_too() -> None:
    """Also where it is indented with tabs, and with characters in two escapes."""
    value = {"a": ["\U0001f600", "tab\there", "/"], "b": {"c": None, "d": [1, 2.5, True]}}
    assert data_of(json.dumps(value, indent="\t")) == value
    assert data_of("\ufeff" + json.dumps(value).replace("/", "\\/")) == value
    assert (
        refusal('{"a":\t1')
        == "cannot read x.yaml: line 1: expected ',' or '}', but got '<stream end>'; make it valid YAML or JSON"
    )


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]\n" for n in range(70))
REFUSED = {
    "a: 1\nb: 2\na: 3": "line 3: the key 'a' stands already in line 1; remove one of the two",
    '{"a": {"b": 1, "b": 1}}': "line 1: the key 'b' stands already in line 1; remove one of the two",
    "a: 1\n1: 2\n'1': 3": "line 3: the key '1' stands already in line 2; remove one of the two",
    "a: [": "line 1: expected the node content, but found '<stream end>'; make it valid YAML or JSON",
    "a: {{ .Values.name }}": "line 1: a key is a list or mapping; give a text as key",
    "? [1]\n: 2": "line 1: a key is a list or mapping; give a text as key",
    "~: 1": "line 1: a key is empty; give a text as key",
    "a: *b": "line 1: *b stands for nothing that ends before it; write out what it means",
    "a: &a [1, *a]": "line 1: *a stands for nothing that ends before it; write out what it means",
    "a: &a {<<: *a}": "line 1: *a stands for nothing that ends before it; write out what it means",
    "<<: 1": "line 1: << merges something that is no mapping; let it name mappings",
    "a: !!int x": "line 1: a value is marked as !!int and is none; remove the mark",
    "a: !!binary '*'": "line 1: a value is marked as !!binary and is not base64; remove the mark",
    BOMB: "line 6: it has more than 100000 parts, with what its aliases repeat; write less into one document",
    DEEP: "line 64: it is nested more than 64 levels deep; nest it less",
    "[" * 65: "line 1: it is nested more than 64 levels deep; nest it less",
    "a: \x00": "the character U+0000 at 3 may not stand in YAML; make it valid YAML or JSON",
    b"a: 1\nb: \xff": "line 2: it is not text in UTF-8; save it as UTF-8",
    " " * (documents.MAX_BYTES + 1): "it is larger than 1048576 bytes; give the manifests of one training alone",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_is_refused_is_named_with_its_line(text: str | bytes, why: str) -> None:
    """Ambiguous, recursive, malformed and huge texts."""
    assert refusal(text) == f"cannot read x.yaml: {why}"


def test_limits_are_not_reached_by_what_is_allowed() -> None:
    """One level and one part less is read."""
    assert data_of("[" * 64 + "]" * 64)
    shared = "a: &a [" + "x," * 998 + "]\nb: [" + "*a," * 99 + "]"
    assert len(data_of(shared)["b"]) == 99 < building.MAX_PARTS


def test_secrets_do_not_get_into_messages() -> None:
    """A message names keys, which are redacted like all text of others."""
    assert "hf_" not in refusal("hf_abcdefghijklmnopqrstuvwx: 1\nhf_abcdefghijklmnopqrstuvwx: 2")


def test_files_and_what_is_none(tmp_path: Path) -> None:
    """A file that cannot be opened is named with the reason."""
    path = tmp_path / "job.yaml"
    path.write_text("a: 1\n")
    assert [document.name for document in documents.read_file(str(path))] == [str(path)]
    for wrong, why in (
        (str(tmp_path / "no"), "No such file"),
        (str(tmp_path), "Is a directory"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(SettingsError, match=f"cannot read .*{why}.*; name a file with manifests, or - for stdin"):
            documents.read_file(wrong)


def read_or_refuse(text: str | bytes) -> tuple[Document, ...]:
    """The documents, of which there are none where the text is refused."""
    try:
        return read(text, "x.yaml")
    except SettingsError:
        return ()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    """Nothing else than ``SettingsError`` comes out."""
    read_or_refuse(text)


@given(st.text(alphabet="ab01 \n:-[]{},&*<!|>'\"#%?\\x.~yn\t@`", max_size=60))
def test_any_yaml_is_read_or_refused(text: str) -> None:
    """Whatever is read is whole in its texts, has a line for every part, and can be edited and written."""
    found = read_or_refuse(text)
    assert not found or "".join(document.head + document.body + document.tail for document in found) == text
    for document in found:
        assert all(1 <= line <= text.count("\n") + 1 for line in document.lines.values())


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=4))
def test_what_is_dumped_is_read_back(value: dict[str, Any]) -> None:
    """Whatever text a value holds, kubectl's reading gives it back; so does the dump of an edited tree."""
    written = documents.dump(documents.fresh(value))
    (document,) = read(written, "x.yaml")
    assert document.data == value
    assert data_of(documents.dump(documents.tree(document), document)) == value


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_any_json_is_read(value: dict[str, Any]) -> None:
    """With all characters that JSON can hold, in escapes or bare."""
    assert data_of(json.dumps(value, indent="\t").replace("\x7f", "\\u007f")) == value
