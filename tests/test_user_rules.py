# SPDX-License-Identifier: Apache-2.0
"""Rules of the user's own: what they select, what outranks them, and that every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from supervised import Folder

from resilient.core.causes import Action, Cause
from resilient.core.classify import classify
from resilient.core.evidence import Evidence
from resilient.core.rule import died_of, left_behind
from resilient.core.user_rules import read, with_user_rules
from resilient.errors import SettingsError
from resilient.toml_files import read_rules

AWAY = {
    "id": "tokenizer-away",
    "exception": "my.pkg.TokenizerError",
    "cause": "network_or_peer",
    "why": "the tokenizer service was away",
    "example": "my.pkg.TokenizerError: no answer from 10.0.0.1",
}
CARD = {"id": "x-card", "pattern": r"^X-ERR \d+: ", "cause": "device_fault", "example": "X-ERR 12: link down"}
XID = "NVRM: Xid (PCI:0000:05:00): 79, pid=42, name=python3, GPU has fallen off the bus."


def table(*entries: dict[str, Any]) -> Any:
    """The whole table with these rules."""
    found = read({"rule": list(entries)}, "rules.toml")
    assert not found.problems
    return with_user_rules(found.rules)


def test_an_exception_and_a_pattern_select_their_rule() -> None:
    """Above our own rules about text, which would have called the first a fault of the code."""
    rules = table(AWAY, CARD)
    verdict = classify(died_of("my.pkg.TokenizerError", "no answer from 10.0.0.9"), rules)
    assert (verdict.rule, verdict.cause, verdict.action) == (
        "tokenizer-away",
        Cause.NETWORK_OR_PEER,
        Action.RESTART_IN_PLACE,
    )
    assert verdict.why == "the tokenizer service was away (rank 0): no answer from 10.0.0.9"
    verdict = classify(
        left_behind("X-ERR 7: fan", "Traceback (most recent call last):", "KeyError: 'a'", code=1), rules
    )
    assert (verdict.rule, verdict.action, verdict.device_grade) == ("x-card", Action.RESCHEDULE, False)


def test_subclasses_and_both_conditions_together() -> None:
    """With both, the message must fit as well."""
    both = {**AWAY, "pattern": "^no answer", "action": "stop"}
    rules = table(both)
    base = died_of("my.pkg.Worse", "no answer", bases=("my.pkg.TokenizerError",))
    assert (classify(base, rules).rule, classify(base, rules).action) == ("tokenizer-away", Action.STOP)
    assert classify(died_of("my.pkg.TokenizerError", "bad vocabulary"), rules).rule == "user-exception"


@pytest.mark.parametrize(
    "stronger",
    [
        left_behind(XID, "X-ERR 7: fan", code=1),
        died_of("torch.AcceleratorError", "CUDA error: uncorrectable ECC error"),
    ],
)
def test_verdicts_on_hardware_outrank_the_users_rules(stronger: Evidence) -> None:
    """Also those that stand further down in our table."""
    blind = {"id": "mine", "exception": "AcceleratorError", "cause": "user_code", "example": "AcceleratorError: x"}
    assert classify(stronger, table(CARD, blind)).device_grade


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({}, "it has no id"),
        ({**AWAY, "cause": "gremlins"}, "no cause is called 'gremlins'; choose from user_code"),
        ({**AWAY, "action": "pray"}, "no action is called 'pray'; choose from stop"),
        ({**AWAY, "id": "Tokenizer Away"}, "its id is not 2 to 61 lower case"),
        ({**AWAY, "exemple": "x"}, "no key is called 'exemple'"),
        ({**AWAY, "why": 3}, "why is not text"),
        ({**AWAY, "exception": "not a type"}, "exception is not the name of a type"),
        ({key: AWAY[key] for key in ("id", "cause", "example")}, "it has neither exception nor pattern"),
        ({key: AWAY[key] for key in ("id", "cause", "exception")}, "it has no example"),
        ({**AWAY, "id": "user-type-error"}, "its id is taken"),
        ({**AWAY, "example": "TypeError: x"}, "its example selects rule 'user-type-error' instead"),
        ({**CARD, "pattern": r"X-ERR"}, "its pattern is not anchored"),
        ({**CARD, "pattern": r"^X-ERR|oops"}, "its pattern has a | outside of a group"),
        ({**CARD, "pattern": r"^X-ERR ("}, "its pattern cannot be read"),
        ({**CARD, "pattern": r"^(a+)+$"}, "its pattern repeats a group"),
        ({**CARD, "pattern": r"^(?:a|a)*$"}, "its pattern repeats a group"),
        ({**CARD, "pattern": r"^(?:a){2,}$"}, "its pattern repeats a group"),
        ({**CARD, "pattern": r"^.*a.*b.*c"}, "more than 2 repeats without a bound"),
        ({**CARD, "pattern": r"^(a)\1"}, "its pattern refers back"),
        ({**CARD, "pattern": "^" + "a" * 600}, "longer than 500 characters"),
    ],
)
def test_each_mistake_is_named(entry: dict[str, Any], problem: str) -> None:
    """With what to do about it, and no rule of such a file is used."""
    found = read({"rule": [entry]}, "rules.toml")
    assert not found.rules
    assert any(problem in each for each in found.problems), found.problems


@pytest.mark.parametrize("content", [{}, {"rule": {}}, {"rule": [1]}, {"rule": [], "keep": 3}])
def test_another_form_is_refused(content: dict[str, Any]) -> None:
    """A file of something else is no set of rules."""
    assert read(content, "rules.toml").problems


def test_a_pattern_that_looks_dangerous_and_is_not_is_taken() -> None:
    """Escapes and sets are read as what they are."""
    fine = {**CARD, "pattern": r"^X-ERR \(\d{1,3}\)+ [(*+)]+ (?:a|b)?", "example": "X-ERR (12) (( a"}
    assert not read({"rule": [fine]}, "rules.toml").problems


def test_all_mistakes_of_a_file_come_at_once(tmp_path: Path) -> None:
    """One look is enough to correct it."""
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[rule]]\nid = "a-b"\ncause = "x"\n[[rule]]\nid = "c-d"\npattern = "y"\ncause = "storage"\nexample = "y"\n'
    )
    with pytest.raises(SettingsError) as refused:
        read_rules(path)
    assert "'a-b'" in str(refused.value)
    assert "'c-d'" in str(refused.value)


def test_a_run_is_judged_by_the_users_rules(tmp_path: Path) -> None:
    """What would have stopped the job restarts it; a wrong file starts nothing."""
    folder = Folder(tmp_path)
    folder.script(
        "import os\nclass TokenizerError(Exception): pass\n"
        "if not os.path.exists('seen'):\n    open('seen', 'w').close()\n    raise TokenizerError('no answer')\n"
    )
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nid = "tokenizer-away"\nexception = "TokenizerError"\ncause = "network_or_peer"\n'
        'why = "the tokenizer service was away"\nexample = "TokenizerError: x"\n'
    )
    ended = folder.run("--rules", str(rules), "train.py")
    assert ended.code == 0, ended.stderr
    assert "the tokenizer service was away (rank 0)" in ended.stderr
    rules.write_text("[[rule]]\n")
    assert folder.run("--rules", str(rules), "train.py").code == 115
