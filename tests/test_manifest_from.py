# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest --from``: the contract comes into a manifest that somebody has, and nothing else changes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from submissions import applied, job_specs, judged, submission, trainer

from resilient import cli
from resilient.core.exit_codes import ExitCode
from resilient.core.kube_pod_failure import Action
from resilient.errors import SettingsError
from resilient.kubernetes import documents
from resilient.kubernetes.adding import add_contract
from resilient.kubernetes.completing import Addition
from resilient.kubernetes.manifest import write
from resilient.settings import from_environment, platform, resolve

HAND_MADE = """\
# My job, tuned by hand.
apiVersion: batch/v1
kind: Job
metadata:
    name:   llm      # keep this name
    labels: { team: nlp,   tier: 'gold' }
spec:
    # try six times
    backoffLimit: 6   # default
    parallelism: 4
    completions: 4

    # the pod
    template:
        spec:
            restartPolicy: OnFailure  # because

            # what runs
            containers:
            -   name: main
                image: "x:1"
                # the command
                command: ["python", "train.py"]  # entry
                args:
                -   --lr
                -   |
                    several
                    # lines, and no comment
                env:
                -   name: A
                    value: "yes"
                # GPUs
                resources:
                    limits:
                        nvidia.com/gpu: 8
            # the end
"""
CHANGED = {
    "    backoffLimit: 6   # default",
    "            restartPolicy: OnFailure  # because",
    '                command: ["python", "train.py"]  # entry',
}
"""The only lines of it that contradict the contract."""
OTHERS = """\
---
# somebody else's
apiVersion: v1
kind:   ConfigMap
metadata: { name: x }
data:
    a: |
        b
...
"""
S3 = Addition(checkpoints="s3://bucket/run")
LINE_OF_CONTAINER = '{"name": "main", "image": "x:1", "command": ["python", "train.py"]}'


def added(text: str, asked: Addition = S3) -> str:
    """The manifest with the contract."""
    return add_contract(documents.read(text, "job.yaml"), asked)[0]


def spec_of(text: str) -> Any:
    """The Job in it."""
    (spec,) = job_specs([document.data for document in documents.read(text, "job.yaml")])
    return spec


def without_new_lines(old: str, new: str) -> Iterator[str]:
    """The lines of the old text that are in the new one, in their order."""
    rest = iter(new.splitlines())
    for line in old.splitlines():
        if line in CHANGED:
            continue
        assert any(line == each for each in rest), f"changed or moved: {line!r}"
        yield line


def test_every_other_line_stays_to_the_letter() -> None:
    """Spacing, quotes, comments, order, blocks of text and other documents; comments stay with what they are at."""
    text = added(HAND_MADE + OTHERS)
    assert len(list(without_new_lines(HAND_MADE, text))) == len(HAND_MADE.splitlines()) - len(CHANGED)
    assert text.endswith(OTHERS)
    assert "restartPolicy: Never  # because\n" in text
    assert 'command: [resilient, run, --, "python", "train.py"]  # entry\n' in text
    lines = [line.strip() for line in text.splitlines()]
    for comment, below in (("# GPUs", "resources:"), ("# what runs", "containers:"), ("# the pod", "template:")):
        assert lines[lines.index(comment) + 1] == below
    assert text.splitlines()[-len(OTHERS.splitlines()) - 1] == "            # the end"


