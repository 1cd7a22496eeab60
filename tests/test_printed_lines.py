# SPDX-License-Identifier: Apache-2.0
"""What programs print when they fail, as their sources have it, and the action that each asks for in a log.

Each is read by itself, and once more among the ordinary lines of a long log.
"""

from __future__ import annotations

import pytest

from resilient.core.causes import Action
from resilient.core.classify import classify
from resilient.core.log_text import read_log

LEAVE = (
    "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2024-05-01T10:00:00 DUE TO TIME LIMIT ***",
    "srun: Force Terminated job 12\nslurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2024-05-01T10:00:00 "
    "DUE TO PREEMPTION ***",
    "Warning  Preempted  default-scheduler  Preempted by pod abc on node gpu-3",
    "Normal  TaintManagerEviction  taint-eviction-controller  Marking for deletion Pod default/train-0",
    "Reason:  Evicted\n  Message: The node was low on resource: memory. Threshold quantity: 100Mi",
    "Pod was terminated in response to imminent node shutdown.",
    "Stopping container trainer\nreceived SIGTERM, saving",
    "[rank: 0] Received SIGTERM: 15",
    "W0501 torch/distributed/elastic/agent/server/api.py:723] Received Signals.SIGTERM death signal, "
    "shutting down workers",
    "torch.distributed.elastic.multiprocessing.api.SignalException: Process 9 got signal: 15",
    "Spot instance interruption warning received; instance will be terminated in 2 minutes",
    "requests a Spot Instance termination at 2024",
    "lightning: Handling auto-requeue signal: 10",
    "WARNING: received preemption notice",
    "The VM was preempted by Compute Engine",
    "Azure Scheduled Event: Preempt VM gpu-3",
    "=>> PBS: job killed: walltime 3620 exceeded limit 3600",
    "TERM_RUNLIMIT: job killed after reaching LSF run time limit.",
    "Warning  Preempted  pod/train-0  Preempted by default/high on node n1",
    "Job status reason: Host EC2 (instance i-1) terminated.",
)
STOP = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.",
    "srun: error: n1: task 0: Out Of Memory",
    "State: Terminated\n      Reason: OOMKilled\n      Exit Code: 137",
    "[123.4] python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
    "[123.4] Out of memory: Killed process 99 (python3) total-vm:1kB",
    "[123.4] Memory cgroup out of memory: Kill process 99 (python) score 999 or sacrifice child",
    "MemoryError: Unable to allocate 12.0 GiB for an array with shape (4, 5)",
    "numpy.core._exceptions.MemoryError: Unable to allocate array",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:83] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)",
    "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
    "OSError: [Errno 12] Cannot allocate memory",
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
    "RuntimeError: DataLoader worker (pid 9) is killed by signal: Killed.",
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB (GPU 0; 8 GiB)",
    "RuntimeError: CUDA out of memory. Tried to allocate 2.00 MiB",
    "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 MiB",
    "RuntimeError: NPU out of memory. Tried to allocate 2.00 MiB (NPU 0; 60 GiB total)",
    "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.",
    "tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM when allocating tensor with shape[1,2]",
    "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 9 bytes",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.20.5\nncclUnhandledCudaError: Call to CUDA "
    "function failed.\nLast error:\nFailed to CUDA calloc async 608 bytes",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled cuda error, "
    "NCCL version 2.20.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure "
    "2 'out of memory'",
    "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was "
    "attempted on non supported HW",
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)",
    "RuntimeError: Found no NVIDIA driver on your system.",
    "huggingface_hub.utils._errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url",
    "RuntimeError: Parent directory /x does not exist.",
    "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "RuntimeError: CUDA error: device-side assert triggered",
    "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
    "RuntimeError: Trying to backward through the graph a second time",
    "RuntimeError: Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same",
    "RuntimeError: stack expects each tensor to be equal size, but got [3, 2] at entry 0 and [3, 4] at entry 1",
    "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you "
    "must use the 'spawn' start method",
    "RuntimeError: Expected to mark a variable ready only once.",
    "IndexError: index out of range in self",
    "IndexError: Target 5 is out of bounds.",
    "RuntimeError: Default process group has not been initialized, please make sure to call init_process_group.",
    "ValueError: optimizer got an empty parameter list",
    "ImportError: libcudart.so.11.0: cannot open shared object file: No such file or directory",
    "OSError: libcublas.so.11: cannot open shared object file: No such file or directory",
    "train.py: error: unrecognized arguments: --local_rank=1",
    "AttributeError: module 'distutils' has no attribute 'version'",
    "RuntimeError: Ninja is required to load C++ extensions",
    "subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1.",
    "RuntimeError: Error building extension 'fused_adam'",
    "ValueError: Error initializing torch.distributed using env:// rendezvous: environment variable RANK "
    "expected, but not set",
    "RuntimeError: DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that "
    "dataloader's workers are out of shared memory.",
    "RuntimeError: unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)",
    "RuntimeError: received 0 items of ancdata",
    "hydra.errors.ConfigCompositionException: x",
    "yaml.scanner.ScannerError: mapping values are not allowed here",
    "AssertionError: Torch not compiled with CUDA enabled",
    "torch._dynamo.exc.InternalTorchDynamoError: x",
    "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 1, Hardware limit: 2",
    "RuntimeError: Triton Error [CUDA]: device kernel image is invalid",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "RuntimeError: CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm`",
    "RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:911, invalid usage, NCCL version 2.7.8",
    "OSError: image file is truncated (5 bytes not processed)",
    "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    "ValueError: Input contains NaN, infinity or a value too large",
    "datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset",
    "zlib.error: Error -3 while decompressing data: invalid block type",
    "RuntimeError: Caught KeyError in DataLoader worker process 0.\nKeyError: 'label'",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/train.json'",
    "num_samples should be a positive integer value, but got num_samples=0",
    "ValueError: num_samples should be a positive integer value, but got num_samples=0",
    "Loss is nan, stopping training",
    "step 10 loss=nan",
    "FloatingPointError: Minimum loss scale reached (0.0001). Your loss is probably exploding.",
    "ValueError: nan loss encountered",
    "RuntimeError: Function 'MulBackward0' returned nan values in its 0th output.",
    "RuntimeError: The total norm for gradients from `parameters` is non-finite, so it cannot be clipped.",
    "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
    "ZeroDivisionError: float division by zero",
    "Killed",
    "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.",
    "RuntimeError: cudaMalloc failed: out of memory",
    "Could not load library libcudnn_cnn_infer.so.8. Please make sure it is in your library path!",
    "exec /usr/bin/python3: exec format error",
    'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
    "Warning  Failed  pod/train-0  Error: ImagePullBackOff",
    'MountVolume.SetUp failed for volume "data": persistentvolumeclaim "data" not found',
    "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
    "slurmstepd: error: execve(): train.py: Permission denied",
    "mpirun was unable to find the specified executable file, and therefore did not launch the job.",
    "Host key verification failed.",
    "libgomp: Thread creation failed: Resource temporarily unavailable",
    "nvcc fatal   : Unsupported gpu architecture 'compute_90'",
    "train.py: error: argument --lr: invalid float value: 'fast'",
    "python3: can't open file '/app/trian.py': [Errno 2] No such file or directory",
    "omegaconf.errors.ConfigAttributeError: Key 'lr' is not in struct",
    "google.api_core.exceptions.Forbidden: 403 GET https://storage.googleapis.com/b",
    "azure.core.exceptions.ResourceNotFoundError: The specified blob does not exist.",
    "OSError: someone/model is not a local folder and is not a valid model identifier listed on the hub",
    "Exception: Could not find the checkpoint",
    "cv2.error: OpenCV(4.7.0) error: (-215:Assertion failed) !_src.empty()",
    "RuntimeError: \n        The set-up of the GPU library failed",
    "/aten/src/ATen/native/cuda/Loss.cu:97: f: block: [0,0,0], thread: [1,0,0] Assertion `x >= zero` failed, got nan",
    "algo-1:1:2 [0] init:77 NCCL WARN NET/OFI OFI fi_getinfo() call failed: No data available",
    "train.sh: line 3: 4242 Bus error               (core dumped) python3 train.py",
    "The server socket has failed to bind to 0.0.0.0:1234 (errno: 98 - Address already in use).",
)
MOVE = (
    "srun: error: Node failure on n12",
    "[1.0] mlx5_core 0000:3b:00.0: device's health compromised - reached miss count",
    "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0",
    "uncorrectable ECC error encountered",
    "nvidia-smi: Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error",
    "srun: error: Node failure on n12\nslurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2024-05-01T10:00:00 "
    "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
    "[1.0] NVRM: Xid (PCI:0000:3b:00): 48, pid=1, DBE (double bit error) detected",
    "RuntimeError: CUDA error: unspecified launch failure\n[1.0] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU "
    "has fallen off the bus.",
    "Unable to determine the device handle for GPU0000:03:00.0: Unknown Error",
    "slurmstepd: error: NVML: Failed to get usage(15): GPU is lost",
    "pynvml.NVMLError_GpuIsLost: GPU is lost",
    "RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution",
    "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "n1:1:2 [0] transport/net_ib.cc:94 NCCL WARN NET/IB : mlx5_1:1 async fatal event: local catastrophic error",
    "n1:1:2 [0] NCCL WARN NET/IB : mlx5_2:1 Got async event : port error",
    "Fabric Manager: fatal error\nRuntimeError: CUDA error: system not yet initialized",
    "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
    "calling NumCudaDevices() that might have already set an error? Error 802: system not yet initialized",
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
    "latest NVIDIA driver is installed and running.",
)
TRY = (
    "RuntimeError: Step 1 exited with non-zero status 1",
    "RuntimeError: Engine core initialization failed. See root cause above.",
    "ssl.SSLEOFError: EOF occurred in violation of protocol (_ssl.c:997)",
    "http.client.RemoteDisconnected: Remote end closed connection without response",
    "ray.exceptions.ObjectLostError: Failed to retrieve object 1",
    "RuntimeError: cuDNN error: CUDNN_STATUS_MAPPING_ERROR",
    "botocore.exceptions.HTTPClientError: An HTTP Client raised an unhandled exception",
    "torch.multiprocessing.spawn.ProcessExitedException: process 3 terminated with signal SIGKILL",
    "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment",
    "RuntimeError: CUDA error: unknown error",
    "RuntimeError: HIP error: an illegal memory access was encountered",
    "tensorflow: failed call to cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected",
    "nvidia-nvswitch3: SXid (PCI:0000:86:00.0): 12028, Non-fatal, Link 32",
    "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to "
    "connect to (10.0.0.1, 29500).",
    "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
    "RuntimeError: [4] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d "
    "key-value store by store->get('0'), but store->get('0') got error: Connection reset by peer",
    "RuntimeError: Connection reset by peer",
    "RuntimeError: Broken pipe",
    "RuntimeError: Socket Timeout",
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer [10.0.0.2]:1234",
    "RuntimeError: Rank 3 timed out in monitoredBarrier after 1000 ms.",
    "n1:1:2 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer n2<1>",
    "[rank0]:[E ProcessGroupNCCL.cpp:1316] [PG 0 Rank 0] Heartbeat monitor timed out! Process will be "
    "terminated after dumping debug info. workMetaList_.size()=1",
    "torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError",
    "socket.gaierror: [Errno -2] Name or service not known",
    "ssh: connect to host n2 port 22: Connection refused\nORTE was unable to reliably start one or more daemons.",
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    "ray.exceptions.RayActorError: The actor died because its node has died.",
    "[rank1]:[E ProcessGroupNCCL.cpp:563] [Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=5, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600081 milliseconds before timing "
    "out.\nRuntimeError: [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, "
    "OpType=ALLREDUCE)",
    "RuntimeError: DataLoader timed out after 60 seconds",
    "OSError: [Errno 28] No space left on device",
    "OSError: [Errno 122] Disk quota exceeded",
    "OSError: [Errno 116] Stale file handle",
    "botocore.exceptions.ClientError: An error occurred (SlowDown) when calling the GetObject operation "
    "(reached max retries: 4): Please reduce your request rate.",
    "requests.exceptions.ConnectionError: (MaxRetryError(\"HTTPSConnectionPool(host='huggingface.co', "
    'port=443): Max retries exceeded with url"))',
    "huggingface_hub.errors.HfHubHTTPError: 504 Server Error: Gateway Time-out for url: https://huggingface.co/x",
    "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url",
    "google.api_core.exceptions.ServiceUnavailable: 503 GET https://storage.googleapis.com",
    "OSError: We couldn't connect to 'https://huggingface.co' to load this file, couldn't find it in the cached files",
    "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
    "RuntimeError: unexpected EOF, expected 99 more bytes. The file might be corrupted.",
    "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
    "_pickle.UnpicklingError: invalid load key, '<'.",
    "RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered",
    "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:784, unhandled system error, NCCL version 2.7.8",
    "RuntimeError: NCCL Error 1: unhandled cuda error",
    "Segmentation fault (core dumped)",
    "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  File "
    '"/a/train.py", line 3 in f',
    "free(): invalid pointer\nAborted (core dumped)",
    "Illegal instruction (core dumped)",
    "RuntimeError: DataLoader worker (pid 9) is killed by signal: Segmentation fault.",
    "RuntimeError: DataLoader worker (pid(s) 9, 10) exited unexpectedly",
    "KeyboardInterrupt",
    "Terminated",
)
BY_TRY = {Action.RESTART_IN_PLACE, Action.INVESTIGATE}
EXPECTED = {
    **dict.fromkeys(LEAVE, frozenset({Action.CHECKPOINT_AND_EXIT})),
    **dict.fromkeys(STOP, frozenset({Action.STOP})),
    **dict.fromkeys(MOVE, frozenset({Action.RESCHEDULE})),
    **dict.fromkeys(TRY, frozenset(BY_TRY)),
}
ORDINARY = "".join(
    f"[{step:06d}] loss {2 / (step + 1):.4f} | lr 3.0e-04 | 18231 tokens/s | eta 1:02:03\n" for step in range(100)
)
by_line = pytest.mark.parametrize("line", EXPECTED, ids=lambda line: line[:60])


