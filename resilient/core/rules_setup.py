# SPDX-License-Identifier: Apache-2.0
"""Rules about what is refused before any training: by a loader, a shell, a container runtime, a scheduler.

Only rows. They hold for lines that no exception explains, and what they name does not
mend itself: all of them ask for a stop.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import AnyOf, Family, exception_rule, log_rule, printed, raised, stated

LOADER: Final = "https://man7.org/linux/man-pages/man8/ld.so.8.html"
ARGPARSE: Final = "https://docs.python.org/3/library/argparse.html"
IMAGES: Final = "https://kubernetes.io/docs/concepts/containers/images/"
SBATCH: Final = "https://slurm.schedmd.com/sbatch.html"
SHELL: Final = "https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html"

_SETUP: Final = (Cause.CONFIG_OR_ENVIRONMENT, Action.STOP)

_MISSING: Final = (
    r"undefined symbol: |`?GLIBC(?:XX)?_[\d.]{1,12}'? not found|cannot open shared object file"
    r"|[Cc]ould not load (?:dynamic )?library\b|\bOMP: Error #\d|MKL_THREADING_LAYER=\w{1,20} is incompatible"
    r"|: command not found"
    r"|(?:CUDA_HOME|MASTER_ADDR|MASTER_PORT|WORLD_SIZE) .{0,60}(?:not set|expected, but not set|does not exist)"
    # Extensions that were built for another NumPy, torch or CUDA, or for newer devices
    r"|may indicate binary incompatibility|^module (?:was )?compiled against (?:NumPy C-API|ABI|API) version"
    r"|^operator torchvision::\w{1,40} does not exist|detected CUDA version \([^)\n]{1,20}\) mismatches"
    r"|^FlashAttention only supports "
)

RAISED_SETUP_RULES: Final = (
    exception_rule(
        "raised-environment",
        *_SETUP,
        "something that rank {rank} needs is missing or of another version",
        # Whatever the type is that somebody wrapped it into: ctypes has AttributeError for an undefined symbol.
        AnyOf(
            (
                raised(text=_MISSING),
                raised("KeyError", text=r"^'(?:(?:LOCAL_|GROUP_)?RANK|(?:LOCAL_)?WORLD_SIZE|MASTER_(?:ADDR|PORT))'$"),
            )
        ),
        ("AttributeError", "/opt/lib/ops.so: undefined symbol: ncclCommRegister"),
        LOADER,
    ),
)

SETUP_RULES: Final = (
    log_rule(
        "build-failed",
        *_SETUP,
        "an extension could not be built",
        stated(
            r"^Command '?\['(?:\S{0,80}/)?(?:ninja|nvcc|cmake|gcc|g\+\+|make)'|Error building extension|nvcc fatal"
            r"|^ninja: build stopped|^make(?:\[\d{1,3}\])?: \*\*\* |\bNo matching distribution found for "
        ),
        "RuntimeError: Error building extension 'fused_adam'",
        "https://docs.pytorch.org/docs/stable/cpp_extension.html",
        family=Family.EXCEPTION,
    ),
    log_rule(
        "environment",
        *_SETUP,
        "something that the program needs is missing or of another version",
        stated(rf"{_MISSING}|No module named "),
        "python3: symbol lookup error: libtorch_cuda.so: undefined symbol: ncclCommRegister",
        LOADER,
    ),
    log_rule(
        "too-many-threads",
        *_SETUP,
        "the limit of threads or processes is reached",
        stated(r"[Tt]hread creation failed|pthread_create failed|can't start new thread|cannot fork\b|\bfork: retry: "),
        "OpenBLAS blas_thread_init: pthread_create failed for thread 9 of 64: Resource temporarily unavailable",
        "https://man7.org/linux/man-pages/man2/setrlimit.2.html",
    ),
    log_rule(
        "arguments",
        *_SETUP,
        "the program refused its arguments or its configuration",
        # As argparse, click and hydra put it.
        r"\berror: (?:argument |unrecognized argument|ambiguous option|the following arguments are required)"
        r"|^Error: (?:No such option|Missing (?:option|argument|parameter)|Invalid value for|Got unexpected extra)"
        r"|^Could not override '|^Cannot find primary config ",
        "train.py: error: argument --lr: invalid float value: 'fast'",
        ARGPARSE,
    ),
    log_rule(
        "container",
        *_SETUP,
        "the container could not be made or started",
        printed(
            Lane.LOG,
            r"executable file not found|exec format error|could not select device driver"
            r"|nvidia-container-cli: requirement error"
            r"|\b(?:ErrImagePull|ImagePullBackOff|ErrImageNeverPull|InvalidImageName|CreateContainerConfigError)\b"
            r"|\b(?:configmap|secret|persistentvolumeclaim) \"[^\"\n]{1,200}\" not found",
        ),
        "Warning  Failed  pod/train-0  Error: ImagePullBackOff",
        IMAGES,
    ),
    log_rule(
        "cluster",
        *_SETUP,
        "the cluster could not start what was asked for",
        r"^mpirun (?:was unable to|has detected)|\bnot enough slots available\b|\bexecve\(\): "
        r"|Host key verification failed|\bPermission denied \(publickey|exceeded quota: "
        r"|\bnodes are available: .{0,200}(?:Insufficient|didn't match)"
        r"|(?:Unable to allocate resources|Batch job submission failed): (?!.{0,60}(?:timed out|Unable to contact))",
        "srun: error: Unable to allocate resources: Requested node configuration is not available",
        SBATCH,
    ),
)

LAST_SETUP_RULES: Final = (
    log_rule(
        "printed-misfit",
        Cause.USER_CODE,
        Action.STOP,
        "tensors or a saved state do not fit, and nothing else is said",
        r"in loading state_dict|size mismatch for .{1,200}: copying a param with shape|shapes cannot be multiplied"
        r"|\bsize of tensor a \(\d",
        "        size mismatch for head.weight: copying a param with shape torch.Size([2]) from checkpoint",
        "https://docs.pytorch.org/docs/stable/notes/serialization.html",
        confidence=Confidence.LOW,
        family=Family.EXCEPTION,
    ),
    log_rule(
        "system-refused",
        *_SETUP,
        "a file or a right is missing",
        # strerror's words, as every program ends a line with them.
        r"^.{1,400}[:\]] (?:No such file or directory|Permission denied|Is a directory|not found"
        r"|cannot execute.{0,60})$|: syntax error near unexpected token",
        "sh: 1: ./train.sh: Permission denied",
        SHELL,
        confidence=Confidence.LOW,
    ),
)
