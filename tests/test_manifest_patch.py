# SPDX-License-Identifier: Apache-2.0
"""Patches of generated manifests, and the permissions that they bring where somebody asks for them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from submissions import job_specs, submission, trainer

from resilient import cli, settings
from resilient.core.exit_codes import ExitCode
from resilient.core.pod_report import ANNOTATION
from resilient.errors import SettingsError
from resilient.kubernetes import documents, patching, rbac
from resilient.kubernetes.manifest import write
from resilient.kubernetes.patching import MERGE, STRATEGIC, merged


def patched(patch: str, kind: str = "job", patch_type: str = STRATEGIC, **changes: Any) -> list[Any]:
    """What kubectl would send of a patched manifest."""
    patches = documents.read(patch, "patch.yaml")
    text = write(kind, submission(**changes), patches=patches, patch_type=patch_type)
    return [document.data for document in documents.read(text, "manifest")]


def pod(found: list[Any]) -> Any:
    """The pod's spec."""
    return next(job_specs(found))["template"]["spec"]


def described() -> Iterator[tuple[str, str | None]]:
    """Lists that merge, with their key, in all that can stand in our manifests."""
    base = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    newest = max(base.glob("v*-local"), key=lambda path: [int(part) for part in path.name[1:-6].split(".")])
    known = json.loads((newest / "_definitions.json").read_text())["$defs"]
    left = [f"io.k8s.api.{name}" for name in ("batch.v1.Job", "core.v1.Service", "networking.v1.NetworkPolicy")]
    seen: set[str] = set()
    while left:
        name = left.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        for field, about in known[name].get("properties", {}).items():
            left += [part.rpartition("/")[2] for part in references(about)]
            if "merge" in about.get("x-kubernetes-patch-strategy", ""):
                yield field, about.get("x-kubernetes-patch-merge-key")


def references(about: Any) -> Iterator[str]:
    """Every $ref in a part of a schema."""
    children = about.values() if isinstance(about, dict) else about if isinstance(about, list) else ()
    for child in children:
        yield from references(child)
    if isinstance(about, dict) and "$ref" in about:
        yield about["$ref"]


def test_lists_are_merged_by_kubernetes_own_keys() -> None:
    """The table is that of the API's description; JobSet's list is the one besides."""
    found: dict[str, set[str | None]] = {}
    for field, key in described():
        found.setdefault(field, set()).add(key)
    assert {field for field, keys in found.items() if keys == {None}} == patching.SETS
    by_key = {field: keys for field, keys in found.items() if keys != {None}}
    assert {field: set(keys) for field, keys in patching.KEYS.items() if field != "replicatedJobs"} == by_key


def test_a_strategic_patch_changes_what_it_names() -> None:
    """Containers, variables, mounts and volumes by their names; what is not named stays."""
    patch = """
    spec:
      ttlSecondsAfterFinished: null
      template:
        spec:
          nodeSelector: {pool: a100}
          tolerations: [{key: gpu, operator: Exists}]
          containers:
          - name: trainer
            imagePullPolicy: Always
            env:
            - {name: EXTRA, value: "on"}
            - {name: HOME, value: /home/me}
            - {name: RESILIENT_POD, $patch: delete}
            volumeMounts: [{name: data, mountPath: /data}]
          volumes:
          - {name: data, persistentVolumeClaim: {claimName: data}}
          - {name: tmp, $retainKeys: [name, hostPath], hostPath: {path: /scratch}}
    """
    before, after = patched("spec: {}"), patched(patch)
    assert "ttlSecondsAfterFinished" not in after[0]["spec"]
    container = trainer(after[0]["spec"])
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    old = {entry["name"]: entry.get("value") for entry in trainer(before[0]["spec"])["env"]}
    del old["RESILIENT_POD"]
    assert env == {**old, "EXTRA": "on", "HOME": "/home/me"}
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example.com/train:1.0", "Always")
    assert len(container["volumeMounts"]) == len(trainer(before[0]["spec"])["volumeMounts"]) + 1
    volumes = {volume.pop("name"): volume for volume in pod(after)["volumes"]}
    assert volumes["tmp"] == {"hostPath": {"path": "/scratch"}}
    assert volumes["data"] == {"persistentVolumeClaim": {"claimName": "data"}}
    assert pod(after)["tolerations"] == [{"key": "gpu", "operator": "Exists"}]  # kubectl replaces this list
    assert pod(after)["nodeSelector"] == {"pool": "a100"}
    assert after[0]["spec"]["podFailurePolicy"] == before[0]["spec"]["podFailurePolicy"]


