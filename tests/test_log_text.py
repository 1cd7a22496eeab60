# SPDX-License-Identifier: Apache-2.0
"""Reading logs that somebody kept: prefixes, ranks, endings, which error counts; and no input that is too much."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient.core.causes import Action
from resilient.core.classify import classify
from resilient.core.evidence import UNNAMED
from resilient.core.lanes import Lane
from resilient.core.log_lines import plain_lines
from resilient.core.log_text import Ending, read_log
from resilient.core.rule import left_behind
from resilient.core.rules import RULES
from resilient.core.symptoms import observe
from resilient.report.verdicts import judge_record, judge_text

BUG = 'Traceback (most recent call last):\n  File "/app/train.py", line 41, in loss\nTypeError: bad operand\n'
CLOSED = (
    'Traceback (most recent call last):\n  File "/app/train.py", line 50, in step\n'
    "RuntimeError: [/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:44759\n"
)
ORDINARY = "".join(f"step {step} loss {3 / (step + 1):.4f}\n" for step in range(300))


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        ("[rank3]: hello", 3),
        ("[default12]:hello", 12),
        ("[1,7]<stderr>:hello", 7),
        ("[pod/train-0-x2x/main] hello", None),
        ("2024-05-01T10:00:00.123456789Z hello", None),
        ("2024-05-01T10:00:00.123456789+00:00 stderr F hello", None),
        ("[pod/train-0-x2x/main] 2024-05-01T10:00:00Z [rank2]: hello", 2),
        ("(RayTrainWorker pid=4242, ip=10.0.0.1) hello", None),
        ("worker-0  | hello", None),
        ("15: [rank15]: hello", 15),
        ("ERROR 01-02 10:11:12 [engine.py:160] hello", None),
        ("hello", None),
    ],
)
def test_prefixes_of_launchers_come_off(line: str, rank: int | None) -> None:
    """What is left is what the program printed, with its rank where the prefix names one."""
    assert plain_lines(line) == [(rank, "hello")]


def test_srun_labels_count_where_most_lines_have_them() -> None:
    """A number and a colon is a label only if that is the rule."""
    labelled = "".join(f"{rank}: step {step}\n" for step in range(9) for rank in range(3))
    assert {rank for rank, line in plain_lines(labelled) if line} == {0, 1, 2}
    assert plain_lines("12: what a user prints\nand more\nand more\nand more\nand more")[0] == (
        None,
        "12: what a user prints",
    )


def test_a_traceback_inside_of_json_is_read() -> None:
    """Structured loggers put it into one line."""
    assert classify(read_log(json.dumps({"level": "error", "message": BUG}))).rule == "user-type-error"


@pytest.mark.parametrize("prefix", ["[rank1]: ", "[rank1] ", "[rank1] [rank1]: ", "[default1]:", "[1,1]<stderr>:"])
def test_the_rank_that_printed_the_bug_is_named(prefix: str) -> None:
    """Its peers are told of as its victims."""
    lines = [f"[rank0]: {line}" for line in CLOSED.splitlines()] + [prefix + line for line in BUG.splitlines()]
    verdict = classify(read_log("\n".join(lines)))
    assert (verdict.rule, verdict.culprit) == ("user-type-error", 1)
    assert verdict.why.endswith("; 1 other rank suffered from it")


def test_a_victims_error_at_the_end_does_not_hide_the_culprits() -> None:
    """In a log that was put together rank by rank the culprit's words may stand far above."""
    assert classify(read_log(BUG + ORDINARY + CLOSED)).rule == "user-type-error"


def test_an_error_that_was_survived_is_not_blamed() -> None:
    """A process that goes on printing for hundreds of lines has not died of what it had caught."""
    caught = BUG.replace("TypeError: bad operand", "KeyError: 'cache'")
    assert classify(read_log(caught + ORDINARY + BUG)).rule == "user-type-error"


def test_a_launchers_own_traceback_is_not_the_cause() -> None:
    """torchrun fails because a worker did."""
    launcher = (
        "Traceback (most recent call last):\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
    )
    assert classify(read_log(BUG + launcher)).rule == "user-type-error"
    assert classify(read_log(launcher)).action is Action.INVESTIGATE


def test_torchruns_summary_says_how_ranks_ended() -> None:
    """The ranks that it closed itself are no culprits."""
    summary = (
        "Failures:\n[1]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -15 (pid: 2)\n"
        "Root Cause (first observed failure):\n[0]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -11 (pid: 1)\n"
    )
    verdict = classify(read_log(summary))
    assert (verdict.rule, verdict.culprit) == ("sigsegv", 0)


def test_what_torchruns_summary_quotes_is_read() -> None:
    """It is indented, and the workers' own output may be elsewhere."""
    quoted = "".join(f"  {line}\n" for line in BUG.splitlines()[1:])
    verdict = classify(read_log(f"Failures:\n  traceback : Traceback (most recent call last):\n{quoted}====\n"))
    assert (verdict.rule, verdict.action) == ("user-type-error", Action.STOP)


