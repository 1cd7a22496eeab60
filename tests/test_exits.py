# SPDX-License-Identifier: Apache-2.0
"""The exit-code contract, kept by real supervisors over real workers."""

import os
import signal
from pathlib import Path

import pytest
from supervised import HEAD, Folder, training

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "RESILIENT_SUBMISSION": "job-uid-1", "RESILIENT_POD": "train-0"}

NVRM_FELL_OFF = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, name=python, GPU has fallen off the bus."
NVRM_ECC = "NVRM: Xid (PCI:0000:3b:00): 48, pid=4711, name=python, DBE (double bit error) ECC Error"
NVRM_NVLINK = "NVRM: Xid (PCI:0000:3b:00): 74, pid=4711, name=python, NVLink: fatal error detected on link 3"
NCCL_ECC = "node-1:4711:4733 [0] NCCL WARN Cuda failure 214 'uncorrectable ECC error encountered'"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# Mistakes of the code.


def test_an_exception_before_the_first_step_ever_ends_it_at_once(folder: Folder) -> None:
    """Nothing was achieved yet, so there is nothing to protect by a second try."""
    ended = folder.run(folder.script(training('def fault(step):\n    raise ValueError("wrong rate")')))
    assert (ended.code, ended.attempts) == (114, 1)
    assert ended.termination["code"] == 114
    assert "wrong rate" in ended.termination["why"]


def test_a_script_that_never_imports_us_gets_one_confirming_restart(folder: Folder) -> None:
    """Its progress is unknown: it may have trained for a month."""
    ended = folder.run(folder.script('raise ValueError("wrong rate")'))
    assert (ended.code, ended.attempts, ended.rules) == (114, 2, ["user-value-error"] * 2)


def test_a_mistake_that_comes_back_at_the_same_step_is_confirmed_exactly_once(folder: Folder) -> None:
    """114 after two attempts, naming the step."""
    body = 'def fault(step):\n    if step == 3:\n        raise KeyError("labels")'
    ended = folder.run(folder.script(training(body)))
    assert (ended.code, ended.attempts) == (114, 2)
    assert folder.notes.count("3") == 2
    assert "step 3" in ended.termination["why"]


@pytest.mark.parametrize(
    ("text", "rule", "code"),
    [
        ("import einops_that_nobody_has", "import", 115),
        ("open('/nowhere/train.bin')", "missing-file", 115),
        ("if True print(1)", "syntax", 114),
        ("import os; os._exit(3)", None, 116),
    ],
)
def test_what_is_wrong_with_a_script_is_told_by_its_code(
    folder: Folder, text: str, rule: str | None, code: int
) -> None:
    """Set-up mistakes are told from mistakes of the code; a bare exit code proves neither."""
    ended = folder.run(folder.script(text))
    assert ended.code == code
    assert rule is None or set(ended.rules) == {rule}


def test_faults_that_come_once_are_survived_and_the_mark_keeps(folder: Folder) -> None:
    """An exception and a SIGKILL, each once, then a crash after the loop: all steps done, exit 0."""
    body = """
def fault(step):
    if step == 2 and once("raised"):
        raise RuntimeError("a cosmic ray")
    if step == 3 and once("killed"):
        os.kill(os.getpid(), signal.SIGKILL)

def after():
    note("after")
    if once("late"):
        raise OSError("cannot write the report")
"""
    script = folder.script(training(body))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert (ended.code, ended.attempts) == (0, 4), ended.stderr
    # The crash after the loop repeats what follows the loop, and no step.
    notes = folder.notes
    assert notes[-3:] == ["4", "after", "after"]

    again = folder.run("--checkpoints", folder.checkpoints, script)
    assert (again.code, again.attempts, folder.notes) == (0, 1, notes), again.stderr
    folder.script(training("STEPS = 6"))
    more = folder.run("--checkpoints", folder.checkpoints, script)
    assert more.code == 0, more.stderr
    assert folder.notes[len(notes) :] == ["5", "6"]

    # A command that was good is not judged by a node on which it is missing.
    assert folder.run("--checkpoints", folder.checkpoints, "--no-python", "no-such-program").code == 194


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGSEGV]
    + [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGABRT, signal.SIGBUS)],
)
def test_a_single_crash_is_survived(folder: Folder, number: signal.Signals) -> None:
    """Once is no pattern: restarted in place, exit 0."""
    ended = folder.run(folder.script(HEAD + f"if once('crashed'):\n    os.kill(os.getpid(), {int(number)})"))
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr


def test_breaking_off_the_loop_is_a_normal_end(folder: Folder) -> None:
    """Early stopping exits with 0, and a second start does not train on."""
    script = folder.script(training("STEPS = 100", loop="if run.step_number == 3: break"))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert (ended.code, folder.notes) == (0, ["1", "2", "3"]), ended.stderr
    again = folder.run("--checkpoints", folder.checkpoints, script)
    assert (again.code, folder.notes) == (0, ["1", "2", "3"]), again.stderr


def test_leaving_with_0_in_the_middle_of_the_loop_is_no_end(folder: Folder) -> None:
    """Whatever ends a worker between two steps, the run goes on; a mark for half of the work would lose the rest."""
    script = folder.script(training(loop='if run.step_number == 2 and once("left"): os._exit(0)', body="import os"))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert (ended.code, ended.attempts, ended.rules) == (0, 2, ["left-early"]), ended.stderr
    assert folder.notes[-1] == "4"


def test_a_handler_that_exits_with_0_hides_no_exception(folder: Folder) -> None:
    """Some libraries end a process at its end, with 0 whatever came before; the worker's record says what came."""
    text = """
import atexit, os
from resilient.training.error_record import LastWords
path = os.environ["RESILIENT_INTERNAL_ERROR_FILE"]
LastWords(rank=0, path=path, torchelastic_path=None, supervised=True).install()
atexit.register(os._exit, 0)
raise ValueError("wrong rate")
"""
    ended = folder.run(folder.script(text))
    assert (ended.code, ended.rules) == (114, ["user-value-error"] * 2), ended.stderr


def test_a_rank_that_ends_early_holds_nobody_up(folder: Folder) -> None:
    """Ranks that share nothing may end one after the other: the last ones wait for no common last state."""
    leaving = 'if __import__("os").environ["RANK"] == "0": break'
    ended = folder.run(
        "--nproc-per-node", "2", "--checkpoints", folder.checkpoints, folder.script(training(loop=leaving))
    )
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr


# Rulings.


@pytest.mark.parametrize(("ruling", "code", "attempts"), [("Stop", 114, 1), ("Retry", 0, 2), ("Reschedule", 194, 1)])
def test_what_the_users_code_rules_is_done(folder: Folder, ruling: str, code: int, attempts: int) -> None:
    """``raise resilient.Stop`` and its siblings outrank what rules would say."""
    raising = f'if once("ruled"):\n    raise resilient.{ruling}("the loss is nan")'
    ended = folder.run(folder.script(HEAD + "import resilient\n" + raising))
    assert (ended.code, ended.attempts) == (code, attempts), ended.stderr
    assert ended.rules == [f"ruled-{ruling.lower()}"]


# What the platform says.


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RESILIENT_SUBMISSION", "bad name/1"), ("RESILIENT_SUBMISSION", "../../x"), ("RESILIENT_INDEX", "-1")],
)
def test_a_submission_or_index_that_is_none_is_refused_before_anything_starts(
    folder: Folder, variable: str, value: str
) -> None:
    """115 with one line: no worker, no journal, and the reason in the pod's status."""
    ended = folder.run(folder.script(HEAD + "note('started')"), **KUBERNETES | {variable: value})
    assert (ended.code, ended.attempts, folder.notes, ended.journal) == (115, 0, [], ())
    assert ended.stderr.startswith(f"resilient: cannot use {value!r} for {variable}: ")
    assert len(ended.stderr.splitlines()) == 1
    assert (ended.termination["code"], variable in ended.termination["why"]) == (115, True)


# Crashes, and the ladder.


def test_a_crash_without_progress_ends_outside_kubernetes(folder: Folder) -> None:
    """A crash gets one second look in place, and there is no higher rung."""
    script = folder.script("import os\nos.kill(os.getpid(), 11)")
    ended = folder.run(script, "--max-restarts", "9")  # an argument of the script's own
    assert (ended.code, ended.attempts) == (116, 2)


@pytest.mark.slow
def test_a_kill_without_progress_is_repeated_three_times(folder: Folder) -> None:
    """A SIGKILL that nothing explains gets three restarts in place, further and further apart."""
    ended = folder.run(folder.script("import os\nos.kill(os.getpid(), 9)"))
    assert (ended.code, ended.attempts) == (116, 4)


