# SPDX-License-Identifier: Apache-2.0
"""What a saver deletes once it has saved, and what it must not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mounts
import pytest
from faulty_store import Arenas, Inline
from test_vault import IMAGES, manifest, save

from resilient.checkpoint.digest import digest
from resilient.checkpoint.layout import FileRecord
from resilient.checkpoint.requests import Fetch
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Full
from resilient.checkpoint.vault import Vault


@pytest.fixture
def arenas() -> Iterator[Arenas]:
    arenas = Arenas((b"first", b"second"))
    yield arenas
    arenas.close()


def test_what_an_attempt_began_from_is_kept_until_it_has_saved(tmp_path: Path, arenas: Arenas) -> None:
    """A late save of the attempt before must not prune what this one would fall back on."""
    with Inline(arenas) as client:
        client.open(tmp_path, keep=1)
        client.save(arenas.records, 1, 1)
        client.claim(2, began_from="1-1")
        assert client.save(arenas.records, 1, 2).pruned == ()
        assert client.save(arenas.records, 2, 3).pruned == ("1-1", "1-2")


def test_a_checkpoint_whose_digest_differs_is_none_of_those_kept(tmp_path: Path, arenas: Arenas) -> None:
    """Its size tells nothing; once a restore has read it, it takes no place of a good one any more."""
    with Inline(arenas) as client:
        client.open(tmp_path, keep=2)
        for step in (1, 2):
            client.save(arenas.records, 1, step)
        torn = tmp_path / "checkpoints" / "1-2" / "rank-0.safetensors"
        torn.write_bytes(bytes(len(torn.read_bytes())))
        read = client.ask(Fetch, name="1-2", world_size=2, slot=1, available_bytes=None, patience_s=0.0)
        assert (read.kind, read.answered) == ("corrupt", True)
        client.claim(2, began_from="1-1")
        assert client.save(arenas.records, 2, 2).pruned == ("1-2",)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2-2", "1-1"}


def test_a_full_disk_keeps_nothing_of_a_save(tmp_path: Path) -> None:
    """Not even a directory: nobody would ever find that again, and each of many tries would leave one."""
    with mounts.small(tmp_path / "small", 1 << 20) as directory:
        vault = Vault(open_store(str(directory)), clock=lambda: 1.0)
        vault.identify(make=True)
        save(vault, 1, 1)
        large = {name: memoryview(bytearray(2 << 20)) for name in IMAGES}
        files = tuple(FileRecord(file=name, size=len(image), digest=digest(image)) for name, image in large.items())
        with pytest.raises(Full):
            vault.save(replace(manifest(vault, 1, 2), files=files), large, lambda: None)
        assert [path.name for path in (directory / "checkpoints").iterdir()] == ["1-1"]
