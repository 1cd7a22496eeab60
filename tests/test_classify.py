# SPDX-License-Identifier: Apache-2.0
"""The classifier as a whole: ranks combined, real processes read, every input answered."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.classify import classify
from resilient.core.error_text import from_torchelastic
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, Hang, Place, RankEvidence, Ruling
from resilient.core.rules import RULES
from resilient.core.traceback_text import parse_traceback

XID_79 = "NVRM: Xid (PCI:0000:05:00): 79, pid=42, name=python3, GPU has fallen off the bus.\n"
GLOO = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:44759"


def record(name: str, message: str = "", **more: object) -> ErrorRecord:
    """Make an error record of one link."""
    return replace(ErrorRecord(chain=(ErrorLink(type=name, message=message),)), **more)  # type: ignore[arg-type]  # fields of all types


def died(rank: int, name: str, message: str = "", *, order: int | None = None, stopped: bool = False) -> RankEvidence:
    """Make a worker that died of an exception."""
    error = record(name, message)
    return RankEvidence(rank=rank, exit_code=1, order=rank if order is None else order, error=error, stopped=stopped)


def run_script(tmp_path: Path, source: str, *arguments: str) -> tuple[Verdict, RankEvidence]:
    """Run a script that never imports us, and classify what it leaves behind."""
    script = tmp_path / "train.py"
    script.write_text(source)
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    code, signal = (None, -done.returncode) if done.returncode < 0 else (done.returncode, None)
    rank = RankEvidence(rank=0, exit_code=code, signal=signal, order=0, stderr_tail=done.stderr)
    return classify(Evidence(ranks=(rank,))), rank


def test_a_type_error_stays_a_type_error_whatever_the_script_prints(tmp_path: Path) -> None:
    """Free text about hardware does not excuse a bug."""
    source = (
        "import sys\nprint('uncorrectable ECC error', file=sys.stderr)\ndef loss(x):\n    return x + 'a'\nloss(1)\n"
    )
    verdict, _ = run_script(tmp_path, source)
    assert (verdict.cause, verdict.action, verdict.rule) == (Cause.USER_CODE, Action.STOP, "user-type-error")
    assert verdict.fingerprint == "user-type-error:TypeError@train.py:loss"
    assert "train.py:4 in loss" in verdict.why


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("def f(:\n", "syntax"),
        ("if True:\npass\n", "syntax"),
        ("import no_such_module_here\n", "import"),
        ("open('/no/such/file')\n", "missing-file"),
        ("open('/')\n", "missing-file"),
        ("undefined_name\n", "user-name-error"),
        ("{}['a']\n", "user-key-error"),
        ("[][1]\n", "user-index-error"),
        ("1 / 0\n", "user-zerodivision-error"),
        ("assert False\n", "user-assertion-error"),
        ("raise NotImplementedError\n", "user-notimplemented-error"),
        ("def f(): f()\nf()\n", "user-recursion"),
        ("raise KeyboardInterrupt\n", "interrupted"),
        ("raise RuntimeError('boom')\n", "user-exception"),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise RuntimeError('step failed') from e\n",
            "user-zerodivision-error",
        ),
        ("import sys\nsys.exit(3)\n", "exit-code"),
        ("import os\nos.abort()\n", "sigabrt"),
        ("import os\nos.kill(os.getpid(), 11)\n", "sigsegv"),
        ("import os\nos.kill(os.getpid(), 9)\n", "sigkill"),
        ("import os\nos.kill(os.getpid(), 15)\n", "sigterm"),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr')\np.parse_args(['--bad'])\n", "usage"),
    ],
)
def test_real_endings_are_read_from_stderr_and_status(tmp_path: Path, source: str, rule: str) -> None:
    """Processes that know nothing of us are judged by what they leave behind."""
    verdict, _ = run_script(tmp_path, source)
    assert verdict.rule == rule


@pytest.mark.parametrize("arguments", [["/no/such/script.py"], ["-m", "no_such_module_here"]])
def test_a_script_that_does_not_exist_is_a_matter_of_configuration(arguments: list[str]) -> None:
    """The interpreter says so itself, before any code runs."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    rank = RankEvidence(rank=0, exit_code=done.returncode, order=0, stderr_tail=done.stderr)
    assert classify(Evidence(ranks=(rank,))).rule == "no-such-script"