@pytest.mark.parametrize("has_store", [True, False])
def test_inside_kubernetes_the_same_crash_climbs_over_three_containers(folder: Folder, has_store: bool) -> None:
    """A fresh container, then another node, then the end: by what the store, or the journal's volume, remembers."""
    script = folder.script("raise OSError(71, 'Protocol error')")  # investigated: a single second look
    volume = {} if has_store else {"RESILIENT_JOURNAL": str(folder.path / "volume")}
    arguments = ("--checkpoints", folder.checkpoints, script) if has_store else (script,)
    assert [folder.run(*arguments, **KUBERNETES, **volume).code for _ in range(3)] == [193, 194, 116]
    resubmitted = KUBERNETES | volume | {"RESILIENT_SUBMISSION": "job-uid-2"}
    assert folder.run(*arguments, **resubmitted).code == 193


def test_max_restarts_caps_the_attempts(folder: Folder) -> None:
    """As with torchrun, by flag or by PET_MAX_RESTARTS; inside Kubernetes it climbs no further either."""
    script = folder.script("import os\nos.kill(os.getpid(), 11)")
    assert [(e.code, e.attempts) for e in [folder.run("--max-restarts", "1", script)]] == [(116, 2)]
    ended = folder.run(script, **KUBERNETES, PET_MAX_RESTARTS="0")
    assert (ended.code, ended.attempts) == (116, 1)


def test_time_without_progress_ends_it(folder: Folder) -> None:
    """A fault after the allowed time, with steps known and none committed, is the last one."""
    body = "def fault(step):\n    if step == 2:\n        os.kill(os.getpid(), 9)"
    ended = folder.run("--max-time-without-progress", "1ms", folder.script(training(body)))
    assert (ended.code, ended.attempts) == (116, 1)
    assert "committed" in ended.termination["why"]


# Devices.


@pytest.mark.parametrize(
    "line", [NVRM_FELL_OFF, NCCL_ECC, *(pytest.param(line, marks=pytest.mark.slow) for line in (NVRM_ECC, NVRM_NVLINK))]
)
def test_a_device_verdict_moves_the_pod(folder: Folder, line: str) -> None:
    """What the driver and NCCL say on stderr outranks the exception, inside Kubernetes and outside."""
    ended = folder.run(folder.script(f"import sys\nsys.stderr.write({line!r} + chr(10))\nraise RuntimeError('step')"))
    assert (ended.code, ended.attempts) == (194, 1), ended.stderr
    assert "node" in ended.termination["do"]


def test_a_device_error_that_torch_raises_moves_the_pod(folder: Folder) -> None:
    """The type that torch itself raises for the CUDA runtime's errors."""
    raising = 'raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")'
    ended = folder.run(folder.script("import light_torch, torch\n" + raising))
    assert (ended.code, ended.attempts) == (194, 1), ended.stderr


def test_what_is_printed_to_stdout_is_no_witness(folder: Folder) -> None:
    """A script that prints a device error and dies of a mistake has made a mistake."""
    prints = f"print({NVRM_ECC!r})\nprint('CUDA error: uncorrectable ECC error encountered', flush=True)\n"
    ended = folder.run(folder.script(prints + "None + 1"))
    assert (ended.code, set(ended.rules)) == (114, {"user-type-error"})


# Commands.


def test_a_command_that_cannot_be_run(folder: Folder) -> None:
    """127 where there is none, 126 where it is not executable, without starting anything."""
    missing = folder.run("--no-python", "no-such-program")
    assert (missing.code, missing.attempts, missing.entries("workers")) == (127, 0, [])
    plain = folder.script("echo", "program")
    assert folder.run("--", plain).code == 126
    badly = folder.program("", "program")
    badly.write_text("#!/no/such/interpreter\n")
    assert folder.run("--", badly).code == 115


def test_a_script_that_is_not_there(folder: Folder) -> None:
    """It is known before anything is started. Of a module Python itself says so: no crash that another node cures."""
    ended = folder.run("missing.py")
    assert (ended.code, ended.attempts, ended.entries("workers")) == (115, 0, []), ended.stderr
    assert "why: cannot run 'missing.py': no such file" in ended.stderr
    ended = folder.run("-m", "missing_module")
    assert (ended.code, ended.attempts) == (115, 2), ended.stderr


# Leaving.


