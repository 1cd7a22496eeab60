# SPDX-License-Identifier: Apache-2.0
"""Failures as libraries print them, by the families in which one word decides: each is judged by what it says.

The texts are put together from the sources of torch, Pillow, OpenCV, h5py, NumPy, TensorFlow, CuPy, tqdm and
Megatron-LM; none is from a corpus.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from resilient.core.causes import Verdict
from resilient.core.classify import classify
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence
from resilient.report.verdicts import judge_text
from resilient.training.error_record import describe

TRY: Final = "investigate restart_in_place"
SETUP, DATA, CODE = "config_or_environment stop", "user_data stop", "user_code stop"
UNMET: Final = f"config_or_environment {TRY}"
HUNG, LATE = f"hang_or_collective_timeout {TRY}", "hang_or_collective_timeout stop"
BUG, NUMBERS, STORE = "framework_bug stop", "numeric_instability stop", f"storage {TRY}"
PACKAGES: Final = "/opt/env/site-packages/"
CONNECT: Final = "The client socket has timed out after 60000ms while trying to connect to ({}, {})."
NETWORK: Final = "torch.distributed.DistNetworkError: " + CONNECT
UPDATE: Final = "280000/2969526 [{}<4:48:08, 155.57 examples/s]"
CUT_OFF: Final = ""


def raised(error: str, *frames: str) -> str:
    """A traceback, through these places of packages, below the script's own."""
    places = "".join(
        f'  File "{PACKAGES}{path}", line 9, in {name}\n' for path, _, name in (f.partition(":") for f in frames)
    )
    return f'Traceback (most recent call last):\n  File "/app/train.py", line 5, in main\n{places}{error}\n'


def of_rank(rank: int, text: str) -> str:
    """The same as torch prints it in a process group."""
    return "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())


def collected(error: str, *frames: str, ranks: Iterable[int] = range(2)) -> str:
    """What torch.distributed.checkpoint raises where ranks have failed, with their tracebacks below it."""
    numbers = list(ranks)
    place = f'  File "{PACKAGES}torch/distributed/{{}}", line 9, in {{}}\n    x = y()\n'
    theirs = "".join(place.format(*frame.split(":")) for frame in ("checkpoint/utils.py:reduce_scatter", *frames))
    name = f"torch.distributed.checkpoint.api.CheckpointException: CheckpointException ranks:dict_keys({numbers})\n"
    end = f"{error}\n" if error else ""
    below = "".join(f"Traceback (most recent call last): (RANK {rank})\n{theirs}{end}" for rank in numbers)
    return raised(name + below, "torch/distributed/checkpoint/utils.py:reduce_scatter")


def caught(name: str, error: str, where: str = "DataLoader worker process 2") -> str:
    """What a worker raised, as torch carries it today."""
    return raised(f"{name}: Caught {name.rpartition('.')[2]} in {where}.\nOriginal {raised(error)}")


def quoted(name: str, *errors: str) -> str:
    """The same up to torch 1.1: the worker's traceback is the message."""
    handled = "\nDuring handling of the above exception, another exception occurred:\n\n"
    inner = handled.join(raised(error, "torch/utils/data/dataloader.py:_worker_loop") for error in errors)
    return raised(f"{name}: {inner}", "torch/utils/data/dataloader.py:_process_next_batch")


def watchdog(rank: int, number: int, timeout_ms: int) -> str:
    """What ends a rank that waited in vain."""
    return (
        f"[rank{rank}]:[E1123 10:11:12.130 ProcessGroupNCCL.cpp:607] [Rank {rank}] Watchdog caught collective operation"
        f" timeout: WorkNCCL(SeqNum={number}, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)={timeout_ms})"
        f" ran for {timeout_ms + 88} milliseconds before timing out.\n"
    )


def bar(elapsed: str, what: str = "Map") -> str:
    """A progress bar, which does not end its line."""
    return f"{what}:   9%|7         | " + UPDATE.format(elapsed)


