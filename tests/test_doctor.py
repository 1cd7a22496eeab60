# SPDX-License-Identifier: Apache-2.0
"""``resilient doctor`` on this machine and on broken ones: what it finds, what it says, and its exit code."""

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import failing_store
import pytest
from recorded_driver import recorded
from rich.console import Console
from saved_run import SavedRun
from supervised import LIMIT_S, ROOT, Folder

import resilient
from resilient.cli import main
from resilient.core.checks import CHECKS
from resilient.core.preflight import Finding, Grade, Report
from resilient.preflight.checkup import measure
from resilient.preflight.doctor import Subject, handed_out, network_errands, quick_errands, report, subject_of
from resilient.preflight.errand import Errand
from resilient.report.examination import show
from resilient.settings import Settings

UUID = "GPU-8c5d3f2a-0000-1111-2222-333344445555"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def examined(folder: Folder, *arguments: str | Path) -> tuple[int, Mapping[str, Mapping[str, Any]]]:
    """Exit code and findings, by check."""
    ended = folder.ask("doctor", "--json", *arguments)
    assert ended.stderr == ""
    data = json.loads(ended.stdout)
    assert data["code"] == ended.returncode
    return ended.returncode, {finding["check"]: finding for finding in data["findings"]}


def everything_below(path: Path) -> dict[str, bytes]:
    """All files, by name."""
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_this_machine_can_train(folder: Folder) -> None:
    """Every check with a real probe: torch multiplies and sums, the store takes and gives, and nothing is left."""
    folder.environ["CUDA_VISIBLE_DEVICES"] = ""
    run = SavedRun(folder.checkpoints)
    run.claim(1)
    run.save("1-10")
    listed = folder.script('{"node": "elsewhere"}', "denied")
    before = everything_below(folder.path)
    flags = ("--checkpoints", folder.checkpoints, "--nproc-per-node", "2", "--peers", "localhost")
    code, found = examined(folder, *flags, "--deny-list", listed, "train.py")
    assert code == 0, found
    assert list(found) == [check.id for check in CHECKS]
    for check in ("compute", "all-reduce", "names", "store", "clock", "snapshots", "memory"):
        assert found[check]["grade"] == "ok", found[check]
    assert "over 2 ranks" in found["all-reduce"]["found"]
    assert everything_below(folder.path) == before


@pytest.mark.parametrize("flags", [("--quick",), ()])
def test_the_platforms_deny_list_is_read_in_a_hurry_too(folder: Folder, flags: tuple[str, ...]) -> None:
    """A start reads it as well, and would refuse this node."""
    folder.environ |= {"RESILIENT_NODE": "gpu-1", "CUDA_VISIBLE_DEVICES": ""}
    listed = folder.script('{"node": "gpu-1", "why": "fan"}', "denied")
    code, found = examined(folder, *flags, "--deny-list", listed, "train.py")
    assert code == 198
    assert "fan" in found["deny-list"]["found"]


@pytest.mark.parametrize(
    ("fault", "code", "words"), [("denied", 193, "list, read, write and delete"), ("full", 193, "free space")]
)
def test_a_store_that_refuses(tmp_path: Path, fault: str, code: int, words: str) -> None:
    """Another container may find it mended; what is secret in its URL is never shown."""
    (tmp_path / "store").mkdir()
    folder = Folder(tmp_path, **failing_store.plugin(tmp_path, ROOT), OBJECT_TOKEN="canary-token")
    (tmp_path / "fault").write_text(fault)
    url = f"failing://user:canary-password@{tmp_path}/store"
    subject = Subject(journal=str(tmp_path), temporary=str(tmp_path), checkpoints=url)
    found = _store_alone(subject, folder.environment(tmp_path, {}))
    assert found.code == code
    finding = next(finding for finding in found.findings if finding.check == "store")
    assert words in f"{finding.found}; {finding.do}"
    assert "canary" not in repr(found)


