# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest`` as it is typed."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import readme
import yaml

from resilient import cli
from resilient.core.exit_codes import ExitCode

EXAMPLE = Path(__file__).parents[1] / "examples/kubernetes/job.yaml"
LEAST = ("--image", "registry.example.com/x:1", "--memory", "64Gi", "--claim", "checkpoints")


def typed(*words: str) -> int:
    """The exit code of the verb."""
    return cli.main(["manifest", *words])


def job(text: str) -> dict[str, Any]:
    """The one document."""
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_the_example_is_what_the_readme_writes(capsys: pytest.CaptureFixture[str]) -> None:
    """examples/kubernetes/job.yaml is the output of the README's command, to the letter."""
    (line,) = [line for line in readme.commands() if line.endswith("> examples/kubernetes/job.yaml")]
    _, *words = shlex.split(line.removesuffix("> examples/kubernetes/job.yaml"))
    assert cli.main(words) == ExitCode.FINISHED
    assert capsys.readouterr().out == EXAMPLE.read_text()


def test_what_nobody_can_guess_is_asked_for_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """All that is missing in one message, and nothing on stdout."""
    assert typed() == ExitCode.CONFIG_FAULT
    out, err = capsys.readouterr()
    assert out == ""
    assert "add --image, --memory, --checkpoints or --claim, -- and the command of the training" in err


def test_everything_after_the_dashes_is_the_trainings(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags of the script are not taken for ours, and a second ``--`` is the script's."""
    assert typed("job", *LEAST, "--devices", "2", "--", "train.py", "--image", "x", "--", "y") == ExitCode.FINISHED
    found = job(capsys.readouterr().out)
    args = found["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args == ["--nproc-per-node", "2", "--", "train.py", "--image", "x", "--", "y"]
    assert found["metadata"]["name"] == "train"


def test_flags_reach_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    """Values are read in their forms, and repeated flags add up."""
    more = (
        "--grace",
        "5min",
        "--env",
        "A=1=2",
        "--env",
        "B=",
        "--secret",
        "s",
        "--secret-env",
        "C=s:k",
        "--queue",
        "q",
    )
    shape = ("--name", "n", "--namespace", "ns", "--user", "1000", "--sidecars", "--device-resource", "amd.com/gpu")
    assert typed(*LEAST, *more, *shape, "--", "train.py") == ExitCode.FINISHED
    found = job(capsys.readouterr().out)
    assert found["metadata"] == {"name": "n", "namespace": "ns", "labels": {"kueue.x-k8s.io/queue-name": "q"}}
    pod = found["spec"]["template"]["spec"]
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert (env["A"], env["B"], env["RESILIENT_GRACE_S"]) == ("1=2", "", "300")
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "1"
    assert found["spec"]["template"]["metadata"]["labels"] == {"app.kubernetes.io/name": "n"}


def test_several_pods_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    """With what brings them together, and nothing on stderr; stdout stays a manifest."""
    assert typed("indexed", "--pods", "4", *LEAST, "--", "train.py") == ExitCode.FINISHED
    out, err = capsys.readouterr()
    assert err == ""
    assert [one["kind"] for one in yaml.safe_load_all(out)] == ["Service", "NetworkPolicy", "Job"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("pod",), "invalid choice"),
        (("--grace", "120"), "it has no unit"),
        (("--grace", "1500ms"), "whole seconds"),
        (("--env", "A"), "it has no '='"),
        (("--env", "A=1", "--env", "A=2"), "twice"),
        (("--secret-env", "A=b"), "it names no key"),
        (("--pods", "many"), "invalid int"),
        (("--image",), "expected one argument"),
        (("--imag=x",), "unrecognized"),
    ],
)
def test_a_wrong_flag_is_a_setting(words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each complaint says why, with the code of wrong settings, and writes nothing."""
    assert typed(*LEAST, *words, "--", "train.py") == ExitCode.CONFIG_FAULT
    out, err = capsys.readouterr()
    assert (out, why in err) == ("", True), err


def test_the_command_line_is_told_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """The head says how the manifest was made; a secret among the script's words is masked there."""
    assert typed(*LEAST, "--", "train.py", "--api-key", "canary-12345678") == ExitCode.FINISHED
    out, err = capsys.readouterr()
    head = [line for line in out.splitlines() if line.startswith("#")]
    assert head[0].startswith("# Written by: resilient manifest --image")
    assert "canary" not in " ".join(head) + err
    assert "the command holds what looks like a secret" in err


def test_checking_is_the_same_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files on either side of the other flags; what is written here passes."""
    path = tmp_path / "job.yaml"
    for kind, pods in (("job", "1"), ("indexed", "2"), ("jobset", "2"), ("runtime", "2")):
        assert typed(kind, "--pods", pods, *LEAST, "--restart-rules", "--", "train.py") == ExitCode.FINISHED
        path.write_text(capsys.readouterr().out)
        for words in (
            ("--check", str(path), "--json"),
            ("--check", "--json", str(path)),
            ("--json", "--check", str(path)),
        ):
            assert typed(*words) == 0
            assert json.loads(capsys.readouterr().out)["findings"] == []
    path.write_text(path.read_text().replace("In, values: [114", "In, values: [0, 114"))
    assert typed("--check", str(path)) == 1
    assert f"{path}:" in capsys.readouterr().out
    assert typed("--check") == ExitCode.CONFIG_FAULT
    assert "no file is named" in capsys.readouterr().err
