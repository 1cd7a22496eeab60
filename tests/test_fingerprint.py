# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: equal for the same fault, different for different ones, and readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.fingerprint import fingerprint, normalise, rule_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CUDA error on rank 3 of node-7", "CUDA error on rank 11 of node-12"),
        ("at 0x7f00deadbeef", "at 0x1"),
        ("no such file: /data/a/train.bin", "no such file: /mnt/b/c/train.bin"),
        ("s3://one/run/shard.tar: gone", "s3://two/shard.tar: gone"),
        ("NVRM: Xid (PCI:0000:05:00): 79, pid=42", "NVRM: Xid (PCI:0000:b1:00): 79, pid=4711"),
        ("loss 1.25e-3 at step 900", "loss 7 at step 12345"),
        ("2026-01-02 03:04:05.678 timed out", "2027-11-12 13:14:15.1 timed out"),
        ("GPU-1b2c3d4e-0000-1111-2222-333344445555 lost", "GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeffff0000 lost"),
        ("(1x5 and 2x3)", "(17x5 and 64x128)"),
        ("peer [10.0.0.1]:4711 closed", "peer [192.168.7.12]:80 closed"),
        ("request 9f86d081884c7d65 failed", "request 60303ae22b998861 failed"),
        ("a\n  b", "a b"),
    ],
)
def test_what_changes_between_occurrences_is_taken_out(one: str, other: str) -> None:
    """Rank, node, step, address, process, path and time are not the fault."""
    assert normalise(one) == normalise(other)
    assert fingerprint("r", message=one) == fingerprint("r", message=other)


def test_different_faults_stay_different() -> None:
    """What is left of a message still tells faults apart."""
    messages = ("no such file: /a/train.bin", "no such file: /a/eval.bin", "connection refused", "'weight'", "'bias'")
    assert len({fingerprint("r", "E", None, message) for message in messages}) == len(messages)


def test_a_place_is_readable_and_outranks_the_message() -> None:
    """The same function raising with other words is the same fault."""
    one = fingerprint("user-type-error", "builtins.TypeError", "train.py:loss", "bad operand 3")
    assert one == fingerprint("user-type-error", "TypeError", "train.py:loss", "other words")
    assert one == "user-type-error:TypeError@train.py:loss"


def test_without_place_or_message_the_rule_is_the_fault() -> None:
    """Signals have neither."""
    assert fingerprint("sigsegv") == "sigsegv"


@given(st.text(), st.none() | st.text(), st.none() | st.text(), st.text())
def test_any_input_gives_one_short_name(rule: str, exception: str | None, function: str | None, message: str) -> None:
    """Total and bounded."""
    assert len(fingerprint(rule, exception, function, message)) <= 130


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_numbers_never_tell_two_faults_apart(one: int, other: int) -> None:
    """Steps, ranks, sizes and ports."""
    template = "rank {0} failed at step {0} (size {0}, port={0})"
    assert normalise(template.format(one)) == normalise(template.format(other))


@pytest.mark.parametrize("text", ["/" * 100_000, "0x" * 50_000, "a/" * 50_000, "1:" * 50_000, "node1" * 20_000])
def test_hostile_messages_are_cut_before_any_pattern_sees_them(text: str) -> None:
    """The work does not grow with the message."""
    assert normalise(text) == normalise(text[:4096])


def test_a_fingerprint_names_its_rule() -> None:
    """Whatever follows it."""
    for parts in (
        ("sigkill",),
        ("a-b", "m.E"),
        ("a-b", "m.E", "f.py:g"),
        ("a-b", None, "f.py:g"),
        ("a-b", None, None, "x"),
    ):
        assert rule_of(fingerprint(*parts)) == parts[0]