def test_a_merge_patch_replaces_lists() -> None:
    """As RFC 7386 has it."""
    (job,) = patched("spec: {template: {spec: {volumes: [{name: x}], affinity: {a: 1}}}}", patch_type=MERGE)
    assert job["spec"]["template"]["spec"]["volumes"] == [{"name": "x"}]


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merging_is_that_of_the_rfc(target: Any, patch: Any, result: Any) -> None:
    """The cases of RFC 7386, appendix A."""
    assert merged(target, patch) == result


def test_a_reason_of_ours_does_not_stand_beside_a_value_of_others() -> None:
    """The comment of what a patch changed goes; the others stay."""
    container = "{name: trainer, resources: {limits: {memory: 1Ti}}}"
    patch = documents.read(f"spec: {{template: {{spec: {{containers: [{container}]}}}}}}", "p")
    text = write("job", submission(state="20Gi"), patches=patch)
    assert "memory: 1Ti\n" in text
    assert "snapshots of the" not in text
    assert "a pod cannot read its own grace period" in text


def test_each_document_finds_its_object() -> None:
    """By kind and name; without a kind it is the training; inside a JobSet too."""
    service = "kind: Service\nspec: {ports: [{port: 29500, targetPort: 1}, {port: 80}]}\n"
    found = patched(f"{service}---\nspec: {{completionMode: Indexed, suspend: true}}\n", "indexed", pods=2)
    assert [port["port"] for port in found[0]["spec"]["ports"]] == [29500, 80]
    assert found[0]["spec"]["ports"][0]["targetPort"] == 1
    assert found[-1]["spec"]["suspend"] is True
    inner = "spec: {replicatedJobs: [{name: node, template: {spec: {activeDeadlineSeconds: 5}}}]}"
    assert next(job_specs(patched(inner, "jobset", pods=2)))["activeDeadlineSeconds"] == 5


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        ("[1]", "it is no mapping"),
        ("kind: Pod", "nothing in the manifest is Pod; patch one of Job train"),
        ("kind: Job\nmetadata: {name: other}", "nothing in the manifest is Job other"),
        ("metadata: {namespace: kube-system}", "it changes metadata.namespace"),
        ("apiVersion: batch/v2", "it changes apiVersion"),
        ("spec: {$patch: explode}", r"it has \$patch: explode"),
        ("spec: {$setElementOrder/containers: []}", r"it has \$setElementOrder/containers"),
        ("spec: {template: {spec: {containers: [{image: x}]}}}", "an item of containers has no name"),
        ("spec: {template: {spec: {terminationGracePeriodSeconds: 5}}}", "give --grace instead"),
        ("spec: {template: {spec: {containers: [{name: trainer, env: [{name: RESILIENT_GRACE_S, value: '5'}]}]}}}",
         "give --grace instead"),
        ("a: [", "cannot read patch.yaml"),
    ],
)  # fmt: skip
def test_a_wrong_patch_is_refused(patch: str, why: str) -> None:
    """With its file, why and what to do."""
    with pytest.raises(SettingsError, match=why):
        patched(patch)


