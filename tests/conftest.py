# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: a clean environment, repeatable examples, and nothing left behind."""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# Before any test module is imported: a test must not see the pod, the launcher or the settings that it runs under.
LAUNCHERS = ("RESILIENT_", "PET_", "TORCHELASTIC_", "KUBERNETES_", "SLURM_", "OMPI_")
RANKS = "RANK LOCAL_RANK GROUP_RANK ROLE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE ROLE_NAME"
SINGLE = {*RANKS.split(), "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}
for name in list(os.environ):
    if name.startswith(LAUNCHERS) or name in SINGLE:
        del os.environ[name]

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
SHARED_MEMORY = Path("/dev/shm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="kills for each number of ranks; default: %(default)s")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; torch is asked only when such a test was selected."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How many kills a test of kills does, by ``--kills``."""
    return int(request.config.getoption("--kills"))


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
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process running or a file in shared memory."""
    children, files = _children(), _shared_files()
    yield
    running = [pid for pid in _children() - children if not _ends(pid)]
    commands = {pid: _command(pid) for pid in running}
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    left = _shared_files() - files
    if left:
        mapped = _mapped_by_others()
        left = {path for path in left if _inode(path) not in mapped}
    for path in left:
        path.unlink(missing_ok=True)
    assert not commands, f"processes left running: {commands}"
    assert not left, f"files left in shared memory: {sorted(map(str, left))}"


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


def _shared_files() -> set[Path]:
    return set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else set()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _mapped_by_others() -> set[int | None]:
    """Files in shared memory that other processes map: not this test's doing. Semaphores are mapped under another name,
    before they get their own, so it is their numbers that tell."""
    found: set[int | None] = {None}
    for listing in Path("/proc").glob("[0-9]*/maps"):
        if listing.parent.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            lines = (line.split(None, 5) for line in listing.read_text(errors="replace").splitlines())
            found.update(
                int(words[4]) for words in lines if len(words) == 6 and words[5].startswith(str(SHARED_MEMORY))
            )
    return found
