# SPDX-License-Identifier: Apache-2.0
"""What ``resilient run`` is asked to launch, and the environment that its workers get.

A command line and an environment in, one ``Launch`` out; nothing is started. The command forms are
torchrun's, and one more::

    resilient run --nproc-per-node 8 train.py --lr 3e-4     a script, by Python
    resilient run -m pkg.train                              a module, by Python
    resilient run --no-python ./train                       a program
    resilient run -- bash train.sh                          any command; after -- a word that
                                                            ends in .py is still a script

``python train.py`` and the names of launchers are commands without ``--`` too. A torchrun
in the command is unwrapped: its workers become ours, and flags given to us go before its own.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from resilient import torchrun
from resilient.errors import SettingsError
from resilient.facts import INTERNAL_PREFIX, count_devices, read_platform
from resilient.settings import FIELDS, Given, flag, is_switch
from resilient.torchrun import Scan

LOCAL_RANK: Final = "${local_rank}"
"""torchrun replaces this in the arguments of every worker."""

_PYTHON: Final = re.compile(r"python(\d+(\.\d+)?t?)?")
_LEGACY: Final = "torch.distributed.launch"
_TORCHRUN: Final = frozenset({"torchrun", "torch.distributed.run", _LEGACY})
_FOREIGN: Final = frozenset(
    {"accelerate", "composer", "deepspeed", "horovodrun", "mpiexec", "mpirun", "orterun", "prterun", "ray", "srun"}
)
_FOREIGN_MODULES: Final = (
    "accelerate.commands.",
    "composer.cli",
    "deepspeed.launcher.",
    "horovod.runner",
    "ray.scripts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is started, how often, and what there is to say about it."""

    command: tuple[str, ...]
    """The same for every rank but for ``${local_rank}``: see ``worker_command``."""
    nproc: int
    is_python: bool
    """``command[0]`` is a Python interpreter."""
    foreign_launcher: str | None
    """A launcher that starts workers of its own; it is supervised as one process."""
    master_addr: str
    master_port: int | None
    """``None``: a free one for every attempt."""
    nodes: int
    """Of the run, each with a supervisor and as many workers as this one."""
    node: int
    """Which of them this is; the first one leads."""
    store_port: int
    """Of the first node, where the supervisors meet."""
    run_id: str | None
    """``--rdzv-id``; ``None``: to be made up."""
    role_name: str
    virtual_local_rank: bool
    expands_local_rank: bool
    """``${local_rank}`` is torchrun's, not the command's own."""
    ignored: tuple[str, ...]
    """Flags of torchrun that were given and have no effect here."""
    notes: tuple[str, ...]
    """What a person should read before the start, a line each."""
    setting_flags: tuple[Given, ...]
    """The layer of flags, for ``settings.load``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where the workers of one launch have their place among those of all nodes."""

    first: int
    """Rank of the first of them."""
    world_size: int
    node: int
    nodes: int
    master_addr: str
    master_port: int
    restarts: int
    """Launches of the run before this one."""
    run_id: str | None = None
    """What the first node calls the run, where that is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """What a command runs: a program's name, or the module or script that Python is to run."""

    name: str
    arguments: tuple[str, ...]
    python: str | None = None


class _Form(enum.Enum):
    """How a command is run."""

    BY_PYTHON = enum.auto()
    """A script or module, by the interpreter that we put before it."""
    PROGRAM = enum.auto()
    """As it is, in torchrun's way (``--no-python``)."""
    COMMAND = enum.auto()
    """As it is; nothing in it is ours."""


def scan_run(
    argv: Sequence[str],
    *,
    program: str = "resilient run",
    more: Collection[str] = (),
    more_values: Collection[str] = (),
) -> Scan:
    """Split our flags and torchrun's, mixed as they come, from the command; ``more`` are further switches,
    ``more_values`` further flags that take a value."""
    ours = {flag(name)[2:]: is_switch(name) for name in FIELDS}
    values = torchrun.VALUES | {name for name, switch in ours.items() if not switch} | {*more_values}
    switches = torchrun.SWITCHES | {name for name, switch in ours.items() if switch} | {"help", *more}
    return torchrun.scan(argv, values=values, switches=switches, program=program)


