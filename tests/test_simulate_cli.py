# SPDX-License-Identifier: Apache-2.0
"""``resilient simulate``, as people and programs use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resilient import cli
from resilient.errors import SettingsError
from resilient.kubernetes.documents import read
from resilient.kubernetes.simulated import find_workload
from resilient.report.as_kubectl import human_age
from resilient.report.simulation import journal_endings

JOB = str(Path(__file__).parents[1] / "examples/kubernetes/job.yaml")
SET = """
kind: JobSet
metadata: {name: js}
spec:
  failurePolicy: {maxRestarts: 1}
  replicatedJobs:
  - name: node
    template:
      spec:
        completions: 2
        parallelism: 2
        backoffLimitPerIndex: 0
        maxFailedIndexes: 0
        template: {spec: {restartPolicy: Never, containers: [{name: trainer}]}}
"""


def asked(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What the command prints."""
    assert cli.main(["simulate", *words]) == code
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What it says when it cannot."""
    assert cli.main(["simulate", *words]) == 115
    return capsys.readouterr().err


def test_what_a_list_holds_is_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `kubectl get -o json` writes it."""
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"kind": "List", "items": [{"kind": "Service"}, read(SET, "set")[0].data]}))
    assert "Simulated: JobSet default/js." in asked(capsys, str(path), "--ending", "0=0@1h")


def test_a_timeline_tells_what_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each thing that happens, then how the Job stands."""
    text = asked(capsys, JOB, "--ending", "0=194@1h", "--ending", "0=114@2h", "--ending", "0=0@3h")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    failed = (
        "Container trainer for pod default/char-gpt-0-sim02 failed with exit code 114 matching FailJob rule at index 0"
    )
    assert lines == [
        "Simulated: Job default/char-gpt. No cluster was asked.",
        "TIME EVENT OBJECT WHAT",
        "0s created char-gpt-0-sim01 created and started, index failures 0 counted, 0 ignored",
        "1h ended char-gpt-0-sim01 trainer ended with exit code 194; rule 3 (Ignore): replaced, not counted",
        "1h1s waits char-gpt back-off: no new pod for another 9 s",
        "1h10s created char-gpt-0-sim02 created and started, index failures 0 counted, 1 ignored",
        "2h ended char-gpt-0-sim02 trainer ended with exit code 114; rule 0 (FailJob): the Job fails",
        f"2h1s condition char-gpt FailureTarget (PodFailurePolicy): {failed}",
        f"2h1s condition char-gpt Failed (PodFailurePolicy): {failed}",
        "Job char-gpt: Failed (PodFailurePolicy) after 2h1s; pods: 0 running, 0 succeeded, 1 counted as failed",
        "Did not happen, as no pod was left for it: "
        "index 0 of its Job: the main container ended with exit code 0 at 3h",
    ]


def test_json_has_the_names_of_the_api(capsys: pytest.CaptureFixture[str]) -> None:
    """Status, conditions and counters."""
    data: dict[str, Any] = json.loads(asked(capsys, JOB, "--ending", "0=1@1h", "--json"))
    assert (data["simulated"], data["kind"], data["name"], data["jobset"]) == (True, "Job", "char-gpt", None)
    [job] = data["jobs"]
    assert job["status"] == {
        "active": 1,
        "suspended": False,
        "succeeded": 0,
        "failed": 1,
        "terminating": 0,
        "completedIndexes": "",
        "failedIndexes": "",
        "conditions": [],
    }
    assert [pod["job-index-failure-count"] for pod in job["pods"]] == [0, 1]
    assert [pod["exit_codes"] for pod in job["pods"]] == [{"trainer": 1}, {"trainer": None}]
    assert data["entries"][1] == {
        "at_s": 3600,
        "event": "ended",
        "object": "char-gpt-0-sim01",
        "job": "char-gpt",
        "what": "trainer ended with exit code 1; no rule matches: counted as a failure",
    }


def test_it_shows_what_kubectl_would_show(capsys: pytest.CaptureFixture[str]) -> None:
    """Every answer is marked as simulated."""
    text = asked(capsys, JOB, "--ending", "0=194@10min", "--ending", "0=0@20min", "--as-kubectl")
    assert text == (
        "$ kubectl get jobs   (simulated)\n"
        "NAME       STATUS     COMPLETIONS   DURATION   AGE\n"
        "char-gpt   Complete   1/1           20m        20m\n"
        "\n"
        "$ kubectl get pods   (simulated)\n"
        "NAME               READY   STATUS      RESTARTS   AGE\n"
        "char-gpt-0-sim01   0/1     Error       0          20m\n"
        "char-gpt-0-sim02   0/1     Completed   0          9m52s\n"
        "\n"
        "$ kubectl describe job char-gpt   (simulated)\n"
        "Name:               char-gpt\n"
        "Namespace:          default\n"
        "Parallelism:        1\n"
        "Completions:        1\n"
        "Completion Mode:    Indexed\n"
        "Suspend:            false\n"
        "Backoff Limit:      2147483647\n"
        "Start Time:         +0s (simulated)\n"
        "Completed At:       +20m (simulated)\n"
        "Duration:           20m\n"
        "Pods Statuses:      0 Active (0 Ready) / 1 Succeeded / 0 Failed\n"
        "Completed Indexes:  0\n"
        "Events:\n"
        "  Type    Reason            Age    From            Message\n"
        "  ----    ------            ---    ----            -------\n"
        "  Normal  SuccessfulCreate  20m    job-controller  Created pod: char-gpt-0-sim01\n"
        "  Normal  SuccessfulCreate  9m52s  job-controller  Created pod: char-gpt-0-sim02\n"
        "  Normal  Completed         1s     job-controller  Job completed\n"
        "\n"
    )


def test_a_jobset_is_told_with_its_restarts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And by kubectl with its terminal state."""
    path = tmp_path / "set.yaml"
    path.write_text(SET)
    words = (str(path), "--ending", "node/0=1@1min", "--ending", "js-node-0/1=1@1h")
    text = asked(capsys, *words)
    assert "no rule matches: RestartJobSet because of js-node-0; restarts that count: 1 of 1" in text
    assert "JobSet js: Failed (ReachedMaxRestarts) after 1h32s; restarts of the set: 1, counted: 1" in text
    shown = asked(capsys, *words, "--as-kubectl").splitlines()
    assert shown[:3] == [
        "$ kubectl get jobsets   (simulated)",
        "NAME   TERMINALSTATE   RESTARTS   COMPLETED   SUSPENDED   AGE",
        "js     Failed          1                      false       60m",
    ]
    data = json.loads(asked(capsys, *words, "--json"))
    assert data["jobset"]["status"]["restartsCountTowardsMax"] == 1


