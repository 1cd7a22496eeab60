# SPDX-License-Identifier: Apache-2.0
"""Writing a file or directory that appears whole or not at all, and never over something that is there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from resilient.errors import CheckpointError, SettingsError


def check_target(to: str) -> Path:
    """The path to write to, if it is one of this machine and nothing is there yet."""
    target = Path(os.path.abspath(os.path.expanduser(to)))
    if "://" in to:
        raise SettingsError(f"cannot export to {to[:200]!r}: it is a URL; give a path here and copy it from there")
    if os.path.lexists(target):
        raise SettingsError(f"cannot export to {target}: it exists; give another path, or move that away")
    if not target.parent.is_dir():
        raise SettingsError(f"cannot export to {target}: there is no directory {target.parent}; make it first")
    return target


def land(target: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` make a file or directory beside ``target``, make it durable, then give it its name.

    Somebody who makes ``target`` meanwhile keeps it: an error says so.
    """
    staged = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
    try:
        write(staged)
        _sync(staged)
        if staged.is_dir():
            os.rename(staged, target)  # refused where it is a file, or a directory with something in it
        else:
            _name_file(staged, target)
        _sync_entry(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}; give another path") from error
    finally:
        _remove(staged)


def _name_file(staged: Path, target: Path) -> None:
    try:
        os.link(staged, target)  # unlike a rename it has no way to replace anything
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise
        os.rename(staged, target)


def _remove(staged: Path) -> None:
    if staged.is_dir():
        shutil.rmtree(staged, ignore_errors=True)
    else:
        staged.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """All of a file, or of a directory and everything below it."""
    if path.is_dir():
        for inner in path.iterdir():
            _sync(inner)
    _sync_entry(path)


def _sync_entry(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