def test_every_comment_stays_at_what_it_is_about() -> None:
    """One above and one behind every line: each is still there, with its line, changed or not."""
    lines = [line for line in HAND_MADE.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    inside = [number for number, line in enumerate(lines) if line.strip() == "several" or line.endswith("|")]
    text = ""
    for number, line in enumerate(lines):
        indent = " " * (len(line) - len(line.lstrip()))
        text += line + "\n" if number in inside else f"{indent}# above {number}\n{line}  # behind {number}\n"
    done = added(text).splitlines()
    keys = [line.replace("-", "").partition("#")[0].partition(":")[0].strip() for line in lines]
    for number, key in enumerate(keys):
        if number in inside:
            continue
        (behind,) = [at for at, line in enumerate(done) if line.endswith(f"# behind {number}")]
        above = done.index(next(line for line in done if line.strip() == f"# above {number}"))
        assert all(line.lstrip().startswith("#") for line in done[above:behind]), done[above : behind + 1]
        assert key in done[behind]


def test_what_comes_in_is_the_contract() -> None:
    """Every code gets its action, the API server takes it, and the supervisor reads what it must know."""
    text = added(HAND_MADE)
    spec = spec_of(text)
    assert yaml.safe_load(text)["spec"] == spec
    assert kubernetes_validate.validate(yaml.safe_load(text), "1.31", strict=True)
    assert judged(spec, ExitCode.CODE_FAULT).action is Action.FAIL_JOB
    assert judged(spec, ExitCode.RESCHEDULE).action is Action.IGNORE
    assert judged(spec, ExitCode.RESTART).counted
    assert spec["podFailurePolicy"] == applied_policy("main")
    assert (spec["completionMode"], spec["maxFailedIndexes"], spec["podReplacementPolicy"]) == ("Indexed", 0, "Failed")
    assert (spec["backoffLimitPerIndex"], spec["backoffLimit"]) == (20, 2**31 - 1)
    env = {entry["name"]: entry.get("value") for entry in trainer(spec)["env"]}
    read = resolve([from_environment({name: value for name, value in env.items() if value})]).settings
    assert (read.checkpoints, read.grace, read.journal) == ("s3://bucket/run", 120, "/var/lib/resilient")
    assert None not in (platform(dict.fromkeys(env, "7")).submission, platform(dict.fromkeys(env, "7")).failure_count)
    assert env["A"] == "yes"
    mounts = {mount["mountPath"]: mount["name"] for mount in trainer(spec)["volumeMounts"]}
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["template"]["spec"]["volumes"]}
    assert volumes[mounts["/dev/shm"]] == {"medium": "Memory"}
    assert volumes[mounts["/var/lib/resilient"]] == {}
    labels = spec["template"]["metadata"]["labels"]
    assert labels == {"sidecar.istio.io/inject": "false"}


def applied_policy(container: str) -> Any:
    """The generator's own rules, for a container of another name."""
    (spec,) = job_specs(applied("job"))
    return json.loads(json.dumps(spec["podFailurePolicy"]).replace('"trainer"', json.dumps(container)))


@pytest.mark.parametrize("restart_rules", [False, True])
@pytest.mark.parametrize("kind", ["job", "indexed", "jobset", "runtime"])
def test_generated_manifests_have_it_already(kind: str, restart_rules: bool) -> None:
    """Not a byte of the generator's output changes."""
    pods = 1 if kind == "job" else 4
    text = write(kind, submission(pods=pods, restart_rules=restart_rules, queue="q"))
    assert added(text, Addition(restart_rules=restart_rules)) == text


def test_the_second_time_nothing_is_left_to_do() -> None:
    """Its own output has the contract."""
    once = added(HAND_MADE + OTHERS)
    assert added(once) == once
    assert added(once, Addition()) == once


STYLES = {
    "lists at their key": yaml.safe_dump(yaml.safe_load(HAND_MADE), sort_keys=False),
    "wide": yaml.safe_dump(yaml.safe_load(HAND_MADE), sort_keys=False, indent=6, width=30),
    "flow": yaml.safe_dump(yaml.safe_load(HAND_MADE), sort_keys=False, default_flow_style=True, width=60),
    "json": json.dumps(yaml.safe_load(HAND_MADE), indent=4),
    "json on one line": json.dumps(yaml.safe_load(HAND_MADE)),
    "windows": HAND_MADE.replace("\n", "\r\n"),
    "no last newline": HAND_MADE.rstrip("\n"),
    "marked": f"--- # the job\n{HAND_MADE}...\n",
    "quoted": yaml.safe_dump(yaml.safe_load(HAND_MADE), sort_keys=False, default_style='"'),
}


@pytest.mark.parametrize("style", STYLES)
def test_any_style_of_writing_gets_the_same(style: str) -> None:
    """The result means the same however the manifest was written, and JSON stays JSON."""
    text = added(STYLES[style])
    assert spec_of(text) == spec_of(added(HAND_MADE))
    assert not style.startswith("json") or json.loads(text)["spec"] == spec_of(text)
    assert style != "windows" or "\n" not in text.replace("\r\n", "")
    assert text.endswith("\n") or style == "no last newline" or style.startswith("json")