def test_endings_come_from_a_file_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON list; the same as on the command line."""
    path = tmp_path / "endings.json"
    ending = {"index": 0, "code": 195, "at": "2h", "deleted": 7100, "conditions": ["DisruptionTarget"]}
    path.write_text(json.dumps([ending, {"codes": {"trainer": 0}, "at": 9000}]))
    from_file = asked(capsys, JOB, "--endings", str(path))
    words = ("--ending", "0=195@2h,DisruptionTarget,deleted@7100s", "--ending", "*=trainer:0@9000")
    assert from_file == asked(capsys, JOB, *words)
    assert "rule 2 (Ignore)" in from_file


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "no list where one belongs"),
        ('[{"index": 0}]', "ending 0: it needs a code and a time"),
        ('[{"code": 1, "at": "soon"}]', "ending 0: it is not a duration"),
        ('[{"code": "1", "at": 1}]', "ending 0: a code or an index is no whole number"),
        ('[{"code": 1, "at": 1, "when": 2}]', "ending 0: it has 'when', which nobody reads"),
        ('[{"code": 1, "at": -1}]', "ending 0: a time is out of reach"),
        ("\udcff", "can't decode"),
    ],
)
def test_a_file_of_endings_that_is_none(
    content: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong, and what to write."""
    path = tmp_path / "endings.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    said = refused(capsys, JOB, "--endings", str(path))
    assert why in said
    assert "write a list of objects" in said


def journal(path: Path, *lives: tuple[float, int | None, float, int | None]) -> str:
    """A journal of supervisors: start, index, last entry, exit code."""
    lines = []
    for start_s, index, last_s, code in lives:
        lines.append({"t": start_s, "m": start_s, "kind": "start", "submission": "s", "index": index, "pid": 1})
        kind = {"kind": "exit", "code": code, "why": "w", "do": "d"} if code is not None else {"kind": "sample"}
        lines.append({"t": last_s, "m": last_s, **kind})
    (path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_journal_gives_the_endings_that_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One for each supervisor; who wrote no exit was killed, probably."""
    target = journal(tmp_path, (1000, 0, 1060, 194), (1100, 0, 1200, None), (1300, 0, 4600, 0))
    endings = journal_endings(target)
    assert [(ending.at_s, dict(ending.codes), ending.index) for ending in endings] == [
        (60, {"": 194}, 0),
        (200, {"": 137}, 0),
        (3600, {"": 0}, 0),
    ]
    text = asked(capsys, JOB, "--journal", target)
    assert "Job char-gpt: Complete (CompletionsReached)" in text
    assert "1 succeeded, 1 counted as failed" in text


def test_a_suspension_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Its pod is neither counted nor evaluated, and the next one begins without counters."""
    words = (JOB, "--ending", "0=194@1h", "--ending", "0=195@2h1min", "--suspended", "2h..3h")
    lines = [" ".join(line.split()) for line in asked(capsys, *words).splitlines()]
    assert lines[5:-1] == [
        "1h10s created char-gpt-0-sim02 created and started, index failures 0 counted, 1 ignored",
        "2h suspended char-gpt suspended: no pod is started before spec.suspend is false",
        "2h deleted char-gpt-0-sim02 deleted with SIGTERM, as the Job is suspended, and not counted",
        "2h1min ended char-gpt-0-sim02 trainer ended with exit code 195; the pod is gone",
        "3h resumed char-gpt resumed: its clock begins anew",
        "3h created char-gpt-0-sim03 created and started, index failures 0 counted, 0 ignored",
    ]
    shown = asked(capsys, JOB, "--suspended", "0s..", "--as-kubectl")
    assert "char-gpt   Suspended   0/1" in shown
    assert "Normal  Suspended  1s   job-controller  Job suspended" in shown
    assert shown == asked(capsys, JOB, "--suspended", "0..", "--as-kubectl")
    resumed = asked(capsys, JOB, "--suspended", "0..1h", "--ending", "0=0@3h", "--as-kubectl")
    assert "char-gpt   Complete   1/1           120m       3h" in resumed, "older than it has been active"
    assert "Job char-gpt: suspended; pods: 0 running" in asked(capsys, JOB, "--suspended", "1h..")
    for wrong in ("1h", "2h..1h", "x..", "..1h"):
        assert f"cannot read the suspension '{wrong}'" in refused(capsys, JOB, "--suspended", wrong)


CASE: dict[str, Any] = {
    "name": "ignored",
    "pod_failure_policy": {"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [194]}}]},
    "pod": {
        "metadata": {"namespace": "ml", "name": "p"},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "t", "state": {"terminated": {"exitCode": 194}}}]},
    },
    "expected": {"action": "Ignore", "count_failed": False, "job_fail_message_contains": None},
}