def parse(argv: Sequence[str], environ: Mapping[str, str], *, count: Callable[[str], int] | None = None) -> Launch:
    """The launch that ``resilient run ARGV`` asks for; ``count`` says how many ``cpu``, ``gpu`` or ``auto`` are."""
    outer = scan_run(argv)
    if not outer.command:
        raise SettingsError("cannot run: no command is given; write for example resilient run train.py")
    program = _program(outer.command, is_module="module" in outer.flags)
    nested = _scan_nested(program) if program.name in _TORCHRUN else None
    foreign = program.name if nested is None and _is_foreign(program) else None
    given = {**(nested.flags if nested else {}), **outer.flags}
    flags = {**torchrun.from_environment(environ), **given}
    if foreign:
        nproc, (nodes, node) = _only_one(given, foreign), (1, 0)
    else:
        nproc = torchrun.count_workers(flags, count or (lambda kind: count_devices(kind, environ)))
        nodes, node = torchrun.nodes(flags, read_platform(environ).index)
    addr, port = torchrun.master(flags) if nodes == 1 else torchrun.meeting_point(flags)
    form, words = _form(outer, nested, program, environ)
    ignored = tuple(f"--{name}" for name in sorted(flags.keys() & torchrun.IGNORED))
    run_id = flags.get("rdzv-id", "none")
    launch = Launch(
        command=words,
        nproc=nproc,
        is_python=form is _Form.BY_PYTHON or _is_python(words[0]),
        foreign_launcher=foreign,
        master_addr=addr,
        master_port=port if nodes == 1 else None,
        nodes=nodes,
        node=node,
        store_port=port or torchrun.PORT,
        run_id=None if "standalone" in flags or run_id == "none" else run_id,
        role_name=flags.get("role", "default"),
        virtual_local_rank="virtual-local-rank" in flags,
        expands_local_rank=form is not _Form.COMMAND,
        ignored=ignored,
        notes=_notes(program, nested, foreign, ignored, nproc, environ),
        setting_flags=setting_flags(outer, nested),
    )
    _device(launch, nproc - 1, environ)  # refuses too few devices before anything starts
    return launch


def setting_flags(outer: Scan, nested: Scan | None = None) -> tuple[Given, ...]:
    """The layer of flags, for ``settings.load``."""
    layer = []
    if nested and "max-restarts" in nested.flags:
        layer.append(Given(name="max_restarts", value=nested.flags["max-restarts"], origin="torchrun --max-restarts"))
    for name in FIELDS:
        value = outer.flags.get(flag(name)[2:])
        if value is not None:
            layer.append(Given(name=name, value=value, origin=f"flag {flag(name)}"))
    return tuple(layer)


def worker_command(launch: Launch, local_rank: int) -> tuple[str, ...]:
    """The command of one worker."""
    if not launch.expands_local_rank:
        return launch.command
    return tuple(word.replace(LOCAL_RANK, str(local_rank)) for word in launch.command)


def worker_environment(
    launch: Launch,
    *,
    seat: Seat,
    local_rank: int,
    run_id: str,
    max_restarts: int,
    base: Mapping[str, str],
    error_file: str = "",
) -> dict[str, str]:
    """What torchrun would tell a worker, over the environment ``base``; nothing of a supervisor above us.

    A foreign launcher gets no ranks: it gives its own, and what reads ours first would take every process for rank 0.
    """
    environ = {name: value for name, value in base.items() if not name.startswith(INTERNAL_PREFIX)}
    environ.setdefault("PYTHONUNBUFFERED", "1")  # a killed worker's last lines are evidence
    if launch.foreign_launcher:
        return environ
    if launch.nproc > 1:
        environ.setdefault("OMP_NUM_THREADS", "1")
    environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    device = _device(launch, local_rank, base)
    if device is not None:
        environ["CUDA_VISIBLE_DEVICES"] = device
    ranks = dict.fromkeys(("RANK", "ROLE_RANK"), str(seat.first + local_rank))
    sizes = dict.fromkeys(("WORLD_SIZE", "ROLE_WORLD_SIZE"), str(seat.world_size))
    return {
        **environ,
        **ranks,
        **sizes,
        "LOCAL_RANK": "0" if launch.virtual_local_rank else str(local_rank),
        "LOCAL_WORLD_SIZE": str(launch.nproc),
        "GROUP_RANK": str(seat.node),
        "GROUP_WORLD_SIZE": str(seat.nodes),
        "ROLE_NAME": launch.role_name,
        "MASTER_ADDR": seat.master_addr,
        "MASTER_PORT": str(seat.master_port),
        "TORCHELASTIC_RUN_ID": seat.run_id or run_id,
        "TORCHELASTIC_RESTART_COUNT": str(seat.restarts),
        "TORCHELASTIC_MAX_RESTARTS": str(max_restarts),
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 opens the store
        "TORCHELASTIC_ERROR_FILE": error_file,
    }


