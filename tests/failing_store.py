# SPDX-License-Identifier: Apache-2.0
"""``failing://DIRECTORY``: a store that can be taken away, for every process that has ``plugin`` on its path.

The file named by FAILING_STORE says how it fails at this moment: not at all where it is
missing or empty, else by one word of ``FAULTS``. A worker can write it as well as a test.
"""

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Any

from object_store import ObjectFileSystem

VARIABLE = "FAILING_STORE"
TESTS = Path(__file__).resolve().parent


class ServiceUnavailable(OSError):
    """What an object store's client raises for a 503."""

    status = 503


FAULTS = {
    "503": ServiceUnavailable("Please reduce your request rate"),
    "denied": PermissionError(errno.EACCES, "Permission denied"),
    "full": OSError(errno.ENOSPC, "No space left on device"),
}


class FailingFileSystem(ObjectFileSystem):
    """Asks before each operation how it is to fail; a full store can still be read."""

    protocol = "failing"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """``failing://user:password@/directory`` is that directory."""
        return super()._strip_protocol(re.sub(r"^failing://[^/]*@", "failing://", os.fspath(path)))

    def check(self, *, writes: bool) -> None:
        """Raise what is asked for."""
        control = Path(os.environ[VARIABLE])
        word = ""
        with contextlib.suppress(FileNotFoundError):  # it may go away at any time
            word = control.read_text().strip()
        if word and (writes or word != "full"):
            raise FAULTS[word]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.check(writes=True)
        super().pipe_file(path, value, mode=mode, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self.check(writes="r" not in mode)
        return super()._open(path, mode, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        self.check(writes=False)
        return super().info(path, **kwargs)

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        self.check(writes=False)
        return super().ls(path, detail=detail, **kwargs)

    def rm_file(self, path: str) -> None:
        self.check(writes=True)
        super().rm_file(path)


def plugin(folder: Path, root: Path) -> dict[str, str]:
    """Install ``failing://`` the way a package does, and the environment in which it is found."""
    entry = folder / "failing_store-1.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: failing-store\nVersion: 1\n")
    (entry / "entry_points.txt").write_text("[fsspec.specs]\nfailing = failing_store:FailingFileSystem\n")
    return {VARIABLE: str(folder / "fault"), "PYTHONPATH": os.pathsep.join(map(str, (root, TESTS, folder)))}