UPDATES: Final = "\r".join(bar(f"{second // 60:02d}:{second % 60:02d}") for second in range(0, 1798, 2))
JOINED: Final = (
    "torch.distributed.DistStoreError: Timed out after 1801 seconds waiting for clients. 1/2 clients joined."
)
KEY: Final = "torch.distributed.DistStoreError: wait timeout after 600000ms, keys: /default_pg/0//store_based_barrier:1"
GLOO: Final = "RuntimeError: [/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation"
ELASTIC: Final = (
    raised(NETWORK.format("10.0.0.1", 29400))
    + "\nThe above exception was the direct cause of the following exception:\n\n"
    + raised(
        "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store failed"
    )
)
GAI: Final = (
    "torch.distributed.DistNetworkError: The client socket has failed to connect to any network address of (a, 29500). "
    "The IPv6 network addresses of (a, 29500) cannot be retrieved (gai error: -2 - Name or service not known)."
)
OLD_DRIVER: Final = "CUDA driver version is insufficient for CUDA runtime version"
LOCAL: Final = "found NaN in local grad norm in backward pass before data-parallel communication collective"
FELL_OFF: Final = "NVRM: Xid (PCI:0000:05:00): 79, GPU has fallen off the bus.\n"
INVALID: Final = (
    "ValueError: Expected parameter loc (Tensor of shape (64, 2)) of distribution Normal(...) to satisfy the "
    "constraint Real(), but found invalid values:\ntensor([[nan, nan],\n        [nan, nan]], device='cuda:0')"
)
FINE: Final = (
    " iteration 5426/ 250000 | grad norm: 0.512 | number of skipped iterations:   0 | number of nan iterations:   0"
)
UNREAD: Final = (
    "cv2.error: OpenCV(4.8.0) /io/imgproc/color.cpp:182: error: (-215:Assertion failed) !_src.empty() in function"
)
IMAGEIO: Final = 'ValueError: Could not load "" \nReason: "image file is truncated (4 bytes not processed)"'
IN_LOADER, IN_PLANNER = "checkpoint/state_dict_loader.py:local_step", "checkpoint/default_planner.py:create_local_plan"
IN_READER: Final = "checkpoint/filesystem.py:read_metadata"