@by_line
def test_a_line_asks_for_its_action(line: str) -> None:
    """Without anything around it."""
    verdict = classify(read_log(line, world_size=4))
    assert verdict.action in EXPECTED[line], (verdict.rule, verdict.why)


@by_line
def test_a_long_log_does_not_change_that(line: str) -> None:
    """A hundred ordinary lines before it, and the launcher's words after it."""
    end = "W1123 torch/distributed/elastic/multiprocessing/api.py:900] Sending process 4242 closing signal SIGTERM\n"
    verdict = classify(read_log(f"{ORDINARY}{line}\n{end}", world_size=4))
    assert verdict.action in EXPECTED[line], (verdict.rule, verdict.why)


@by_line
def test_a_prefix_of_a_launcher_does_not_change_that(line: str) -> None:
    """As ``kubectl logs --prefix --timestamps`` shows it."""
    prefix = "[pod/train-0-abcde/main] 2024-05-01T10:00:00.123456789Z "
    text = "\n".join(prefix + piece for piece in (ORDINARY + line).split("\n"))
    verdict = classify(read_log(text, world_size=4))
    assert verdict.action in EXPECTED[line], (verdict.rule, verdict.why)


@pytest.mark.parametrize(
    "line", ["step 7", "CUDA error recovery is enabled", "CUDA error checking enabled", "cuda failure tests skipped"]
)
def test_ordinary_output_says_nothing(line: str) -> None:
    """A healthy log has no verdict but that there is none; that something may fail is no failure."""
    assert classify(read_log(f"{ORDINARY}{line}\n")).rule == "unknown"


@pytest.mark.parametrize(
    "line",
    ["CUDA error: unknown error", "CUDA error 999 at x.cu:3", "CUDA failure 'unknown error'", "Cuda error in file x.cu",
     "CUDA driver error: 999", "got CUDA_ERROR_UNKNOWN", "cudaErrorUnknown", "CUDA error"],
)  # fmt: skip
def test_an_error_of_cudas_is_one_in_whatever_form(line: str) -> None:
    """As torch, NCCL and others report it."""
    assert classify(read_log(f"{ORDINARY}{line}\n")).rule == "cuda-other"
