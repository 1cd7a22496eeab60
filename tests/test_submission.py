# SPDX-License-Identifier: Apache-2.0
"""What is refused before a manifest is written, and what hostile words become in one."""

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from submissions import applied, job_specs, submission, trainer
from supervised import LIMIT_S

from resilient.core.backstop import MOST, Plan
from resilient.errors import SettingsError
from resilient.kubernetes import documents, names
from resilient.kubernetes.manifest import write
from resilient.kubernetes.submission import name_of, run_words

WRONG: dict[str, list[Any]] = {
    "name": ["", "Train", "1train", "train_1", "a" * 64, "-a", "a.b", "x\nkind: Pod", "a\0", "é"],
    "namespace": ["", "Team", "a_b", "x" * 64, "a\n"],
    "image": ["", "has space", "-flag", "x\ny", "$(X)", "a" * 2000, "a{b}"],
    "device_resource": ["gpu", "", "nvidia.com/", "nvidia.com/gpu: 8", "a/b/c", "NVIDIA.com/gpu"],
    "claim": ["", "Claim", "a/b", "x" * 254, "a: b"],
    "queue": ["", "a_b", "Q", "a\n", "q" * 64],
    "memory": ["", "64", "0Gi", "-1Gi", "64 Gi", "64GB", "1e3", "99999999999999Pi", "NaN", "64Gi\n"],
    "state": ["", "x", "0"],
    "shm": ["65Gi", "64Gi", "much"],
    "cpu": ["", "many", "-1", "0", "1e9", "1 "],
    "pods": [0, -1, 10_001],
    "devices": [-1, 1025],
    "grace_s": [0, -5, 10**9],
    "uid": [0, -1, 2**31],
    "days": [0.0, -1.0, float("nan"), float("inf"), 1e9],
    "faults_per_device_day": [0.0, -1.0, float("nan"), float("inf")],
    "command": [(), ("--no-such-flag", "x.py"), ("--nnodes", "2", "x.py"), ("--keep", "0", "x.py"), ("a\0b.py",),
                ("x.py", "\udcff"), ("x.py", "\x1b[31m"), ("--snapshots", "/x", "x.py"),
                ("--termination-log", "/x", "x.py"), ("--journal", "/x", "x.py"), ("--checkpoints", "/x", "x.py")],
    "checkpoints": ["", "/elsewhere", "/checkpoints/../etc", "s3://bucket/run", "relative"],
    "env": [{"1X": "a"}, {"A-B": "a"}, {"RESILIENT_GRACE_S": "1"}, {"RESILIENT_INDEX": "1"}, {"RESILIENT_KEPE": "3"},
            {"RESILIENT_SNAPSHOTS": "/x"}, {"RESILIENT_TERMINATION_LOG": "/x"}, {"PET_NNODES": "2"},
            {"RESILIENT_KEEP": "0"}, {"AWS_SECRET_ACCESS_KEY": "abcdefgh"}, {"HF_TOKEN": "x"}, {"A": "\0"}],
    "secrets": [("Bad_Name",), ("",), ("a\nb",)],
    "secret_env": [{"A": ("s", "")}, {"A": ("S_", "k")}, {"A": ("s", "k/y")}, {"1": ("s", "k")}],
    "permissions": [True],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_the_cluster_would_refuse_is_refused_at_once(name: str, value: object) -> None:
    """Each wrong value is named, with why and what to do, and nothing is written."""
    with pytest.raises(SettingsError, match=r"(?s)^cannot .+: .+; .+"):
        submission(**{name: value})


@pytest.mark.parametrize("pods", [2, 11, 10_000])
@pytest.mark.parametrize("kind", ["indexed", "jobset", "runtime"])
def test_the_last_pod_still_has_a_host_name(kind: str, pods: int) -> None:
    """What the controllers put after a name belongs to the 63 characters of a DNS label."""
    ending = f"-{pods - 1}" if kind == "indexed" else f"-node-0-{pods - 1}"
    assert applied(kind, pods=pods, name="a" * (63 - len(ending)))
    with pytest.raises(SettingsError, match=rf"use at most {63 - len(ending)}"):
        applied(kind, pods=pods, name="a" * (64 - len(ending)))


def test_secrets_are_never_written() -> None:
    """Neither the password of a URL nor a value whose name promises a secret, not even in the complaint."""
    for changes in (
        {"claim": None, "checkpoints": "s3://me:canary-1234@bucket/run"},
        {"env": {"API_KEY": "canary-1234"}},
    ):
        with pytest.raises(SettingsError) as refused:
            submission(**changes)
        assert "canary" not in str(refused.value)


@pytest.mark.parametrize("url", ["file:///checkpoints/x", "local:///x", "memory://x", "s3://", "s3:///", "/data"])
def test_checkpoints_go_where_they_outlive_the_pod(url: str) -> None:
    """Without a claim that is behind a URL which names a place, and not one of the container's own."""
    with pytest.raises(SettingsError, match=r"cannot use '.*' for the checkpoints: .+; .+"):
        submission(claim=None, checkpoints=url)


def test_how_many_workers_torchruns_variable_says_is_not_said_again() -> None:
    """A flag of ours would override it."""
    (spec,) = job_specs(applied("job", env={"PET_NPROC_PER_NODE": "3"}))
    assert "--nproc-per-node" not in trainer(spec)["args"]
    (spec,) = job_specs(applied("job"))
    assert "--nproc-per-node" in trainer(spec)["args"]


@pytest.mark.parametrize("asked", [{"env": {"RESILIENT_POD_API": "read"}}, {"command": ("--pod-api", "write", "a.py")}])
def test_nothing_is_asked_of_kubernetes_without_the_right_to(asked: dict[str, Any]) -> None:
    """The pod has no token, and the linter would say so of our own manifest."""
    with pytest.raises(SettingsError, match=r"cannot set RESILIENT_POD_API alone: .*; give --rbac"):
        submission(**asked)
    assert submission(**asked, permissions=True, namespace="ml")
    assert submission(env={"RESILIENT_POD_API": "none"})


def test_secrets_come_by_reference() -> None:
    """All keys of a Secret, or one of them under a name."""
    (spec,) = job_specs(applied("job", secrets=("s3-login",), secret_env={"HF_TOKEN": ("hub", "token")}))
    assert trainer(spec)["envFrom"] == [{"secretRef": {"name": "s3-login"}}]
    assert trainer(spec)["env"][-1] == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
    }