TEXTS: Final = {
    # The address where all are to meet: wrong if nobody ever got there; what is waited for behind it is somebody's.
    "connect": (raised(NETWORK.format("10.0.0.1", 40001)), UNMET),
    "connect, of old": (raised("TimeoutError: " + CONNECT.format("node-a", 29500)), UNMET),
    "connect, logged": (f"[E socket.cpp:922] [c10d] {CONNECT.format('node-a', 29500)}\n", UNMET),
    "connect, port unset": (raised(NETWORK.format("127.0.0.1", 0)), UNMET),
    "connect, own machine": (raised(NETWORK.format("127.0.0.1", 48391)), HUNG),
    "connect, while training": ("step 120 loss 2.31\n" + raised(NETWORK.format("10.0.0.1", 40001)), HUNG),
    "connect, after a bar": (bar("03:01") + "\n" + raised(NETWORK.format("10.0.0.1", 40001)), HUNG),
    "connect, again": ("Worker group FAILED. will restart\n" + raised(NETWORK.format("a", 29500)), HUNG),
    "connect, elastic": (ELASTIC, HUNG),
    "connect, name unknown": (raised(GAI), f"network_or_peer {TRY}"),
    "connect, bug on rank 0": (
        of_rank(1, raised(NETWORK.format("a", 29500))) + of_rank(0, raised("KeyError: 'x'")),
        CODE,
    ),
    "connect, lost GPU": (FELL_OFF + raised(NETWORK.format("a", 29500)), "device_fault reschedule"),
    "store key": (raised(KEY), HUNG),
    "store clients": (raised(JOINED), HUNG),
    # What ranks collect of one another.
    "planning": (collected("AssertionError: md is None", IN_LOADER, IN_PLANNER), BUG),
    "planning, no words": (collected("AssertionError", IN_LOADER), BUG),
    "planning, cut off": (collected(CUT_OFF, IN_LOADER, IN_PLANNER), BUG),
    "reading, cut off": (collected(CUT_OFF, IN_LOADER, IN_READER), f"ambiguous {TRY}"),
    "planning, EIO beside it": (
        collected("AssertionError", IN_LOADER) + raised("OSError: [Errno 5] EIO").replace("):", "): (RANK 3)"),
        STORE,
    ),
    "no space": (collected("OSError: [Errno 28] No space left on device", ranks=[2]), STORE),
    "no such key": (collected("RuntimeError: Missing key in checkpoint state_dict: head.weight.", IN_LOADER), CODE),
    "memory": (collected("torch.OutOfMemoryError: CUDA out of memory."), "out_of_memory_device stop"),
    "no checkpoint": (collected("FileNotFoundError: [Errno 2] No such file: '/ckpt/.metadata'", IN_READER), SETUP),
    # One rank prepares while the others wait.
    "prepares": (bar("29:55") + watchdog(2, 2, 1800000), LATE),
    "prepares, over one line": (UPDATES + watchdog(1, 3, 1800000), LATE),
    "prepares for hours": ("1927287it [1:59:41, 1060.83it/s]\n" + watchdog(1, 1, 7200000), LATE),
    "prepares, gloo": (bar("29:58") + "\n" + raised(GLOO), LATE),
    "prepares, store": (bar("09:58") + "\n" + raised(KEY), LATE),
    "prepares and dies": (bar("29:55") + watchdog(1, 2, 1800000) + of_rank(0, raised("EOFError: cut")), DATA),
    "prepares, lost GPU": (bar("29:55") + watchdog(1, 2, 1800000) + FELL_OFF, "device_fault reschedule"),
    "trains, gloo": (bar("29:58", "Epoch 0") + "\n" + raised(GLOO), HUNG),
    "stands still": (bar("00:12") + watchdog(2, 2, 1800000), HUNG),
    "trains": (bar("29:55", "Epoch 0") + watchdog(2, 4120, 1800000), HUNG),
    # Whoever passes on what is wrong with the environment.
    "driver, TensorFlow": (
        raised(f"tensorflow.errors_impl.InternalError: cudaGetDevice() failed. {OLD_DRIVER}"),
        SETUP,
    ),
    "driver, CuPy": (raised(f"cupy.runtime.CUDARuntimeError: cudaErrorInsufficientDriver: {OLD_DRIVER}"), SETUP),
    "driver, printed": (f"init: {OLD_DRIVER}\n", SETUP),
    "device too new": (raised("app.KernelError: no kernel image is available for execution on the device"), SETUP),
    "driver, merely warned of": (
        "UserWarning: The NVIDIA driver on your system is too old\n" + raised("KeyError: 1"),
        CODE,
    ),
    "symbol": (raised("AttributeError: /opt/ops.so: undefined symbol: ncclCommRegister"), SETUP),
    "library": (raised("RuntimeError: Failed to import x:\nlibcudart.so.11.0: cannot open shared object file"), SETUP),
    "toolkit": (raised("AssertionError: CUDA_HOME does not exist, unable to compile CUDA op(s)"), SETUP),
    "no launcher": (raised("KeyError: 'LOCAL_RANK'"), SETUP),
    "numpy": (raised("ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96"), SETUP),
    "torchvision": (raised("RuntimeError: operator torchvision::nms does not exist"), SETUP),
    # What a loader's worker could not read, in both ways of carrying it.
    "quoted image": (quoted("OSError", "OSError: image file is truncated (4 bytes not processed)"), DATA),
    "quoted twice": (quoted("ValueError", "OSError: image file is truncated (4 bytes not processed)", IMAGEIO), DATA),
    "quoted, cut off": (
        raised("ValueError: Traceback (most recent call last):\nimage file is truncated (4 bytes)"),
        DATA,
    ),
    "quoted disk": (quoted("OSError", "OSError: [Errno 5] Input/output error: '/data/1.jpg'"), STORE),
    "quoted bug": (quoted("IndexError", "IndexError: list index out of range"), CODE),
    "image": (caught("OSError", "OSError: image file is truncated (45 bytes not processed)"), DATA),
    "image, cut off": (
        "OSError: Caught OSError in DataLoader worker process 0.\nOSError: image file is truncated (1",
        DATA,
    ),
    "no image": (caught("RuntimeError", "PIL.UnidentifiedImageError: cannot identify image file <_io.BytesIO>"), DATA),
    "stream": (caught("OSError", "OSError: unrecognized data stream contents when reading image file"), DATA),
    "PNG": (caught("SyntaxError", "SyntaxError: broken PNG file (chunk b'\\x00')"), DATA),
    "OpenCV": (caught("cv2.error", UNREAD), DATA),
    "HDF5": (caught("OSError", "OSError: Unable to open file (truncated file: eof = 1, stored_eof = 5)"), DATA),
    "pinned": (caught("RuntimeError", "RuntimeError: CUDA error: out of memory"), "out_of_memory_device stop"),
    "stale": (caught("OSError", "OSError: [Errno 116] Stale file handle: '/nfs/a'"), STORE),
    # Numbers: those of one rank may be its device's.
    "local NaN": (f"{LOCAL}\n", f"numeric_instability {TRY}"),
    "local NaN, raised": (raised(f"AssertionError: Rank 11: {LOCAL}. Device: 3"), f"numeric_instability {TRY}"),
    "validated": (
        raised("RuntimeError: Rank 3, device 3: Unexpected result inf (message='spiky loss')"),
        f"numeric_instability {TRY}",
    ),
    "no NaN": (f"{FINE}\nSegmentation fault (core dumped)\n", f"ambiguous {TRY}"),
    "distribution": (raised(INVALID), NUMBERS),
    "multinomial": (raised("RuntimeError: probability tensor contains either `inf`, `nan` or element < 0"), NUMBERS),
    "decomposition": (raised("torch._C._LinAlgError: linalg.eigh: The algorithm failed to converge"), NUMBERS),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS)
