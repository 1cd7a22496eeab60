# SPDX-License-Identifier: Apache-2.0
"""Rules that a user writes: an exception type or an anchored pattern, a cause, and an example that selects the rule.

They stand below every verdict on hardware and above our rules about text. What is read
here is data of TOML's types; every mistake is found before anything starts, together
with all the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.classify import classify
from resilient.core.evidence import Evidence
from resilient.core.lanes import Lane
from resilient.core.rule import Condition, Family, Rule, died_of, left_behind, printed, raised_anywhere
from resilient.core.rules import RULES

MOST_RULES: Final = 200
_MOST_CHARS: Final = 500
_MOST_REPEATS: Final = 2
_KEYS: Final = ("id", "exception", "pattern", "cause", "action", "why", "example")
_ID: Final = re.compile(r"[a-z][a-z0-9-]{1,60}")
_TYPE: Final = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*")
_EXAMPLE: Final = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(?:: ?(.*))?", re.DOTALL)
_TOKENS: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
_FIRST_ACTION: Final[Mapping[Cause, Action]] = {
    Cause.USER_CODE: Action.STOP,
    Cause.USER_DATA: Action.STOP,
    Cause.CONFIG_OR_ENVIRONMENT: Action.STOP,
    Cause.OUT_OF_MEMORY_DEVICE: Action.STOP,
    Cause.OUT_OF_MEMORY_HOST: Action.STOP,
    Cause.DEVICE_FAULT: Action.RESCHEDULE,
    Cause.INTERCONNECT_FAULT: Action.RESCHEDULE,
    Cause.NETWORK_OR_PEER: Action.RESTART_IN_PLACE,
    Cause.HANG_OR_COLLECTIVE_TIMEOUT: Action.INVESTIGATE,
    Cause.STORAGE: Action.RESTART_IN_PLACE,
    Cause.PREEMPTED: Action.CHECKPOINT_AND_EXIT,
    Cause.FRAMEWORK_BUG: Action.STOP,
    Cause.NUMERIC_INSTABILITY: Action.STOP,
    Cause.AMBIGUOUS: Action.INVESTIGATE,
}


@dataclass(frozen=True, slots=True)
class UserRules:
    """The rules of a file, or what is wrong with it."""

    rules: tuple[Rule, ...] = ()
    problems: tuple[str, ...] = ()


def read(table: Mapping[str, Any], source: str) -> UserRules:
    """Read ``[[rule]]`` entries; with any problem there are no rules."""
    entries = table.get("rule")
    if not table:
        return UserRules(problems=("it is empty; write each rule as a [[rule]] entry",))
    if set(table) - {"rule"} or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return UserRules(problems=("it holds something other than [[rule]] entries; write each rule as one",))
    if len(entries) > MOST_RULES:
        return UserRules(problems=(f"it has {len(entries)} rules; at most {MOST_RULES} are read",))
    rules: list[Rule] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        wrong = _mistakes(entry)
        if wrong:
            problems += [f"rule {entry.get('id', number)!r}: {mistake}" for mistake in wrong]
        else:
            rules.append(_rule(entry, source))
    problems += _clashes(rules)
    if not problems:
        problems = _unselected(rules)
    return UserRules(problems=tuple(problems)) if problems else UserRules(rules=tuple(rules))


def with_user_rules(own: Sequence[Rule]) -> tuple[Rule, ...]:
    """The whole table: the user's rules behind rulings, drivers, adapters and hangs, before the rest."""
    at = next(place for place, rule in enumerate(RULES) if rule.id == "collective-mismatch")
    return (*RULES[:at], *own, *RULES[at:])