def test_no_variable_comes_twice() -> None:
    """HOME is ours only where nobody says otherwise."""
    own: dict[str, str]
    for own, home in (({}, "/tmp"), ({"HOME": "/scratch"}, "/scratch")):
        (spec,) = job_specs(applied("job", env=own))
        env = [(entry["name"], entry.get("value")) for entry in trainer(spec)["env"]]
        assert [value for name, value in env if name == "HOME"] == [home]
        assert len({name for name, _ in env}) == len(env)


def kubelets_words(words: list[str]) -> list[str]:
    """What the kubelet makes of words: ``$$`` is ``$``, and ``$(NAME)`` a variable (here: none is left standing)."""
    found = []
    for word in words:
        out, at = "", 0
        while at < len(word):
            if word[at] == "$" and word[at + 1 : at + 2] == "$":
                out, at = out + "$", at + 2
            else:
                assert word[at : at + 2] != "$("
                out, at = out + word[at], at + 1
        found.append(out)
    return found


ODD = ["on", "yes", "0644", "1_000", "null", "~", "2024-01-01", "a: b", "- x", "# no", "{a: b}", "[x", "'", '"', "\\",
       "a\nkind: Pod", "---", "...", "&a", "*a", "!tag", "%TAG", "$(HOME)", "$$", "$$(X)", "é\u2028kind: Pod", "\x85",
       "\ufeff", "<<", "=", " ", "", "x" * 300, "?", "|", ">", "tab\there", "🙂"]  # fmt: skip


def test_words_arrive_as_they_were_typed() -> None:
    """Whatever YAML, kubectl or the kubelet could take a word for; a second reader of YAML agrees."""
    values = {f"V{number}": word for number, word in enumerate(ODD)}
    text = write("job", submission(command=("--", "bash", *ODD), env=values), head=[f"for {word}" for word in ODD])
    (job,) = [document.data for document in documents.read(text, "manifest")]
    assert yaml.safe_load(text) == job
    container = trainer(job["spec"])
    assert kubelets_words(container["args"][-len(ODD) - 1 :]) == ["bash", *ODD]
    assert kubelets_words([entry["value"] for entry in container["env"][-len(ODD) :]]) == ODD
    assert all(line.isprintable() for line in text.splitlines())


@settings(max_examples=10)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20), min_size=1, max_size=40))
@example([":0", "?0", ":", "a:b", "-:"])
def test_any_words_arrive(words: list[str]) -> None:
    """No text of a command can become anything else in the manifest."""
    text = write("job", submission(command=("--", "program", *words)))
    job = yaml.safe_load(text)
    assert kubelets_words(trainer(job["spec"])["args"][-len(words) :]) == words


