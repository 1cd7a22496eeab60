# SPDX-License-Identifier: Apache-2.0
"""How often the classifier is right on labelled failures, and what others would have said.

CORPUS is a file of JSON lines {"id", "exit_code", "signal", "stderr", "ranks", "label", "action", "confidence"}. Items
of high or medium confidence count. An ``investigate`` label accepts ``restart_in_place`` and the other way round: both
are a try in place. It exits with 1 where fewer than 92 % of the actions are right, more than 5 % of the hardware items
are called stop, or more than 2 % of the stop items are called reschedule.

Without CORPUS it measures what a verdict costs: 8 ranks with 200 lines of tail each, and exits with 1 above 50 ms.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resilient.core.causes import Action, Cause
from resilient.core.classify import classify
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.log_text import SIGNALS
from resilient.core.rule import Rule
from resilient.core.rules import RULES
from resilient.report.verdicts import judge_record

TRIES = {Action.INVESTIGATE.value, Action.RESTART_IN_PLACE.value}
HARDWARE = {Cause.DEVICE_FAULT.value, Cause.INTERCONNECT_FAULT.value}
STOP, MOVE = Action.STOP.value, Action.RESCHEDULE.value
RIGHT, HARDWARE_STOPPED, CODE_MOVED, BOUND_MS = 0.92, 0.05, 0.02, 50.0
Judge = Callable[[dict[str, Any]], tuple[str, str]]
"""An action and a cause for a record; the cause is empty where a baseline has none."""


@dataclass(frozen=True, slots=True)
class Score:
    """What came out for one judge."""

    items: int
    action: float
    cause: float
    hardware: int
    hardware_stopped: int
    stops: int
    code_moved: int
    confusion: Mapping[tuple[str, str], int]
    wrong: Sequence[tuple[str, str, str]]

    @property
    def good(self) -> bool:
        hardware, code = self.hardware_stopped / max(1, self.hardware), self.code_moved / max(1, self.stops)
        return self.action >= RIGHT and hardware <= HARDWARE_STOPPED and code <= CODE_MOVED


def ours(record: dict[str, Any], rules: Sequence[Rule] = RULES) -> tuple[str, str]:
    """The classifier, given only what the command line is given."""
    found = judge_record(record, rules)
    return found["action"], found["cause"]


def always_restart(record: dict[str, Any]) -> tuple[str, str]:
    """torchrun: whatever it was."""
    return Action.RESTART_IN_PLACE.value, ""


def exit_status(record: dict[str, Any]) -> int:
    """The code that a container ends with; 1 where a record has none, as torchrun folds every failure into."""
    signal, code = record.get("signal"), record.get("exit_code")
    number = SIGNALS.get(signal) if isinstance(signal, str) else signal
    if number:
        return 128 + int(number)
    return 1 if code is None else 128 - int(code) if int(code) < 0 else int(code)


def kubeflow(record: dict[str, Any]) -> tuple[str, str]:
    """Kubeflow v1's ExitCode policy: 1 to 127 is permanent, above is tried again."""
    return (STOP if exit_status(record) < 128 else Action.RESTART_IN_PLACE.value), ""


def dlrover(record: dict[str, Any]) -> tuple[str, str]:
    """DLRover's mapping: 1 and 134 are fatal, its own codes broken hardware, the rest starts another pod."""
    code = exit_status(record)
    if code in (14, 128, 201, 202):
        return MOVE, ""
    return (STOP if code in (1, 134) else MOVE if code in (137, 143) else Action.RESTART_IN_PLACE.value), ""


BASELINES: Mapping[str, Judge] = {
    "always restart (torchrun)": always_restart,
    "exit code below or above 128 (Kubeflow v1)": kubeflow,
    "mapping of exit codes (DLRover)": dlrover,
}


def accepted(label: str, action: str) -> bool:
    """Whether an action is as good as the label."""
    return label == action or {label, action} <= TRIES


def score(records: Iterable[dict[str, Any]], judge: Judge) -> Score:
    """Run one judge over all records that count."""
    confusion: Counter[tuple[str, str]] = Counter()
    right = causes = hardware = hardware_stopped = 0
    wrong = []
    for record in records:
        label, (action, cause) = record["action"], judge(record)
        confusion[label, action] += 1
        right += accepted(label, action)
        causes += cause == record["label"]
        is_hardware = record["label"] in HARDWARE
        hardware += is_hardware
        hardware_stopped += is_hardware and action == STOP
        if not accepted(label, action):
            wrong.append((str(record["id"]), label, action))
    items = sum(confusion.values())
    stops = sum(count for (label, _), count in confusion.items() if label == STOP)
    return Score(
        items=items,
        action=right / max(1, items),
        cause=causes / max(1, items),
        hardware=hardware,
        hardware_stopped=hardware_stopped,
        stops=stops,
        code_moved=confusion[STOP, MOVE],
        confusion=confusion,
        wrong=wrong,
    )


