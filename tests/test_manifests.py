# SPDX-License-Identifier: Apache-2.0
"""Tests of remembering manifests: as they are in the store, and read again once they may have changed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_vault import manifest

from resilient.checkpoint import layout
from resilient.checkpoint.layout import Manifest
from resilient.checkpoint.manifests import Manifests
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import directories, read_manifest
from resilient.checkpoint.vault import Vault
from resilient.errors import CheckpointError

AT = "checkpoints/1-5/manifest.json"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault(open_store(str(tmp_path)), clock=lambda: 1.0)
    vault.identify(make=True)
    vault.store.create(AT, layout.encode(manifest(vault, 1, 5)))
    return vault


def read(vault: Vault, known: Manifests) -> Manifest:
    files = directories(vault.store)
    return known.reader(files)(vault.store, "1-5")


def test_what_was_read_is_known(vault: Vault) -> None:
    """It is the very same, not another reading."""
    known = Manifests()
    assert read(vault, known) is read(vault, known)
    assert read(vault, known) == read_manifest(vault.store, "1-5")


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path, bytes], object]] = {
    "in place": lambda path, data: path.write_bytes(data),
    "replaced": lambda path, data: replace_file(path, data),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_written_anew_is_read_again(vault: Vault, tmp_path: Path, change: str) -> None:
    """Of the same size too; and what is damaged is not remembered as it was."""
    known = Manifests()
    first = read(vault, known)
    CHANGES[change](tmp_path / AT, layout.encode(replace(first, created_s=2.0)))
    assert read(vault, known).created_s == 2.0
    CHANGES[change](tmp_path / AT, b"x" * len(layout.encode(first)))
    with pytest.raises(CheckpointError, match="damaged"):
        read(vault, known)


def test_what_has_no_stamp_is_read_each_time(vault: Vault) -> None:
    """Not every store tells when something was written anew."""
    known = Manifests()
    files = {
        name: {file: replace(entry, stamp="") for file, entry in found.items()}
        for name, found in directories(vault.store).items()
    }
    once, again = (known.reader(files)(vault.store, "1-5") for _ in range(2))
    assert once == again
    assert once is not again


def test_what_is_gone_is_forgotten(vault: Vault) -> None:
    """A run that keeps each checkpoint for an hour must not remember those of a month."""
    known = Manifests()
    read(vault, known)
    vault.store.delete(AT)
    known.reader(directories(vault.store))
    assert not known._known
