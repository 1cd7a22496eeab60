# SPDX-License-Identifier: Apache-2.0
"""torchrun's command line: its flags, its ``PET_*`` environment, and which of them mean something here.

Written down from ``torch.distributed.run.get_args_parser`` of torch 2.8 to 2.13, not
imported from it: the supervisor stays free of torch. Both spellings of every flag
(``--nproc-per-node``, ``--nproc_per_node``) are read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from resilient.errors import SettingsError

HONOURED: Final = frozenset(
    {
        "master-addr",
        "master-port",
        "max-restarts",
        "module",
        "nnodes",
        "no-python",
        "node-rank",
        "nproc-per-node",
        "rdzv-backend",
        "rdzv-endpoint",
        "rdzv-id",
        "role",
        "run-path",
        "standalone",
        "virtual-local-rank",
    }
)
IGNORED: Final = frozenset(
    {
        "duplicate-stderr-filters",
        "duplicate-stdout-filters",
        "event-log-handler",
        "local-addr",
        "local-ranks-filter",
        "log-dir",
        "logs-specs",
        "monitor-interval",
        "numa-binding",
        "rdzv-conf",
        "redirects",
        "shutdown-timeout",
        "signals-to-handle",
        "start-method",
        "tee",
    }
)
"""Rendezvous, log files and placement of torchrun's own: accepted, and named as having no effect."""
SWITCHES: Final = frozenset({"module", "no-python", "run-path", "standalone", "virtual-local-rank"})
VALUES: Final = (HONOURED | IGNORED) - SWITCHES
SHORT: Final = {"m": "module", "r": "redirects", "t": "tee", "h": "help"}
NOT_IN_ENVIRONMENT: Final = frozenset({"logs-specs", "numa-binding"})
LOOPBACK: Final = "127.0.0.1"
_MOST_WORKERS: Final = 4096
_MOST_NODES: Final = 1024
"""Pod 0 hears each of them by itself."""
PORT: Final = 29500
"""torchrun's own."""
LEGACY: Final = frozenset({"use-env"})
"""What ``torch.distributed.launch`` has besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A command line, taken apart."""

    flags: Mapping[str, str]
    """By name without dashes; a switch that was given holds ``1``."""
    command: tuple[str, ...]
    """From the first word that is no flag."""
    after_dashes: bool
    """``--`` came before the command."""


def scan(argv: Sequence[str], *, values: Collection[str], switches: Collection[str], program: str) -> Scan:
    """Split flags from the command; the last of equal flags wins, as in argparse."""
    flags: dict[str, str] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        name, value = _split(word)
        if name not in values and name not in switches:
            raise _unknown(word, name, [*values, *switches], program)
        if name in SWITCHES and value is not None:
            raise SettingsError(f"cannot use {word!r}: --{name} takes no value; write --{name}")
        if name in switches and value is None:
            value = "1"
        if value is None:
            if not rest or _is_flag(rest[0]):
                raise SettingsError(f"cannot use {word!r}: its value is missing; write {word} VALUE")
            value = rest.pop(0)
        flags[name] = value
    after_dashes = rest[:1] == ["--"]
    return Scan(flags=flags, command=tuple(rest[after_dashes:]), after_dashes=after_dashes)


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The flags that ``PET_*`` gives, as torchrun reads them; an empty variable gives nothing."""
    flags = {}
    for name in sorted((HONOURED | IGNORED) - NOT_IN_ENVIRONMENT):
        variable = "PET_" + name.replace("-", "_").upper()
        value = environ.get(variable, "").strip()
        if value and name in SWITCHES:
            if not value.isdecimal():
                raise SettingsError(f"cannot use {variable}={value!r}: torchrun reads a number there; set 1 or 0")
            value = "1" if int(value) else ""
        if value:
            flags[name] = value
    return flags


def nodes(flags: Mapping[str, str], index: int | None) -> tuple[int, int]:
    """How many nodes there are, and which of them this is; ``index``: the pod's, where Kubernetes has said it."""
    asked = flags.get("nnodes", "1")
    if not re.fullmatch(r"\d{1,6}(:\d{1,6})?", asked):
        raise SettingsError(f"cannot use --nnodes {asked}: it is not a number of nodes; leave it out for one")
    least, _, most = asked.partition(":")
    count = int(least)
    if int(most or count) != count:
        raise SettingsError(
            f"cannot use --nnodes {asked}: a run has as many nodes from its beginning to its end; give one number"
        )
    if not 1 <= count <= _MOST_NODES:
        raise SettingsError(f"cannot use --nnodes {asked}: give 1 to {_MOST_NODES}")
    given = flags.get("node-rank")
    if given is None and count > 1 and index is None:
        raise SettingsError(
            f"cannot tell which of the {count} nodes this is: nobody has said it; give --node-rank, or RESILIENT_INDEX "
            "as resilient manifest writes it"
        )
    rank = str(index if count > 1 else 0) if given is None else given
    if not re.fullmatch(r"\d{1,6}", rank) or int(rank) >= count:
        counted = "there is one node, with rank 0; leave it out" if count == 1 else f"give 0 to {count - 1}"
        raise SettingsError(f"cannot use --node-rank {rank}: {counted}")
    return count, int(rank)


