# SPDX-License-Identifier: Apache-2.0
"""A container whose driver answers as recorded, for processes that import ``pynvml``."""

import os
from pathlib import Path

from supervised import ROOT

_MODULE = """
import sys
sys.path.insert(0, {tests!r})
import nvml
sys.modules["pynvml"] = nvml.Pynvml({boards})
"""


def recorded(folder: Path, boards: str) -> dict[str, str]:
    """The environment of such a container; ``boards`` are the arguments of ``nvml.Pynvml``."""
    (folder / "site").mkdir()
    (folder / "site/pynvml.py").write_text(_MODULE.format(tests=str(ROOT / "tests"), boards=boards))
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "site")]), "CUDA_VISIBLE_DEVICES": "0,1"}