def _program(command: tuple[str, ...], *, is_module: bool = False) -> _Program:
    """Look through ``python -X dev -m module`` to what is really run."""
    name, rest = PurePath(command[0]).name, command[1:]
    if is_module:
        return _Program(name=command[0], arguments=rest)
    if not _is_python(name):
        return _Program(name=name, arguments=rest)
    while rest and rest[0].startswith("-"):
        option, rest = rest[0], rest[1:]
        if option.startswith("-m"):
            module, rest = (option[2:], rest) if option[2:] else (rest[0] if rest else "", rest[1:])
            return _Program(name=module, arguments=rest, python=command[0])
        if option == "-c":
            return _Program(name="-c", arguments=rest, python=command[0])
        rest = rest[1:] if option in ("-X", "-W") else rest
    return _Program(name=PurePath(rest[0]).name if rest else "-", arguments=rest[1:], python=command[0])


def _scan_nested(program: _Program) -> Scan:
    legacy = torchrun.LEGACY if program.name == _LEGACY else frozenset()
    scan = torchrun.scan(
        program.arguments, values=torchrun.VALUES, switches=torchrun.SWITCHES | legacy, program=program.name
    )
    if not scan.command:
        raise SettingsError(f"cannot run {program.name}: no script follows it; write {program.name} train.py")
    return scan


def _is_foreign(program: _Program) -> bool:
    is_module = program.name.startswith(_FOREIGN_MODULES) and not program.name.endswith(".py")
    return program.name in _FOREIGN or is_module


def _is_python(word: str) -> bool:
    return _PYTHON.fullmatch(PurePath(word).name) is not None


def _form(
    outer: Scan, nested: Scan | None, program: _Program, environ: Mapping[str, str]
) -> tuple[_Form, tuple[str, ...]]:
    """How the command is run, and the words that run it."""
    scan = nested or outer
    switches = {**torchrun.from_environment(environ), **scan.flags}.keys() & {"module", "no-python", "run-path"}
    if nested is None and not switches and (_is_foreign(program) or _is_command(outer)):
        return _Form.COMMAND, scan.command
    if {"module", "no-python"} <= switches:
        raise SettingsError("cannot use --module and --no-python together: a module needs Python; leave one out")
    if switches == {"no-python"}:
        return _Form.PROGRAM, scan.command
    python = program.python or environ.get("PYTHON_EXEC") or sys.executable
    script, *arguments = scan.command
    if program.name == _LEGACY and nested and "use-env" not in nested.flags:
        arguments = [f"--local-rank={LOCAL_RANK}", *arguments]
    return _Form.BY_PYTHON, (python, "-u", *(["-m"] if "module" in switches else []), script, *arguments)


def _is_command(outer: Scan) -> bool:
    """Whether the words are run as they are although --no-python was not given."""
    word = outer.command[0]
    return (outer.after_dashes and not word.endswith(".py")) or _is_python(word)


def _only_one(given: Mapping[str, str], foreign: str) -> int:
    """A foreign launcher counts its workers itself, and finds its nodes; what ``PET_*`` says was not meant for it."""
    if given.get("nnodes", "1") != "1":
        raise SettingsError(
            f"cannot use --nnodes {given['nnodes']} with {foreign}: it is a launcher and brings nodes together itself; "
            f"leave --nnodes to {foreign}, or run the script itself"
        )
    if given.get("nproc-per-node", "1") != "1":
        raise SettingsError(
            f"cannot start {given['nproc-per-node']} times {foreign}: it is a launcher and starts the workers itself; "
            f"leave --nproc-per-node to {foreign}"
        )
    return 1


def _notes(
    program: _Program,
    nested: Scan | None,
    foreign: str | None,
    ignored: tuple[str, ...],
    nproc: int,
    environ: Mapping[str, str],
) -> tuple[str, ...]:
    notes = []
    if nested:
        notes.append(f"{program.name} is unwrapped: its {nproc} workers are started and supervised directly")
    if foreign:
        notes.append(
            f"{foreign} starts the workers itself and is supervised as one process: no resuming from memory, no hang "
            "detection, no verdict on single ranks; for these run the script itself, with --nproc-per-node"
        )
    if ignored:
        notes.append("without effect here: " + ", ".join(ignored))
    if nproc > 1 and "OMP_NUM_THREADS" not in environ:
        notes.append(f"OMP_NUM_THREADS=1 for each of the {nproc} workers, as under torchrun; set it to tune")
    return tuple(notes)


def _device(launch: Launch, rank: int, environ: Mapping[str, str]) -> str | None:
    """The one device that a worker is to see with ``--virtual-local-rank``."""
    if not launch.virtual_local_rank:
        return None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(rank)
    devices = [entry.strip() for entry in visible.split(",")]
    if rank >= len(devices):
        raise SettingsError(
            f"cannot use --virtual-local-rank: CUDA_VISIBLE_DEVICES={visible} has no device for worker {rank}; "
            f"start at most {len(devices)} workers"
        )
    return devices[rank]