def test_directives_replace_and_delete() -> None:
    """A list can be put in the place of ours, and a mapping emptied; a list without keys is replaced in any case."""
    replaced = patched("spec: {template: {spec: {volumes: [{$patch: replace}, {name: x}]}}}")
    assert pod(replaced)["volumes"] == [{"name": "x"}]
    emptied = patched("spec: {template: {spec: {securityContext: {$patch: delete}}}}")
    assert pod(emptied)["securityContext"] == {}
    other = patched("spec: {template: {spec: {securityContext: {$patch: replace, runAsUser: 1}}}}")
    assert pod(other)["securityContext"] == {"runAsUser": 1}
    tolerated = patched("spec: {template: {spec: {tolerations: [{$patch: replace}, {operator: Exists}]}}}")
    assert pod(tolerated)["tolerations"] == [{"operator": "Exists"}]


def test_patches_are_given_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, in either kind; what comes of it that is wrong is said, and is the person's to decide."""
    path = tmp_path / "patch.yaml"
    path.write_text("spec: {template: {spec: {volumes: [{name: x, emptyDir: {}}]}}}")
    least = ["manifest", "--image", "x:1", "--memory", "64Gi", "--claim", "c"]
    counts = {}
    for kind in ("strategic", "merge"):
        words = [*least, "--patch", str(path), "--patch-type", kind, "--", "train.py"]
        assert cli.main(words) == ExitCode.FINISHED
        out, err = capsys.readouterr()
        counts[kind] = len(pod([yaml.safe_load(out)])["volumes"])
        wrong = "What is mounted is no volume of the pod: spec" in err
        assert wrong == (kind == "merge"), err
        assert bool(err) == wrong
    assert counts == {"strategic": 5, "merge": 1}


def test_permissions_are_the_least_and_asked_for() -> None:
    """Nothing without --rbac; with it one account that may patch and read its own pod and write Events."""
    text = write("job", submission(permissions=True, namespace="team-a"))
    found = {each["kind"]: each for each in yaml.safe_load_all(text)}
    for each in found.values():
        assert kubernetes_validate.validate(each, "1.31", strict=True)
        assert kubernetes_validate.validate(each, "1.37", strict=True)
    assert [(rule["resources"], rule["verbs"]) for rule in found["Role"]["rules"]] == [
        (["pods"], ["get", "patch"]),
        (["events"], ["create"]),
    ]
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": "train", "namespace": "team-a"}]
    spec = found["Job"]["spec"]["template"]["spec"]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("train", True)
    env = {entry["name"]: entry for entry in spec["containers"][0]["env"]}
    assert env["RESILIENT_POD_API"]["value"] == "write"
    assert settings.platform(dict.fromkeys(env, "7")).unnamed_pod == ""
    assert ANNOTATION.startswith(rbac.ANNOTATIONS)
    policy, binding = found["ValidatingAdmissionPolicy"], found["ValidatingAdmissionPolicyBinding"]
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    (condition,) = policy["spec"]["matchConditions"]
    assert "'system:serviceaccount:team-a:train'" in condition["expression"]
    named = {variable["name"] for variable in policy["spec"]["variables"]}
    words = " ".join(rule["expression"] for rule in policy["spec"]["validations"])
    assert set(re.findall(r"variables\.(\w+)", words)) == named
    assert {each["kind"] for each in yaml.safe_load_all(write("job", submission()))} == {"Job"}


@pytest.mark.parametrize("kind", ["job", "indexed", "jobset", "runtime"])
def test_permissions_change_no_reason_of_others(kind: str) -> None:
    """A comment belongs to one field: what the Role needs said stands at the Role, and all else as without it."""
    asked = {"pods": 1 if kind == "job" else 2, "namespace": "team-a"}
    without = write(kind, submission(**asked)).splitlines()
    more = write(kind, submission(permissions=True, **asked)).split("---\n", 5)[5].splitlines()
    changed = [line.strip() for line in without if line not in more and not line.startswith("# ")]
    assert [line.partition(":")[0] for line in changed] == ["automountServiceAccountToken"]
