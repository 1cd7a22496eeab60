# SPDX-License-Identifier: Apache-2.0
"""What is remembered of a run that has saved something, should all of it be gone."""

import errno
from collections.abc import Iterator

import pytest
from faulty_store import FaultyFileSystem
from test_vault import claim, look, save

from resilient.checkpoint.store import open_store
from resilient.checkpoint.vault import Vault


@pytest.fixture
def vault() -> Iterator[Vault]:
    FaultyFileSystem.reset()
    vault = Vault(open_store("faulty://run"), clock=lambda: 1.0)
    vault.identify(make=True)
    yield vault
    FaultyFileSystem.reset()


def test_a_run_that_has_saved_something_is_known_for_it(vault: Vault) -> None:
    """Also where all of it is gone, as on a wrong mount, until a new history begins."""
    assert not look(vault).ever_committed
    vault.claim(claim(1))
    for step in (1, 2):
        save(vault, 1, step)
    for entry in vault.store.list("checkpoints"):
        vault.store.delete(entry.name)
    found = look(vault)
    assert (found.checkpoints, found.ever_committed) == ((), True)
    vault.claim(claim(2, fresh_from=2))
    assert not look(vault).ever_committed
    save(vault, 2, 1)
    vault.store.delete("committed.json")
    assert look(vault).ever_committed, "by its checkpoint"


def test_a_save_succeeds_where_that_cannot_be_noted(vault: Vault) -> None:
    """It is tried again with the next one, and a note that cannot be read is one all the same."""

    def fault(operation: str, path: str) -> None:
        if path.endswith("committed.json"):
            raise OSError(errno.EIO, "no answer")

    FaultyFileSystem.fault = staticmethod(fault)
    assert save(vault, 1, 1) == "1-1"
    FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
    assert not vault.store.exists("committed.json")
    save(vault, 1, 2)
    assert vault.store.exists("committed.json")
    vault.store.replace("committed.json", b"torn")
    for entry in vault.store.list("checkpoints"):
        vault.store.delete(entry.name)
    assert look(vault).ever_committed
