# SPDX-License-Identifier: Apache-2.0
"""Command forms, launchers inside of the command, and the environment of the workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient.core.cadence import Every
from resilient.errors import SettingsError
from resilient.launch import Launch, Seat, parse, scan_run, setting_flags, worker_command, worker_environment
from resilient.settings import load

PYTHON = sys.executable
SEAT = Seat(first=0, world_size=2, node=0, nodes=1, master_addr="127.0.0.1", master_port=12345, restarts=0)


def launch(line: str, **environ: str) -> Launch:
    """The launch of a command line."""
    return parse(line.split(), environ)


def environment(given: Launch, rank: int = 0, *, seat: Seat = SEAT, **base: str) -> dict[str, str]:
    """The environment of one worker."""
    return worker_environment(given, seat=seat, local_rank=rank, run_id="r", max_restarts=3, base=base)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("train.py --lr 3e-4", [PYTHON, "-u", "train.py", "--lr", "3e-4"]),
        ("train", [PYTHON, "-u", "train"]),
        ("-- train.py -m", [PYTHON, "-u", "train.py", "-m"]),
        ("-m pkg.train -m x", [PYTHON, "-u", "-m", "pkg.train", "-m", "x"]),
        ("--module pkg.train", [PYTHON, "-u", "-m", "pkg.train"]),
        ("-m -- pkg.train", [PYTHON, "-u", "-m", "pkg.train"]),
        ("--no-python ./train --fast", ["./train", "--fast"]),
        ("--no-python train.py", ["train.py"]),
        ("--run-path --no-python /abs/train.py", [PYTHON, "-u", "/abs/train.py"]),
        ("-- ./train --fast", ["./train", "--fast"]),
        ("-- bash -c x", ["bash", "-c", "x"]),
        ("-- python -X dev train.py", ["python", "-X", "dev", "train.py"]),
        ("python train.py", ["python", "train.py"]),
        ("/opt/bin/python3.11 -m pkg", ["/opt/bin/python3.11", "-m", "pkg"]),
    ],
)
def test_command_forms(line: str, command: list[str]) -> None:
    """torchrun's forms, and any command after --."""
    assert list(launch(line).command) == command


def test_the_interpreter_can_be_chosen_as_under_torchrun() -> None:
    """PYTHON_EXEC names the Python of the workers."""
    assert launch("train.py", PYTHON_EXEC="/opt/py").command[0] == "/opt/py"


@pytest.mark.parametrize(
    ("line", "is_python"),
    [("train.py", True), ("-m a", True), ("-- python3 a.py", True), ("-- bash x.sh", False), ("--no-python x", False)],
)
def test_python_is_recognised(line: str, is_python: bool) -> None:
    """Whether the workers are Python processes that can be started warm."""
    assert launch(line).is_python is is_python


def test_our_flags_and_torchruns_mix() -> None:
    """Ours become the layer of flags of the settings, torchrun's the shape of the launch."""
    got = launch("--keep 5 --nproc-per-node=2 --fresh --every=1min --observe=false --max-restarts 3 a.py --keep 9")
    assert got.nproc == 2
    effective = load(flags=got.setting_flags, environ={}, platform_file=Path("/nonexistent"))
    settings = effective.settings
    assert (settings.keep, settings.fresh, settings.observe, settings.max_restarts) == (5, True, False, 3)
    assert (settings.every, effective.origins["every"]) == (Every(seconds=60), "flag --every")
    assert setting_flags(scan_run(["--keep", "5"]))[0].value == "5"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "no command is given; write"),
        ("--nproc-per-node 2", "no command"),
        ("--", "no command"),
        ("--kepe 3 a.py", "did you mean --keep?"),
        ("--nnodes 2 a.py", "cannot tell which of the 2 nodes this is"),
        ("--nnodes 2 --node-rank 1 a.py", "cannot find the other nodes"),
        ("--nnodes 1:4 a.py", "--nnodes 1:4"),
        ("--nnodes x a.py", "not a number of nodes"),
        ("--node-rank 1 a.py", "--node-rank 1"),
        ("--nnodes 2 accelerate launch a.py", "leave --nnodes to accelerate"),
        ("--nproc-per-node 0 a.py", "not a number of workers"),
        ("--nproc-per-node xpu a.py", "not a number of workers"),
        ("--nproc-per-node -1 a.py", "--nproc-per-node -1: it is not a number of workers"),
        ("--nproc-per-node 99999999 a.py", "no node runs more than 4096 workers; give fewer"),
        ("--master-port 99999 a.py", "not a port"),
        ("-m --no-python a", "leave one out"),
        ("torchrun", "no script follows"),
        ("torchrun --nope a.py", "torchrun has no such flag"),
        ("--nproc-per-node 8 accelerate launch a.py", "leave --nproc-per-node to accelerate"),
    ],
)
def test_what_cannot_be_launched_is_refused(line: str, why: str) -> None:
    """Before anything starts, with a reason and a way out."""
    with pytest.raises(SettingsError, match=why) as refused:
        launch(line)
    assert str(refused.value).startswith("cannot ")
    assert "; " in str(refused.value)