def test_a_logged_traceback_does_not_explain_a_kill(tmp_path: Path) -> None:
    """What a script has caught and survived is not what killed it."""
    source = (
        "import os, traceback\ntry:\n    1 / 0\nexcept Exception:\n    traceback.print_exc()\nos.kill(os.getpid(), 9)\n"
    )
    assert run_script(tmp_path, source)[0].rule == "sigkill"


def test_the_exception_counts_not_what_python_prints_after_it(tmp_path: Path) -> None:
    """Finalisers that fail on the way out are not the cause."""
    source = "class A:\n    def __del__(self):\n        {}['late']\na = A()\nraise ValueError('first')\n"
    assert run_script(tmp_path, source)[0].rule == "user-value-error"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_the_members_of_a_group_are_seen(tmp_path: Path) -> None:
    """A group is a wrapper; its first member says more."""
    source = "raise ExceptionGroup('all', [TypeError('bad'), ValueError('worse')])\n"
    verdict, rank = run_script(tmp_path, source)
    assert verdict.rule == "user-type-error"
    parsed = parse_traceback(rank.stderr_tail)
    assert parsed is not None
    assert [link.type for link in parsed.chain] == ["ExceptionGroup", "TypeError", "ValueError"]


def test_torchs_rank_prefix_and_libraries_are_looked_through() -> None:
    """The innermost frame of the user's own file is named, not torch's."""
    text = (
        "[rank1]: Traceback (most recent call last):\n"
        '[rank1]:   File "/app/train.py", line 9, in <module>\n'
        "[rank1]:     step()\n"
        '[rank1]:   File "/app/model.py", line 41, in forward\n'
        '[rank1]:   File "/usr/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 134, in forward\n'
        "[rank1]:     return F.linear(input, self.weight, self.bias)\n"
        "[rank1]:            ^^^^^^^^^^^^^\n"
        "[rank1]: RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x5 and 2x3)\n"
    )
    verdict = classify(Evidence(ranks=(RankEvidence(rank=1, exit_code=1, order=0, stderr_tail=text),)))
    assert (verdict.rule, verdict.culprit) == ("shape-mismatch", 1)
    assert verdict.fingerprint == "shape-mismatch:RuntimeError@model.py:forward"


def test_a_ruling_outranks_everything() -> None:
    """The user's own code has the last word, even beside a lost GPU."""
    lost = RankEvidence(rank=0, exit_code=1, order=0, stderr_tail=XID_79)
    ruled = RankEvidence(
        rank=1, exit_code=1, order=1, stopped=True, error=record("resilient.errors.Stop", "nan", ruling=Ruling.STOP)
    )
    verdict = classify(Evidence(ranks=(lost, ruled)))
    assert (verdict.rule, verdict.ruled, verdict.action, verdict.culprit) == ("ruled-stop", True, Action.STOP, 1)


def test_to_stop_outweighs_to_retry() -> None:
    """Ranks that rule differently: the stronger ruling holds."""
    retry = RankEvidence(rank=0, exit_code=1, order=0, error=record("Retry", ruling=Ruling.RETRY))
    stop = RankEvidence(rank=1, exit_code=1, order=1, error=record("Stop", ruling=Ruling.STOP))
    assert classify(Evidence(ranks=(retry, stop))).action is Action.STOP


def test_a_device_verdict_of_a_stopped_worker_outranks_an_earlier_bug() -> None:
    """The driver's line counts whoever ended first, and whoever printed it."""
    bug = died(0, "ValueError", "nan in loss")
    lost = RankEvidence(rank=1, signal=9, order=1, stopped=True, stderr_tail=XID_79)
    verdict = classify(Evidence(ranks=(bug, lost)))
    assert (verdict.rule, verdict.device_grade, verdict.culprit) == ("xid-off-the-bus", True, 1)