def meeting_point(flags: Mapping[str, str]) -> tuple[str, int]:
    """Where the nodes meet: the first one's name, and a port of it. Unlike :func:`master` it has to be given."""
    if "standalone" in flags:
        raise SettingsError("cannot use --standalone with several nodes: it means one; leave it or --nnodes out")
    nowhere = {"master-addr": "", "master-port": str(PORT)}
    addr, port = master({**nowhere, **flags, "rdzv-backend": "static"})
    if not addr:
        raise SettingsError(
            "cannot find the other nodes: it is not said where the first one is; give --master-addr and --master-port"
        )
    assert port is not None, "a port was given"
    return addr, port


def count_workers(flags: Mapping[str, str], count: Callable[[str], int]) -> int:
    """``--nproc-per-node``; ``count`` says how many ``cpu``, ``gpu`` or ``auto`` are."""
    asked = flags.get("nproc-per-node", "1")
    if asked in ("cpu", "gpu", "auto"):
        found = count(asked)
        if found:
            return found
        raise SettingsError(
            f"cannot use --nproc-per-node {asked}: no NVIDIA device is visible here; give the number of workers"
        )
    if not re.fullmatch(r"\d+", asked) or not int(asked[:9]):
        raise SettingsError(
            f"cannot use --nproc-per-node {asked[:40]}: it is not a number of workers; give 1 or more, cpu, gpu or auto"
        )
    if int(asked[:9]) > _MOST_WORKERS:
        why = f"no node runs more than {_MOST_WORKERS} workers"
        raise SettingsError(f"cannot use --nproc-per-node {asked[:40]}: {why}; give fewer, cpu, gpu or auto")
    return int(asked)


def master(flags: Mapping[str, str]) -> tuple[str, int | None]:
    """Address and port as torchrun's static rendezvous has them; any other finds a free port on this node."""
    if "standalone" in flags or flags.get("rdzv-backend", "static") != "static":
        return LOOPBACK, None
    addr, port = flags.get("master-addr", LOOPBACK), flags.get("master-port")
    if endpoint := flags.get("rdzv-endpoint"):
        addr, colon, port = endpoint.rpartition(":")
        addr, port = (addr, port) if colon else (endpoint, str(PORT))
    if port is None:
        return LOOPBACK, None
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise SettingsError(f"cannot use {port!r} as master port: it is not a port; give 1 to 65535, or leave it out")
    return addr.strip("[]"), int(port)


def _is_flag(word: str) -> bool:
    """Whether a word cannot be the value of the flag before it; a negative number can, and is judged by its setting."""
    return word.startswith("-") and not re.match(r"-[\d.]", word)


def _split(word: str) -> tuple[str, str | None]:
    """Name, and the value that is attached to it."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        return name.replace("_", "-"), value if equals else None
    return SHORT.get(word[1:2], ""), word[2:].removeprefix("=") if word[2:] else None


def _unknown(word: str, name: str, known: Collection[str], program: str) -> SettingsError:
    if not word.startswith("--"):
        close = [f"-{short}" for short in SHORT]
    else:
        close = [f"--{flag}" for flag in difflib.get_close_matches(name, known, n=1, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"see {program} --help"
    return SettingsError(
        f"cannot use {word.partition('=')[0]!r}: {program} has no such flag; {hint} "
        "(flags of the script come after the script)"
    )
