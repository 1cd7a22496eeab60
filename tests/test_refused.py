# SPDX-License-Identifier: Apache-2.0
"""What ``Run()`` refuses costs one start: nothing was trained, and another start would be refused alike."""

from pathlib import Path

import pytest
from supervised import Folder, training


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("every='5 parsecs'", "cannot use '5 parsecs' for every (Run(every=))"),
        ("keep=-1", "cannot use '-1' for keep (Run(keep=))"),
        ("color=3", "cannot use 'color' in Run()"),
        ("evry='5min'", "did you mean every?"),
    ],
)
def test_a_wrong_setting_ends_a_run_after_one_attempt(tmp_path: Path, arguments: str, words: str) -> None:
    """With the code of a configuration fault, as a wrong flag does."""
    folder = Folder(tmp_path)
    ended = folder.run("--checkpoints", folder.checkpoints, folder.script(training(arguments=arguments)))
    assert (ended.code, ended.attempts, ended.rules) == (115, 1, ["our-refusal"]), ended.stderr
    assert words in ended.termination["why"]


def test_a_state_that_cannot_be_kept_ends_it_as_well(tmp_path: Path) -> None:
    """It is refused by its path."""
    folder = Folder(tmp_path)
    script = training().replace('{"model": model}', '{"model": model, "odd": [object()]}')
    ended = folder.run("--checkpoints", folder.checkpoints, folder.script(script))
    assert (ended.code, ended.attempts) == (115, 1), ended.stderr
    assert "odd" in ended.termination["why"]


def test_a_script_may_try_again(tmp_path: Path) -> None:
    """The link to the supervisor is not used up by what was refused."""
    folder = Folder(tmp_path)
    body = (
        "try:\n    resilient.Run(state={'model': model}, keep=-1)\nexcept resilient.SettingsError:\n    note('refused')"
    )
    ended = folder.run("--checkpoints", folder.checkpoints, folder.script(training(body=body)))
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr
    assert folder.notes == ["refused", "1", "2", "3", "4"]


def test_a_run_that_had_steps_gets_another_start(tmp_path: Path) -> None:
    """A wrong verdict must not end a month of work: what had worked before is looked at twice."""
    folder = Folder(tmp_path)
    assert folder.run("--checkpoints", folder.checkpoints, folder.script(training())).code == 0
    script = folder.script(training(body="STEPS = 8", arguments="keep=-1"))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert (ended.code, ended.attempts) == (115, 2), ended.stderr