def test_a_culprit_outranks_victims_that_ended_before_it() -> None:
    """Peers often see the end of a connection before the dying rank is gone."""
    ranks = (died(0, "RuntimeError", GLOO), died(1, "RuntimeError", GLOO), died(2, "TypeError", "bad"))
    verdict = classify(Evidence(ranks=ranks))
    assert (verdict.rule, verdict.culprit) == ("user-type-error", 2)


def test_among_culprits_the_first_to_end_is_blamed() -> None:
    """Order decides, not rank."""
    ranks = (died(0, "KeyError", "'a'", order=1), died(1, "TypeError", "b", order=0))
    assert classify(Evidence(ranks=ranks)).culprit == 1


def test_a_stopped_worker_is_not_blamed_for_its_exit() -> None:
    """SIGKILL of a worker that we were stopping says nothing."""
    victim = died(0, "RuntimeError", GLOO)
    ended = RankEvidence(rank=1, exit_code=0, order=1)
    stopped = tuple(RankEvidence(rank=rank, signal=9, order=rank, stopped=True) for rank in (2, 3))
    verdict = classify(Evidence(ranks=(victim, ended, *stopped)))
    assert (verdict.rule, verdict.cause, verdict.culprit) == ("gloo-peer-lost", Cause.NETWORK_OR_PEER, 1)
    assert "exit code 0" in verdict.why


LEFT = RankEvidence(rank=0, exit_code=0, order=0, place=Place.OUTSIDE, step=3)


@pytest.mark.parametrize("place", [Place.OUTSIDE, Place.STEP])
def test_to_leave_with_0_in_the_middle_of_training_is_a_fault_of_the_code(place: Place) -> None:
    """Its peers are victims, and what they raise when they are stopped is a consequence."""
    lost = died(1, "RuntimeError", GLOO)
    stopped = died(2, "ValueError", "half a batch", stopped=True)
    verdict = classify(Evidence(ranks=(replace(LEFT, place=place), lost, stopped)))
    assert (verdict.rule, verdict.culprit, verdict.step) == ("left-early", 0, 3)
    assert verdict.why == "rank 0 left with exit code 0 in the middle of training; 1 other rank suffered from it"


OTHERS = ({"place": Place.FINISHED}, {"place": Place.UNKNOWN}, {"stopped": True}, {"error": record("ValueError")})


@pytest.mark.parametrize("other", OTHERS, ids=["finished", "no-heartbeat", "stopped", "error"])
def test_nobody_else_has_left_early(other: dict[str, Any]) -> None:
    """Who was done, told nothing, was told to go or left a reason."""
    assert classify(Evidence(ranks=(replace(LEFT, **other),))).rule != "left-early"


def test_who_left_with_0_is_not_blamed_where_another_crashed() -> None:
    """After the loop never; in the middle of training not before a rank with a worse end."""
    crashed = died(1, "TypeError", "bad")
    for place in Place:
        verdict = classify(Evidence(ranks=(replace(LEFT, place=place), crashed)))
        assert (verdict.rule, verdict.culprit) == ("user-type-error", 1)


def test_victims_only_name_nobody_where_nobody_is_missing() -> None:
    """All ranks report the same: no rank can be named."""
    ranks = tuple(died(rank, "RuntimeError", GLOO) for rank in range(3))
    assert classify(Evidence(ranks=ranks)).culprit is None


def test_the_rank_that_ended_by_a_signal_is_blamed_for_its_peers_loss() -> None:
    """A SIGKILL without a counter is ambiguous, but it is where the trouble started."""
    ranks = (died(0, "RuntimeError", GLOO), RankEvidence(rank=1, signal=9, order=1))
    verdict = classify(Evidence(ranks=ranks))
    assert (verdict.rule, verdict.culprit, verdict.action) == ("sigkill", 1, Action.RESTART_IN_PLACE)


