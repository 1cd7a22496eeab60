# SPDX-License-Identifier: Apache-2.0
"""Checks of devices: as the driver sees them, and as they compute.

Only rows and what they say. What the driver wants done to a device, or a wrong answer of
one, is a failure of the node; heat, narrow links and other people's memory are for a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from resilient.core.devices import NO_RECOVERY, Device, Look, State
from resilient.core.exit_codes import ExitCode
from resilient.core.measured import AllReduceFacts, ComputeFacts, TorchFacts
from resilient.core.preflight import Asked, Check, Grade, Judgement, counted, fail, ok, size_text, skip, unread, warn

MEMORY_TAKEN: Final = 0.05
"""Of a device that nobody else uses; a CUDA context takes about 0.5 GB, less than that of any training device."""

XID: Final = "https://docs.nvidia.com/deploy/xid-errors/"
MEMORY: Final = "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/error-recovery-and-response-flags.html"
NVML: Final = "https://docs.nvidia.com/deploy/nvml-api/"
COMPATIBILITY: Final = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"
PLUGIN: Final = "https://github.com/NVIDIA/k8s-device-plugin#configuration-option-details"
GLOO: Final = "https://docs.pytorch.org/docs/stable/distributed.html"

_NONE: Final = "no device of NVIDIA's is visible"
_VERSION: Final = re.compile(r"(\d{1,4})\.(\d{1,4})")
_NODE: Final = "have the node looked at, and cordon it meanwhile"


def _present(look: Look, asked: Asked) -> Judgement:
    count = len(look.devices)
    if asked.devices is not None and count < asked.devices:
        return fail(f"{count} visible where {asked.devices} were asked for", _NODE)
    if not count:
        return skip(_NONE)
    names = ", ".join(sorted({device.name or "of an unknown kind" for device in look.devices}))
    found = f"{count} visible: {names}"
    if 0 < count < asked.ranks:
        return warn(f"{found}, for {asked.ranks} ranks", "start one rank for each device, or ask for more devices")
    return ok(found)


def _health(look: Look, asked: Asked) -> Judgement:
    if not look.devices:
        return skip(_NONE)
    if lost := _those(device for device in look.devices if device.state is State.LOST):
        return fail(f"the driver cannot reach {lost}", _NODE)
    if reset := _those(device for device in look.devices if device.state is State.NEEDS_RESET):
        return fail(f"the driver refuses {reset} until a reset", _NODE)
    due = [device for device in look.devices if device.recovery not in (None, NO_RECOVERY)]
    if due:
        wants = ", ".join(f"{device.recovery} for {_named(device)}" for device in due)
        return fail(f"the driver wants: {wants}", _NODE)
    if unknown := _those(device for device in look.devices if device.state is State.UNKNOWN):
        return unread(f"the state of {unknown}")
    if unknown := _those(device for device in look.devices if device.recovery is None):
        return ok(f"all answer; this driver names no recovery action for {unknown}")
    return ok("all answer, and the driver wants nothing done")


def _memory_errors(look: Look, asked: Asked) -> Judgement:
    if not look.devices:
        return skip(_NONE)
    if failed := _those(device for device in look.devices if device.rows_failed):
        return fail(f"memory rows of {failed} could not be replaced", "have it replaced (RMA)")
    if errors := [device for device in look.devices if device.uncorrected]:
        counts = ", ".join(f"{device.uncorrected} on {_named(device)}" for device in errors)
        return warn(f"uncorrected memory errors since the driver was loaded: {counts}", "have the device reset")
    if pending := _those(device for device in look.devices if device.rows_pending):
        return warn(f"memory rows of {pending} wait for a reset to be replaced", "have it reset once it is free")
    if all(device.rows_failed is None and device.uncorrected is None for device in look.devices):
        return unread("ECC and replaced rows")
    return ok("no uncorrected error, no row that waits or failed")


def _clocks(look: Look, asked: Asked) -> Judgement:
    if not look.devices:
        return skip(_NONE)
    if slowed := [device for device in look.devices if device.slowed]:
        whys = ", ".join(f"{_named(device)} ({', '.join(device.slowed or ())})" for device in slowed)
        return warn(f"clocks are held back: {whys}", "have cooling and power of the node looked at")
    if all(device.slowed is None for device in look.devices):
        return unread("why clocks are held back")
    return ok("nothing holds them back")


def _links(look: Look, asked: Asked) -> Judgement:
    if not look.devices:
        return skip(_NONE)
    narrow = [device for device in look.devices if (device.lanes or 0) < (device.lanes_possible or 0) and device.lanes]
    if narrow:
        widths = ", ".join(f"{_named(device)} x{device.lanes} of x{device.lanes_possible}" for device in narrow)
        return warn(f"PCIe links are narrow: {widths}", "have the node's slots and risers looked at")
    down = [device for device in look.devices if device.links_up is not None and device.links_up < (device.links or 0)]
    if down:
        counts = ", ".join(f"{_named(device)} {device.links_up} of {device.links}" for device in down)
        return warn(f"NVLinks are down: {counts}", "have the node looked at; collectives take a slower way")
    if all(device.lanes is None and device.links is None for device in look.devices):
        return unread("PCIe and NVLink widths")
    return ok("PCIe and NVLink at full width")


def _driver(look: Look, torch: TorchFacts, asked: Asked) -> Judgement:
    if not look.devices:
        return skip(_NONE)
    if torch.cuda is None:
        return warn(f"torch {torch.version} is built without CUDA", "install a torch with CUDA in the image")
    driver, built = _version(look.runtime), _version(torch.cuda)
    if driver is None or built is None:
        return unread("the CUDA version of the driver")
    found = f"driver {look.driver or 'of an unknown version'} runs CUDA {look.runtime}, torch is built for {torch.cuda}"
    if driver[0] < built[0]:
        do = "use a torch that is built for the driver's CUDA, or have the driver renewed"
        return fail(f"{found}: too old", do, ExitCode.CONFIG_FAULT)
    if driver < built:
        return warn(f"{found}: only minor-version compatible", "kernels that are compiled at run time (PTX) may fail")
    return ok(found)


def _device_memory(torch: TorchFacts, asked: Asked) -> Judgement:
    known = [device for device in torch.devices if device.size and device.free is not None]
    if not known:
        return skip("no device with memory of its own")
    taken = [device for device in known if (device.free or 0) < (1 - MEMORY_TAKEN) * (device.size or 0)]
    if taken:
        sizes = ", ".join(f"{device.device} {_memory(device)}" for device in taken)
        do = "end the processes that hold it; in a pod they are not yours, so have the node looked at"
        return warn(f"somebody holds memory: free are on {sizes}", do)
    return ok(f"free on {known[0].device}: {_memory(known[0])}" + (", others alike" if len(known) > 1 else ""))


def _compute(torch: TorchFacts, asked: Asked) -> Judgement:
    wrong = [device for device in torch.devices if device.wrong]
    if wrong:
        which = ", ".join(f"{device.device} ({counted(device.wrong or 0, 'element')})" for device in wrong)
        return fail(f"wrong products on {which}", f"never train on it; {_NODE}")
    silent = [device for device in torch.devices if device.wrong is None]
    if silent:
        return fail(", ".join(f"{device.device}: {device.why}" for device in silent), _NODE)
    return ok(f"right answers from {', '.join(device.device for device in torch.devices)}, torch {torch.version}")


def _all_reduce(sums: AllReduceFacts, asked: Asked) -> Judgement:
    found = f"{sums.backend} over {counted(sums.ranks, 'rank')} of this machine"
    if not sums.right:
        return fail(f"{found} gives wrong sums", _NODE)
    return ok(f"{found}, in {sums.seconds:.2f} s")


def _named(device: Device) -> str:
    return f"GPU {device.index}" + (f" at {device.bus}" if device.bus else "")


def _those(devices: Iterable[Device]) -> str:
    return ", ".join(map(_named, devices))


def _memory(device: ComputeFacts) -> str:
    return f"{size_text(device.free or 0)} of {size_text(device.size or 0)}"


def _version(text: str | None) -> tuple[int, int] | None:
    found = _VERSION.match(text or "")
    return (int(found[1]), int(found[2])) if found else None


DEVICE_CHECKS: Final = (
    Check(
        id="devices",
        looks_at="devices against those asked for",
        probes=("devices",),
        judge=_present,
        late=Grade.FAIL,
        do=f"see the reason; where the driver hangs, {_NODE}",
        source=PLUGIN,
    ),
    Check(
        id="device-health",
        looks_at="what the driver wants done",
        probes=("devices",),
        judge=_health,
        follows=True,
        do=_NODE,
        source=MEMORY,
    ),
    Check(
        id="device-errors",
        looks_at="memory errors of devices",
        probes=("devices",),
        judge=_memory_errors,
        follows=True,
        do=_NODE,
        source=MEMORY,
    ),
    Check(
        id="device-clocks",
        looks_at="clocks and throttling",
        probes=("devices",),
        judge=_clocks,
        follows=True,
        do=_NODE,
        source=NVML,
    ),
    Check(
        id="device-links",
        looks_at="PCIe and NVLink width",
        probes=("devices",),
        judge=_links,
        follows=True,
        do=_NODE,
        source=NVML,
    ),
    Check(
        id="driver",
        looks_at="driver against the CUDA of torch",
        probes=("devices", "torch"),
        judge=_driver,
        follows=True,
        do=_NODE,
        source=COMPATIBILITY,
    ),
    Check(
        id="compute",
        looks_at="a product with a known answer",
        probes=("torch",),
        judge=_compute,
        late=Grade.FAIL,
        broken=Grade.FAIL,
        do=f"see the reason; where a device hangs, {_NODE}",
        source=XID,
    ),
    Check(
        id="device-memory",
        looks_at="free memory of devices",
        probes=("torch",),
        judge=_device_memory,
        follows=True,
        do=_NODE,
        source=NVML,
    ),
    Check(
        id="all-reduce",
        looks_at="a sum over ranks of this machine",
        probes=("all-reduce",),
        judge=_all_reduce,
        late=Grade.FAIL,
        broken=Grade.FAIL,
        do="see the reason: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, a firewall on loopback, or links of devices",
        source=GLOO,
    ),
)
