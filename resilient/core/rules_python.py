# SPDX-License-Identifier: Apache-2.0
"""Rules about exceptions: the user's rulings, storage, data, set-up, and plain bugs.

Only rows, from the most telling to the least: what a message says outranks what its
type is called. The last ones take every exception that no other row knows for that of
the package it comes from, and else for the code's own.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence, Ruling
from resilient.core.lanes import Lane
from resilient.core.rule import (
    AllOf,
    AnyOf,
    Condition,
    Family,
    Rule,
    exception_rule,
    left_behind,
    printed,
    raised,
    raised_anywhere,
    raised_by,
    stated,
)
from resilient.core.symptoms import Symptoms
from resilient.core.traceback_text import LAUNCHERS

ERRNO: Final = "https://man7.org/linux/man-pages/man3/errno.3.html"
TORCH: Final = "https://docs.pytorch.org/docs/stable/"


def _ruling(ruling: Ruling, name: str) -> Condition:
    def holds(symptoms: Symptoms) -> str | None:
        record = symptoms.rank.error
        if record is not None and record.ruling is not None:
            return record.message if record.chain and record.ruling is ruling else None
        # A worker that could not write its record has said the same in its traceback.
        head = symptoms.chain[0] if symptoms.chain else None
        by_name = head is not None and head.type in (f"resilient.errors.{name}", f"resilient.{name}")
        return head.message if head is not None and by_name else None

    return holds


def _rule_of(ruling: Ruling, name: str, cause: Cause, action: Action, what: str) -> Rule:
    link = ErrorLink(type=f"resilient.errors.{name}", message="the loss is nan")
    worker = RankEvidence(rank=0, exit_code=1, order=0, error=ErrorRecord(chain=(link,), ruling=ruling))
    return Rule(
        id=f"ruled-{ruling.value}",
        family=Family.RULING,
        cause=cause,
        action=action,
        when=_ruling(ruling, name),
        why=f"the code of rank {{rank}} asked {what}{{where}}: {{seen}}",
        source="resilient/errors.py",
        example=Evidence(ranks=(worker,)),
    )


RULING_RULES: Final = (
    _rule_of(Ruling.STOP, "Stop", Cause.USER_CODE, Action.STOP, "for the job to be stopped"),
    _rule_of(Ruling.RESCHEDULE, "Reschedule", Cause.AMBIGUOUS, Action.RESCHEDULE, "to be moved to another node"),
    _rule_of(Ruling.RETRY, "Retry", Cause.AMBIGUOUS, Action.RESTART_IN_PLACE, "for a restart"),
)


_CODE, _DATA = (Cause.USER_CODE, Action.STOP), (Cause.USER_DATA, Action.STOP)
_SETUP: Final = (Cause.CONFIG_OR_ENVIRONMENT, Action.STOP)
_COMPILERS: Final = (
    "BackendCompilerFailed", "InductorError", "CppCompileError", "LoweringException", "CompilationError",
    "TorchRuntimeError", "PTXASError", "TritonMissing", "InternalTorchDynamoError", "Unsupported",
)  # fmt: skip
_PIPE: Final = r'^ {2}File "[^"\n]{0,400}[/\\]multiprocessing[/\\](?:connection|managers)\.py"'
_UNREADABLE: Final = (
    "UnicodeDecodeError", "JSONDecodeError", "ArrowInvalid", "ParserError",
    "DatasetGenerationError", "DataFilesNotFoundError", "EOFError", "ReadError", "BadGzipFile", "LZMAError",
    "EmptyDataError", "LibsndfileError", "DecodeError",
)  # fmt: skip

# Types that nothing but a bug raises, whatever they say.
_BUGS: Final = (
    ("NameError", "name 'lr' is not defined"),
    ("TypeError", "unsupported operand type(s) for +: 'int' and 'str'"),
    ("AttributeError", "'Net' object has no attribute 'head'"),
    ("NotImplementedError", ""),
    ("KeyError", "'labels'"),
    ("IndexError", "list index out of range"),
    ("ZeroDivisionError", "division by zero"),
)


def _raised(name: str, message: str) -> Rule:
    what = f"the code of rank {{rank}} raised {name}"
    return exception_rule(
        f"user-{name.removesuffix('Error').lower()}-error", *_CODE, what, raised(name), (name, message)
    )


EXCEPTION_RULES: Final = (
    exception_rule(
        "configuration",
        *_SETUP,
        "the configuration of rank {rank} was refused",
        AnyOf(
            (
                raised_by("omegaconf", "hydra", "yaml", "pydantic", "pydantic_core", "jsonargparse", "jsonschema"),
                raised("MisconfigurationException", "DeepSpeedConfigError", "ConfigError", "ConfigurationError"),
            )
        ),
        ("omegaconf.errors.ConfigAttributeError", "Key 'lr' is not in struct"),
        "https://omegaconf.readthedocs.io/en/latest/usage.html",
        Confidence.MEDIUM,
    ),
    exception_rule(
        "state-dict",
        *_CODE,
        "rank {rank} loaded a state that does not fit the model",
        raised_anywhere(
            "RuntimeError",
            "KeyError",
            "ValueError",
            text=r"in loading state_dict|key\(s\) in state_dict|parameter group that d"
            r"|^Missing key in checkpoint state_dict: |^Size mismatch between saved torch\.Size",
        ),
        ("RuntimeError", "Error(s) in loading state_dict for Net:\n\tsize mismatch for weight"),
        TORCH + "notes/serialization.html",
    ),
    exception_rule(
        "shape-mismatch",
        *_CODE,
        "tensors on rank {rank} do not fit one another",
        raised_anywhere(
            "RuntimeError",
            "ValueError",
            text=r"shapes cannot be multiplied|must match the (?:size|existing size)|size mismatch"
            r"|^(?:The )?size of tensor"
            r"|is invalid for input of size|Sizes of tensors must match|tensors to be on the same device|shape mismatch"
            r"|[Ee]xpected (?:input batch_size|scalar type|all tensors|object of)|should be the same|mat1 and mat2 must"
            r"|does not require grad|one of the variables needed for gradient|backward through the graph a second time",
        ),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        TORCH + "notes/broadcasting.html",
    ),
    exception_rule(
        "compile",
        Cause.FRAMEWORK_BUG,
        Action.STOP,
        "the compiler of rank {rank} failed",
        raised_anywhere(*_COMPILERS),
        ("torch._dynamo.exc.BackendCompilerFailed", "backend='inductor' raised:"),
        TORCH + "torch.compiler_troubleshooting.html",
        Confidence.MEDIUM,
    ),
    exception_rule(
        "our-refusal",
        *_SETUP,
        "rank {rank} was refused by resilient",
        raised("SettingsError", "CheckpointError", text=r"^cannot [^\n]*: "),
        ("resilient.errors.SettingsError", "cannot use '0' for every (Run(every=)): it is 0; write for example 100"),
        "resilient/errors.py",
    ),
    exception_rule(
        "import",
        *_SETUP,
        "rank {rank} could not import",
        raised("ImportError"),
        ("ModuleNotFoundError", "No module named 'einops'"),
    ),
    exception_rule(
        "bad-image",
        *_DATA,
        "rank {rank} could not read an image",
        AnyOf(
            (
                raised("UnidentifiedImageError", "DecompressionBombError"),
                raised(
                    "OSError",
                    text=r"^image file is truncated|(?:data stream|data stream contents) when reading image file$"
                    r"|^cannot identify image file",
                ),
                # Pillow's word for a file that is none of its format; OpenCV's for nothing where an image should be.
                raised("SyntaxError", text=r"^broken PNG file"),
                raised("error", text=r"^OpenCV\([^\n]{1,300} !_?(?:src|img|buf)\.empty\(\)"),
            )
        ),
        ("OSError", "image file is truncated (4 bytes not processed)"),
        "https://github.com/python-pillow/Pillow/blob/main/src/PIL/ImageFile.py",
    ),
    exception_rule(
        "syntax",
        *_CODE,
        "the script of rank {rank} does not parse",
        raised("SyntaxError"),
        ("IndentationError", "unexpected indent (train.py, line 3)"),
    ),
    exception_rule(
        "missing-file",
        *_SETUP,
        "rank {rank} did not find a file or folder",
        raised("FileNotFoundError", "NotADirectoryError", "IsADirectoryError", "FileExistsError"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'train.bin'"),
    ),
    exception_rule(
        "permission",
        *_SETUP,
        "rank {rank} may not use a file or folder",
        raised("PermissionError"),
        ("PermissionError", "[Errno 13] Permission denied: '/data'"),
    ),
    exception_rule(
        "too-many-files",
        *_SETUP,
        "rank {rank} has too many files open; raise its limit",
        stated(r"^\[Errno 24\]|[Tt]oo many open files|0 items of ancdata", "OSError", "RuntimeError"),
        ("OSError", "[Errno 24] Too many open files: 'shard-3'"),
        ERRNO,
    ),
    exception_rule(
        "host-memory-error",
        Cause.OUT_OF_MEMORY_HOST,
        Action.STOP,
        "rank {rank} asked for more memory than the host has",
        AnyOf((raised_anywhere("MemoryError", "_ArrayMemoryError"), raised_anywhere("OSError", text=r"^\[Errno 12\]"))),
        ("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 8.00 TiB"),
        confidence=Confidence.MEDIUM,
    ),
    exception_rule(
        "process-lost",
        Cause.AMBIGUOUS,
        Action.INVESTIGATE,
        "a helper process of rank {rank} had gone away",
        AllOf((raised("EOFError"), printed(Lane.STDERR, _PIPE, "multiprocessing"))),
        left_behind(
            "Traceback (most recent call last):",
            '  File "/usr/lib/python3.12/multiprocessing/connection.py", line 399, in _recv',
            "    raise EOFError",
            "EOFError",
            code=1,
        ),
        "https://docs.python.org/3/library/multiprocessing.html",
        Confidence.LOW,
    ),
    exception_rule(
        "bad-data",
        *_DATA,
        "rank {rank} could not read its data",
        AnyOf(
            (
                raised(*_UNREADABLE),
                # HDF5's words, and FFmpeg's
                raised(
                    "OSError", text=r"^Unable to (?:synchronously )?open file \((?:truncated file|file signature not)"
                ),
                raised(text=r"\bInvalid data found when processing input\b"),
            )
        ),
        ("UnicodeDecodeError", "'utf-8' codec can't decode byte 0x80 in position 0"),
        confidence=Confidence.MEDIUM,
    ),
    exception_rule(
        "user-recursion",
        *_CODE,
        "the code of rank {rank} called itself without end",
        raised("RecursionError"),
        ("RecursionError", "maximum recursion depth exceeded"),
    ),
    *(_raised(name, message) for name, message in _BUGS),
)

# Types that everybody raises: asked only where no message has said whose fault it is.
TYPE_RULES: Final = (
    *(_raised(name, message) for name, message in (("ValueError", "lr must be positive"), ("AssertionError", ""))),
    exception_rule(
        "timeout-error",
        Cause.NETWORK_OR_PEER,
        Action.RESTART_IN_PLACE,
        "rank {rank} waited too long",
        raised_anywhere("TimeoutError", "timeout"),
        ("TimeoutError", "The operation timed out"),
        confidence=Confidence.LOW,
    ),
    exception_rule(
        "os-error",
        Cause.AMBIGUOUS,
        Action.INVESTIGATE,
        "the system refused rank {rank} something",
        AnyOf((raised("OSError", text=r"^\[(?:Errno|WinError) -?\d"), raised("OSError", text=r"\A\Z"))),
        ("OSError", "[Errno 71] Protocol error"),
        confidence=Confidence.LOW,
    ),
)


_LEAVING: Final = frozenset({"SystemExit", "GeneratorExit", "KeyboardInterrupt"})


def _any_exception(symptoms: Symptoms) -> str | None:
    """Any exception, save those by which Python or a launcher merely leaves, and those that torch calls its own."""
    if not symptoms.head:
        return None
    name = symptoms.head[0].type
    leaves = name.rpartition(".")[2] in _LEAVING | LAUNCHERS
    # What died in C++ was no code of the user's script.
    return None if leaves or name.startswith("torch.") or "::" in name else symptoms.head[0].message.partition("\n")[0]


def _torchs_exception(symptoms: Symptoms) -> str | None:
    """An exception type of torch's own."""
    name = symptoms.head[0].type if symptoms.head else ""
    ours = name.startswith("torch.") and name.rpartition(".")[2] not in LAUNCHERS
    return symptoms.head[0].message.partition("\n")[0] if ours else None