@pytest.mark.parametrize("code", [2, -7])
def test_the_report_of_a_launcher_hides_no_ending(code: int) -> None:
    """The exception is torchrun's; how the worker ended says more."""
    log = (
        f"api:failed (exitcode: {code}) local_rank: 0 (pid: 9) of binary: /usr/bin/python3\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
    )
    assert classify(read_log(log)).action is Action.STOP


def test_mpirun_says_by_which_signal_a_process_ended() -> None:
    """It gives a number, and no exit code."""
    log = "mpirun noticed that process rank 1 with PID 9 on node n1 exited on signal 8 (Floating point exception).\n"
    assert classify(read_log(log)).rule == "sigfpe"


def test_a_logged_error_counts_where_nothing_else_is_said() -> None:
    """A logger's line may tell of what was survived."""
    line = "10:11:12 [ERROR] train: KeyError: 'labels'\n"
    assert classify(read_log(line)).rule == "user-key-error"
    assert classify(read_log(line + BUG)).rule == "user-type-error"


def test_an_exception_in_native_code_is_read_of_a_process_that_aborted() -> None:
    """Without the signal the same words are free text to the supervisor."""
    text = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    assert classify(left_behind(*text.splitlines(), signal=6)).rule == "host-memory-error"
    assert classify(left_behind(*text.splitlines(), code=1)).rule == "exit-code"
    assert classify(read_log(text)).action is Action.STOP


def test_no_room_for_a_semaphore_is_no_full_disk() -> None:
    """What multiprocessing makes lies in shared memory."""
    error = "OSError: [Errno 28] No space left on device"
    frame = '  File "/usr/lib/python3.12/multiprocessing/synchronize.py", line 57, in __init__'
    lines = ("Traceback (most recent call last):", frame, error)
    assert classify(left_behind(*lines, code=1)).rule == "shared-memory"
    assert classify(left_behind(lines[0], '  File "/app/train.py", line 3, in f', error, code=1)).rule == "storage-full"


def test_an_ending_that_is_known_is_used() -> None:
    """By number, by name, and not at all where a line says more."""
    assert judge_text("step 1\n", Ending(signal=11)).rule == "sigsegv"
    assert judge_record({"id": 1, "stderr": "", "signal": "SIGSEGV"})["rule"] == "sigsegv"
    assert judge_record({"id": 1, "stderr": "", "exit_code": 139})["rule"] == "sigsegv"
    assert judge_record({"id": 1, "stderr": BUG, "exit_code": 1})["rule"] == "user-type-error"


def test_free_text_about_hardware_does_not_excuse_a_bug() -> None:
    """Also in a log, where looser forms count."""
    log = "CUDA error: uncorrectable ECC error\nGPU has fallen off the bus\n" + BUG
    assert classify(read_log(log)).rule == "user-type-error"


def test_the_drivers_line_outranks_a_bug() -> None:
    """In its own form it needs no second witness."""
    xid = "[ 1.0] NVRM: Xid (PCI:0000:05:00): 79, pid=42, name=python3, GPU has fallen off the bus.\n"
    assert classify(read_log(xid + BUG)).rule == "xid-off-the-bus"


def test_loose_lanes_are_empty_for_what_the_supervisor_saw() -> None:
    """A worker's own stderr speaks in strict forms only."""
    evidence = read_log("slurmstepd: error: x DUE TO PREEMPTION\nCUDA_ERROR_ECC_UNCORRECTABLE\nXid 79, gone")
    rank = evidence.ranks[0]
    assert rank.rank == UNNAMED
    live = type(evidence)(ranks=evidence.ranks)
    for lane in (Lane.PLATFORM, Lane.CUDA, Lane.LOG, Lane.KERNEL):
        assert observe(rank, evidence).lanes[lane]
        assert not observe(rank, live).lanes[lane]


def test_secrets_do_not_get_into_a_verdict() -> None:
    """Whatever a log holds, its verdict is fit to be shown."""
    log = BUG.replace(
        "bad operand", "https://user:hunter2secret@host/x?sig=abcdefghijk AWS_SECRET_ACCESS_KEY=abcd1234efgh5678"
    )
    found = json.dumps(judge_record({"id": 1, "stderr": log}))
    assert "hunter2secret" not in found
    assert "abcd1234efgh5678" not in found


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=2000), st.none() | st.integers(-300, 300))
def test_no_bytes_are_too_much(data: bytes, code: int | None) -> None:
    """Every input has one verdict with a reason."""
    text = data.decode("utf-8", "replace")
    verdict = judge_text(text, Ending(code=code))
    assert verdict.why
    assert verdict.rule in {rule.id for rule in RULES}


JSONS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(["id", "exit_code", "signal", "stderr", "ranks", "x"]), JSONS))
def test_no_record_is_too_much(record: dict[str, object]) -> None:
    """Fields of any type, or none, give a verdict that is JSON."""
    assert set(json.loads(json.dumps(judge_record(record)))) >= {"cause", "action", "rule", "why", "culprit"}


PIECES = [rule.example.ranks[0].stderr_tail for rule in RULES if rule.example.ranks[0].stderr_tail]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=60), max_size=12))
def test_lines_of_many_failures_together_have_one_verdict(pieces: list[str]) -> None:
    """Whatever is mixed, the same text has the same verdict."""
    text = "\n".join(pieces)
    assert judge_text(text) == judge_text(text)
