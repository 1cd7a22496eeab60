# SPDX-License-Identifier: Apache-2.0
"""TOML files that people write: the platform's settings, and rules of their own. Sole reader of TOML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resilient.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # installed before Python 3.11 only
if TYPE_CHECKING:
    from resilient.core.rule import Rule


def read_toml(path: Path, form: str) -> dict[str, Any]:
    """What a TOML file holds; ``form`` tells how it is to be written. A file that is not there raises OSError."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}; make it readable or remove it") from error
    except ValueError as error:
        raise SettingsError(f"cannot read {path}: {error}; write it as TOML, {form}") from error
    return found


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The user's own rules, all of them good; ``SettingsError`` names every mistake."""
    from resilient.core import user_rules  # the whole table: workers and probes read settings, and no rules

    try:
        found = user_rules.read(read_toml(path, "one [[rule]] after the other"), path.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SettingsError(f"cannot read the rules in {path}: there is no such file; give the path of one") from error
    if found.problems:
        raise SettingsError(f"cannot use the rules in {path}: " + "\n  ".join(("", *found.problems)).strip())
    return found.rules
