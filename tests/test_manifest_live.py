# SPDX-License-Identifier: Apache-2.0
"""Generated manifests with a real supervisor in them: what the kubelet would start, started here."""

import re
from pathlib import Path
from typing import Any

from submissions import applied, job_specs, judged, trainer
from supervised import Ended, Folder, training

from resilient.core.exit_codes import ExitCode
from resilient.core.kube_pod_failure import Action

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
    container = trainer(spec)
    environ = {
        entry["name"]: entry["value"] if "value" in entry else FIELDS[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }
    assert container["command"] == ["resilient", "run"]
    environ["RESILIENT_CHECKPOINTS"] = str(folder.checkpoints)
    environ["RESILIENT_JOURNAL"] = str(folder.path / "journal-1")
    words = [re.sub(r"\$\((\w+)\)", lambda found: environ[found[1]], word) for word in container["args"]]
    return folder.run(*words, **environ)


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


def test_what_is_said_of_several_pods_is_so(tmp_path: Path) -> None:
    """The supervisor refuses more than one node, before anything starts, with the code that fails the Job."""
    (spec,) = job_specs(applied("indexed", pods=4, command=("train.py",)))
    folder = Folder(tmp_path)
    folder.script(training())
    ended = started(spec, folder)
    assert ended.code == ExitCode.CONFIG_FAULT
    assert "cannot use --nnodes 4" in ended.stderr
    assert folder.notes == []
    assert judged(spec, ended.code).action is Action.FAIL_JOB
