# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint is tried first, and which are deleted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from supervised import Folder, training

from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import read_manifest
from resilient.core.retention import Best, Rules, is_metric, prunable, restore_order


@dataclass(frozen=True)
class C:
    """A checkpoint, as far as retention looks."""

    attempt: int
    step: int
    name: str
    metrics: Mapping[str, float] = field(default_factory=dict)


def make(*names: str, **losses: float) -> list[C]:
    """Checkpoints by name; ``s20=0.5``: those of step 20 and their loss."""
    parts = [(int(n.split("-")[0]), int(n.split("-")[1].split(".")[0]), n) for n in names]
    return [C(a, s, n, {"loss": losses[f"s{s}"]} if f"s{s}" in losses else {}) for a, s, n in parts]


def test_a_later_attempt_wins_over_a_later_step() -> None:
    """A pod given up for dead that goes on writing does not win over the one that replaced it."""
    order = restore_order(make("1-100", "1-130", "2-105", "1-120"))
    assert [c.name for c in order] == ["2-105", "1-130", "1-120", "1-100"]


def test_a_later_try_wins_over_an_earlier_one() -> None:
    """Numbers are compared, not letters."""
    assert [c.name for c in restore_order(make("1-5.2", "1-5", "1-5.10"))] == ["1-5.10", "1-5.2", "1-5"]


def test_the_last_ones_are_kept() -> None:
    """What is older than the last ``keep`` goes, the oldest first."""
    assert prunable(make("1-1", "1-3", "1-2", "2-1"), Rules(keep=2)) == ["1-1", "1-2"]


def test_what_is_in_use_stays_beside_the_kept() -> None:
    """The checkpoint from which the present attempt began is not pruned by a zombie's later ones."""
    assert prunable(make("1-100", "1-110", "1-120", "1-130"), Rules(keep=1), in_use=["1-100"]) == ["1-110", "1-120"]


def test_damaged_ones_are_not_counted() -> None:
    """A damaged checkpoint must not push out a good one."""
    assert prunable(make("1-1", "1-2", "1-3", "1-4"), Rules(keep=2), damaged=["1-4", "1-2"]) == ["1-2"]


def test_nothing_goes_while_all_are_damaged() -> None:
    """What seems damaged here may be all there is."""
    assert prunable(make("1-1", "1-2"), Rules(keep=1), damaged=["1-1", "1-2"]) == []


def kept(checkpoints: list[C], rules: Rules, *damaged: str) -> list[str]:
    doomed = prunable(checkpoints, rules, damaged=damaged)
    return [c.name for c in checkpoints if c.name not in doomed]


def test_the_first_at_or_after_each_multiple_stays() -> None:
    """A cadence in time seldom hits a multiple; where one is hit it is that one, of the newest attempt."""
    saved = make("1-40", "1-100", "1-150", "2-100", "2-140", "2-230", "2-260", "2-310", "2-320")
    assert kept(saved, Rules(keep=1, every=100)) == ["2-100", "2-230", "2-310", "2-320"]
    assert kept(saved, Rules(keep=1, every=100), "2-230") == ["2-100", "2-260", "2-310", "2-320"]
    assert kept(saved, Rules(keep=1, every=1000)) == ["2-320"]


def test_the_best_by_a_metric_stay() -> None:
    """The lowest or the highest; what says nothing of the metric is not among them."""
    saved = make("1-1", "1-2", "1-3", "1-4", "1-5", "1-6", s1=0.9, s2=0.1, s3=-0.5, s4=0.3, s5=0.8)
    assert kept(saved, Rules(keep=1, best=Best(metric="loss", lowest=True, count=2))) == ["1-2", "1-3", "1-6"]
    assert kept(saved, Rules(keep=1, best=Best(metric="loss", lowest=False, count=1))) == ["1-1", "1-6"]
    assert kept(saved, Rules(keep=1, best=Best(metric="other", lowest=False, count=3))) == ["1-6"]
    assert kept(saved, Rules(keep=1, best=Best(metric="loss", lowest=True, count=2)), "1-3") == ["1-2", "1-4", "1-6"]


def test_of_equal_values_the_earliest_counts() -> None:
    """Until the next evaluation each checkpoint repeats the last value, which was measured on the first of them."""
    saved = make("1-10", "1-20", "1-30", "1-40", "2-20", s10=0.5, s20=0.2, s30=0.2, s40=0.9)
    assert kept(saved, Rules(keep=1, best=Best(metric="loss", lowest=True, count=2))) == ["1-10", "2-20"]


@given(st.text(max_size=120))
def test_names_of_metrics_are_plain(name: str) -> None:
    """No control characters, no colon (which separates in the setting), never longer than 100."""
    if is_metric(name):
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set(" :=|[]")
        assert len(name) <= 100


