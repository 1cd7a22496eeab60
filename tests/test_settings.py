# SPDX-License-Identifier: Apache-2.0
"""Settings: the layers and their order, names derived from fields, and a clear refusal of whatever is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient import settings
from resilient.core.cadence import Every
from resilient.errors import SettingsError
from resilient.settings import FIELDS, PLATFORM_FILE, RUN_SETTINGS, Effective, Given, Settings, load

NOWHERE = Path("/nonexistent/config.toml")
WRONG = {
    "checkpoints": ["", "a\0b", "line\nfeed"],
    "every": ["0", "-3", "1.5", "soon", ""],
    "snapshot_every": ["0", "never"],
    "keep": ["0", "-1", "two", "1.0", "9" * 30],
    "keep_every": ["0", "1.5", "1h"],
    "keep_best": ["", "loss", "loss:min", "loss:low:3", "loss:min:0", "loss:max:x", ":min:1", "a b:min:1", "l:min:1:2"],
    "hang_floor": ["60", "0s", "soon"],
    "idle_timeout": ["1800"],
    "hang_timeout": ["off"],
    "max_restarts": ["-1", "many"],
    "max_time_without_progress": ["1 month"],
    "store_patience": ["-10s"],
    "pod_patience": ["-30min"],
    "save_bandwidth": ["", "200", "200MB", "25Mb/s", "999B/s", "0MB/s", "fast", "-1MB/s", "9999999TB/s", "1 XB/s"],
    "grace": ["30"],
    "preemption_notices": ["ibm", "AWS", "true"],
    "pod_api": ["off", "Read", "true"],
    "journal": ["", "\x1b[31m"],
    "snapshots": ["", "\x1b[31m"],
    "termination_log": [""],
    "deny_list": [""],
    "rules": [""],
    "on_code_fault": ["", "never", "Confirm"],
    "skip_bad_batches": ["-1", "none", "1.5"],
    "fresh": ["perhaps", "2"],
    "observe": [""],
}


def flags(**values: object) -> tuple[Given, ...]:
    """The layer of flags."""
    return tuple(Given(name=name, value=value, origin=f"flag {settings.flag(name)}") for name, value in values.items())


def write(path: Path, text: str) -> Path:
    """A platform file."""
    path.write_text(text)
    return path


def of_environment(**environ: str) -> Effective:
    """What an environment alone gives."""
    return load(environ=environ, platform_file=NOWHERE)


def test_the_settings_are_few_and_these() -> None:
    """A new setting is a decision; names are what people have in their manifests."""
    assert list(FIELDS) == [
        "checkpoints",
        "every",
        "snapshot_every",
        "keep",
        "keep_every",
        "keep_best",
        "hang_floor",
        "idle_timeout",
        "hang_timeout",
        "max_restarts",
        "max_time_without_progress",
        "store_patience",
        "pod_patience",
        "save_bandwidth",
        "grace",
        "preemption_notices",
        "pod_api",
        "journal",
        "snapshots",
        "termination_log",
        "deny_list",
        "rules",
        "on_code_fault",
        "skip_bad_batches",
        "fresh",
        "observe",
    ]
    in_run = ("checkpoints", "every", "snapshot_every", "keep", "keep_every", "keep_best", "skip_bad_batches")
    assert in_run == RUN_SETTINGS
    assert settings.flag("max_restarts") == "--max-restarts"
    assert settings.variable("max_restarts") == "RESILIENT_MAX_RESTARTS"


def test_defaults_hold_where_nothing_is_said() -> None:
    """An empty environment gives the documented defaults, and says so."""
    effective = of_environment()
    assert effective.settings == Settings()
    assert set(effective.origins.values()) == {"default"}


def test_later_layers_win_and_each_value_knows_its_origin(tmp_path: Path) -> None:
    """default < platform file < Run() < environment < flags, value by value."""
    file = write(tmp_path / "c.toml", 'keep = 10\nevery = "1h"\ngrace = "40s"\ncheckpoints = "/platform"\n')
    effective = load(
        flags=flags(keep="13"),
        run={"keep": 11, "every": 100, "checkpoints": "/run", "snapshot_every": None},
        environ={"RESILIENT_KEEP": "12", "RESILIENT_EVERY": "200"},
        platform_file=file,
    )
    assert effective.settings.keep == 13
    assert effective.settings.every == Every(steps=200)
    assert effective.settings.checkpoints == "/run"
    assert effective.settings.grace == 40
    assert effective.settings.snapshot_every is None
    shown = {name: effective.origins[name] for name in ("keep", "every", "checkpoints", "grace", "snapshot_every")}
    assert shown == {
        "keep": "flag --keep",
        "every": "RESILIENT_EVERY",
        "checkpoints": "Run(checkpoints=)",
        "grace": str(file),
        "snapshot_every": "default",
    }


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_a_wrong_value_is_refused_by_name_and_origin(name: str, text: str) -> None:
    """Every kind of wrong value says whose it is, why it is wrong and what to do."""
    with pytest.raises(SettingsError) as refused:
        load(flags=flags(**{name: text}), environ={}, platform_file=NOWHERE)
    assert re.fullmatch(rf"cannot use .* for {name} \(flag {settings.flag(name)}\): .+; .+", str(refused.value), re.S)


def test_every_setting_has_a_wrong_value_in_these_tests() -> None:
    """The table above leaves no setting out."""
    assert WRONG.keys() == FIELDS.keys()


def test_a_wrong_value_is_refused_although_a_later_layer_hides_it() -> None:
    """A mistake must not wait for the day on which the layer above it is removed."""
    with pytest.raises(SettingsError, match=r"RESILIENT_KEEP"):
        load(flags=flags(keep="3"), environ={"RESILIENT_KEEP": "none"}, platform_file=NOWHERE)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"grace": "500ms"}, r"500ms for grace \(flag --grace\)"),
        ({"hang_floor": "31min"}, r"31min for hang_floor \(flag --hang-floor\).*idle_timeout, 30min \(default\)"),
    ],
)
def test_values_that_contradict_are_refused(given: dict[str, object], why: str) -> None:
    """Values that are right alone and wrong together are named, all of them."""
    with pytest.raises(SettingsError, match=why):
        load(flags=flags(**given), environ={}, platform_file=NOWHERE)


def test_words_for_nothing_set_go_before_lower_layers(tmp_path: Path) -> None:
    """A person can undo what the platform's file set."""
    file = write(tmp_path / "c.toml", 'hang_timeout = "2h"\nmax_restarts = 3\nsnapshot_every = 10\nfresh = true\n')
    environ = {"RESILIENT_HANG_TIMEOUT": "none", "RESILIENT_MAX_RESTARTS": "none", "RESILIENT_SNAPSHOT_EVERY": "auto"}
    undone = load(flags=flags(fresh="false"), environ=environ, platform_file=file).settings
    assert (undone.hang_timeout, undone.max_restarts, undone.snapshot_every, undone.fresh) == (None, None, None, False)