def without_each_rule(records: Sequence[dict[str, Any]], whole: Score) -> dict[str, float]:
    """By how much accuracy falls where one rule is missing; rules that change nothing are left out."""
    used = {judge_record(record)["rule"] for record in records}
    falls = {}
    for rule in RULES[:-1]:
        if rule.id not in used:
            continue
        fall = (
            whole.action - score(records, partial(ours, rules=[other for other in RULES if other is not rule])).action
        )
        if fall:
            falls[rule.id] = fall
    return dict(sorted(falls.items(), key=lambda item: -item[1]))


def price(blocks: int = 30) -> list[float]:
    """Milliseconds for one verdict on 8 ranks with 200 lines of tail each."""
    frame = '  File "/app/train.py", line 41, in loss\n    return model(batch)\n'
    death = "[rank{0}]: RuntimeError: [/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:44759\n"
    times = []
    for block in range(blocks):
        lines = "".join(
            f"epoch {block} step {step} loss {step / 7:.4f} lr 3.0e-4 tokens/s 18231\n" for step in range(180)
        )
        tails = [f"{lines}Traceback (most recent call last):\n{frame * 9}{death.format(rank)}" for rank in range(8)]
        ranks = tuple(RankEvidence(rank=rank, exit_code=1, order=rank, stderr_tail=t) for rank, t in enumerate(tails))
        before = time.perf_counter()
        classify(Evidence(ranks=ranks))
        times.append((time.perf_counter() - before) * 1000)
    return times


def report(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything, for JSON."""
    whole = score(records, ours)
    judged = {"resilient": whole} | {name: score(records, judge) for name, judge in BASELINES.items()}
    return {
        "items": whole.items,
        "good": whole.good,
        "results": {name: as_json(found) for name, found in judged.items()},
        "confusion": {f"{label} -> {action}": count for (label, action), count in sorted(whole.confusion.items())},
        "wrong": [f"{name}: {label}, not {action}" for name, label, action in whole.wrong],
        "without": {name: round(fall, 4) for name, fall in without_each_rule(records, whole).items()},
    }


def as_json(found: Score) -> dict[str, Any]:
    """The figures of one judge."""
    return {
        "action": round(found.action, 4),
        "cause": round(found.cause, 4),
        "hardware_called_stop": f"{found.hardware_stopped} of {found.hardware}",
        "stop_called_reschedule": f"{found.code_moved} of {found.stops}",
    }


def show(found: dict[str, Any]) -> None:
    """Everything, for people."""
    for name, figures in found["results"].items():
        print(
            f"{name}: {figures['action']:.1%} of {found['items']} actions right, {figures['cause']:.1%} of causes; "
            f"hardware called stop {figures['hardware_called_stop']}, "
            f"stop called reschedule {figures['stop_called_reschedule']}"
        )
    actions = [action.value for action in Action]
    print("\nlabel (down) and verdict (across):\n" + " " * 20 + "".join(f"{action:>20}" for action in actions))
    for label in actions:
        counts = (found["confusion"].get(f"{label} -> {action}", 0) for action in actions)
        print(f"{label:<20}" + "".join(f"{count:>20}" for count in counts))
    print("\nright actions lost without one rule:")
    for name, fall in found["without"].items():
        print(f"  {name}: {fall:+.1%}")
    print("\nwrong:\n" + "\n".join(f"  {line}" for line in found["wrong"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", metavar="CORPUS.jsonl")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    if options.corpus is None:
        times = price()
        middle = statistics.median(times)
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        figures = {"bound_ms": BOUND_MS, **machine, "results": {"median_ms": middle, "worst_ms": max(times)}}
        said = f"a verdict on 8 ranks, 200 lines each: {middle:.1f} ms [worst {max(times):.1f}]"
        print(json.dumps(figures, indent=2) if options.json else said)
        return 1 if middle > BOUND_MS else 0
    records = [json.loads(line) for line in Path(options.corpus).read_text().splitlines() if line.strip()]
    found = report([record for record in records if record.get("confidence") in ("high", "medium")])
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0 if found["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
