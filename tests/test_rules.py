# SPDX-License-Identifier: Apache-2.0
"""The table of rules: each row can be selected, names a source, and costs little on any text."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.classify import classify
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.lanes import Lane
from resilient.core.rule import AllOf, AnyOf, Condition, Family, Printed, Raised, Role, Rule, died_of, left_behind
from resilient.core.rules import RULES
from resilient.core.symptoms import observe
from resilient.core.traceback_text import LINE_CHARS, TAIL_CHARS

try:
    regex_parser = importlib.import_module("re._parser")
except ImportError:  # before Python 3.11
    regex_parser = importlib.import_module("sre_parse")


def judge(line: str) -> Verdict:
    """Classify one worker that left a single line on stderr and an exit code."""
    return classify(left_behind(line, code=1))


def conditions(condition: Condition) -> Iterator[Condition]:
    """Walk a condition for every part of it that has none."""
    if isinstance(condition, AnyOf | AllOf):
        for part in condition.parts:
            yield from conditions(part)
    else:
        yield condition


def patterns(condition: Condition) -> Iterator[re.Pattern[str]]:
    """Every pattern in a condition."""
    for part in conditions(condition):
        if isinstance(part, Raised | Printed) and part.pattern is not None:
            yield part.pattern


def unbounded_repeats(tree: Any, depth: int = 0) -> int:
    """Count how deep repeats without a bound are nested in a parsed pattern."""
    items = getattr(tree, "data", tree)
    if not isinstance(items, tuple | list):
        return depth
    if len(items) == 2 and str(items[0]) in ("MAX_REPEAT", "MIN_REPEAT"):
        depth += int(items[1][1]) > 1000
    return max([depth, *(unbounded_repeats(item, depth) for item in items)])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_each_example_selects_its_own_rule(rule: Rule) -> None:
    """A row that another one shadows is dead."""
    assert classify(rule.example).rule == rule.id


def test_ids_are_unique() -> None:
    """Journals and budgets name rules by id."""
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_each_rule_has_a_reason_and_a_source(rule: Rule) -> None:
    """A verdict that cannot be explained is no verdict."""
    verdict = classify(rule.example)
    assert verdict.why.strip() == verdict.why != ""
    assert "{" not in verdict.why
    assert rule.source.startswith(("https://", "resilient/"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_no_pattern_nests_unbounded_repeats(rule: Rule) -> None:
    """Nested repeats make a pattern exponential on hostile text."""
    assert all(unbounded_repeats(regex_parser.parse(pattern.pattern)) <= 1 for pattern in patterns(rule.when))


def test_the_check_for_nested_repeats_can_fail() -> None:
    """The detector above sees the classic form."""
    assert unbounded_repeats(regex_parser.parse("(?:a+)+b")) == 2


def always_says(tree: Any, words: tuple[str, ...]) -> bool:
    """Whether one of the words is in all that a parsed pattern fits."""
    run = ""
    for op, value in (*tree, ("END", None)):
        if str(op) == "LITERAL":
            run += chr(value)
            continue
        if any(word in run for word in words):
            return True
        run = ""
        parts: list[Any] = []
        if str(op) == "BRANCH":
            parts = value[1]
        elif str(op) == "SUBPATTERN" or (str(op) == "MAX_REPEAT" and value[0]):
            parts = [value[-1]]
        if parts and all(always_says(part, words) for part in parts):
            return True
    return False


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_words_that_are_looked_for_first_are_in_all_that_fits(rule: Rule) -> None:
    """Else a line would be missed; and whoever looks through all of stderr looks for words first."""
    for condition in conditions(rule.when):
        if isinstance(condition, Printed) and (condition.words or condition.lane is Lane.STDERR):
            assert always_says(regex_parser.parse(condition.pattern.pattern), condition.words)


def test_the_check_of_words_can_fail() -> None:
    """A branch without one of them, and what may be absent."""
    for pattern, words in (("ab|cd", ("ab",)), ("(?:ab)?c", ("ab",)), ("a.b", ("ab",)), ("[ab]", ("a",))):
        assert not always_says(regex_parser.parse(pattern), words)
    assert always_says(regex_parser.parse(r"^x{1,9}(?:ab.|cd+)$"), ("ab", "c"))


def test_the_last_rule_asks_for_a_second_look() -> None:
    """What nobody knows is ambiguous, never fine."""
    assert (RULES[-1].id, RULES[-1].cause, RULES[-1].action) == ("unknown", Cause.AMBIGUOUS, Action.INVESTIGATE)


def test_device_verdicts_move_the_work_away() -> None:
    """Device-grade rows blame a culprit and reschedule, all of them."""
    rows = [rule for rule in RULES if rule.device_grade]
    assert rows
    assert {(rule.role, rule.action) for rule in rows} == {(Role.CULPRIT, Action.RESCHEDULE)}
    assert {rule.cause for rule in rows} == {Cause.DEVICE_FAULT, Cause.INTERCONNECT_FAULT}


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        "A.a" * 33_000,
        "\n" * 100_000,
        " " * 100_000,
        "[" * 100_000,
        '  File "' * 12_000,
        "Traceback (most recent call last):\n" * 2_800,
        "NVRM: Xid (PCI:0000:05:00): 48" * 3_000,
        "x:1:1 [0] NCCL WARN " * 5_000,
        "Error: " * 14_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_is_bounded_before_any_rule_sees_it(text: str) -> None:
    """However much a worker prints, rules look at 64 KiB in lines of 2,000 characters."""
    evidence = died_of("RuntimeError", text, step=3)
    rank = dataclasses.replace(evidence.ranks[0], stderr_tail=text)
    symptoms = observe(rank, evidence)
    assert all(len(lane) <= TAIL_CHARS for lane in symptoms.lanes.values())
    assert all(len(line) <= LINE_CHARS for lane in symptoms.lanes.values() for line in lane.split("\n"))
    assert all(len(link.message) <= 8 * 1024 for link in symptoms.chain)
    classify(Evidence(ranks=(rank,)))
    classify(Evidence(ranks=(dataclasses.replace(rank, error=None),)))


@pytest.mark.parametrize(
    ("number", "text", "rule", "action"),
    [
        (48, "DBE (double bit error)", "xid-ecc", Action.RESCHEDULE),
        (64, "Row remapper failure", "xid-remap-failure", Action.RESCHEDULE),
        (74, "NVLink: fatal error", "xid-nvlink", Action.RESCHEDULE),
        (79, "GPU has fallen off the bus.", "xid-off-the-bus", Action.RESCHEDULE),
        (95, "Uncontained ECC error", "xid-ecc", Action.RESCHEDULE),
        (119, "Timeout after 6s of waiting for RPC response", "xid-firmware", Action.RESCHEDULE),
        (120, "GSP task exception", "xid-firmware", Action.RESCHEDULE),
        (94, "Contained ECC error", "xid-ecc-contained", Action.RESTART_IN_PLACE),
        (13, "Graphics SM Warp Exception", "xid-program", Action.INVESTIGATE),
        (31, "MMU Fault", "xid-program", Action.INVESTIGATE),
        (43, "Ch 00000008", "xid-program", Action.INVESTIGATE),
        (45, "Ch 00000008", "xid-cleanup", Action.INVESTIGATE),
        (145, "RLW_REMAP Nonfatal XC0 i0 Link 08", "exit-code", Action.INVESTIGATE),
        (149, "NETIR_LINK_EVT Fatal XC0 i0 Link 08", "xid-nvlink-fatal", Action.RESCHEDULE),
        (63, "Row remapping recorded", "exit-code", Action.INVESTIGATE),
        (4800, "no such number", "exit-code", Action.INVESTIGATE),
        (
            154,
            "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
            "exit-code",
            Action.INVESTIGATE,
        ),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "NVRM: Xid (PCI:0000:05:00): {}, pid=4242, name=python3, {}",
        "[  299.081000] NVRM: Xid (PCI:0000:05:00): {}, {}",
        "<3>Jan  1 00:00:00 node-7 kernel: NVRM: Xid (PCI:0000:05:00): {}, {}",
        "NVRM: Xid (PCI:0000:05:00 GPU-I:05 GPU-CI:01): {}, pid='<unknown>', name=<unknown>, {}",
    ],
)
def test_xid_lines_are_read_in_every_form_the_kernel_prints(
    form: str, number: int, text: str, rule: str, action: Action
) -> None:
    """The number decides, whatever stamp or MIG attribution stands around it."""
    verdict = judge(form.format(number, text))
    assert (verdict.rule, verdict.action) == (rule, action)


@pytest.mark.parametrize(
    "line",
    [
        "uncorrectable ECC error",
        "CUDA error: uncorrectable ECC error encountered",
        "my test of Xid 79: GPU has fallen off the bus",
        "print: NVRM: Xid (PCI:0000:05:00): 79, pid=1, name=x, GPU has fallen off the bus.",
        "NCCL WARN NET/IB : mlx5_0:1 async fatal event: local catastrophic error",
        "what():  CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_free_text_never_makes_a_device_verdict(line: str) -> None:
    """Only the line formats of driver, NCCL and torch speak about devices."""
    verdict = judge(line)
    assert verdict.rule == "exit-code"
    assert not verdict.device_grade


def test_a_torch_error_names_the_device_in_its_own_forms() -> None:
    """The same words count as the error a process died of, aborted with, or had from NCCL."""
    words = "CUDA error: uncorrectable ECC error encountered"
    raised = died_of("torch.AcceleratorError", words)
    aborted = left_behind(
        "terminate called after throwing an instance of 'c10::Error'", f"  what():  {words}", signal=6
    )
    watchdog = left_behind(
        "[rank1]:[E1123 10:11:12.123 ProcessGroupNCCL.cpp:1515] [PG 0 (default_pg) Rank 1] "
        f"Process group watchdog thread terminated with exception: {words}",
        signal=6,
    )
    nccl = left_behind(
        "node-1:42:43 [0] init.cc:10 NCCL WARN Cuda failure 'uncorrectable ECC error encountered'", code=1
    )
    for evidence in (raised, aborted, watchdog, nccl):
        verdict = classify(evidence)
        assert (verdict.rule, verdict.device_grade) == ("cuda-ecc", True)


def test_the_words_of_an_exception_that_torch_does_not_raise_are_no_device_verdict() -> None:
    """A TypeError may quote anything."""
    verdict = classify(died_of("TypeError", "CUDA error: uncorrectable ECC error encountered"))
    assert (verdict.rule, verdict.device_grade) == ("user-type-error", False)


def test_lanes_hold_only_lines_of_their_printer() -> None:
    """Sorting by printer is what keeps free text out."""
    line = "NVRM: GPU 0000:18:00.0: GPU has fallen off the bus."
    rank = RankEvidence(rank=0, stderr_tail=f"{line}\nsaid: {line}\n")
    assert observe(rank, Evidence(ranks=(rank,))).lanes[Lane.KERNEL] == line


def test_families_are_all_in_use() -> None:
    """A family without a row is a word too many."""
    assert {rule.family for rule in RULES} == set(Family) - {Family.USER}
