# SPDX-License-Identifier: Apache-2.0
"""Facts about the surroundings: read where they are right, unknown where they are missing or nonsense.

Two are refused instead: nonsense in what budgets are added up by.
"""

import os
import re
from pathlib import Path

import pytest

from resilient.errors import SettingsError
from resilient.facts import Platform, count_devices, read_platform, read_worker

DOWNWARD = {
    "RESILIENT_SUBMISSION": "3f1c1c0e-1111-2222-3333-444455556666",
    "RESILIENT_INDEX": "3",
    "RESILIENT_FAILURE_COUNT": "2",
    "RESILIENT_IGNORED_COUNT": "0",
    "RESILIENT_NODE": "node-1.example",
    "RESILIENT_POD": "train-3-abcde",
    "RESILIENT_NAMESPACE": "ml",
    "RESILIENT_POD_UID": "0f1e2d3c-1111-2222-3333-444455556666",
}


def test_the_downward_api_is_read() -> None:
    """A manifest's eight variables become eight facts."""
    assert read_platform(DOWNWARD) == Platform(
        in_kubernetes=True,
        submission="3f1c1c0e-1111-2222-3333-444455556666",
        index=3,
        failure_count=2,
        ignored_count=0,
        node="node-1.example",
        pod="train-3-abcde",
        namespace="ml",
        pod_uid="0f1e2d3c-1111-2222-3333-444455556666",
    )


@pytest.mark.parametrize("value", ["", "../../etc", "a/b", "-1", "x" * 300, "٣", "$(UNDEFINED)", "a\nb", "."])
def test_nonsense_is_unknown(value: str) -> None:
    """Names become parts of paths and counts bound budgets: what is not surely one is taken for nothing."""
    others = set(DOWNWARD) - {"RESILIENT_SUBMISSION", "RESILIENT_INDEX"}
    facts = read_platform(dict.fromkeys(others, value))
    known = (facts.failure_count, facts.ignored_count, facts.node, facts.pod, facts.namespace, facts.pod_uid)
    assert known == (None,) * 6


@pytest.mark.parametrize("value", ["bad name/1", "../../x", "-1", "x" * 300, "٣", "$(UNDEFINED)", "a\nb", ".", "1.0/"])
@pytest.mark.parametrize("variable", ["RESILIENT_SUBMISSION", "RESILIENT_INDEX"])
def test_nonsense_that_would_begin_a_budget_anew_is_refused(variable: str, value: str) -> None:
    """Debits of a submission or index that changes with every start would never add up."""
    with pytest.raises(SettingsError) as refused:
        read_platform({**DOWNWARD, variable: value})
    assert re.fullmatch(rf"cannot use '.{{1,100}}' for {variable}: .+; .+, or leave it out", str(refused.value))


def test_an_index_is_a_number_and_an_empty_one_is_none() -> None:
    """A word is no index, though it may name a submission; a Job without indices has an empty annotation."""
    with pytest.raises(SettingsError, match="'abc' for RESILIENT_INDEX: it is not a whole number"):
        read_platform({"RESILIENT_SUBMISSION": "abc", "RESILIENT_INDEX": "abc"})
    empty = read_platform({"RESILIENT_SUBMISSION": "", "RESILIENT_INDEX": " "})
    assert (empty.submission, empty.index) == (None, None)


def test_kubernetes_is_recognised() -> None:
    """By its own variable, which every container has, or by a manifest of ours."""
    assert read_platform({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).in_kubernetes
    assert read_platform({"RESILIENT_SUBMISSION": "u"}).in_kubernetes
    assert not read_platform({"RESILIENT_POD": "p"}).in_kubernetes


def test_a_process_without_launcher_is_rank_0_of_1() -> None:
    """Plain python has no variables, and shares its launch with nobody."""
    facts = read_worker({})
    assert (facts.rank, facts.local_rank, facts.world_size, facts.local_world_size) == (0, 0, 1, 1)
    assert (facts.link_fd, facts.error_file, facts.stacks, facts.run_id, facts.master_port) == (None,) * 5
    assert str(os.getpid()) in facts.launch


def test_a_launchers_variables_are_read() -> None:
    """The worker of a launcher knows its place, on several nodes too."""
    environ = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_PORT": "29500"}
    facts = read_worker({**environ, "TORCHELASTIC_RESTART_COUNT": "2", "RESILIENT_INTERNAL_LINK": "7"})
    assert (facts.rank, facts.local_rank, facts.world_size, facts.local_world_size) == (9, 1, 16, 8)
    assert (facts.master_port, facts.restart_count, facts.link_fd) == (29500, 2, 7)


def test_on_one_node_the_local_rank_is_the_rank() -> None:
    """With --virtual-local-rank every LOCAL_RANK is 0, and the workers must still be told apart."""
    environ = {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    assert read_worker(environ).local_rank == 2


def test_workers_of_one_launch_share_its_name_and_others_do_not() -> None:
    """The ranks of an attempt find each other; the attempt after it is another launch."""
    common = {"WORLD_SIZE": "2", "MASTER_PORT": "29400", "TORCHELASTIC_RUN_ID": "r", "TORCHELASTIC_RESTART_COUNT": "0"}
    first, second = (read_worker({**common, "RANK": rank}).launch for rank in ("0", "1"))
    assert first == second
    assert read_worker({**common, "TORCHELASTIC_RESTART_COUNT": "1"}).launch != first


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, 2), ("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("1,-1,0", 1), ("MIG-a,MIG-b,MIG-c", 3)]
)
def test_gpus_are_counted_without_torch(tmp_path: Path, visible: str | None, gpus: int) -> None:
    """By device nodes, and CUDA_VISIBLE_DEVICES as CUDA reads it: up to the first entry that is no device."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert count_devices("gpu", environ, tmp_path) == gpus
    cpus = len(os.sched_getaffinity(0))
    assert count_devices("auto", environ, tmp_path) == (gpus or cpus)
    assert count_devices("cpu", environ, tmp_path) == cpus


def test_without_device_nodes_there_are_no_gpus(tmp_path: Path) -> None:
    """A variable alone is no device."""
    assert count_devices("gpu", {"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == 0