def _mistakes(entry: Mapping[str, Any]) -> list[str]:
    found = [f"no key is called {key!r}; choose from {', '.join(_KEYS)}" for key in sorted(set(entry) - set(_KEYS))]
    found += [f"{key} is not text; write it in quotes" for key in _KEYS if not isinstance(entry.get(key, ""), str)]
    if found:
        return found
    found += [f"it has no {key}; add one" for key in ("id", "cause", "example") if not entry.get(key)]
    found += [
        f"{key} is longer than {_MOST_CHARS} characters" for key in _KEYS if len(entry.get(key, "")) > _MOST_CHARS
    ]
    if not _ID.fullmatch(entry.get("id", "none")):
        found.append("its id is not 2 to 61 lower case letters, digits and dashes; write for example tokenizer-away")
    if entry.get("cause") and entry["cause"] not in {cause.value for cause in Cause}:
        found.append(f"no cause is called {entry['cause']!r}; choose from {', '.join(cause.value for cause in Cause)}")
    if "action" in entry and entry["action"] not in {action.value for action in Action}:
        actions = ", ".join(action.value for action in Action)
        found.append(f"no action is called {entry['action']!r}; choose from {actions}")
    if "exception" not in entry and "pattern" not in entry:
        found.append("it has neither exception nor pattern; add one")
    if "exception" in entry and not _TYPE.fullmatch(entry["exception"]):
        found.append("exception is not the name of a type; write for example my.pkg.TokenizerError")
    return found + (_pattern_mistakes(entry["pattern"]) if "pattern" in entry else [])


def _pattern_mistakes(pattern: str) -> list[str]:
    """What would make a pattern match anywhere, or take long on hostile text."""
    if not pattern.startswith("^"):
        return ["its pattern is not anchored; begin it with ^"]
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return [f"its pattern cannot be read: {error}"]
    tokens = _TOKENS.findall(pattern)
    if _has_open_alternative(tokens):
        return ["its pattern has a | outside of a group, which leaves the other side without ^; write ^(?:a|b)"]
    repeats = [at for at, token in enumerate(tokens) if at and (token in "*+" or _is_count(token))]
    unbounded = [at for at in repeats if tokens[at] in "*+" or tokens[at].endswith(",}")]
    found = []
    if any(tokens[at - 1] == ")" for at in repeats):
        found.append("its pattern repeats a group, which can take for ever; repeat single characters or sets only")
    if len(unbounded) > _MOST_REPEATS:
        found.append(f"its pattern has more than {_MOST_REPEATS} repeats without a bound; write .{{0,200}} for .*")
    if any(len(token) == 2 and token[0] == "\\" and token[1] in "123456789" for token in tokens):
        found.append("its pattern refers back to a group; write it without")
    return found


def _has_open_alternative(tokens: Sequence[str]) -> bool:
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            return True
    return False


def _is_count(token: str) -> bool:
    return token.startswith("{") and token.endswith("}") and len(token) > 2


def _clashes(rules: Sequence[Rule]) -> list[str]:
    ours = {rule.id for rule in RULES}
    seen: set[str] = set()
    found = []
    for rule in rules:
        if rule.id in ours or rule.id in seen:
            found.append(f"rule {rule.id!r}: its id is taken; choose another")
        seen.add(rule.id)
    return found


def _unselected(rules: Sequence[Rule]) -> list[str]:
    """Examples that select another rule: what a row claims must hold."""
    table = with_user_rules(rules)
    chosen = ((rule, classify(rule.example, table).rule) for rule in rules)
    return [
        f"rule {rule.id!r}: its example selects rule {other!r} instead; correct one of the two, or change their order"
        for rule, other in chosen
        if other != rule.id
    ]


def _rule(entry: Mapping[str, str], source: str) -> Rule:
    cause = Cause(entry["cause"])
    pattern = entry.get("pattern")
    when: Condition
    if "exception" in entry:
        when = raised_anywhere(entry["exception"].rpartition(".")[2], text=pattern)
    else:
        when = printed(Lane.STDERR, pattern or "")
    # Braces are the rules' own language of sentences.
    why = entry.get("why", f"rule {entry['id']} of {source} says so").replace("{", "(").replace("}", ")")
    return Rule(
        id=entry["id"],
        family=Family.USER,
        cause=cause,
        action=Action(entry["action"]) if "action" in entry else _FIRST_ACTION[cause],
        confidence=Confidence.HIGH,
        when=when,
        why=why + " (rank {rank}){where}: {seen}",
        source=source,
        example=_example(entry),
    )


def _example(entry: Mapping[str, str]) -> Evidence:
    if "exception" not in entry:
        return left_behind(entry["example"], code=1)
    found = _EXAMPLE.fullmatch(entry["example"])
    return died_of(found[1], (found[2] or "").strip()) if found else left_behind(entry["example"], code=1)