LOSSES = st.dictionaries(st.integers(0, 9).map("s{}".format), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=8)
CHECKPOINTS = st.builds(
    lambda pairs, losses: make(*(f"{a}-{s}" for a, s in sorted(pairs)), **losses),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=12),
    LOSSES,
)
RULES = st.builds(
    Rules,
    keep=st.integers(-1, 5),
    every=st.none() | st.integers(1, 5),
    best=st.none() | st.builds(Best, metric=st.just("loss"), lowest=st.booleans(), count=st.integers(1, 3)),
)


@given(CHECKPOINTS, RULES, st.data())
def test_what_any_rule_keeps_always_stays(checkpoints: list[C], rules: Rules, data: st.DataObject) -> None:
    """Whatever is asked, what a restore would take first is never deleted, nor anything in use or kept by one rule."""
    names = [c.name for c in checkpoints]
    damaged = data.draw(st.sets(st.sampled_from(names))) if names else set()
    in_use = data.draw(st.sets(st.sampled_from(names))) if names else set()
    doomed = prunable(checkpoints, rules, damaged=damaged, in_use=in_use)
    good = [c for c in restore_order(checkpoints) if c.name not in damaged]
    newest = {c.name for c in good[: max(rules.keep, 1)]}
    assert not (newest | in_use) & set(doomed)
    first = [c.name for c in good if rules.every and c.step and not c.step % rules.every]
    spared = {c.name for c in good} - set(doomed) - newest - in_use
    steps = {c.step for c in good if c.name in spared | newest | in_use}
    assert {int(name.split("-")[1]) for name in first} <= steps, "a multiple is kept, by one attempt"
    if rules.best is None and rules.every is None:
        assert not spared
    if rules.best and any(c.metrics for c in good):
        wanted = (min if rules.best.lowest else max)(c.metrics["loss"] for c in good if c.metrics)
        assert wanted in {c.metrics.get("loss") for c in good if c.name not in doomed}
    most = (rules.best.count if rules.best else 0) + len({c.step // rules.every for c in good if rules.every})
    assert len(spared) <= most


@given(CHECKPOINTS, RULES)
def test_pruning_twice_prunes_nothing_more(checkpoints: list[C], rules: Rules) -> None:
    """What stays is what the rules keep of it: the second look sees no other order."""
    doomed = prunable(checkpoints, rules)
    assert prunable([c for c in checkpoints if c.name not in doomed], rules) == []


METRIC = """
import math, time
def fault(step):  # a minute in all for four checkpoints, and steps go on meanwhile
    for _ in range(100 if step > 40 else 0):
        if len(told("checkpoint")) > 3:
            break
        time.sleep(0.01)

REFUSED = [("a b", 1.0), ("", 1.0), ("x" * 101, 1.0), ("a:b", 1.0), (3, 1.0)]
REFUSED += [("a", "1"), ("a", True), ("a", torch.ones(1))]
def after():
    for name, value in REFUSED:
        try:
            run.metric(name, value)
        except resilient.SettingsError:
            note("refused")
"""
MEASURE = """time.sleep(0.02); run.metric("loss", abs(run.step_number - 25) + 1); run.metric("val/x", 2)
    run.metric("huge", 10**400)
    if run.step_number % 2: run.metric("odd", 1.0)
    else: run.metric("odd", math.nan)"""


def test_a_supervised_run_keeps_its_best(tmp_path: Path) -> None:
    """What the script measured goes with each checkpoint, and the best one stays beside the newest."""
    folder = Folder(tmp_path)
    script = folder.script(
        training(f"STEPS = 100\n{METRIC}", 'every=1, snapshot_every=1, keep=1, keep_best="loss:min:1"', MEASURE)
    )
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert ended.code == 0, ended.stderr
    assert folder.notes.count("refused") == 8
    committed = {str(entry["name"]): int(entry["step"]) for entry in ended.entries("checkpoint")}
    assert len(committed) > 3, "more than what stays"
    best = min(committed, key=lambda name: (abs(committed[name] - 25), committed[name]))
    left = {path.name for path in (folder.checkpoints / "checkpoints").iterdir()}
    newest = [name for name, step in committed.items() if step == 100][-1]  # where saving it took a second try: 1-100.1
    assert left == {newest, best}
    for name in left:
        manifest = read_manifest(open_store(str(folder.checkpoints)), name)
        odd = {"odd": 1.0} if manifest.step % 2 else {}
        assert manifest.metrics == {"loss": abs(manifest.step - 25) + 1, "val/x": 2.0, **odd}
