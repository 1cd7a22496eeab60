# SPDX-License-Identifier: Apache-2.0
"""Runs one pod of WALK.md: ``resilient run`` in the environment of ``job.yaml``, with its volumes in a directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from walk_stories import MARK, Pod

from resilient.core.kube_job import Pod as SimulatedPod
from resilient.kubernetes.documents import read_file

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
MANIFEST: Final = HERE / "job.yaml"
SUBMISSION: Final = "6d1f0e3c-4f7a-4d0e-9d55-0f6f2b8f1a11"
LIMIT_S: Final = 300.0
"""Far more than a pod of these needs on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What is left of a pod."""

    code: int
    """As Kubernetes tells it: 128 and the number for a signal."""
    message: str
    first_words: str
    last_words: str


class Volumes:
    """What a pod has at fixed paths, in a directory of this machine."""

    def __init__(self, root: Path) -> None:
        # In a pod these are mounts and the image. None of them is the beginning of another.
        self.places = {"/checkpoints/char-gpt": root / "c", "/var/lib/resilient": root / "j", "/app": root / "app"}
        self.app, self.journal = self.places["/app"], self.places["/var/lib/resilient"]
        self.checkpoints = self.places["/checkpoints/char-gpt"]
        self.termination_log = root / "termination-log"
        self.tmp = root / "tmp"

    def begin(self, script: str) -> None:
        """Make anew what a pod does not share with the one before: all but the checkpoints."""
        for path in (self.app, self.journal, self.tmp):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        (self.app / "train.py").write_text(script)
        self.termination_log.write_text("")  # as the kubelet makes it, for each container

    def here(self, path: str) -> str:
        """Where that path of the pod is on this machine; any other value as it is."""
        return str(self.places.get(path, path))

    def there(self, text: str) -> str:
        """The text with the paths that a pod would have told."""
        for pod_path, path in self.places.items():
            text = text.replace(str(path), pod_path)
        return text


STABLE: Final = (
    (re.compile(r'(?<="run":")[0-9a-f]{16}(?=")'), "<run>"),
    (re.compile(r'(?<="step":)\d{4,}\b'), "<step>"),
    (re.compile(r"\b(steps?) \d{4,}\b"), r"\1 <step>"),
)
"""What is another one each time. The trainings that are told to leave have done a thousand steps or more by then."""


MEASURED: Final = ("memory_used", "memory_limit", "oom_kills", "shm_used_fraction", "disk_used_fraction")
"""What a sample of the journal tells of the machine."""
OF_MACHINE: Final = ("resilient: preflight:",)
"""Lines of the supervisor that are about the machine as well."""


def stable(text: str, volumes: Volumes) -> str:
    """The text without what differs from run to run."""
    text = volumes.there(text)
    for pattern, placeholder in STABLE:
        text = pattern.sub(placeholder, text)
    return text


def forget_the_machine(volumes: Volumes) -> None:
    """Take out of what the pods have shipped how full memory and disks were: these are this machine's, not a pod's.

    The supervisor takes what is not known for unknown, so that it says the same wherever this is run.
    """
    for path in volumes.checkpoints.glob("journal/**/*.jsonl"):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        for entry in entries:
            if entry["kind"] == "sample":
                entry.update(dict.fromkeys(MEASURED))
        path.write_text("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries))


def environment(volumes: Volumes, pod: Pod, known: SimulatedPod) -> dict[str, str]:
    """What the container would have: the manifest's variables, and those that every container of a cluster has."""
    (document,) = read_file(str(MANIFEST))
    (container,) = document.data["spec"]["template"]["spec"]["containers"]
    told = downward(pod, known)
    named = {
        entry["name"]: entry["value"] if "value" in entry else told[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        **{name: volumes.here(value) for name, value in named.items()},
        "HOME": str(volumes.tmp),
        "TMPDIR": str(volumes.tmp),
        "RESILIENT_TERMINATION_LOG": str(volumes.termination_log),
    }


def downward(pod: Pod, known: SimulatedPod) -> Mapping[str, str]:
    """What the kubelet would put into the variables that ask for these fields."""
    annotation = "metadata.annotations['batch.kubernetes.io/job-{}']".format
    return {
        "metadata.labels['batch.kubernetes.io/controller-uid']": SUBMISSION,
        annotation("completion-index"): str(known.index),
        annotation("index-failure-count"): str(known.failure_count),
        annotation("index-ignored-failure-count"): str(known.ignored_count or ""),  # not there before the first
        "spec.nodeName": pod.node,
        "metadata.name": known.name,
        "metadata.namespace": "default",
    }


def run(pod: Pod, volumes: Volumes, known: SimulatedPod) -> Ended:
    """One pod from its start to its end."""
    volumes.begin(pod.script)
    forget_the_machine(volumes)
    log = volumes.tmp / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "resilient", "run", *pod.arguments],
            cwd=volumes.app,
            env=environment(volumes, pod, known),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    code = _until_its_end(process, pod.signal)
    first_words, last_words = _own_words(stable(log.read_text(), volumes))
    return Ended(
        code=code if code >= 0 else 128 - code,
        message=stable(volumes.termination_log.read_text(), volumes).strip(),
        first_words=first_words,
        last_words=last_words,
    )


def _until_its_end(process: subprocess.Popen[str], number: signal.Signals | None) -> int:
    """Its exit code; the signal is sent once the training has said that it is time."""
    too_late = threading.Timer(LIMIT_S, process.kill)
    too_late.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if number is not None and MARK in line:
                process.send_signal(number)
        return process.wait()
    finally:
        too_late.cancel()
        process.stdout.close()
        process.kill()  # does nothing to one that has ended
        process.wait()


def _own_words(log: str) -> tuple[str, str]:
    """What the supervisor says before its end, and at it."""
    own = [line for line in log.splitlines() if line.startswith("resilient: ") and not line.startswith(OF_MACHINE)]
    ends = [at for at, line in enumerate(own) if re.match(r"resilient: (finished: |ended with exit code)", line)]
    end = ends[-1] if ends else len(own)
    return "\n".join(own[:end]), "\n".join(own[end:])
