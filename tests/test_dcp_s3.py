# SPDX-License-Identifier: Apache-2.0
"""torch.distributed.checkpoint to and from a server that speaks S3, by the same reader and writer."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import resilient.dcp
from resilient.checkpoint.store import open_store
from resilient.dcp.manifest import MANIFEST
from resilient.dcp.writer import FILE_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
URL = "s3://bucket/run/step-1"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """The file system of a server with an empty bucket."""
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        fs = s3fs.S3FileSystem(skip_instance_cache=True)
        with contextlib.suppress(FileExistsError):  # all servers of a process have the same buckets
            fs.mkdir("bucket")
        yield fs
        server.stop()


def state_of(seed: int) -> dict[str, Any]:
    large = torch.arange((9 << 20) // 4 + 1, dtype=torch.float32) * seed  # sent in parts
    return {"large": large, "small": torch.tensor([seed]), "step": seed}


def test_a_checkpoint_in_a_bucket_is_whole_or_refused(bucket: Any) -> None:
    """Saved, loaded, not overwritten, refused when an object was changed or lost, removed."""
    assert state_of(1)["large"].nbytes < FILE_BYTES
    save(state_of(1), storage_writer=resilient.dcp.Writer(URL))
    state = state_of(2)
    reader = resilient.dcp.Reader(URL)
    load(state, storage_reader=reader)
    assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(value)) for key, value in state_of(1).items())
    with pytest.raises(CheckpointException, match="none is ever overwritten"):
        save(state_of(2), storage_writer=resilient.dcp.Writer(URL))
    names = [entry.name for entry in open_store(URL).list(".")]
    assert sorted(re.sub(r"^[0-9a-f]{16}/", "", name) for name in names) == [
        MANIFEST,
        "rank-0-0.safetensors",
        "rank-0-1.safetensors",
    ]
    for name in names:
        path = f"bucket/run/step-1/{name}"
        whole = bucket.cat_file(path)
        for damaged in (None, whole[:-1], whole[:-2] + bytes([whole[-2] ^ 4]) + whole[-1:]):
            bucket.rm_file(path)
            if damaged is not None:
                bucket.pipe_file(path, damaged)
            state = state_of(2)
            with pytest.raises(CheckpointException, match="cannot "):
                load(state, storage_reader=reader)
            assert torch.equal(state["large"], state_of(2)["large"])
            assert state["step"] == 2
        bucket.pipe_file(path, whole)
    load(state_of(2), storage_reader=reader)
    resilient.dcp.remove(URL)
    assert open_store(URL).list(".") == ()
