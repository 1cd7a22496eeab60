# SPDX-License-Identifier: Apache-2.0
"""The table of checks: what each makes of its facts, what silence means, and which exit code follows."""

from dataclasses import replace
from typing import Any

import pytest
from driving import denial

from resilient.core.checks import CHECKS
from resilient.core.devices import NO_RECOVERY, Device, Look, State
from resilient.core.exit_codes import NEEDS_DEBIT, STOP, ExitCode
from resilient.core.measured import (
    UNLIMITED,
    AllReduceFacts,
    ComputeFacts,
    DenyListFacts,
    FolderFacts,
    HostFacts,
    NameFacts,
    NamesFacts,
    StoreFacts,
    TorchFacts,
    Unmeasured,
)
from resilient.core.preflight import Asked, Finding, Grade, judge

OK, WARN, FAIL, SKIP = Grade.OK, Grade.WARN, Grade.FAIL, Grade.SKIP
NODE, CONFIG, RESTART = ExitCode.NODE_REFUSED, ExitCode.CONFIG_FAULT, ExitCode.RESTART
GIB = 1 << 30

HOST = HostFacts(
    open_files=1 << 20,
    memlock=UNLIMITED,
    processes_left=UNLIMITED,
    infiniband=("mlx5_0",),
    memory_limit=64 * GIB,
    memory_available=60 * GIB,
    shm_size=16 * GIB,
    shm_free=16 * GIB,
)
GPU = Device(
    index=0,
    bus="0000:18:00.0",
    name="NVIDIA H100 80GB HBM3",
    state=State.ANSWERS,
    recovery=NO_RECOVERY,
    uncorrected=0,
    rows_pending=False,
    rows_failed=False,
    slowed=(),
    lanes=16,
    lanes_possible=16,
    links_up=18,
    links=18,
)
LOOK = Look(devices=(GPU, replace(GPU, index=1)), driver="575.57", runtime="12.9")
FOLDER = FolderFacts(path="/data", size=100 * GIB, free=50 * GIB, files_free_fraction=0.9)
STORE = StoreFacts(url="s3://bucket/run", seconds=0.2, skew=0.0, state=8 * GIB)
CPU = ComputeFacts(device="cpu", wrong=0)
CUDA = ComputeFacts(device="cuda:0", wrong=0, free=79 * GIB, size=80 * GIB)
TORCH = TorchFacts(version="2.13.0", cuda="12.8", devices=(CPU, CUDA))
SUM = AllReduceFacts(backend="nccl", ranks=2, right=True, seconds=0.5)
NAMES = NamesFacts(names=(NameFacts(name="a-0.a", addresses=("10.0.0.7",)),))
LISTED = denial("node-a", of_platform=True)
DENY_LIST = DenyListFacts(
    url="/etc/denied.jsonl", node="node-a", entries=2, denials=(denial("GPU-9", of_platform=True),)
)
GOOD = {
    "host": HOST,
    "devices": LOOK,
    "journal": FOLDER,
    "temporary": FOLDER,
    "store": STORE,
    "torch": TORCH,
    "all-reduce": SUM,
    "names": NAMES,
    "deny-list": DENY_LIST,
}


def find(check: str, asked: Asked | None = None, **changed: Any) -> Finding:
    """What a check makes of a good machine with some facts changed."""
    facts = {**GOOD, **{name.replace("_", "-"): fact for name, fact in changed.items()}}
    report = judge(CHECKS, facts, asked or Asked(ranks=2, devices=2))
    return next(finding for finding in report.findings if finding.check == check)


def gpu(**changed: Any) -> Look:
    """The first of two GPUs is another."""
    return replace(LOOK, devices=(replace(GPU, **changed), LOOK.devices[1]))


def test_on_a_good_machine_everything_is_ok() -> None:
    """Every check is taken, none complains, and there is nothing to do."""
    report = judge(CHECKS, GOOD, Asked(ranks=2, devices=2))
    assert [finding.check for finding in report.findings] == [check.id for check in CHECKS]
    assert {finding.grade for finding in report.findings} == {OK}
    assert {(finding.do, finding.refusal) for finding in report.findings} == {("", None)}
    assert report.code == 0


