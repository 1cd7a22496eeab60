# SPDX-License-Identifier: Apache-2.0
"""The checkpoint store is taken away in each state of the machine: every path ends, and none may loop unbounded."""

import signal
from pathlib import Path

import pytest
from failing_store import plugin
from supervised import HEAD, ROOT, Ended, Folder, Running, training

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "RESILIENT_SUBMISSION": "uid-1", "RESILIENT_STORE_PATIENCE": "1s"}
COUNTERS = {"RESILIENT_FAILURE_COUNT": "20", "RESILIENT_IGNORED_COUNT": "0"}
BEYOND = {"RESILIENT_FAILURE_COUNT": "11", "RESILIENT_IGNORED_COUNT": "10"}
DEVICE = "sys.stderr.write('NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.' + chr(10)); sys.exit(1)"
BREAK = '\nimport os\ndef lose(how):\n    open(os.environ["FAILING_STORE"], "w").write(how)\n'


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.environ.update(plugin(tmp_path, ROOT) | KUBERNETES)
    return folder


def url(folder: Folder) -> str:
    return f"failing://{folder.checkpoints}"


def lose(folder: Folder, how: str) -> None:
    (folder.path / "fault").write_text(how)


def assert_blocked(ended: Ended, code: int) -> None:
    """It wanted ``code`` and could not put that on record."""
    assert ended.code == 199, ended.stderr
    assert str(code) in ended.termination["why"]
    assert "store" in ended.termination["do"]


def either(usual: str, *others: str) -> pytest.MarkDecorator:
    """Each way in which a store fails; the supervisor's own way is the same for all of them."""
    slow = (pytest.param(other, marks=pytest.mark.slow) for other in others)
    return pytest.mark.parametrize("how", [usual, *slow])


@either("denied", "503", "full")
def test_before_anything_is_started(folder: Folder, how: str) -> None:
    """No store at the start: a fresh container is worth a try, but only where something counts the tries."""
    lose(folder, how)
    script = folder.script(HEAD + "note('started')")
    assert_blocked(folder.run("--checkpoints", url(folder), script), 193)
    assert_blocked(folder.run("--checkpoints", url(folder), script, **BEYOND), 193)
    assert folder.run("--checkpoints", url(folder), script, **COUNTERS).code == 193
    assert folder.notes == []


def test_while_it_is_opened_for_a_script_that_names_it(folder: Folder) -> None:
    """A store that only ``Run()`` names and that does not answer ends the workers that wait for it."""
    lose(folder, "denied")
    script = folder.script(training(arguments=f"checkpoints={url(folder)!r}"))
    assert_blocked(folder.run(script), 193)
    assert folder.notes == []


@either("full", "denied")
def test_while_workers_run_and_then_fail(folder: Folder, how: str) -> None:
    """Without a record no ignored exit, unless the controller counts; and a code that stops needs no record."""
    script = folder.script(HEAD + BREAK + f"lose({how!r})\n" + DEVICE)
    assert_blocked(folder.run("--checkpoints", url(folder), script), 194)
    lose(folder, "")
    assert folder.run("--checkpoints", url(folder), script, **COUNTERS).code == 194
    lose(folder, "")
    folder.script(HEAD + BREAK + f"lose({how!r})\nNone + 1")
    assert folder.run("--checkpoints", url(folder), script).code == 114


def test_while_it_backs_off_before_a_restart(folder: Folder) -> None:
    """The restart takes place all the same: in place nothing is needed of the store."""
    text = HEAD + BREAK + "if once('failed'):\n    lose('denied')\n    sys.exit(3)\nnote('again')"
    ended = folder.run("--checkpoints", url(folder), folder.script(text))
    assert (ended.code, folder.notes) == (0, ["again"]), ended.stderr
    assert "not on record" in ended.termination["why"]


@either("503", "denied")
def test_while_it_is_asked_to_leave(folder: Folder, how: str) -> None:
    """The end comes within the grace, however the store fails."""

    def preempted(**environ: str) -> Ended:
        lose(folder, "")
        script = folder.script(HEAD + "print('up', flush=True)\nsignal.pause()")
        with folder.start("--checkpoints", url(folder), script, RESILIENT_GRACE_S="4", **environ) as running:
            running.until("up")
            lose(folder, how)
            running.signal(signal.SIGTERM)
            return running.wait()

    assert_blocked(preempted(), 196)
    assert preempted(**COUNTERS).code == 196