# The environment.


def test_an_unknown_variable_is_refused_with_a_suggestion() -> None:
    """A typo in a manifest must not silently mean the default."""
    with pytest.raises(SettingsError, match=r"did you mean RESILIENT_CHECKPOINTS\?"):
        of_environment(RESILIENT_CHECKPOINT="s3://bucket/run")


@pytest.mark.parametrize(
    "name",
    ["RESILIENT_SUBMISSION", "RESILIENT_INDEX", "RESILIENT_FAILURE_COUNT", "RESILIENT_IGNORED_COUNT", "RESILIENT_NODE",
     "RESILIENT_POD", "RESILIENT_NAMESPACE", "RESILIENT_INTERNAL_LINK", "RESILIENT_SERVICE_HOST",
     "RESILIENT_SERVICE_PORT", "RESILIENT_SERVICE_PORT_HTTP", "RESILIENT_PORT", "RESILIENT_PORT_80_TCP",
     "RESILIENT_PORT_80_TCP_ADDR", "RESILIENT_DEMO_SERVICE_HOST", "RESILIENT_DEMO_PORT_53_UDP_PROTO"],
)  # fmt: skip
def test_variables_of_others_are_left_alone(name: str) -> None:
    """The downward API, our own and the links that the kubelet sets for a Service are no settings."""
    assert of_environment(**{name: "x"}).settings == Settings()


