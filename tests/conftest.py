# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: a clean environment, repeatable examples, and nothing left behind."""

import contextlib
import ctypes
import gc
import itertools
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from chaos import Undisturbed, train
from hypothesis import settings
from once import Once, once_in

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# Before any test module is imported: a test must not see the pod, the launcher or the settings that it runs under.
LAUNCHERS = ("RESILIENT_", "PET_", "TORCHELASTIC_", "KUBERNETES_", "SLURM_", "OMPI_")
RANKS = "RANK LOCAL_RANK GROUP_RANK ROLE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE ROLE_NAME"
SINGLE = {*RANKS.split(), "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}
for name in list(os.environ):
    if name.startswith(LAUNCHERS) or name in SINGLE:
        del os.environ[name]

# Every process that a test starts would compile the whole package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Nor what it ignores: a job in the background of a shell ignores SIGINT and SIGQUIT, under nohup SIGHUP, and so would
# workers.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# Every process that a test leaves behind, in whatever session and however orphaned, becomes a child of this one.
PR_SET_CHILD_SUBREAPER = 36
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

ENDING_S = 60.0
"""For processes that a test has told to end and did not wait for."""
LONG = {f"test_{name}" for name in ["bits", "demo", "walk", "bad_batches", "incidents", "gang_incidents", "machine"]}
"""With tests of half a minute: begun last, one of them would keep everybody waiting in the end."""
FOLDERS = itertools.count(1)
FINISHED = itertools.count(1)
COLLECTED_EVERY = 20
SHARED_MEMORY = Path("/dev/shm")
NEW_FILE = "new in shared memory"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="kills for each number of ranks; default: %(default)s")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of pytest-xdist: it tells whoever started it
        config.pluginmanager.register(LeftInMemory())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, and skip what needs a GPU where there is none; torch is asked only when one was selected."""
    items.sort(key=lambda item: item.path.stem not in LONG)  # in whatever order they were otherwise
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


def pytest_collection() -> None:
    """Nothing that is imported and collected goes away, so that the garbage collector would look at it in vain.

    It stays off: tests fork processes, and a collection of another thread that a fork cut off may have killed one.
    """
    gc.disable()


def pytest_runtest_logfinish() -> None:
    """Now and then, where nobody forks."""
    if next(FINISHED) % COLLECTED_EVERY == 0:
        gc.collect()


def pytest_collection_finish() -> None:
    """What was imported stays: neither this process nor the hundreds that it forks are to look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: below it processes bind sockets, whose paths may have 107 characters; unix(7).

    Numbered here, as pytest would look through all folders of the session for the next number.
    """
    return tmp_path_factory.mktemp(f"t{next(FOLDERS)}", numbered=False)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How many kills a test of kills does, by ``--kills``."""
    return int(request.config.getoption("--kills"))


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What is made once, also where pytest-xdist runs tests in several processes."""
    own = tmp_path_factory.getbasetemp()
    return once_in(own.parent if hasattr(request.config, "workerinput") else own)


@pytest.fixture(scope="session")
def undisturbed(once: Once) -> Undisturbed:
    """The training that ``chaos.py`` disturbs, undisturbed."""
    return lambda ranks, steps: once(f"{ranks}-{steps}", lambda folder: train(folder, ranks, steps))


@pytest.fixture
def installed() -> Callable[[str], str]:
    """The path of a program that a test needs: without it the test is skipped, but in CI it fails."""

    def path_of(program: str) -> str:
        path = shutil.which(program)
        if path is not None:
            return path
        missing = f"cannot find {program}; install the Debian package of that name"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)

    return path_of


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process running; a file in shared memory fails the session, see ``LeftInMemory``."""
    children, files = _children(), _shared_files()
    yield
    request.node.user_properties += [(NEW_FILE, path) for path in sorted(_shared_files() - files)]
    running = [pid for pid in _children() - children if not _ends(pid)]
    commands = {pid: _command(pid) for pid in running}
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not commands, f"processes left running: {commands}"


def _children() -> set[int]:
    """Children of this process, but for Python's own resource tracker, which lives until this process ends."""
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found.update(int(pid) for pid in listing.read_text().split())
    return {pid for pid in found if "multiprocessing.resource_tracker" not in _command(pid)}


def _ends(pid: int) -> bool:
    """Wait for a child that may be on its way out, and reap it; False if it goes on running."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended, _, _ = select.select([pidfd], [], [], ENDING_S)
    finally:
        os.close(pidfd)
    if ended:
        with suppress(ChildProcessError):  # its owner was faster
            os.waitpid(pid, os.WNOHANG)
    return bool(ended)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _shared_files() -> set[str]:
    return set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()


class LeftInMemory:
    """Fails a session that leaves files in shared memory, and names the tests in which they appeared.

    All processes share that folder, so that one test alone cannot tell: what is new may be that of a test beside it.
    """

    def __init__(self) -> None:
        self._appeared: dict[str, list[str]] = {}
        self._left: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name in (str(value) for key, value in report.user_properties if key == NEW_FILE):
                self._appeared.setdefault(name, []).append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        until = time.monotonic() + ENDING_S
        while (left := _unused_files(self._appeared)) and time.monotonic() < until:
            time.sleep(0.1)  # it may be that of another session, which takes it away in time
        self._left = left
        if left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name in sorted(self._left):
            tests = ", ".join(self._appeared[name])
            terminalreporter.write_line(
                f"ERROR {SHARED_MEMORY / name} was left behind; it appeared in {tests}", red=True
            )


def _file_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unused_files(names: Collection[str]) -> set[str]:
    """Those of the files in shared memory that no other process has open or maps.

    Semaphores are mapped under another name, before they get their own, so it is their numbers that tell.
    """
    there = _shared_files().intersection(names)
    used = _used_files() if there else set()
    return {name for name in there if _file_of(SHARED_MEMORY / name) not in used}


def _used_files() -> set[tuple[int, int] | None]:
    device = SHARED_MEMORY.stat().st_dev
    found: set[tuple[int, int] | None] = {None}
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            lines = (line.split(None, 5) for line in (process / "maps").read_text(errors="replace").splitlines())
            found.update((device, int(words[4])) for words in lines if words[-1].startswith(str(SHARED_MEMORY)))
            found.update(_file_of(path) for path in (process / "fd").iterdir())
    return found