def test_workers_are_counted_where_a_kind_of_device_is_named() -> None:
    """cpu, gpu and auto are looked up, and none is refused."""
    counts = {"cpu": 4, "gpu": 0, "auto": 8}
    assert parse(["--nproc-per-node", "cpu", "a.py"], {}, count=counts.__getitem__).nproc == 4
    assert parse(["--nproc-per-node", "auto", "a.py"], {}, count=counts.__getitem__).nproc == 8
    with pytest.raises(SettingsError, match="no NVIDIA device"):
        parse(["--nproc-per-node", "gpu", "a.py"], {}, count=counts.__getitem__)
    assert launch("--nproc-per-node cpu a.py").nproc == len(os.sched_getaffinity(0))


def test_the_environment_of_torchrun_is_read_below_the_flags() -> None:
    """What a TrainJob sets for torchrun holds for us."""
    pet = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "0", "PET_ROLE": "trainer"}
    assert (launch("a.py", **pet).nproc, launch("a.py", **pet).role_name) == (4, "trainer")
    assert launch("--nproc-per-node 2 a.py", **pet).nproc == 2
    assert launch("pkg.train", PET_MODULE="1").command[2:] == ("-m", "pkg.train")
    several = launch("a.py", **{**pet, "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "trainer-0"})
    assert (several.nodes, several.node, several.master_addr, several.store_port) == (2, 1, "trainer-0", 29500)
    with pytest.raises(SettingsError, match="--nnodes 2:4"):
        launch("a.py", PET_NNODES="2:4")


def test_the_master_is_torchruns() -> None:
    """A port that was named is used; else every attempt finds a free one, on this node."""
    assert (launch("a.py").master_addr, launch("a.py").master_port) == ("127.0.0.1", None)
    named = launch("--master-addr host --master-port 1234 a.py")
    assert (named.master_addr, named.master_port) == ("host", 1234)
    static = launch("--rdzv-endpoint [::1]:1234 a.py")
    assert (static.master_addr, static.master_port) == ("::1", 1234)
    assert launch("--rdzv-backend c10d --rdzv-endpoint host:29400 a.py").master_port is None
    assert launch("--standalone --master-port 1234 a.py").master_port is None


def test_several_nodes_meet_at_a_port_of_the_first() -> None:
    """--master-port is the supervisors'; the workers' store has another one, for every attempt."""
    several = launch("--nnodes 3 --node-rank 2 --master-addr first --master-port 1234 a.py")
    assert (several.nodes, several.node, several.master_addr, several.store_port) == (3, 2, "first", 1234)
    assert several.master_port is None
    assert launch("--nnodes 3 --master-addr first a.py", RESILIENT_INDEX="1").node == 1
    one = launch("--nnodes 1 a.py", RESILIENT_INDEX="1")
    assert (one.nodes, one.node) == (1, 0), "each pod of an Indexed Job may be a run of its own"


def test_ranks_are_counted_over_all_nodes() -> None:
    """The second of two workers on the third of four nodes, as torchrun would count it."""
    seat = Seat(first=4, world_size=8, node=2, nodes=4, master_addr="first", master_port=4321, restarts=6)
    given = launch("--nproc-per-node 2 --nnodes 4 --node-rank 2 --master-addr first a.py")
    got = environment(given, rank=1, seat=seat)
    assert (got["RANK"], got["ROLE_RANK"], got["LOCAL_RANK"], got["GROUP_RANK"]) == ("5", "5", "1", "2")
    assert (got["WORLD_SIZE"], got["LOCAL_WORLD_SIZE"], got["GROUP_WORLD_SIZE"]) == ("8", "2", "4")
    assert (got["MASTER_ADDR"], got["MASTER_PORT"], got["TORCHELASTIC_RESTART_COUNT"]) == ("first", "4321", "6")


def test_the_run_id_is_torchruns() -> None:
    """--rdzv-id names the run, except where torchrun would make one up."""
    assert launch("--rdzv-id job-7 a.py").run_id == "job-7"
    assert launch("a.py").run_id is None
    assert launch("--standalone --rdzv-id job-7 a.py").run_id is None


def test_flags_without_effect_are_named_once() -> None:
    """They are accepted, and a person learns that they do nothing."""
    got = launch("--log-dir /x -t 3 --monitor-interval=5 a.py", PET_START_METHOD="fork")
    assert got.ignored == ("--log-dir", "--monitor-interval", "--start-method", "--tee")
    assert [note for note in got.notes if "--log-dir" in note] == [
        "without effect here: --log-dir, --monitor-interval, --start-method, --tee"
    ]
    assert launch("a.py").notes == ()


# Launchers inside of the command.


@pytest.mark.parametrize(
    "line",
    [
        "torchrun --nproc-per-node 4 --max_restarts 2 train.py --lr 1",
        "-- torchrun --nproc_per_node=4 --max-restarts=2 -- train.py --lr 1",
        "-- /opt/env/bin/torchrun --standalone --nproc-per-node 4 --max-restarts 2 train.py --lr 1",
        "-m torch.distributed.run --nproc-per-node 4 --max-restarts 2 train.py --lr 1",
        "--no-python torchrun --nproc-per-node 4 --max-restarts 2 train.py --lr 1",
    ],
)
def test_a_nested_torchrun_is_unwrapped(line: str) -> None:
    """However it is written, its workers become ours."""
    got = launch(line)
    assert got.command == (PYTHON, "-u", "train.py", "--lr", "1")
    assert got.nproc == 4
    assert load(flags=got.setting_flags, environ={}).settings.max_restarts == 2
    assert "unwrapped" in got.notes[0]


def test_a_nested_torchrun_keeps_its_interpreter_and_form() -> None:
    """The Python that was to run torchrun runs the workers; -m and --no-python are the nested one's."""
    line = "-- python3.12 -X dev -W error -um torch.distributed.run -m pkg.train"
    assert launch(line.replace("-um", "-u -m")).command == ("python3.12", "-u", "-m", "pkg.train")
    assert launch("-- python /usr/bin/torchrun a.py").command == ("python", "-u", "a.py")
    assert launch("torchrun --no-python ./prog").command == ("./prog",)


def test_flags_given_to_us_go_before_a_nested_torchruns() -> None:
    """Outside beats inside, inside beats the environment."""
    got = launch("--nproc-per-node 2 --max-restarts 9 torchrun --nproc-per-node 4 --max-restarts 1 --role in a.py",
                 PET_ROLE="pet")  # fmt: skip
    assert (got.nproc, got.role_name) == (2, "in")
    assert load(flags=got.setting_flags, environ={}).settings.max_restarts == 9
    nested = launch("torchrun --nnodes 2 --node-rank 1 --rdzv-endpoint first:1234 a.py")
    assert (nested.nodes, nested.node, nested.master_addr, nested.store_port) == (2, 1, "first", 1234)


def test_the_old_launcher_passes_the_local_rank() -> None:
    """torch.distributed.launch gives scripts --local-rank, unless told to use the environment."""
    got = launch("-- python -m torch.distributed.launch --nproc_per_node 2 train.py --lr 1")
    assert worker_command(got, 1) == ("python", "-u", "train.py", "--local-rank=1", "--lr", "1")
    module = launch("-m torch.distributed.launch -m pkg.train --lr 1")
    assert worker_command(module, 0)[2:] == ("-m", "pkg.train", "--local-rank=0", "--lr", "1")
    assert "--local-rank" not in " ".join(launch("-m torch.distributed.launch --use-env train.py").command)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("accelerate launch train.py", "accelerate"),
        ("-- deepspeed --num_gpus 8 train.py", "deepspeed"),
        ("-- /usr/bin/mpirun -np 4 python train.py", "mpirun"),
        ("srun python train.py", "srun"),
        ("--no-python horovodrun -np 2 python train.py", "horovodrun"),
        ("-m accelerate.commands.launch train.py", "accelerate.commands.launch"),
        ("-- python -m deepspeed.launcher.runner train.py", "deepspeed.launcher.runner"),
    ],
)
def test_a_foreign_launcher_is_one_process(line: str, name: str) -> None:
    """It starts the workers itself: once, without ranks of ours, and one line says what is lost."""
    got = launch(line, PET_NPROC_PER_NODE="8")
    assert (got.foreign_launcher, got.nproc) == (name, 1)
    assert [note for note in got.notes if note.startswith(f"{name} starts the workers itself")] == list(got.notes)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & environment(got).keys()


