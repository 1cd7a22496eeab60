# SPDX-License-Identifier: Apache-2.0
"""How fast a state goes to S3 and comes back: us beside plain uploads and torch's own checkpoints, by turns.

The server is moto, on this machine, in a process of its own. It is written in Python and computes on one core, so it
is soon what limits everybody: the share of the time in which it computes is told beside each figure, and where that is
near 100 % the figure says nothing of the candidate but that it kept the server busy. Nothing is promised, and ratios
to a real object store, behind a network, may be others.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from checkpoint_figures import Samples, summary, table
from checkpoint_runs import WORKERS, run

CANDIDATES = ("resilient", "s3fs", "boto3", "dcp_fsspec")
COLUMNS = (
    ("save s", "save_s", 1.0, 2),
    ("server busy %", "save_busy", 100.0, 0),
    ("load s", "load_s", 1.0, 2),
    ("server busy %", "load_busy", 100.0, 0),
)
NEEDS = ("moto", "s3fs", "boto3")
BUCKET = "bench"
LIMIT_S = 300.0
SERVER = """
import sys, threading
import boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
client.create_bucket(Bucket=sys.argv[1])
print(port, flush=True)
sys.stdin.read()
server.stop()
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def server() -> Iterator[int]:
    """A server with an empty bucket, for every process that is started meanwhile; its number."""
    os.environ.update(CREDENTIALS)
    os.environ.pop("AWS_PROFILE", None)
    command = [sys.executable, "-c", SERVER, BUCKET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().decode().strip()
            if not port:
                raise SystemExit("cannot measure: the server did not start")
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            yield process.pid
        finally:
            process.kill()


def measure(mib: int, rounds: int, directory: Path) -> dict[str, Samples]:
    """Each candidate in fresh processes, and each round with a server of its own, which keeps all in memory."""
    found: dict[str, Samples] = {name: {} for name in CANDIDATES}
    for number in range(rounds):
        for name in CANDIDATES:
            with server() as pid:
                where = ["--place", f"{BUCKET}/{name}-{number}", "--server", str(pid), "--directory", str(directory)]
                script = str(WORKERS / "s3_objects.py")
                ended = run(
                    [sys.executable, script, "--what", name, "--mib", str(mib), *where], directory, limit_s=LIMIT_S
                )
            if ended is None:
                continue
            if not ended.result.pop("same"):
                raise SystemExit(f"cannot trust {name}: what it loaded is not what was saved")
            for figure, value in ended.result.items():
                found[name].setdefault(figure, []).append(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="of state; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        print(f"nothing is measured: {', '.join(missing)} is not installed; pip install -e '.[s3,test]'")
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="resilient-bench-") as directory:
        found = measure(options.mib, options.rounds, Path(directory))
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        results = {name: summary(samples) for name, samples in found.items()}
        print(json.dumps({**machine, "mib": options.mib, "results": results}, indent=2))
    else:
        print("\n".join(table(f"{options.mib} MiB to moto's S3 and back", found, COLUMNS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