def test_every_row_is_whole() -> None:
    """An id of its own, a source, something to do, and a refusal that the contract knows."""
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.source.startswith("https://")
        assert check.do
        assert check.refusal in STOP | NEEDS_DEBIT


CASES: list[tuple[str, dict[str, Any], Grade, str]] = [
    ("devices", {"devices": Look(devices=(GPU,))}, FAIL, "1 visible where 2 were asked for"),
    ("device-health", {"devices": gpu(state=State.LOST)}, FAIL, "cannot reach GPU 0 at 0000:18:00.0"),
    ("device-health", {"devices": gpu(state=State.NEEDS_RESET)}, FAIL, "until a reset"),
    ("device-health", {"devices": gpu(recovery="node reboot")}, FAIL, "node reboot for GPU 0"),
    ("device-health", {"devices": gpu(recovery="recovery action 9")}, FAIL, "recovery action 9"),
    ("device-health", {"devices": gpu(recovery=None)}, OK, "names no recovery action for GPU 0"),
    ("device-health", {"devices": gpu(state=State.UNKNOWN, recovery=None)}, WARN, "cannot be read"),
    ("device-errors", {"devices": gpu(rows_failed=True)}, FAIL, "could not be replaced"),
    ("device-errors", {"devices": gpu(uncorrected=3)}, WARN, "3 on GPU 0"),
    ("device-errors", {"devices": gpu(rows_pending=True)}, WARN, "wait for a reset"),
    ("device-clocks", {"devices": gpu(slowed=("power brake",))}, WARN, "(power brake)"),
    ("device-links", {"devices": gpu(lanes=4)}, WARN, "x4 of x16"),
    ("device-links", {"devices": gpu(links_up=17)}, WARN, "17 of 18"),
    ("device-links", {"devices": gpu(links_up=0)}, WARN, "0 of 18"),
    ("driver", {"torch": replace(TORCH, cuda="13.0")}, FAIL, "too old"),
    ("driver", {"devices": replace(LOOK, runtime="12.4")}, WARN, "minor-version"),
    ("driver", {"torch": replace(TORCH, cuda=None)}, WARN, "built without CUDA"),
    ("driver", {"devices": replace(LOOK, runtime=None)}, WARN, "cannot be read"),
    ("compute", {"torch": replace(TORCH, devices=(CPU, replace(CUDA, wrong=1)))}, FAIL, "cuda:0 (1 element)"),
    ("compute", {"torch": replace(TORCH, devices=(replace(CPU, wrong=None, why="it failed"),))}, FAIL, "it failed"),
    ("device-memory", {"torch": replace(TORCH, devices=(replace(CUDA, free=70 * GIB),))}, WARN, "70.0 GiB of 80.0"),
    ("device-memory", {"torch": replace(TORCH, devices=(CPU,))}, SKIP, "no device with memory of its own"),
    ("all-reduce", {"all_reduce": replace(SUM, right=False)}, FAIL, "wrong sums"),
    ("shm", {"host": replace(HOST, shm_size=64 << 20, shm_free=64 << 20)}, WARN, "a container's default"),
    ("shm", {"host": replace(HOST, shm_free=1 << 20)}, WARN, "may not find room"),
    ("snapshots", {"host": replace(HOST, memory_available=15 * GIB)}, WARN, "take up to 16.0 GiB; 15.0 GiB"),
    ("snapshots", {"store": replace(STORE, state=None)}, SKIP, "how large"),
    ("open-files", {"host": replace(HOST, open_files=1024)}, WARN, "at most 1024"),
    ("open-files", {"host": replace(HOST, open_files=UNLIMITED)}, OK, "unlimited"),
    ("memlock", {"host": replace(HOST, memlock=8 << 20)}, WARN, "8.0 MiB, with mlx5_0"),
    ("memlock", {"host": replace(HOST, memlock=8 << 20, infiniband=())}, OK, "no RDMA device"),
    ("processes", {"host": replace(HOST, processes_left=255)}, WARN, "255 more"),
    ("processes", {"host": replace(HOST, processes_left=256)}, OK, "256 more"),
    ("journal-disk", {"journal": replace(FOLDER, free=9 * GIB)}, WARN, "evicts below 10%"),
    ("journal-disk", {"journal": replace(FOLDER, files_free_fraction=0.01)}, WARN, "1.0% of its inodes"),
    ("journal-disk", {"journal": replace(FOLDER, kind="full", why="No space left")}, FAIL, "No space left"),
    ("temporary-disk", {"temporary": replace(FOLDER, kind="denied", why="Read-only")}, WARN, "Read-only"),
    ("names", {"names": NamesFacts(names=(*NAMES.names, NameFacts(name="b", why="no")))}, FAIL, "b (no)"),
    ("store", {"store": replace(STORE, seconds=11.0)}, WARN, "slow"),
    ("store", {"store": replace(STORE, made_in="/mnt")}, WARN, "can be made in /mnt"),
    ("clock", {"store": replace(STORE, skew=6.0)}, WARN, "6.0 s behind the store's"),
    ("clock", {"store": replace(STORE, skew=-901.0)}, FAIL, "901.0 s ahead of the store's"),
    ("clock", {"store": replace(STORE, skew=None)}, SKIP, "says no time"),
    (
        "deny-list",
        {"deny_list": replace(DENY_LIST, denials=(denial("node-a", of_platform=True),))},
        FAIL,
        "node node-a",
    ),
    ("deny-list", {"deny_list": replace(DENY_LIST, why="no answer")}, WARN, "cannot be read: no answer"),
    ("deny-list", {"deny_list": replace(DENY_LIST, unread=3)}, WARN, "3 lines of /etc/denied.jsonl"),
    ("clock", {"store": replace(STORE, kind="denied", code="RequestTimeTooSkewed")}, FAIL, "15 minutes"),
]