_ASSERT: Final = r"INTERNAL ASSERT FAILED"
LAST_EXCEPTION_RULES: Final = (
    exception_rule(
        "ddp-internal-assert",
        Cause.FRAMEWORK_BUG,
        Action.STOP,
        "the bookkeeping of DistributedDataParallel failed on rank {rank}, which follows from the model",
        raised_anywhere("RuntimeError", text=r"INTERNAL ASSERT FAILED at .{0,200}reducer\.cpp"),
        ("RuntimeError", 'expect_hooks INTERNAL ASSERT FAILED at "c10d/reducer.cpp":1633'),
        "https://github.com/pytorch/pytorch/blob/main/torch/csrc/distributed/c10d/reducer.cpp",
        Confidence.MEDIUM,
    ),
    exception_rule(
        "torch-internal-assert",
        Cause.FRAMEWORK_BUG,
        Action.INVESTIGATE,
        "an assertion inside of torch failed on rank {rank}",
        AnyOf(
            (raised_anywhere("RuntimeError", text=_ASSERT), printed(Lane.TORCH, _ASSERT), printed(Lane.LOG, _ASSERT))
        ),
        ("RuntimeError", "isIntegral(false) INTERNAL ASSERT FAILED at 'ScalarOps.h':39"),
        TORCH,
        Confidence.MEDIUM,
    ),
    exception_rule(
        "timed-out",
        Cause.NETWORK_OR_PEER,
        Action.RESTART_IN_PLACE,
        "rank {rank} waited too long for something else",
        raised_anywhere(text=r"(?i)\btimed out\b|\btimeout\b"),
        ("vllm.TransferError", "request 3 timed out after 300.0s"),
        TORCH,
        Confidence.LOW,
    ),
    exception_rule(
        "child-failed",
        Cause.AMBIGUOUS,
        Action.INVESTIGATE,
        "a process that rank {rank} had started failed, and left no reason",
        raised_anywhere(
            text=r"(?i)\b(?:exit(?:ed)?|return(?:ed)?)(?: with)?(?: an?)?(?: non-?zero)?(?: exit)? (?:code|status)\b"
            r"|\b(?:see|check|inspect)\b.{0,40}\b(?:previous|above|logs?|root cause|stack trace|traceback)\b"
        ),
        ("RuntimeError", "worker 3 exited with code 1"),
        "https://docs.python.org/3/library/subprocess.html",
        Confidence.LOW,
    ),
    exception_rule(
        "user-exception",
        *_CODE,
        "the code of rank {rank} raised {type}, which no rule knows",
        _any_exception,
        ("train.VocabularyError", "token 'zzz' is not in the vocabulary"),
        confidence=Confidence.LOW,
    ),
    exception_rule(
        "torch-exception",
        Cause.AMBIGUOUS,
        Action.INVESTIGATE,
        "torch raised {type} on rank {rank}, which no rule knows",
        _torchs_exception,
        ("torch.SomeNewError", "something new"),
        TORCH,
        Confidence.LOW,
    ),
)