def test_a_script_that_never_imports_us_leaves_unsaved(folder: Folder) -> None:
    """SIGTERM reaches it; nothing of it was saved: 196."""
    with folder.start(folder.script("import signal\nprint('up', flush=True)\nsignal.pause()")) as running:
        running.until("up")
        running.signal(signal.SIGTERM)
        ended = running.wait()
    assert ended.code == 196
    assert ended.termination["code"] == 196


def test_a_zero_after_sigterm_is_not_finished(folder: Folder) -> None:
    """A script that swallows SIGTERM and exits with 0 must not make its pod count as succeeded."""
    swallow = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('up', flush=True)\nsignal.pause()"
    with folder.start(folder.script(swallow)) as running:
        running.until("up")
        running.signal(signal.SIGTERM)
        assert running.wait().code == 196


def test_a_script_that_ignores_sigterm_is_ended_in_time(folder: Folder) -> None:
    """Neither swallowing the signal nor holding out past the grace gets a worker out of it."""
    deaf = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\nwhile True: signal.pause()"
    with folder.start(folder.script(deaf), RESILIENT_GRACE_S="10") as running:
        running.until("up")
        running.signal(signal.SIGTERM)
        assert running.wait().code == 196


def test_an_exception_after_sigterm_is_its_consequence(folder: Folder) -> None:
    """It is never blamed on the code."""
    text = (
        "import signal\ndef fall(*_): raise ValueError('torn down')\n"
        "signal.signal(15, fall)\nprint('up', flush=True)\nsignal.pause()"
    )
    with folder.start(folder.script(text)) as running:
        running.until("up")
        running.signal(signal.SIGTERM)
        ended = running.wait()
    assert (ended.code, ended.rules) == (196, [])


# Observing.


def test_observing_acts_as_torchrun_would(folder: Folder) -> None:
    """Exit 1 after the restarts that were given, with the verdict still told."""
    script = folder.script("raise ValueError('wrong rate')")
    ended = folder.run("--observe", script)
    assert (ended.code, ended.attempts, ended.rules) == (1, 1, ["user-value-error"])
    assert ended.termination["name"] == "observed_failure"
    again = folder.run("--observe", "--max-restarts", "2", script)
    assert (again.code, again.attempts) == (1, 3)
    assert "wrong rate" in again.stderr


def test_observing_kills_no_hang(folder: Folder) -> None:
    """A worker that stands still beyond its bound is reported and goes on."""
    text = "import os\nprint('up', flush=True)\nos.read(os.open('gate', os.O_RDONLY), 1)\nprint('through', flush=True)"
    os.mkfifo(folder.path / "gate")
    arguments = ("--observe", "--hang-floor", "100ms", "--hang-timeout", "100ms", "--idle-timeout", "200ms")
    with folder.start(*arguments, folder.script(text)) as running:
        running.until("left alone")
        (folder.path / "gate").write_bytes(b".")
        ended = running.wait()
    assert (ended.code, "through" in ended.stdout) == (0, True)


# The lock.


def test_a_run_is_supervised_once(folder: Folder) -> None:
    """A second supervisor is refused with who holds the run, and after SIGKILL of the holder it is free."""
    script = folder.script("import signal\nprint('up', flush=True)\nsignal.pause()")
    with folder.start("--checkpoints", folder.checkpoints, script) as holder:
        holder.until("up")
        refused = folder.run("--checkpoints", folder.checkpoints, script)
        assert refused.code == 115
        assert refused.attempts == 0
        assert str(holder.pid) in refused.termination["why"]
        holder.signal(signal.SIGKILL)
        holder.wait()
    folder.script("print('took over')")
    after = folder.run("--checkpoints", folder.checkpoints, script)
    assert (after.code, after.attempts) == (0, 1), after.stderr


AGAIN = """
import time

def fault(step):
    while run.attempt == 2 and step == 2 and all(entry["attempt"] < 2 for entry in told("first_step")):
        time.sleep(0.01)
"""


def test_steps_that_were_made_again_are_told(folder: Folder) -> None:
    """An attempt that ends well where the one before it had failed has come as far as that one."""
    script = folder.script(
        training(AGAIN, loop="if run.step_number == STEPS and once('killed'): os.kill(os.getpid(), 9)")
    )
    ended = folder.run(script)
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr
    told = folder.ask("explain", folder.path / "journal-1").stdout
    assert "It reached step 4 and failed." in told
    assert "It reached step 4 and finished." in told
