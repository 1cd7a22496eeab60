# SPDX-License-Identifier: Apache-2.0
"""Generated manifests with a real supervisor in them: what the kubelet would start, started here."""

import contextlib
import re
from pathlib import Path
from typing import Any

from submissions import applied, job_specs, judged, trainer
from supervised import Ended, Folder, Running, training

from resilient.core.exit_codes import ExitCode
from resilient.core.kube_pod_failure import Action
from resilient.supervisor.pods import free_port

FIELDS = {
    "metadata.labels['batch.kubernetes.io/controller-uid']": "6d1f0e3c-uid",
    "metadata.annotations['batch.kubernetes.io/job-completion-index']": "0",
    "metadata.annotations['batch.kubernetes.io/job-index-failure-count']": "0",
    "metadata.annotations['batch.kubernetes.io/job-index-ignored-failure-count']": "",
    "spec.nodeName": "node-7",
    "metadata.name": "train-0-abcde",
    "metadata.namespace": "team-a",
}
"""What the kubelet would know of the pod."""


def started(spec: Any, folder: Folder) -> Ended:
    """The container's command in its environment to its end, its two volumes below the folder."""
    with begun(spec, folder) as running:
        return running.wait()


def begun(spec: Any, folder: Folder, *, index: int = 0, port: int | None = None) -> Running:
    """The same of one pod; of several all are on this machine, where the first one has a port that is free."""
    container = trainer(spec)
    environ = {
        entry["name"]: entry["value"] if "value" in entry else FIELDS[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }
    assert container["command"] == ["resilient", "run"]
    environ["RESILIENT_CHECKPOINTS"] = str(folder.checkpoints)
    environ["RESILIENT_JOURNAL"] = str(folder.path / f"journal-{index + 1}")
    environ["RESILIENT_INDEX"] = str(index)
    words = [re.sub(r"\$\((\w+)\)", lambda found: environ[found[1]], word) for word in container["args"]]
    if port is not None:
        words[words.index("--master-addr") + 1 : words.index("--master-port") + 2] = [
            "localhost",
            "--master-port",
            str(port),
        ]
    return folder.start(*words, **environ)


def test_the_manifest_trains_and_its_policy_gets_its_codes(tmp_path: Path) -> None:
    """Two workers for two devices finish with 0; a code fault in the same pod fails the Job, by the rule for it."""
    (spec,) = job_specs(applied("job", devices=2, command=("train.py",)))
    folder = Folder(tmp_path / "good")
    folder.script(training(body='note(os.environ["WORLD_SIZE"])'))
    ended = started(spec, folder)
    assert ended.code == ExitCode.FINISHED, ended.stderr
    assert folder.notes.count("2") >= 2
    assert (folder.checkpoints / "finished.json").exists()
    start = ended.entries("start")[0]
    assert "6d1f0e3c-uid" in str(start)
    assert "node-7" in str(start)
    folder = Folder(tmp_path / "bad")
    folder.script(training(body='def fault(step):\n    raise resilient.Stop("no use")'))
    ended = started(spec, folder)
    assert ended.code == ExitCode.CODE_FAULT, ended.stderr
    assert judged(spec, ended.code).action is Action.FAIL_JOB


def test_the_pods_of_an_indexed_job_train_together(tmp_path: Path) -> None:
    """Each with its own index, meeting where the manifest says: all finish, and each ends with 0."""
    (spec,) = job_specs(applied("indexed", pods=2, devices=1, command=("train.py",)))
    folder = Folder(tmp_path)
    folder.script(training(body='note("{RANK}/{WORLD_SIZE}".format(**os.environ))'))
    port = free_port("localhost")
    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(begun(spec, folder, index=index, port=port)) for index in (0, 1)]
        ended = [pod.wait() for pod in pods]
    assert [each.code for each in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert {"0/2", "1/2"} <= set(folder.notes)
    assert (folder.checkpoints / "finished.json").exists()
