# SPDX-License-Identifier: Apache-2.0
"""An S3 that lets nobody in: the last lines and the termination message say what is missing, and what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import Proxy, running
from supervised import HEAD, Folder


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with running() as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("bucket", "credentials", "fault", "code", "why", "do"),
    [
        ("bucket", False, "", 199, "there are no credentials for the store", "give this pod credentials"),
        ("bucket", True, "denied", 199, "Access Denied", "allow this pod, or the credentials that it has"),
        ("bucket", True, "expired", 199, "The provided token has expired", "give this pod credentials that last"),
        ("elsewhere", True, "", 115, "The specified bucket does not exist", "its bucket or mount exists"),
    ],
    ids=["no credentials", "denied", "expired", "no bucket"],
)
def test_a_store_that_lets_nobody_in(
    server: Proxy, tmp_path: Path, bucket: str, credentials: bool, fault: str, code: int, why: str, do: str
) -> None:
    """The code is the contract's; none of them is called a bug, and nothing is started."""
    server.mend()
    server.fail_always("PutObject", fault)
    environ = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_EC2_METADATA_DISABLED": "true"}
    if credentials:
        environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    folder = Folder(tmp_path, **environ)
    script = folder.script(HEAD + "note('started')")
    ended = folder.run("--checkpoints", f"s3://{bucket}/run", "--store-patience", "1s", script)
    assert ended.code == code, ended.stderr
    assert why in ended.termination["why"]
    assert do in ended.termination["do"]
    assert why in ended.stderr
    assert f"next: {ended.termination['do']}" in ended.stderr
    assert "bug" not in ended.stderr
    assert folder.notes == []
