# SPDX-License-Identifier: Apache-2.0
"""What the manifest of a checkpoint of torch.distributed.checkpoint says, and what is refused when it is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import resilient.dcp
from resilient.checkpoint.digest import digest
from resilient.dcp.manifest import MANIFEST, Manifest, decode, encode
from resilient.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    save({"a": torch.zeros(4, 2), "b": 1}, storage_writer=resilient.dcp.Writer(tmp_path))
    return decode((tmp_path / MANIFEST).read_bytes(), "here")


def test_a_manifest_comes_back(manifest: Manifest) -> None:
    """As plain JSON, and equal."""
    assert decode(encode(manifest), "here") == manifest
    body = json.loads(encode(manifest))["checkpoint"]
    assert body["tensors"]["a"] == ["float32", [4, 2], [[[0, 0], [4, 2], 0]]]
    assert body["world_size"] == 1


def forged(manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest with a change and a digest that fits."""
    body = json.loads(encode(manifest))["checkpoint"]
    change(body)
    text = json.dumps(body, separators=(",", ":")).encode()
    return b'{"digest":"%s","checkpoint":%s}' % (digest(text).encode(), text)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda body: body.update(format=2), "its format is 2"),
        (lambda body: body.update(more=1), "other fields"),
        (lambda body: body.update(world_size=0), "out of range"),
        (lambda body: body["files"][0].__setitem__(0, "../../etc/passwd"), "foreign name"),
        (lambda body: body["files"][0].__setitem__(0, "/etc/passwd"), "foreign name"),
        (lambda body: body["files"].append(body["files"][0]), "foreign name"),
        (lambda body: body["files"][0].__setitem__(1, -1), "no size"),
        (lambda body: body["tensors"].update(a=["float32", [4, 2], [[[0, 0], [3, 2], 0]]]), "do not make up"),
        (lambda body: body["tensors"].update(a=["float32", [4, 2], [[[1, 0], [4, 2], 0]]]), "do not make up"),
        (lambda body: body["tensors"].update(a=["float32", [4, 2], [[[0, 0], [2, 2], 0]] * 2]), "do not make up"),
        (lambda body: body["tensors"].update(a=["float32", [0], []]), "do not make up"),
        (lambda body: body["tensors"].update(a=["float32", [4, 2], [[[0, 0], [4, 2], 9]]]), "does not list"),
        (lambda body: body["tensors"].update(a=["object", [4, 2], []]), "no dtype known"),
        (lambda body: body["tensors"].update(a=["float32", [1 << 60], []]), "no array can have"),
        (lambda body: body["objects"].update(a=0), "there twice"),
        (lambda body: body.update(planner='{"$evil": 1}'), "unknown type"),
    ],
)
def test_a_manifest_that_says_what_no_save_says_is_refused(
    manifest: Manifest, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    """Even where its digest fits: names stay inside, and no part of a tensor would be left as it is."""
    with pytest.raises(CheckpointError, match=why):
        decode(forged(manifest, change), "here")


def test_a_manifest_that_names_another_files_content_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    """A whole file, with its own digest, that does not hold what it should."""
    swapped = forged(manifest, lambda body: body["tensors"].update(a=["float16", [4, 2], [[[0, 0], [4, 2], 0]]]))
    renamed = forged(manifest, lambda body: body.update(tensors={"c": body["tensors"]["a"]}))
    reader = resilient.dcp.Reader(tmp_path)
    (tmp_path / MANIFEST).write_bytes(swapped)
    with pytest.raises(CheckpointException, match="another form than the manifest says"):
        load({"a": torch.zeros(4, 2).half()}, storage_reader=reader)
    (tmp_path / MANIFEST).write_bytes(renamed)
    with pytest.raises(CheckpointException, match="does not hold it"):
        load({"c": torch.zeros(4, 2)}, storage_reader=reader)