def vectors(path: Path, *cases: dict[str, Any]) -> str:
    (path / "cases.json").write_text(json.dumps(cases))
    return str(path / "cases.json")


def test_cases_are_evaluated_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 where all agree."""
    no_policy = {**CASE, "name": "no policy", "pod_failure_policy": None}
    no_policy["expected"] = {"action": None, "count_failed": True}
    path = vectors(tmp_path, CASE, no_policy)
    text = asked(capsys, "--vectors", path)
    assert [line.split()[-1] for line in text.splitlines()[1:3]] == ["yes", "yes"]
    assert text.endswith("2 of 2 cases agree\n")
    [first, _] = json.loads(asked(capsys, "--vectors", path, "--json"))
    assert first == {
        "name": "ignored",
        "action": "Ignore",
        "counted": False,
        "message": None,
        "rule": 0,
        "agrees": True,
        "differences": [],
    }


def test_a_case_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and in which ways."""
    wrong = {"action": "FailJob", "count_failed": True, "job_fail_message_contains": "exit code 194"}
    path = vectors(tmp_path, CASE, {**CASE, "name": "other", "expected": wrong})
    text = asked(capsys, "--vectors", path, code=1)
    assert (
        "no: action Ignore, expected FailJob; counted False, expected True; message None, expected 'exit code 194'"
        in text
    )
    assert text.endswith("1 of 2 cases agree\n")


def test_a_pod_that_has_not_failed_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that succeeded although a sidecar did not, and one that is still terminating."""
    done = json.loads(json.dumps(CASE))
    done["pod"]["status"]["phase"] = "Succeeded"
    leaving = json.loads(json.dumps(CASE))
    leaving["pod"]["status"]["phase"] = "Running"
    leaving["pod"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for case in (done, leaving):
        case["expected"] = {"action": None, "count_failed": False}
    assert asked(capsys, "--vectors", vectors(tmp_path, done, leaving)).endswith("2 of 2 cases agree\n")


def test_a_gate_that_is_closed_leaves_fail_index_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in clusters before it was there."""
    case = json.loads(json.dumps(CASE))
    case["pod_failure_policy"]["rules"][0]["action"] = "FailIndex"
    closed = {**case, "feature_gates": {"JobBackoffLimitPerIndex": False}, "expected": {"action": None}}
    open_ = {**case, "expected": {"action": "FailIndex", "count_failed": True}}
    assert asked(capsys, "--vectors", vectors(tmp_path, closed, open_)).endswith("2 of 2 cases agree\n")


def test_words_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No manifest, two forms at once, cases of another kind."""
    assert "no manifest was given" in refused(capsys)
    assert "cannot print --json and --as-kubectl at once" in refused(capsys, JOB, "--json", "--as-kubectl")
    foreign = vectors(tmp_path, {"name": "a Job", "job": {}, "valid": True})
    assert "manifest --check has the others" in refused(capsys, "--vectors", foreign)


def test_what_others_wrote_reaches_no_terminal_as_it_is() -> None:
    """Names are cleaned of control sequences and secrets before they are shown."""
    text = SET.replace(
        "backoffLimitPerIndex: 0", '"x\\e[31m": 1\n        backoffLimitPerIndex: "ghp_0123456789abcdef0123"'
    )
    with pytest.raises(SettingsError) as caught:
        find_workload(read(text.replace("RestartPolicy", "x"), "set.yaml"))
    assert "\x1b" not in str(caught.value)
    assert "ghp_" not in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "age"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (12_000, "3h20m"),
        (28_800, "8h"),
        (172_800, "2d"),
        (180_000, "2d2h"),
        (691_200, "8d"),
    ],
)
def test_ages_are_rounded_as_kubectl_does(seconds: float, age: str) -> None:
    """Two parts while they matter."""
    assert human_age(seconds) == age