@pytest.mark.parametrize(("check", "changed", "grade", "words"), CASES)
def test_each_fact_gets_its_grade(check: str, changed: dict[str, Any], grade: Grade, words: str) -> None:
    """With the words that say it, and something to do where there is."""
    finding = find(check, **changed)
    assert finding.grade is grade
    assert words in finding.found
    assert bool(finding.do) == (grade in (WARN, FAIL))
    assert (finding.refusal is not None) == (grade is FAIL)


@pytest.mark.parametrize(
    ("check", "changed", "code"),
    [
        ("device-health", {"devices": gpu(state=State.LOST)}, NODE),
        ("driver", {"torch": replace(TORCH, cuda="13.0")}, CONFIG),
        ("journal-disk", {"journal": replace(FOLDER, kind="denied", why="Read-only file system")}, CONFIG),
        ("journal-disk", {"journal": replace(FOLDER, kind="failed", why="Input/output error")}, NODE),
        ("store", {"store": replace(STORE, kind="missing", why="no such bucket")}, CONFIG),
        ("store", {"store": replace(STORE, kind="settings", why="no such scheme")}, CONFIG),
        ("store", {"store": replace(STORE, kind="denied", why="403")}, RESTART),
        ("store", {"store": replace(STORE, kind="unreachable", why="503")}, RESTART),
        ("store", {"store": Unmeasured(why="no answer", late=True)}, RESTART),
        ("store", {"store": Unmeasured(why="ended with 1")}, RESTART),
        ("compute", {"torch": Unmeasured(why="no answer", late=True)}, NODE),
        ("compute", {"torch": Unmeasured(why="ModuleNotFoundError: No module named 'torch'")}, CONFIG),
        ("all-reduce", {"all-reduce": Unmeasured(why="RuntimeError: Unable to find address for: eth9")}, CONFIG),
    ],
)
def test_a_failure_has_the_code_of_a_start(check: str, changed: dict[str, Any], code: ExitCode) -> None:
    """198 for the node, 115 where the store or a setting is wrong, 193 where the store may come back."""
    assert find(check, **changed).refusal == code
    assert judge(CHECKS, {**GOOD, **changed}, Asked()).code == code


def test_a_suspect_node_is_no_witness_against_settings() -> None:
    """198 goes before 115, which would end the job for good, and both before 193."""
    broken = {"devices": gpu(state=State.LOST), "store": replace(STORE, kind="missing", why="no mount")}
    assert judge(CHECKS, {**GOOD, **broken}, Asked()).code == NODE
    wrong = {"torch": replace(TORCH, cuda="13.0"), "store": replace(STORE, kind="denied", why="403")}
    assert judge(CHECKS, {**GOOD, **wrong}, Asked()).code == CONFIG