def _store_alone(subject: Subject, environ: Mapping[str, str]) -> Report:
    return report(measure(network_errands(subject), environ), subject, environ)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense://bucket/run", "not known"),
        ("memory://run", "nobody but the process that wrote them"),
        ("file://run", "three slashes"),
    ],
)
def test_a_url_that_cannot_be_one_is_a_matter_of_settings(tmp_path: Path, url: str, words: str) -> None:
    """115, as from a start."""
    subject = Subject(journal=str(tmp_path), temporary=str(tmp_path), checkpoints=url)
    found = _store_alone(subject, Folder(tmp_path).environment(tmp_path, {}))
    assert found.code == 115
    assert words in found.failures[0].found


def test_a_package_that_is_missing_is_named_with_what_installs_it(tmp_path: Path) -> None:
    """The extra of this project for S3, and no advice about a URL that is right."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/s3fs.py").write_text("raise ModuleNotFoundError('No module named s3fs')\n")
    folder = Folder(tmp_path, PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}")
    subject = Subject(journal=str(tmp_path), temporary=str(tmp_path), checkpoints="s3://bucket/run")
    found = _store_alone(subject, folder.environment(tmp_path, {}))
    assert found.code == 115
    assert "s3:// is not installed" in found.failures[0].found
    assert found.failures[0].do == "pip install resilient-training[s3]"


@pytest.mark.parametrize(
    ("gpus", "code", "check", "grade", "words"),
    [
        ("nvml.h100(0), nvml.h100(1)", 0, "devices", "ok", "2 visible: NVIDIA H100 80GB HBM3"),
        ("nvml.h100(0)", 198, "devices", "fail", "1 visible where 2 were asked for"),
        ("nvml.h100(0), nvml.Gpu(1, lost=True)", 198, "device-health", "fail", "cannot reach GPU 1"),
        ("nvml.h100(0), nvml.h100(1, nvmlDeviceGetFieldValues=2)", 198, "device-health", "fail", "node reboot"),
        ("nvml.h100(0), nvml.h100(1, nvmlDeviceGetRemappedRows=(0, 1, 1, 0))", 0, "device-errors", "warn", "reset"),
        ("nvml.h100(0), nvml.h100(1, nvmlDeviceGetCurrPcieLinkWidth=4)", 0, "device-links", "warn", "x4 of x16"),
        ("init=9", 0, "devices", "warn", "Driver Not Loaded"),
    ],
)
def test_a_driver_is_asked_in_a_process_of_its_own(
    tmp_path: Path, gpus: str, code: int, check: str, grade: str, words: str
) -> None:
    """What NVML says, as recorded, comes back through the pipe and is judged."""
    environ = Folder(tmp_path, **recorded(tmp_path, gpus)).environment(tmp_path, {})
    subject = Subject(journal=str(tmp_path), temporary=str(tmp_path), devices=2)
    errand = quick_errands(subject)["devices"]
    found = report(measure({"devices": errand}, environ), subject, environ)
    finding = next(finding for finding in found.findings if finding.check == check)
    assert (found.code, finding.grade.value) == (code, grade), finding
    assert words in finding.found


def test_a_lost_gpu_is_the_exit_code(tmp_path: Path) -> None:
    """Of the command, with the table that says why."""
    folder = Folder(tmp_path, **recorded(tmp_path, "nvml.h100(0)"), NVIDIA_VISIBLE_DEVICES=f"{UUID},{UUID[:-1]}6")
    ended = folder.ask("doctor", "--quick")
    assert ended.returncode == 198, ended.stderr
    assert "fail  devices against those asked for: 1 visible where 2 were asked for" in ended.stdout


def test_a_driver_that_hangs_fails_the_node(tmp_path: Path) -> None:
    """Its process is given up after its limit."""
    environ = Folder(tmp_path, **recorded(tmp_path, "")).environment(tmp_path, {})
    (tmp_path / "site/pynvml.py").write_text("import signal\nsignal.pause()\n")
    measured = measure({"devices": Errand(probe="devices", limit_s=1.0)}, environ)
    found = report(measured, Subject(journal=str(tmp_path), temporary=str(tmp_path)), environ)
    assert found.code == 198
    assert [finding.check for finding in found.failures] == ["devices"]


def test_it_can_be_asked_from_python(tmp_path: Path) -> None:
    """One function with a typed result."""
    found = resilient.doctor(journal=str(tmp_path), quick=True)
    assert isinstance(found, Report)
    assert found.code == 0
    assert {finding.check for finding in found.findings} >= {"shm", "memory", "journal-disk"}


def shown(found: Report, **console: Any) -> str:
    """The report as it is printed."""
    text = io.StringIO()
    show(found, Console(file=text, markup=False, highlight=False, width=200, **console))
    return text.getvalue()


NASTY = Report(
    findings=(
        Finding(check="shm", looks_at="shared memory", grade=Grade.OK, found="much", do="", refusal=None),
        Finding(
            check="store",
            looks_at="checkpoint store",
            grade=Grade.FAIL,
            found="[/bold] it \x1b[2J failed",
            do="mend [it]",
            refusal=193,
        ),
        Finding(
            check="clock", looks_at="clock against the store", grade=Grade.SKIP, found="no store", do="", refusal=None
        ),
    )
)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_found_is_text(terminal: bool) -> None:
    """Never markup, never a control sequence; as a table on a terminal, line by line elsewhere."""
    text = shown(NASTY, force_terminal=terminal, color_system=None)
    assert "[/bold] it \\x1b[2J failed" in text
    assert "mend [it]" in text
    assert "\x1b" not in text
    assert "not looked at: clock against the store (no store)" in text
    assert "1 failed, 0 to be warned of: exit code 193 (the checkpoint store refuses or does not answer)" in text
    assert "shared memory" in text
    assert ("FOUND" in text) == terminal


def test_the_parent_stays_light(folder: Folder) -> None:
    """torch and the store's client are loaded by probes alone."""
    program = (
        "import sys; from resilient.cli import main; main(['doctor', '--quick'])\n"
        "print({name.split('.')[0] for name in sys.modules} & {'torch', 'numpy', 'fsspec', 'kubernetes'})"
    )
    environ = folder.environment(folder.path / "journal", {})
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert ended.stdout.splitlines()[-1] == "set()", ended.stderr


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--devices", "many"], "cannot use --devices many: it is not a number of devices"),
        (["--devcies", "2"], "resilient doctor has no such flag; did you mean --devices?"),
        (["--keep", "0"], "cannot use '0' for keep (flag --keep)"),
    ],
)
def test_a_wrong_flag_is_refused(argv: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As by any other command."""
    assert main(["doctor", *argv]) == 115
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (UUID, 1),
        (f"{UUID},{UUID.replace('8', '9')}", 2),
        (f"{UUID},{UUID}", 1),
        ("all", None),
        ("", None),
        ("0,1", None),
        ("void", None),
        (f"MIG-{UUID}/1/0", None),
    ],
)
def test_devices_that_were_handed_out_are_counted(text: str, count: int | None) -> None:
    """Where the platform lists them one by one; anything else says nothing."""
    assert handed_out({"NVIDIA_VISIBLE_DEVICES": text}) == count
    assert handed_out({}) is None


@pytest.mark.gpu
def test_devices_compute_and_sum(folder: Folder) -> None:
    """On a machine with GPUs every one is asked, multiplies, and takes part in a sum by NCCL."""
    code, found = examined(folder)
    assert code == 0, found
    assert "cuda:0" in found["compute"]["found"]
    assert found["all-reduce"]["found"].startswith("nccl over ")


@pytest.mark.parametrize(
    ("flags", "environ", "peers"),
    [
        ({"peers": "a-0.a, a-1.a,a-0.a,"}, {"MASTER_ADDR": "m"}, ("a-0.a", "a-1.a")),
        ({}, {"MASTER_ADDR": "m"}, ("m",)),
        ({"master-addr": "n"}, {"MASTER_ADDR": "m"}, ("n",)),
        ({}, {}, ()),
    ],
)
def test_peers_are_those_given_or_where_rank_0_is(
    flags: dict[str, str], environ: dict[str, str], peers: tuple[str, ...]
) -> None:
    """Each once, in the order given."""
    assert subject_of(flags, Settings(), environ).peers == peers