def test_the_pods_of_others_are_found() -> None:
    """A CronJob's, a JobSet's and a runtime's; each budget belongs to the set where there is one."""
    container = f"containers: [{LINE_OF_CONTAINER}]"
    pod = f"template: {{spec: {{{container}}}}}"
    cron = f"kind: CronJob\nspec:\n  schedule: '@daily'\n  jobTemplate:\n    spec: {{{pod}}}\n"
    jobset = f"kind: JobSet\nspec:\n  replicatedJobs:\n  - name: w\n    template:\n      spec: {{{pod}}}\n"
    runtime = (
        "kind: ClusterTrainingRuntime\nspec:\n  mlPolicy: {numNodes: 4}\n  template:\n    spec:\n"
        f"      replicatedJobs:\n      - name: node\n        template:\n          spec: {{{pod}}}\n"
    )
    uids = {}
    for text in (cron, jobset, runtime):
        data = yaml.safe_load(added(text))
        found = data["spec"].get("jobTemplate", {}).get("spec") or next(job_specs([data]))
        env = {entry["name"]: entry for entry in trainer(found)["env"]}
        uids[data["kind"]] = env["RESILIENT_SUBMISSION"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert found["podFailurePolicy"] == applied_policy("main")
        assert ("completions" in found) == (data["kind"] != "ClusterTrainingRuntime")
    assert uids == {
        "CronJob": "metadata.labels['batch.kubernetes.io/controller-uid']",
        "JobSet": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']",
        "ClusterTrainingRuntime": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']",
    }


def job(container: str = LINE_OF_CONTAINER, spec: str = "", pod: str = "") -> str:
    """A small Job."""
    return f"kind: Job\nspec:\n  template:\n    spec:\n      containers:\n      - {container}\n{pod}{spec}"


@pytest.mark.parametrize(
    ("command", "wrapped"),
    [
        (["python", "x.py"], ["resilient", "run", "--", "python", "x.py"]),
        (["torchrun", "--nproc-per-node", "8", "x.py"],
         ["resilient", "run", "--", "torchrun", "--nproc-per-node", "8", "x.py"]),
        (["/usr/bin/tini", "-g", "--", "python", "x.py"],
         ["/usr/bin/tini", "-g", "--", "resilient", "run", "--", "python", "x.py"]),
        (["dumb-init", "python", "x.py"], ["dumb-init", "resilient", "run", "--", "python", "x.py"]),
        (["sh", "-c", "python x.py"], ["resilient", "run", "--", "sh", "-c", "python x.py"]),
        (["resilient", "run", "x.py"], ["resilient", "run", "x.py"]),
    ],
)  # fmt: skip
def test_the_supervisor_comes_before_the_command(command: list[str], wrapped: list[str]) -> None:
    """Behind an init, before all else; a shell is kept, and what that costs is said."""
    text = job(json.dumps({"name": "main", "image": "x", "command": command}))
    new, notes = add_contract(documents.read(text, "job.yaml"), S3)
    assert trainer(spec_of(new))["command"] == wrapped
    assert any("the command is a shell's" in note for note in notes) is (command[0] == "sh")


def test_what_is_there_and_agrees_is_kept() -> None:
    """A grace period, limits, tolerations and mounts of one's own; RESILIENT_GRACE_S follows the grace period."""
    own = {
        "name": "main",
        "image": "x",
        "command": ["python", "x.py"],
        "env": [{"name": "RESILIENT_GRACE_S", "value": "5"}, {"name": "RESILIENT_CHECKPOINTS", "value": "s3://b/own"}],
        "volumeMounts": [{"name": "mine", "mountPath": "/dev/shm/"}],
        "terminationMessagePolicy": "File",
    }
    pod = (
        "      terminationGracePeriodSeconds: 300\n      tolerations: [{key: node.kubernetes.io/not-ready, operator: "
        "Exists, effect: NoExecute, tolerationSeconds: 5}]\n      volumes: [{name: mine, emptyDir: {medium: Memory}}]\n"
    )
    spec = spec_of(added(job(json.dumps(own), "  backoffLimitPerIndex: 50\n  maxFailedIndexes: 0\n", pod), Addition()))
    env = {entry["name"]: entry.get("value") for entry in trainer(spec)["env"]}
    assert (env["RESILIENT_GRACE_S"], env["RESILIENT_CHECKPOINTS"]) == ("300", "s3://b/own")
    assert spec["backoffLimitPerIndex"] == 50
    assert trainer(spec)["terminationMessagePolicy"] == "File"
    assert [each["tolerationSeconds"] for each in spec["template"]["spec"]["tolerations"]] == [5, 60]
    assert [mount["mountPath"] for mount in trainer(spec)["volumeMounts"]] == ["/dev/shm/", "/var/lib/resilient"]
    longer = spec_of(added(job(json.dumps(own), "", pod), Addition(grace_s=600)))
    assert longer["template"]["spec"]["terminationGracePeriodSeconds"] == 600


CLAIM = "      volumes: [{name: v, persistentVolumeClaim: {claimName: c}}, {name: e, emptyDir: {}}]\n"
MOUNTED = json.dumps({
    "name": "main", "image": "x", "command": ["python", "x.py"],
    "volumeMounts": [{"name": "v", "mountPath": "/data"}, {"name": "e", "mountPath": "/scratch"}],
})  # fmt: skip


def test_checkpoints_may_go_to_a_volume_of_the_manifest() -> None:
    """To a path below a mount that outlives the pod, and no other."""
    spec = spec_of(added(job(MOUNTED, "", CLAIM), Addition(checkpoints="/data/run")))
    env = {entry["name"]: entry.get("value") for entry in trainer(spec)["env"]}
    assert env["RESILIENT_CHECKPOINTS"] == "/data/run"
    for lost in ("/scratch/run", "/elsewhere", "/data/../etc", "relative"):
        with pytest.raises(SettingsError, match="no volume that outlives the pod is mounted at or above"):
            added(job(MOUNTED, "", CLAIM), Addition(checkpoints=lost))


@pytest.mark.parametrize(
    ("text", "asked", "why"),
    [
        (OTHERS, S3, "the manifest holds ConfigMap, and no Job; give a Job"),
        ("", S3, "the manifest holds nothing, and no Job"),
        ("kind: Job\n", S3, "the manifest holds Job, and no Job"),
        ("kind: Job\nspec: {}\n", S3, "a template of a Job in it is no mapping, or missing"),
        ("kind: CronJob\nspec: {jobTemplate: 3}\n", S3, "a jobTemplate in it is no mapping"),
        ("kind: JobSet\nspec: {replicatedJobs: x}\n", S3, "its replicatedJobs are no list of mappings"),
        ("kind: TrainingRuntime\nspec: {mlPolicy: [], template: {}}\n", S3, "a spec in it is no mapping"),
        ("kind: Job\nspec: {template: {spec: {containers: [x]}}}\n", S3, "its containers are no list of mappings"),
        (job('{"name": "main", "command": "python x.py"}'), S3, "its command is no list of words"),
        (job('{"name": "main", "command": ["x", 8]}'), S3, "its command is no list of words"),
        (job('{"name": "main", "command": ["x"], "env": {"A": "b"}}'), S3, "its env are no list of mappings"),
        (job(spec="  parallelism: many\n"), S3, "it has 'many' pods"),
        (job(spec="  parallelism: 0\n"), S3, "it has 0 pods"),
        (job(), Addition(), "where checkpoints go is not said in it"),
        (job('{"name": "main", "image": "x"}'), S3, "has no command, so it runs its image's entry point"),
        (job() + '      - {"name": "b", "image": "y"}\n', S3, "its containers are main, b; name the training's"),
        (job(), Addition(checkpoints="s3://b/r", container="c"), "its containers are main"),
        (job(spec="  completions: 8\n  parallelism: 2\n"), S3, "8 completions and a parallelism of 2"),
        (job(spec="  podFailurePolicy: {rules: [{action: Ignore, onExitCodes: {operator: In, values: [1]}}]}\n"), S3,
         "a podFailurePolicy of its own"),
        (job('{"name": "main", "command": ["x"], "restartPolicy": "Always"}'),
         Addition(checkpoints="s3://b/r", restart_rules=True), "its container has a restartPolicy"),
        ("kind: JobSet\nspec: {replicatedJobs: [{name: a}, {name: b}]}\n", S3, "it has 2 replicated Jobs"),
        (f"apiVersion: batch.volcano.sh/v1alpha1\n{job()}", S3, "the manifest holds Job, and no Job"),
        (job('{"name": "a\\e[31m\\nb", "image": "x"}'), Addition(container="c"), r"its containers are a b; name"),
        ("kind: Job\nspec: {{ .Values.spec }}\n", S3, "cannot read job.yaml: line 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused(text: str, asked: Addition, why: str) -> None:
    """Each refusal says why and what to do; nothing is written."""
    with pytest.raises(SettingsError, match=why):
        added(text, asked)


def test_restart_rules_can_be_added() -> None:
    """The variant for clusters of 1.35 and newer."""
    spec = spec_of(added(HAND_MADE, Addition(checkpoints="s3://b/r", restart_rules=True)))
    assert trainer(spec)["restartPolicy"] == "Never"
    assert trainer(spec)["restartPolicyRules"][0]["exitCodes"]["values"] == [ExitCode.RESTART, ExitCode.PEER_FAILED]
    assert judged(spec, ExitCode.PEER_FAILED).action is None
    assert "RESILIENT_SNAPSHOTS" not in {entry["name"] for entry in trainer(spec)["env"]}  # it has several pods
    alone = HAND_MADE.replace("parallelism: 4", "parallelism: 1").replace("completions: 4", "completions: 1")
    spec = spec_of(added(alone, Addition(checkpoints="s3://b/r", restart_rules=True)))
    assert {"name": "resilient-snapshots", "emptyDir": {"medium": "Memory"}} in spec["template"]["spec"]["volumes"]
    assert {"name": "RESILIENT_SNAPSHOTS", "value": "/var/lib/resilient-snapshots"} in trainer(spec)["env"]
    assert "RESILIENT_POD_UID" in {entry["name"] for entry in trainer(spec)["env"]}


def test_it_is_a_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout is the manifest, stderr each change in it; flags that it says itself are refused."""
    path = tmp_path / "job.yaml"
    path.write_text(HAND_MADE)
    assert cli.main(["manifest", "--from", str(path), "--checkpoints", "s3://bucket/run"]) == ExitCode.FINISHED
    out, err = capsys.readouterr()
    assert out == added(HAND_MADE)
    changes = err.splitlines()
    assert len(changes) == 15
    assert all(line.startswith(f"resilient: {path}: ") for line in changes)
    limit = (
        "changed spec.backoffLimit from 6 to 2147483647: no limit of its own: backoffLimitPerIndex is one for each pod"
    )
    assert f"resilient: {path}: {limit}" in changes
    assert sum("RESILIENT_JOURNAL, " in line and "containers[main].env: what the" in line for line in changes) == 1
    assert cli.main(["manifest", "--from", str(path), "--checkpoints", "s3://bucket/run"]) == ExitCode.FINISHED
    path.write_text(capsys.readouterr().out)
    assert cli.main(["manifest", "--from", str(path)]) == ExitCode.FINISHED
    assert capsys.readouterr() == (path.read_text(), ""), "where all is there nothing is said"
    for words in (["--image", "x"], ["jobset"], ["--", "train.py"]):
        assert cli.main(["manifest", "--from", str(path), *words]) == ExitCode.CONFIG_FAULT
        out, err = capsys.readouterr()
        assert (out, "with --from: it is for new manifests" in err) == ("", True)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"checkpoints": "s3://me:canary-1234@b/run"}, "it holds a secret"),
        ({"checkpoints": ""}, "for checkpoints"),
        ({"grace_s": -1}, "the grace period"),
        ({"days": 0.0}, "the days"),
        ({"faults_per_device_day": float("nan")}, "the faults a device and day"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_read(wrong: Any, why: str) -> None:
    """The same bounds as of a generated manifest, and no secret in the complaint."""
    with pytest.raises(SettingsError, match=why) as refused:
        Addition(**wrong)
    assert "canary" not in str(refused.value)