def test_without_devices_there_is_nothing_to_say_of_them() -> None:
    """A machine of CPUs is examined all the same; where devices were asked for they are missed."""
    alone = {"devices": Look(devices=()), "torch": replace(TORCH, cuda=None, devices=(CPU,))}
    report = judge(CHECKS, {**GOOD, **alone}, Asked())
    skipped = {finding.check for finding in report.findings if finding.grade is SKIP}
    assert skipped == {check.id for check in CHECKS if "device" in check.id or check.id == "driver"}
    assert report.code == 0
    assert judge(CHECKS, {**GOOD, **alone}, Asked(devices=8)).code == NODE


def test_fewer_devices_than_ranks_is_for_a_person_to_judge() -> None:
    """Ranks may share a device, or train on the CPU."""
    assert find("devices", Asked(ranks=3)).grade is WARN


@pytest.mark.parametrize("probe", GOOD)
def test_what_the_kernel_does_not_let_go_of_has_failed(probe: str) -> None:
    """Once for each probe: other checks of the same one only say that they do not know."""
    stuck = Unmeasured(why="process 7 cannot be killed", late=True, stuck=True)
    report = judge(CHECKS, {**GOOD, probe: stuck}, Asked())
    assert report.failures
    assert all(finding.found == stuck.why for finding in report.failures)
    assert report.code == (RESTART if probe == "store" else NODE)


@pytest.mark.parametrize("silent", [Unmeasured(why="no answer", late=True), Unmeasured(why="ended with 1")])
@pytest.mark.parametrize("probe", GOOD)
def test_what_was_not_measured_is_never_fine(probe: str, silent: Unmeasured) -> None:
    """It is a warning at least."""
    report = judge(CHECKS, {**GOOD, probe: silent}, Asked())
    touched = {check.id for check in CHECKS if probe in check.probes}
    grades = {finding.check: finding.grade for finding in report.findings}
    assert all(grades[check] is not OK for check in touched)
    assert any(grades[check] in (WARN, FAIL) for check in touched)


def test_a_missing_library_refuses_no_node() -> None:
    """Without nvidia-ml-py nothing is known of the devices, and another node would not know more."""
    assert find("devices", devices=Unmeasured(why="nvidia-ml-py is not installed")).grade is WARN
    assert find("devices", devices=Unmeasured(why="no answer within 60 s", late=True)).grade is FAIL


@pytest.mark.parametrize(
    ("probe", "facts"),
    [
        (
            "host",
            HostFacts(
                open_files=None,
                memlock=None,
                processes_left=None,
                infiniband=(),
                memory_limit=None,
                memory_available=None,
                shm_size=None,
                shm_free=None,
            ),
        ),
        ("journal", FolderFacts(path="/data")),
        ("temporary", FolderFacts(path="/data")),
    ],
)
def test_what_cannot_be_read_is_unknown(probe: str, facts: object) -> None:
    """And unknown is a warning."""
    report = judge(CHECKS, {**GOOD, probe: facts}, Asked())
    touched = {check.id for check in CHECKS if probe in check.probes}
    assert {finding.grade for finding in report.findings if finding.check in touched} == {WARN}


def test_a_device_that_answers_nothing_is_unknown() -> None:
    """Every check of devices says so but that of their number."""
    report = judge(CHECKS, {**GOOD, "devices": Look(devices=(Device(index=0),))}, Asked())
    grades = {finding.check: finding.grade for finding in report.findings}
    unknown = ("device-health", "device-errors", "device-clocks", "device-links", "driver")
    assert [grades[check] for check in unknown] == [WARN] * 5


def test_only_what_was_sent_out_is_judged() -> None:
    """The quick preflight of a start says nothing of what it did not look at."""
    report = judge(CHECKS, {"host": HOST}, Asked())
    assert {finding.check for finding in report.findings} == {
        check.id for check in CHECKS if set(check.probes) <= {"host"}
    }
