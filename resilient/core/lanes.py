# SPDX-License-Identifier: Apache-2.0
"""Lanes: which printer a line comes from, by its form.

A line of the driver, of NCCL or of torch has a form that free text has not by chance.
What the supervisor has seen itself is held to the strict forms. A log that somebody
kept has lost streams and prefixes: there the loose forms count as well, below any
exception that names a cause.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final


class Lane(enum.Enum):
    """A printer whose lines can be told from free text."""

    KERNEL = "kernel"
    """Lines of the kernel log about devices: the drivers of GPUs and switches, PCIe, machine checks."""
    NCCL = "nccl"
    TORCH = "torch"
    """torch's C++ log lines, and what an uncaught C++ exception said."""
    STDERR = "stderr"
    """All of it, for forms that need the exit code or signal as a second witness."""
    PLATFORM = "platform"
    """Only in logs: what the scheduler, the kubelet, the kernel's OOM killer say of the whole job."""
    CUDA = "cuda"
    """Only in logs: a CUDA error as other programs state it."""
    LOG = "log"
    """Only in logs: all of it, where no exception says more."""


Lanes = Mapping[Lane, str]

_STAMP: Final = r"(?:<\d{1,3}>)?(?:\[[^\]\n]{1,48}\] ?)?(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S{1,64} )?(?:kernel: ?)?"
_DRIVER: Final = (
    r"(?:NVRM: |nvidia-nvswitch\d+: SXid |amdgpu [\da-f:.]{7,16}: |pcieport [\da-f:.]{7,16}: |mce: \[Hardware Error\]"
    r"|mlx5_core [\da-f:.]{7,16}: |EDAC MC\d{1,3}: )"
)
# A message of several lines has its stamp on the first; dmesg indents the others.
_KERNEL: Final = re.compile(rf"^{_STAMP}(?:\[ {{0,6}}\d+\.\d+\] )? {{0,20}}({_DRIVER}.*)")
_NCCL: Final = re.compile(r"^(?:\[[^\]\n]{1,40}\] )?\S{1,255}:\d{1,10}:\d{1,10} \[-?\d{1,5}\] .{0,120}?NCCL WARN (.*)")
_TORCH: Final = re.compile(r"^(?:\[rank\d{1,6}\]: ?)?\[[EWF](?:\d| )[^\]\n]{0,100}\.[ch]pp:\d{1,6}\] (.*)")
_WHAT: Final = re.compile(r"^ {2}what\(\): {1,2}(.*)")
_TERMINATE: Final = "terminate called after throwing an instance of"

_LOOSE_KERNEL: Final = re.compile(rf"^.{{0,80}}?({_DRIVER}.*)")
# As monitors and people write it: "XID 79(GPU has fallen off the bus)", "Xid: 79, ...".
_LOOSE_XID: Final = re.compile(r"\b[Xx][Ii][Dd](?: error)?[ :=]{1,3}(\d{1,3})\b[,:( ]{0,2}(.{0,400})")
_LOOSE_NCCL: Final = re.compile(
    r"(?:NCCL|\.(?:cc|cu|h):\d{1,5}) WARN (.*)"
    r"|^((?:Net|NET/\w{2,8}|socket\w{1,20}) ?: .*|(?:Cuda failure|Failed to CUDA) .*)|^Last error: ?(.+)"
)
_LOOSE_TORCH: Final = re.compile(r"\[[EWF][^\]\n]{0,100}\.[ch]pp:[\d.]{1,6}\] ((?:(?!\[[EWF] ).)*)")
_LOOSE_WHAT: Final = re.compile(r"what\(\): {1,2}(.*)")
_LOOSE_WATCHDOG: Final = re.compile(r"^((?:\[Rank \d{1,6}\] |NCCL )[Ww]atchdog .*)")
_CUDA: Final = re.compile(
    # A string of the runtime's that nothing else says needs no name in front.
    r"^uncorrectable ECC error encountered$|\ban illegal memory access was encountered\b|\bunspecified launch failure\b"
    r"|\bdevice-side assert triggered\b|\bno kernel image is available for\b|\bcudaMalloc\w{0,20} failed\b"
    r"|\bCUDA_ERROR_[A-Z_]{3,60}|\bcudaError[A-Z]\w{3,60}|\bTHCudaCheck FAIL |\bGPUassert\b"
    r"|\b(?:CUDA|Cuda|cuda) (?:runtime |driver |kernel |API )?(?:[Ee]rror|ERROR|[Ff]ailure|failed)\b"
)
_PLATFORM: Final = re.compile(
    r"slurmstepd: |srun: |\bjob killed\b|running low on memory|\bNode(?:Lost|NotReady)\b|ContainerStatusUnknown|\bOOM\b"
    r"|\bOut Of Memory$|\bsubmitit\b|oom[-_]kill|OOMKilled|[Oo]ut of memory: Kill|killed due to memory pressure"
    r"|[Pp]reempt|PREEMPT|[Ee]vict|low on resource"
    r"|[Ss]pot [Ii]nstance|\bHost EC2 |[Nn]ode .{0,80}(?:NotReady|not ready|unreachable|shutdown"
    r"|drain)|imminent node|DisruptionTarget|\bscancel\b|TIME ?LIMIT|time limit"
)