def test_only_the_counter_makes_a_sigkill_an_out_of_memory() -> None:
    """137 alone never does."""
    for signal, code in ((9, None), (None, 137), (None, -9)):
        rank = RankEvidence(rank=0, order=0, signal=signal, exit_code=code)
        assert classify(Evidence(ranks=(rank,))).cause is Cause.AMBIGUOUS
        assert classify(Evidence(ranks=(rank,), oom_kills=0)).cause is Cause.AMBIGUOUS
        assert classify(Evidence(ranks=(rank,), oom_kills=1)).cause is Cause.OUT_OF_MEMORY_HOST


def test_a_hang_names_the_stuck_rank_and_its_frame() -> None:
    """What the killed workers raise afterwards is the work of our own signals."""
    hang = Hang(rank=1, place=Place.STEP, phase=None, silent_s=90, bound_s=60, where="train.py:41 in loss")
    ranks = (died(0, "ValueError", "interrupted", stopped=True), RankEvidence(rank=1, signal=9, stopped=True, step=7))
    verdict = classify(Evidence(ranks=ranks, hang=hang))
    assert (verdict.rule, verdict.culprit, verdict.step) == ("hang-in-step", 1, 7)
    assert verdict.fingerprint == "hang-in-step@train.py:loss"


def test_a_hang_of_a_rank_without_evidence_is_still_told() -> None:
    """Evidence may be incomplete; the verdict is not."""
    hang = Hang(rank=5, place=Place.OUTSIDE, phase="eval", silent_s=90, bound_s=60)
    assert classify(Evidence(ranks=(), hang=hang)).culprit == 5


def test_a_cause_in_the_chain_is_found_behind_its_wrapper() -> None:
    """CheckpointException and RuntimeError say that something failed, not what."""
    chain = (
        ErrorLink(type="torch.distributed.checkpoint.api.CheckpointException", message="ranks:dict_keys([0])"),
        ErrorLink(type="OSError", message="[Errno 28] No space left on device"),
    )
    rank = RankEvidence(rank=0, exit_code=1, order=0, error=ErrorRecord(chain=chain))
    assert classify(Evidence(ranks=(rank,))).rule == "storage-full"


def test_a_command_that_worked_before_is_not_missing() -> None:
    """126 and 127 mean "cannot be run" before the first step only."""
    rank = RankEvidence(rank=0, exit_code=127, order=0)
    assert classify(Evidence(ranks=(rank,))).rule == "cannot-run"
    assert classify(Evidence(ranks=(replace(rank, step=4),))).rule == "exit-code"


@pytest.mark.parametrize(
    ("name", "message", "rule"),
    [
        ("OSError", "[Errno 5] Input/output error", "storage-io-error"),
        ("OSError", "[Errno 30] Read-only file system: '/m'", "storage-read-only"),
        (
            "botocore.exceptions.ClientError",
            "An error occurred (503) when calling PutObject: Slow Down",
            "storage-unavailable",
        ),
        ("botocore.exceptions.EndpointConnectionError", "Could not connect", "storage-unavailable"),
        ("gcsfs.retry.HttpError", "Service Unavailable, 503", "storage-unavailable"),
        ("huggingface_hub.errors.GatedRepoError", "403 Client Error.", "storage-refused"),
        ("_pickle.UnpicklingError", "invalid load key", "checkpoint-damaged"),
        ("torch._inductor.exc.InductorError", "LoweringException", "compile"),
        ("MemoryError", "", "host-memory-error"),
        ("torch.distributed.DistNetworkError", "The server socket has failed to listen. EADDRINUSE", "address-in-use"),
        ("RuntimeError", "DataLoader worker (pid 9) is killed by signal: Bus error. ", "loader-shared-memory"),
        ("RuntimeError", "DataLoader worker (pid 9) exited unexpectedly", "loader-crashed"),
        ("RuntimeError", "No CUDA GPUs are available", "cuda-no-device-at-start"),
        ("ValueError", "loss became nan", "non-finite"),
    ],
)
def test_exceptions_from_libraries(name: str, message: str, rule: str) -> None:
    """Types and words as the libraries print them."""
    assert classify(Evidence(ranks=(died(0, name, message),))).rule == rule