def test_an_empty_variable_is_not_given() -> None:
    """Templates leave variables empty when they mean nothing."""
    assert of_environment(RESILIENT_KEEP="", RESILIENT_GRACE_S=" ", PET_MAX_RESTARTS="").settings == Settings()


def test_grace_is_read_in_plain_seconds_too() -> None:
    """A generated manifest repeats terminationGracePeriodSeconds; the setting's own variable goes before it."""
    effective = of_environment(RESILIENT_GRACE_S="120")
    assert (effective.settings.grace, effective.origins["grace"]) == (120, "RESILIENT_GRACE_S")
    assert of_environment(RESILIENT_GRACE_S="120", RESILIENT_GRACE="2h").settings.grace == 7200
    with pytest.raises(SettingsError, match=r"'2min' for grace \(RESILIENT_GRACE_S\)"):
        of_environment(RESILIENT_GRACE_S="2min")


def test_torchruns_variable_caps_the_restarts() -> None:
    """PET_MAX_RESTARTS is read, below our own name for it."""
    effective = of_environment(PET_MAX_RESTARTS="4")
    assert (effective.settings.max_restarts, effective.origins["max_restarts"]) == (4, "PET_MAX_RESTARTS")
    assert of_environment(PET_MAX_RESTARTS="4", RESILIENT_MAX_RESTARTS="0").settings.max_restarts == 0


def test_this_process_is_asked_where_no_environment_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of every reader is the real environment, and what is handed out is a copy of it."""
    monkeypatch.setenv("RESILIENT_KEEP", "7")
    monkeypatch.setenv("RESILIENT_POD", "pod-a")
    monkeypatch.setenv("RESILIENT_INTERNAL_LINK", "5")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert load(platform_file=NOWHERE).settings.keep == 7
    assert settings.platform().pod == "pod-a"
    assert (settings.worker_facts().rank, settings.worker_facts().link_fd) == (3, 5)
    settings.environment().clear()
    settings.forget_link()
    assert "RESILIENT_INTERNAL_LINK" not in os.environ
    assert os.environ["RESILIENT_KEEP"] == "7"


# The platform's file.


def test_a_missing_platform_file_is_no_layer(tmp_path: Path) -> None:
    """Most clusters have none, and a file may stand where its directory would."""
    assert settings.from_platform(tmp_path / "none.toml") == ()
    assert settings.from_platform(write(tmp_path / "file", "") / "config.toml") == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kepe = 3", "'kepe' in .*did you mean keep?"),
        ("[training]\nkeep = 3", "'training' in .*choose from"),
        ("keep = ", "cannot read"),
        ("keep = [3]", "for keep .*its type is list"),
        ("keep = true", "for keep .*its type is bool"),
        ("keep = -1", "it is less than 1; give 1 or more"),
        (f"keep = {'9' * 30}", "it has more than 18 digits; give a smaller number"),
        (f"keep = -{'9' * 30}", "it is less than 1"),
        ("grace = 30", "write 30s"),
        ("grace = '-3s'", "it is not between 1ms and 3650d"),
        ("grace = '99999999999s'", "it is not between 1ms and 3650d"),
        ("every = '-5min'", "it is not between 1ms and 3650d"),
        (f"every = '{'9' * 20}'", "more than 18 digits"),
        (f"every = {'9' * 20}", "more than 18 digits"),
        ("every = 300.0", "neither a number of steps nor a duration"),
        ("journal = 3", "give a path"),
    ],
)
def test_a_wrong_platform_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    """Its administrator learns the file, the key and the mistake."""
    with pytest.raises(SettingsError, match=why) as refused:
        load(environ={}, platform_file=write(tmp_path / "config.toml", text))
    assert "config.toml" in str(refused.value)


def test_a_platform_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Settings that exist and cannot be read must not silently be the defaults; nor may bytes that are no text."""
    with pytest.raises(SettingsError, match="cannot read"):
        settings.from_platform(tmp_path)
    (tmp_path / "config.toml").write_bytes(b'journal = "\xff"')
    with pytest.raises(SettingsError, match="cannot read"):
        settings.from_platform(tmp_path / "config.toml")


# What Run() is given.