def test_a_script_is_not_taken_for_a_launcher() -> None:
    """A user's file may bear a launcher's name."""
    for line in ("ray.py", "-- composer.cli.py", "./accelerate.py"):
        assert launch(line).foreign_launcher is None
        assert launch(line).is_python


# What workers get.


def test_workers_get_the_environment_that_torchrun_gives(tmp_path: Path) -> None:
    """The same variables with the same values as from the installed torchrun, but for what is made up each time."""
    script = tmp_path / "show.py"
    script.write_text(
        "import json, os, pathlib\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK'] + '.json').write_text(json.dumps(dict(os.environ)))\n"
    )
    arguments = ["--nproc-per-node", "2", "--role", "trainer", "--rdzv-backend", "c10d", "--rdzv-id", "seven",
                 "--rdzv-endpoint", "localhost:0", "--max-restarts", "3", str(script)]  # fmt: skip
    base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [PYTHON, "-m", "torch.distributed.run", *arguments]
    subprocess.run(command, env=base, check=True, timeout=LIMIT_S, capture_output=True)
    made_up = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_USE_AGENT_STORE"}
    # What torchrun tells itself, and what Python adds to any process.
    its_own = {"TORCHELASTIC_SIGNALS_TO_HANDLE", "LC_CTYPE"}
    for rank in (0, 1):
        theirs = json.loads((tmp_path / f"{rank}.json").read_text())
        ours = worker_environment(
            parse(arguments, base), seat=SEAT, local_rank=rank, run_id="seven", max_restarts=3, base=base
        )
        assert made_up <= theirs.keys() & ours.keys()
        assert {name: value for name, value in theirs.items() if name not in made_up | its_own} == {
            name: value for name, value in ours.items() if name not in made_up
        }