@functools.lru_cache(maxsize=64)
def sort_lines(
    lines: tuple[str, ...],
    *,
    kernel: tuple[str, ...] = (),
    nccl: tuple[str, ...] = (),
    aborted: bool,
    from_log: bool,
    told: bool,
) -> Lanes:
    """Sort lines by their printers.

    ``kernel`` and ``nccl`` are from logs of their own; ``told``: an exception says more than free text can.
    """
    lanes = _loose(lines) if from_log else _strict(lines, kernel, nccl, aborted=aborted)
    lanes[Lane.STDERR] = lines
    if from_log and told:
        lanes[Lane.LOG] = lanes[Lane.CUDA] = ()
    return {lane: "\n".join(lanes.get(lane, ())) for lane in Lane}


def _strict(
    lines: tuple[str, ...], kernel: tuple[str, ...], nccl: tuple[str, ...], *, aborted: bool
) -> dict[Lane, Sequence[str]]:
    torch = [found[1] for line in lines if "pp:" in line and (found := _TORCH.match(line))]
    if aborted:
        # Only std::terminate prints this pair, and only a process that then aborts.
        pairs = pairwise(lines)
        torch += [found[1] for first, line in pairs if _TERMINATE in first and (found := _WHAT.match(line))]
    return {
        Lane.KERNEL: [found[1] for line in lines + kernel if ": " in line and (found := _KERNEL.match(line))],
        Lane.NCCL: [found[1] for line in lines + nccl if "NCCL WARN " in line and (found := _NCCL.match(line))],
        Lane.TORCH: torch,
    }


def _loose(lines: Sequence[str]) -> dict[Lane, Sequence[str]]:
    torch = [piece for line in lines if "pp:" in line for piece in _LOOSE_TORCH.findall(line)]
    torch += [found[1] for line in lines if (found := _LOOSE_WHAT.search(line) or _LOOSE_WATCHDOG.match(line))]
    kernel = [found[1] for line in lines if (found := _LOOSE_KERNEL.match(line))]
    kernel += [f"Xid {found[1]}, {found[2]}" for line in lines if (found := _LOOSE_XID.search(line))]
    nccl = [
        next(filter(None, found.groups())) for line in lines if (found := _LOOSE_NCCL.search(line)) and found.lastindex
    ]
    # Some put the error itself on the next line.
    cuda = [
        f"{line} {after.strip()}" for line, after in zip(lines, (*lines[1:], ""), strict=True) if _CUDA.search(line)
    ]
    return {
        Lane.KERNEL: kernel,
        Lane.NCCL: nccl,
        Lane.TORCH: torch,
        Lane.PLATFORM: [line for line in lines if _PLATFORM.search(line)],
        Lane.CUDA: cuda,
        Lane.LOG: lines,
    }