def test_torchelastics_error_file_is_understood() -> None:
    """Type, chain and frame come back from the form that ``@record`` writes."""
    callstack = 'Traceback (most recent call last):\n  File "/a/train.py", line 3, in main\n    f()\nTypeError: bad\n'
    text = json.dumps(
        {"message": {"message": "TypeError: bad", "extraInfo": {"py_callstack": callstack, "timestamp": "17"}}}
    )
    found = from_torchelastic(text)
    assert found is not None
    assert (found.type, found.message, found.function, found.wall_s) == ("TypeError", "bad", "train.py:main", 17.0)


KEYS = st.sampled_from(["message", "extraInfo", "timestamp", "py_callstack", "x"])
TREES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)
)


@given(st.text() | TREES.map(json.dumps))
def test_an_error_file_of_any_content_is_survived(text: str) -> None:
    """The file is untrusted."""
    found = from_torchelastic(text)
    assert found is None or found.chain


def test_a_deeply_nested_or_huge_error_file_is_refused() -> None:
    """Neither the parser's stack nor our memory is at the file's mercy."""
    assert from_torchelastic("[" * 100_000) is None
    assert from_torchelastic(json.dumps({"message": "x" * 2_000_000})) is None


TEXTS = st.one_of(st.text(max_size=200), st.sampled_from([rule.example.ranks[0].stderr_tail for rule in RULES]))
NAMED = st.text(max_size=30) | st.sampled_from(["TypeError", "OSError", "RuntimeError"])
LINKS = st.builds(ErrorLink, type=NAMED, message=TEXTS)
RECORDS = st.builds(
    ErrorRecord,
    chain=st.lists(LINKS, max_size=4).map(tuple),
    traceback=TEXTS,
    frame=st.none() | st.text(max_size=20),
    function=st.none() | st.text(max_size=20),
    ruling=st.none() | st.sampled_from(Ruling),
)
RANKS = st.builds(
    RankEvidence,
    rank=st.integers(0, 5),
    exit_code=st.none() | st.integers(-300, 300),
    signal=st.none() | st.integers(0, 64),
    order=st.none() | st.integers(0, 5),
    stopped=st.booleans(),
    error=st.none() | RECORDS,
    stderr_tail=TEXTS,
    step=st.none() | st.integers(0, 9),
)
HANGS = st.builds(
    Hang,
    rank=st.integers(0, 9),
    place=st.sampled_from(Place),
    phase=st.none() | st.text(max_size=9),
    silent_s=st.floats(),
    bound_s=st.floats(),
    where=st.none() | st.text(max_size=20),
)
EVIDENCE = st.builds(
    Evidence,
    ranks=st.lists(RANKS, max_size=4).map(tuple),
    hang=st.none() | HANGS,
    oom_kills=st.none() | st.integers(-1, 3),
    shm_used_fraction=st.none() | st.floats(),
)


@settings(deadline=None)
@given(EVIDENCE)
def test_any_evidence_gets_one_verdict_with_a_reason(evidence: Evidence) -> None:
    """Total, deterministic, and never without a why."""
    verdict = classify(evidence)
    assert verdict == classify(evidence)
    assert verdict.why
    assert verdict.fingerprint.startswith(verdict.rule)


@settings(deadline=None)
@given(EVIDENCE, st.randoms(use_true_random=False))
def test_the_order_in_which_ranks_are_listed_does_not_matter(evidence: Evidence, random: object) -> None:
    """Collection order is chance; the verdict is not."""
    distinct = tuple({rank.rank: rank for rank in evidence.ranks}.values())
    shuffled = list(distinct)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a Random, and says Any
    one, other = (classify(replace(evidence, ranks=tuple(ranks))) for ranks in (distinct, shuffled))
    assert one == other


@settings(deadline=None)
@given(st.lists(RANKS.map(lambda rank: replace(rank, stopped=True, error=None, stderr_tail="")), max_size=4))
def test_workers_that_were_stopped_are_never_blamed_by_their_exit(ranks: list[RankEvidence]) -> None:
    """Whatever code or signal the stop left them with."""
    assert classify(Evidence(ranks=tuple(ranks), oom_kills=2)).rule == "unknown"