def test_the_store_is_opened_by_rank_0() -> None:
    """Our supervisor keeps no store for the workers, unlike torchrun's agent."""
    assert environment(launch("a.py"))["TORCHELASTIC_USE_AGENT_STORE"] == "False"


def test_threads_are_bounded_only_where_workers_share_the_node() -> None:
    """OMP_NUM_THREADS is 1 for several workers, and whatever was set stays."""
    assert environment(launch("--nproc-per-node 2 a.py"))["OMP_NUM_THREADS"] == "1"
    assert environment(launch("--nproc-per-node 2 a.py"), OMP_NUM_THREADS="8")["OMP_NUM_THREADS"] == "8"
    assert "OMP_NUM_THREADS" not in environment(launch("a.py"))
    assert any("OMP_NUM_THREADS=1" in note for note in launch("--nproc-per-node 2 a.py").notes)
    assert launch("--nproc-per-node 2 a.py", OMP_NUM_THREADS="8").notes == ()


def test_nothing_of_an_outer_supervisor_or_launcher_reaches_a_worker() -> None:
    """A worker must not talk to the supervisor or take the rank of a process above us; the rest it inherits."""
    got = environment(
        launch("a.py"), RESILIENT_INTERNAL_LINK="7", RANK="5", TORCHELASTIC_ERROR_FILE="/outer", CUSTOM="x"
    )
    assert "RESILIENT_INTERNAL_LINK" not in got
    assert (got["RANK"], got["TORCHELASTIC_ERROR_FILE"], got["CUSTOM"]) == ("0", "", "x")


def test_output_is_not_held_back() -> None:
    """Any Python below us writes its lines at once, for the last ones are evidence."""
    assert environment(launch("-- python a.py"))["PYTHONUNBUFFERED"] == "1"
    assert environment(launch("-- python a.py"), PYTHONUNBUFFERED="")["PYTHONUNBUFFERED"] == ""


def test_the_local_rank_is_written_into_commands_of_torchruns_way() -> None:
    """${local_rank} is torchrun's there; after -- it is the shell's."""
    assert worker_command(launch("--no-python prog --gpu=${local_rank}"), 3) == ("prog", "--gpu=3")
    assert worker_command(launch("-- bash ${local_rank}"), 3) == ("bash", "${local_rank}")


def test_a_virtual_local_rank_shows_each_worker_one_device() -> None:
    """As under torchrun: everybody has LOCAL_RANK 0 and a device of its own; too few devices are refused early."""
    got = launch("--virtual-local-rank --nproc-per-node 2 a.py")
    second = environment(got, rank=1, CUDA_VISIBLE_DEVICES="4, 5")
    assert (second["LOCAL_RANK"], second["RANK"], second["CUDA_VISIBLE_DEVICES"]) == ("0", "1", "5")
    assert environment(got, rank=1)["CUDA_VISIBLE_DEVICES"] == "1"
    with pytest.raises(SettingsError, match="no device for worker 1"):
        launch("--virtual-local-rank --nproc-per-node 2 a.py", CUDA_VISIBLE_DEVICES="4")
