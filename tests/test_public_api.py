# SPDX-License-Identifier: Apache-2.0
"""The public names: these and no others, imported lazily, with nothing but the standard library behind them."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from supervised import LIMIT_S

import resilient

NAMES = [
    "CheckpointError",
    "ExitCode",
    "Reschedule",
    "ResilientError",
    "Retry",
    "Run",
    "SettingsError",
    "Stop",
    "__version__",
    "doctor",
    "exact_ddp",
]


def test_the_public_names_are_these() -> None:
    """A new public name is a promise: it is made here first."""
    assert resilient.__all__ == NAMES
    assert dir(resilient) == sorted(NAMES)


def test_every_name_leads_somewhere() -> None:
    """Each lazy name is the thing of that name, and the same one each time."""
    for name in set(NAMES) - {"__version__"}:
        assert getattr(resilient, name).__name__ == name
        assert getattr(resilient, name) is getattr(resilient, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As of any module, so that hasattr and from-imports behave."""
    assert not hasattr(resilient, "run")
    with pytest.raises(AttributeError, match=r"no attribute 'step'; it has .*Run"):
        _ = resilient.step  # type: ignore[attr-defined]  # its absence is the test


def test_the_version_is_the_distributions() -> None:
    """Installed, it is what the installer says; from a source tree, a version all the same."""
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", resilient.__version__)
    try:
        assert resilient.__version__ == metadata.version("resilient-training")
    except metadata.PackageNotFoundError:
        assert f'version = "{resilient.__version__}"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_rulings_are_errors_with_a_reason() -> None:
    """A user raises them as they are."""
    for ruling in (resilient.Stop, resilient.Retry, resilient.Reschedule):
        assert issubclass(ruling, resilient.ResilientError)
        assert str(ruling("loss is nan")) == "loss is nan"


@pytest.mark.parametrize("names", ["", "from resilient import ExitCode, Stop, SettingsError; resilient.__version__"])
def test_importing_loads_the_standard_library_alone(names: str) -> None:
    """Neither torch nor anything else that is installed, not even for the errors and the exit codes."""
    program = (
        f"import sys; before = set(sys.modules); import resilient; {names}\n"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(tops - sys.stdlib_module_names - {'resilient'}))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert ended.stdout == "[]\n"


def test_the_package_is_typed() -> None:
    """Type checkers of users look for this mark."""
    assert (Path(resilient.__file__).parent / "py.typed").is_file()