def test_what_run_was_given_travels_as_text() -> None:
    """The worker checks it and the supervisor reads the same from the text."""
    given = {"checkpoints": Path("/runs/a"), "every": 100, "snapshot_every": "auto", "keep": 5}
    texts = settings.run_texts(given)
    assert texts == {"checkpoints": "/runs/a", "every": "100", "snapshot_every": "auto", "keep": "5"}
    by_text = load(run=texts, environ={}, platform_file=NOWHERE)
    assert by_text == load(run=given, environ={}, platform_file=NOWHERE)
    assert settings.run_texts({"every": None}) == {}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"every": 0}, r"'0' for every \(Run\(every=\)\)"),
        ({"every": True}, "its type is bool"),
        ({"every": 300.0}, "300s?"),
        ({"keep": None, "every": object()}, "its type is object"),
        ({"checkpoints": b"/x"}, "its type is bytes"),
        ({"grace": "30s"}, r"'grace' in Run\(\)"),
    ],
)
def test_a_wrong_argument_of_run_is_refused(given: dict[str, object], why: str) -> None:
    """The training script learns at once, in the worker."""
    with pytest.raises(SettingsError, match=why):
        settings.run_texts(given)


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("200MB/s", 200_000_000, "200MB/s"),
        ("1GiB/s", 1 << 30, "1GiB/s"),
        ("1.5 GB/s", 1_500_000_000, "1500MB/s"),
        ("5000B/s", 5000, "5kB/s"),
        ("12345B/s", 12345, "12345B/s"),
        ("64KB/s", 64_000, "64kB/s"),
        ("none", None, "none"),
    ],
)
def test_a_bandwidth_has_a_unit(text: str, count: int | None, shown: str) -> None:
    """What is shown reads back the same."""
    for given in (text, shown):
        effective = of_environment(RESILIENT_SAVE_BANDWIDTH=given)
        assert effective.settings.save_bandwidth == count
        assert effective.text("save_bandwidth") == shown


# What people see.


def test_credentials_are_never_shown() -> None:
    """Neither the effective value nor a complaint about it shows a password."""
    effective = of_environment(RESILIENT_CHECKPOINTS="s3://user:canary@bucket/run?token=canary")
    assert "canary" not in effective.text("checkpoints")
    assert "canary" in (effective.settings.checkpoints or "")
    with pytest.raises(SettingsError) as refused:
        of_environment(RESILIENT_CHECKPOINTS="s3://user:canary@bucket/\x01run")
    assert "canary" not in str(refused.value)


def test_a_home_directory_is_expanded_in_paths_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the ~ of --journal=~/x to us; in a URL it is the server's."""
    monkeypatch.setenv("HOME", "/home/someone")
    effective = load(flags=flags(journal="~/j", checkpoints="sftp://host/~/runs"), environ={}, platform_file=NOWHERE)
    assert effective.settings.journal == "/home/someone/j"
    assert effective.settings.checkpoints == "sftp://host/~/runs"


def test_the_table_has_a_row_for_every_setting() -> None:
    """The README's table is made from the fields: flag, default, meaning."""
    rows = settings.settings_table().splitlines()[2:]
    assert len(rows) == len(FIELDS)
    for name, row in zip(FIELDS, rows, strict=True):
        assert f"`{settings.flag(name)}`" in row
        assert row.count("|") == 4
    assert "| 5min |" in settings.settings_table()
    assert Path("/etc/resilient/config.toml") == PLATFORM_FILE


@pytest.mark.parametrize("name", FIELDS)
def test_every_value_reads_back_as_it_is_shown(name: str) -> None:
    """What `resilient config` prints can be given as a flag, but for places that nothing was said of."""
    default = FIELDS[name].default
    if default is None and FIELDS[name].metadata["unset"]:
        return
    given = flags(**{name: settings.shown(name, default)})
    assert getattr(load(flags=given, environ={}, platform_file=NOWHERE).settings, name) == default


def test_whoever_reads_settings_loads_no_rules() -> None:
    """Workers and probes read them at each start; the classifier's table is the supervisor's."""
    program = (
        "import sys, resilient.preflight.probes, resilient.supervisor.device_watch, resilient.training.run\n"
        "print({'resilient.core.rules', 'resilient.core.classify', 'resilient.core.user_rules'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert ended.stdout == "set()\n"