@pytest.mark.slow
def test_while_the_last_step_is_saved(folder: Folder) -> None:
    """A save that is tried again and again ends with the grace."""
    body = (
        BREAK
        + "\nSTEPS = 10 ** 6\ndef fault(step):\n    if step == 3:\n        lose('503')\n        print('up', flush=True)"
    )
    script = folder.script(training(body, "every=1, snapshot_every=1"))
    with folder.start("--checkpoints", url(folder), script, RESILIENT_GRACE_S="6") as running:
        running.until("up")
        running.signal(signal.SIGTERM)
        assert_blocked(running.wait(), 196)


def test_while_the_exit_is_put_on_record(folder: Folder) -> None:
    """SIGTERM while a record is tried again and again: the exit is the one of leaving, and it comes in time."""
    script = folder.script(HEAD + BREAK + "lose('503')\n" + DEVICE)
    environ = {"RESILIENT_GRACE_S": "4", "RESILIENT_STORE_PATIENCE": "1000s"}  # only the grace ends the tries
    with folder.start("--checkpoints", url(folder), script, **environ) as running:
        running.until("another node")
        until_phase(running, "recording")
        running.signal(signal.SIGTERM)
        assert_blocked(running.wait(), 196)


def test_while_steps_are_saved(folder: Folder) -> None:
    """Training goes on to its end without the store; what could not be saved is told, and 0 means finished."""
    body = BREAK + "\ndef fault(step):\n    if step == 2:\n        lose('full')"
    script = folder.script(training(body, "every=1, snapshot_every=1"))
    ended = folder.run("--checkpoints", url(folder), script)
    assert (ended.code, folder.notes) == (0, ["1", "2", "3", "4"]), ended.stderr
    assert len(ended.entries("save_failed")) >= 1 == ended.stderr.count("could not be saved: ")
    assert "of step 4, is not durable: there is no checkpoint" in ended.termination["why"]
    assert "start the run again: it begins anew" in ended.termination["do"]
    assert f"next: {ended.termination['do']}" in ended.stderr
    lose(folder, "")
    again = folder.run("--checkpoints", url(folder), script)
    assert (again.code, folder.notes[4:][-1:]) == (0, ["4"]), again.stderr


def test_a_worker_is_restarted_from_memory_without_a_store(folder: Folder) -> None:
    """The snapshot in memory needs no store; what stops the run afterwards is judged as ever."""
    body = BREAK + (
        "\ndef fault(step):\n    if step == 4 and once('killed'):\n"
        "        lose('denied')\n        os.kill(os.getpid(), signal.SIGKILL)\n    if step == 6:\n        None + 1"
    )
    ended = folder.run("--checkpoints", url(folder), folder.script(training("STEPS = 8\n" + body, "every=1")))
    assert (ended.code, ended.attempts) == (114, 3), ended.stderr


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    """The store answered, and the answer is that the URL is wrong: 115, before anything is started."""
    folder = Folder(tmp_path)
    folder.checkpoints.write_text("not a directory")
    ended = folder.run("--checkpoints", folder.checkpoints / "run", folder.script(HEAD + "note('started')"))
    assert (ended.code, folder.notes) == (115, []), ended.stderr
    assert f"read more: resilient explain {tmp_path / 'journal-1'}" in ended.stderr  # nothing of it is in the store


def test_without_a_store_the_journal_keeps_the_record(tmp_path: Path) -> None:
    """No URL was ever given: the debit lies in the journal's directory, and the exit stands."""
    folder = Folder(tmp_path)
    ended = folder.run(folder.script(HEAD + DEVICE), **KUBERNETES)
    assert ended.code == 194
    assert list((tmp_path / "journal-1" / "debits").iterdir())


def until_phase(running: Running, phase: str) -> None:
    """Wait until the journal shows the phase; a file that grows announces itself nowhere."""
    while not any(entry.get("next") == phase for entry in running.entries()):
        assert running.process.poll() is None, f"it ended before it was {phase}"
