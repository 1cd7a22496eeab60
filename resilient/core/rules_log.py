# SPDX-License-Identifier: Apache-2.0
"""Rules about what other programs print, and about lines of a log whose exception is lost.

Only rows. They come below every exception that names a cause; most hold in logs
only, and a verdict on hardware needs a printer that cannot be taken for another.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import AnyOf, Family, Role, log_rule, printed, raised_anywhere, stated

XLA: Final = "https://openxla.org/xla/errors/error_1000"
GLIBC: Final = "https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c"
ALLOCATOR: Final = "https://github.com/pytorch/pytorch/blob/main/c10/core/impl/alloc_cpu.cpp"
SCALER: Final = "https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/fp16/loss_scaler.py"
EMBEDDING: Final = "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.embedding.html"
JPEG: Final = "https://github.com/libjpeg-turbo/libjpeg-turbo/blob/main/src/jerror.h"
TORCHELASTIC: Final = "https://docs.pytorch.org/docs/stable/elastic/run.html"
C10D: Final = "https://github.com/pytorch/pytorch/blob/main/torch/csrc/distributed/c10d/TCPStore.cpp"
ERRNO: Final = "https://man7.org/linux/man-pages/man3/errno.3.html"
SIGNALS: Final = "https://man7.org/linux/man-pages/man7/signal.7.html"

_CODE, _DATA = (Cause.USER_CODE, Action.STOP), (Cause.USER_DATA, Action.STOP)
_UNCLEAR: Final = (Cause.AMBIGUOUS, Action.INVESTIGATE)
_STORE: Final = (Cause.STORAGE, Action.RESTART_IN_PLACE)

ACTOR_RULES: Final = (
    log_rule(
        "actor-lost",
        Cause.NETWORK_OR_PEER,
        Action.RESTART_IN_PLACE,
        "Ray lost an actor or its node, which does not say why",
        raised_anywhere(
            "ActorDiedError",
            "RayActorError",
            "ActorUnavailableError",
            "WorkerCrashedError",
            "NodeDiedError",
            "RaySystemError",
            "ObjectLostError",
            "OwnerDiedError",
            "LocalRayletDiedError",
        ),
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
        "https://docs.ray.io/en/latest/ray-core/fault_tolerance/actors.html",
        family=Family.COMMUNICATION,
        role=Role.VICTIM,
    ),
)

HEAP_RULES: Final = (
    log_rule(
        "heap-corruption",
        *_UNCLEAR,
        "the allocator found its memory overwritten, by native code or a bad memory",
        printed(
            Lane.STDERR,
            r"^(?:malloc|free|realloc|munmap_chunk)\(\): \w|^(?:\*\*\* .{0,80})?double free or corruption"
            r"|^corrupted (?:size vs|double-linked)",
            "(): ",
            "double free or corruption",
            "corrupted ",
        ),
        "malloc(): invalid size (unsorted)",
        GLIBC,
        confidence=Confidence.LOW,
    ),
)

LOG_RULES: Final = (
    log_rule(
        "other-out-of-memory",
        Cause.OUT_OF_MEMORY_DEVICE,
        Action.STOP,
        "the device has too little memory",
        stated(
            r"RESOURCE_EXHAUSTED: |\bOOM when allocating tensor|(?:NPU|XPU|MPS backend|HIP|CUDA) out of memory"
            r"|Failed to CUDA (?:calloc|malloc)|\bcudaMalloc(?!Host)\w{0,16}\b.{0,80}out of memory"
            r"|CUDNN_STATUS_ALLOC_FAILED"
        ),
        "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.",
        XLA,
        family=Family.CUDA,
    ),
    log_rule(
        "host-allocation-failed",
        Cause.OUT_OF_MEMORY_HOST,
        Action.STOP,
        "the host had no memory left to give",
        stated(
            r"std::bad_alloc|DefaultCPUAllocator: |enforce fail at .{0,40}(?:CPUAllocator|alloc_cpu)\.cpp"
            r"|\[Errno 12\]|Cannot allocate memory|Unable to allocate \d[\d.]{0,12} [KMGT]iB"
        ),
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
        ALLOCATOR,
    ),
    log_rule(
        "shell-says-killed",
        Cause.OUT_OF_MEMORY_HOST,
        Action.STOP,
        "a SIGKILL ended it, which in a log with no other sign is most often the kernel's, for want of host memory",
        stated(r"^Killed$|^\S{1,200}: line \d{1,6}: +\d{1,10} Killed\b"),
        "train.sh: line 3: 4242 Killed                  python train.py",
        "https://docs.kernel.org/admin-guide/mm/concepts.html#oom-killer",
        confidence=Confidence.LOW,
    ),
    log_rule(
        "kernel-assert",
        *_CODE,
        "an assertion inside a kernel failed (an index or label out of range)",
        r"\.cuh?:\d{1,6}:? (?!.{0,600}\bnan\b).{0,400}Assertion `",
        "/aten/src/ATen/native/cuda/Indexing.cu:97: f: block: [0,0,0], thread: [1,0,0] Assertion `i < n` failed.",
        "https://github.com/pytorch/pytorch/blob/main/c10/cuda/CUDAException.cpp",
        family=Family.CUDA,
    ),
    log_rule(
        "index-out-of-range",
        *_CODE,
        "an index lies outside of its table",
        stated(r"\bindex out of range\b|[Ii]ndex \d{1,12} is out of bounds|Tried to access index \d"),
        "RuntimeError: index out of range: Tried to access index 9 out of table with 5 rows",
        EMBEDDING,
        family=Family.EXCEPTION,
    ),
    log_rule(
        "invalid-argument",
        *_CODE,
        "an operation was called with what it cannot take",
        stated(r"\bINVALID_ARGUMENT: |\bOP_REQUIRES failed at .{0,200}: Invalid argument: "),
        "W tensorflow/core/framework/op_kernel.cc:1745] OP_REQUIRES failed at cast_op.cc:121 : Invalid argument: x",
        "https://abseil.io/docs/cpp/guides/status-codes",
        family=Family.EXCEPTION,
    ),
    log_rule(
        "loss-scale",
        Cause.NUMERIC_INSTABILITY,
        Action.STOP,
        "the numbers overflow at any loss scale",
        stated(r"(?i)loss scale (?:already at minimum|.{0,40}reached (?:its )?minimum)|minimum loss scale reached"),
        "Exception: Current loss scale already at minimum - cannot decrease scale anymore.",
        SCALER,
        family=Family.EXCEPTION,
    ),
    log_rule(
        "broken-sample",
        *_DATA,
        "a file of the data is broken",
        stated(
            r"Corrupt JPEG data|Invalid (?:JPEG|PNG) data|premature end of (?:data|JPEG)|[Ii]mage file is truncated"
            r"|(?:broken data stream|unrecognized data stream contents) when reading|cannot identify image file"
            r"|JSON parse error|Failed to load JSON"
            r"|invalid .{0,20}moov atom"
            r"|num_samples should be a positive integer|Error -\d while decompressing|Not a gzipped file"
            r"|[Uu]nexpected (?:end of (?:data|file|archive)|EOF in archive)|invalid deflate data"
        ),
        "Corrupt JPEG data: premature end of data segment",
        JPEG,
        family=Family.EXCEPTION,
    ),
    log_rule(
        "store-unreachable",
        *_STORE,
        "a store or hub was not reached",
        stated(
            r"^We couldn't connect to|Unable to connect to endpoint|Could not connect to the endpoint"
            r"|HTTPS?ConnectionPool|Max retries exceeded|\b50[234] Server Error\b"
            r"|Connection was closed before we received"
            r"|Read timed out|\bSlowDown\b|Stale file handle|nfs: server .{1,80} not responding"
        ),
        "urllib3: HTTPSConnectionPool(host='store.example', port=443): Read timed out. (read timeout=10)",
        "https://urllib3.readthedocs.io/en/stable/reference/urllib3.exceptions.html",
        family=Family.STORAGE,
    ),
    log_rule(
        "disk-error",
        Cause.STORAGE,
        Action.INVESTIGATE,
        "a disk or file system failed, or is full",
        r"Input/output error|Buffer I/O error|EXT4-fs error|XFS .{0,40}(?:shutdown|error)"
        r"|nvme\w{1,8}: I/O .{0,80}timeout"
        r"|No space left on device|Disk quota exceeded|corrupted record at",
        "cp: error writing '/data/last.ckpt': No space left on device",
        ERRNO,
        family=Family.STORAGE,
    ),
    log_rule(
        "peer-unreachable",
        Cause.NETWORK_OR_PEER,
        Action.RESTART_IN_PLACE,
        "a peer or the store in it was not reached",
        stated(
            r"Rendezvous(?:Connection|Timeout)Error|connection to the C10d store has failed|TCPStore"
            r"|\b[Bb]roken pipe$|EOF occurred in violation of protocol|bad record mac"
            r"|Remote end closed connection|Connection aborted|recvValue failed|sendBytes failed"
            r"|connect\(\) timed out|No route to host|Network is unreachable"
            r"|Name or service not known|Temporary failure in name resolution|Connection (?:refused|reset by peer)"
            r"|coordination.service|different incarnation|\b(?:UNAVAILABLE|DEADLINE_EXCEEDED)\b|(?:ORTE|PMIX?\w*"
            r"|PRTE) .{0,60}lost (?:communication|connection)"
            r"|UCX .{0,80}(?:Endpoint timeout|Connection reset)"
        ),
        "[W1123 10:11:12 TCPStore.cpp:125] [c10d] recvValue failed on SocketImpl(fd=4): Connection reset by peer",
        C10D,
        family=Family.COMMUNICATION,
        role=Role.VICTIM,
    ),
    log_rule(
        "printed-nan",
        Cause.NUMERIC_INSTABILITY,
        Action.STOP,
        "the loss or the gradients are not finite",
        r"(?i)(?:^[^\n]{0,200}overflow[^\n]{0,120}loss scale[^\n]{0,80}(?:\n|\Z)){3}"
        r"|(?:loss|grad|norm|ppl)\w{0,24}['\"]?(?: is)? ?[:=(, ]{1,3}(?:tensor\()?-?(?:nan|inf)\b"
        r"|Assertion `.{0,400}\bnan\b|\bnan (?:loss|gradient|detected|or inf)|loss scale to:? ?0?\.\d",
        "iteration 3385 | loss: nan | grad norm: nan",
        "https://docs.pytorch.org/docs/stable/notes/amp_examples.html",
        confidence=Confidence.LOW,
        family=Family.EXCEPTION,
    ),
)

LAST_LOG_RULES: Final = (
    log_rule(
        "cancelled",
        Cause.PREEMPTED,
        Action.CHECKPOINT_AND_EXIT,
        "the job was cancelled or asked to leave, and nothing says why",
        AnyOf(
            (
                printed(Lane.PLATFORM, r"\bCANCELLED AT\b|Bypassing signal SIG(?:TERM|USR)|Job has been cancelled"),
                printed(Lane.LOG, r"^(?:\[rank: \d{1,6}\] )?(?:Received SIGTERM: 15|.{0,80}auto-requeue signal: )"),
                printed(Lane.LOG, r"(?i)\b(?:received|caught|got)\b.{0,20}\bSIGTERM\b(?!.{0,60}death signal)"),
            )
        ),
        "slurmstepd: error: *** JOB 4711 ON node-7 CANCELLED AT 2024-01-01T00:00:00 ***",
        "https://slurm.schedmd.com/scancel.html",
        confidence=Confidence.LOW,
        family=Family.PLATFORM,
    ),
    log_rule(
        "asked-to-leave",
        Cause.PREEMPTED,
        Action.CHECKPOINT_AND_EXIT,
        "somebody outside asked the launcher to end, and nothing had failed before",
        AnyOf(
            (
                raised_anywhere("SignalException", text=r"got signal: 15\b"),
                printed(Lane.LOG, r"Received (?:15|Signals\.SIGTERM|SIGTERM) death signal"),
            )
        ),
        "Received 15 death signal, shutting down workers",
        TORCHELASTIC,
        confidence=Confidence.LOW,
        family=Family.PLATFORM,
    ),
    log_rule(
        "launcher-stopped",
        *_UNCLEAR,
        "the launcher ends the others after one that left no reason",
        AnyOf(
            (
                raised_anywhere("SignalException"),
                printed(Lane.LOG, r"Received \d{1,2} death signal|closing signal SIG|ChildFailedError"),
            )
        ),
        "Sending process 4242 closing signal SIGTERM",
        TORCHELASTIC,
        confidence=Confidence.LOW,
        family=Family.EXIT,
        role=Role.VICTIM,
    ),
    log_rule(
        "native-crash",
        *_UNCLEAR,
        "native code crashed",
        r"Segmentation fault|Fatal Python error|[Bb]us error|Illegal instruction|\(core dumped\)|\bSIG(?:SEGV|ABRT)\b",
        "train.sh: line 3: 4242 Segmentation fault      (core dumped) python3 train.py",
        SIGNALS,
        confidence=Confidence.LOW,
    ),
)