@pytest.mark.parametrize(
    ("typed", "given", "added"),
    [
        (("train.py", "--lr", "1"), ("--", "train.py", "--lr", "1"), ["--nproc-per-node", "8"]),
        (("python", "train.py"), ("--", "python", "train.py"), ["--nproc-per-node", "8"]),
        (("-m", "pkg.train"), ("-m", "pkg.train"), ["--nproc-per-node", "8"]),
        (("--nproc-per-node", "2", "x.py"), ("--nproc-per-node", "2", "x.py"), []),
        (("torchrun", "x.py"), ("--", "torchrun", "x.py"), ["--nproc-per-node", "8"]),
        (("torchrun", "--nproc-per-node", "4", "x.py"), ("--", "torchrun", "--nproc-per-node", "4", "x.py"), []),
        (("accelerate", "launch", "x.py"), ("--", "accelerate", "launch", "x.py"), []),
        (("bash", "run.sh"), ("--", "bash", "run.sh"), []),
        (("resilient", "run", "--keep", "5", "x.py"), ("--keep", "5", "x.py"), ["--nproc-per-node", "8"]),
    ],
)
def test_a_command_gets_a_worker_for_each_device(
    typed: tuple[str, ...], given: tuple[str, ...], added: list[str]
) -> None:
    """Unless it says how many itself, starts them itself, or is a program that may not bear being started twice."""
    assert run_words(typed) == given
    (spec,) = job_specs(applied("job", command=run_words(typed)))
    assert trainer(spec)["args"] == [*added, *given]


def test_a_training_without_devices_is_one_worker() -> None:
    """Nothing is asked of a device plugin, and nothing of the command."""
    (spec,) = job_specs(applied("job", devices=0, command=("train.py",)))
    assert trainer(spec)["args"] == ["train.py"]
    assert trainer(spec)["resources"]["limits"] == {"memory": "64Gi"}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("/app/char_gpt.py", "--x"), "char-gpt"),
        (("python", "Train.V2.py"), "train-v2"),
        (("-m", "pkg.train"), "training"),
        (("1.py",), "training"),
        (("__.py",), "training"),
        (("a" * 90 + ".py",), "a" * 40),
    ],
)
def test_a_training_is_called_as_its_script(words: tuple[str, ...], name: str) -> None:
    """A name that the cluster takes, whatever the script's is."""
    assert name_of(words) == name == names.label(name, "the name")


def test_memory_holds_the_training_and_its_snapshots() -> None:
    """The limit is what the training needs and two slots of the state; /dev/shm is a part of the former."""
    asked = submission(memory="176Gi", state="40Gi")
    assert (asked.memory_limit, asked.shm_limit) == ("256Gi", "88Gi")
    assert submission(memory="1.5Gi").memory_limit == "1536Mi"
    assert submission(memory="1G").memory_limit == str(10**9)
    assert "2 x 40Gi for snapshots" in write("job", asked)
    assert "give --state" in write("job", submission())


def test_several_pods_have_memory_for_what_carries_word_between_them() -> None:
    """Beside the snapshots, or alone; the comment names each part."""
    asked = submission(memory="176Gi", state="40Gi", pods=2)
    assert asked.memory_limit == f"{256 * 1024 + 512}Mi"
    text = " ".join(write("indexed", asked).replace("# ", "").split())
    assert "176Gi for the training, /dev/shm included, + 512Mi for the process" in text
    assert "+ 2 x 40Gi for snapshots" in text
    assert submission(memory="1Gi", pods=2).memory_limit == "1536Mi"
    assert "512Mi" not in write("jobset", submission(pods=1))


@pytest.mark.parametrize(
    ("plan", "backstop"),
    [
        (Plan(devices=8, days=30), 20),
        (Plan(devices=1024, days=30), 154),
        (Plan(devices=10_000, days=3650, faults_per_device_day=100.0), MOST),
        (Plan(devices=16_384, days=54), 4424),
    ],
)
def test_backstops_follow_the_formula(plan: Plan, backstop: int) -> None:
    """max(20, 10 x faults expected), and never more than the API's number can be."""
    assert plan.backstop == backstop


def test_the_formula_stands_beside_its_result() -> None:
    """With its inputs, and the source of the rate where it is ours."""
    text = " ".join(write("indexed", submission(pods=128, days=60)).replace("#", " ").split())
    assert "= 308: 1024 devices x 60 days x 0.0005 faults a device and day (419 unexpected interruptions" in text
    assert "x 0.01 faults a device and day = 0.08" in " ".join(
        write("job", submission(days=1, faults_per_device_day=0.01)).replace("#", " ").split()
    )


def test_importing_the_package_loads_no_client() -> None:
    """The supervisor imports its termination message from this package, and must stay light."""
    program = (
        "import sys, json, resilient, resilient.kubernetes, resilient.kubernetes.termination, resilient.cli\n"
        "heavy = {'kubernetes', 'ruamel', 'torch', 'pydantic'}\n"
        "print(json.dumps(sorted(heavy & {name.split('.')[0] for name in sys.modules})))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert json.loads(ended.stdout) == []