def test_a_failure_is_judged_by_what_it_says(text: str, expected: str) -> None:
    """Cause and action; a second look is as good as a restart."""
    verdict = judge_text(text)
    cause, *actions = expected.split()
    assert (verdict.cause.value, verdict.action.value in actions) == (cause, True), verdict


def of_ranks(*ranks: RankEvidence) -> Verdict:
    """The verdict on what the supervisor has seen."""
    return classify(Evidence(ranks=ranks))


def unconnected(rank: int, step: int | None = None) -> RankEvidence:
    """A rank that did not find the store."""
    link = ErrorLink(type="torch.distributed.DistNetworkError", message=CONNECT.format("node-a", 29500))
    return RankEvidence(rank=rank, exit_code=1, order=rank, step=step, error=ErrorRecord(chain=(link,)))


def test_an_address_is_wrong_only_where_no_rank_got_through() -> None:
    """One that is missing may be the one that the others had to meet, and one that has trained had met them."""
    assert of_ranks(unconnected(0), unconnected(1)).rule == "store-never-reached"
    assert of_ranks(unconnected(1), RankEvidence(rank=0)).rule == "store-timeout"
    assert of_ranks(unconnected(0), unconnected(1, step=7)).rule == "store-timeout"
    frame = '  File "torch/distributed/elastic/rendezvous/dynamic_rendezvous.py", line 9, in _create'
    meeting = replace(unconnected(0), stderr_tail=frame)  # elastic launchers wait for nodes that come later
    assert of_ranks(meeting).rule == "store-timeout"


@pytest.mark.parametrize(
    ("elapsed", "number", "expected"),
    [
        ("24:00", 16, "preparation-too-long"),
        ("36:00", 16, "preparation-too-long"),
        ("23:59", 16, "watchdog-timeout"),
        ("36:01", 16, "watchdog-timeout"),
        ("30:00", 17, "watchdog-timeout"),
    ],
)
def test_preparation_takes_as_long_as_the_others_may_wait(elapsed: str, number: int, expected: str) -> None:
    """A bar that shows less has stood still with its loop; and after the first collectives it is the training's."""
    assert judge_text(bar(elapsed) + "\n" + watchdog(1, number, 1800000)).rule == expected


def test_who_prepared_is_the_suspect() -> None:
    """By the supervisor's own eyes: the bar is on the stderr of the one rank that did not wait."""
    prepares = RankEvidence(rank=0, stopped=True, signal=15, stderr_tail=UPDATES)
    verdict = of_ranks(
        prepares, *(RankEvidence(rank=r, signal=6, order=r, stderr_tail=watchdog(r, 2, 1800000)) for r in (1, 2))
    )
    assert (verdict.rule, verdict.culprit) == ("preparation-too-long", 0)
    assert "[29:56<" in verdict.why


def test_a_record_of_all_ranks_is_judged_by_theirs() -> None:
    """As the worker writes it down."""
    for failed, rule in (
        (AssertionError("md is None"), "checkpoint-planning"),
        (OSError(5, "EIO"), "storage-io-error"),
    ):
        try:
            raise failed
        except (AssertionError, OSError) as error:
            failures = CheckpointException("read", {0: (error, traceback.extract_tb(error.__traceback__))})
        record = describe(failures, rank=0, step=0)
        assert of_ranks(RankEvidence(rank=0, exit_code=1, order=0, error=record)).rule == rule


def test_a_record_whose_message_is_a_traceback_quotes_what_was_raised() -> None:
    """As old releases of torch carry what a loader's worker raised."""
    inner = raised("OSError: image file is truncated (4 bytes not processed)", "PIL/ImageFile.py:load")
    record = ErrorRecord(
        chain=(ErrorLink(type="OSError", message=inner, bases=("Exception",)),), frame="train.py:5 in main"
    )
    verdict = of_ranks(RankEvidence(rank=0, exit_code=1, order=0, error=record))
    assert verdict.rule == "bad-image"
    assert verdict.why.endswith(": image file is truncated (4 bytes not processed)")
