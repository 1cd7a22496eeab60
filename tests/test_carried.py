# SPDX-License-Identifier: Apache-2.0
"""Exceptions that somebody carries over from another process: the verdict is about the one that was raised there."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from resilient.core.causes import Verdict
from resilient.core.classify import classify
from resilient.core.evidence import ErrorRecord, Evidence, RankEvidence
from resilient.core.log_text import Ending, read_log
from resilient.training.error_record import describe


class Broken(Dataset[int]):
    """Its samples cannot be read, which is found out two calls below."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return self.decode(index)

    def decode(self, index: int) -> int:
        labels: dict[str, int] = {}
        if self.how == "of a cause":
            try:
                return labels["cat"]
            except KeyError as error:
                raise ValueError("cannot decode") from error
        return labels["cat"] if self.how == "told by repr" else int("seven")


RAISED = {
    "plain": ("ValueError", "invalid literal for int()"),
    "of a cause": ("ValueError", "cannot decode"),
    "told by repr": ("KeyError", "'cat'"),
}


@pytest.fixture(scope="module", params=RAISED)
def carried(request: pytest.FixtureRequest) -> tuple[ErrorRecord, str, str, str]:
    """What a DataLoader's worker really raised: as the trainer's record and its text; type and message."""
    loader: DataLoader[Any] = DataLoader(Broken(request.param), num_workers=1)
    try:
        next(iter(loader))
    except (ValueError, KeyError) as error:  # and no longer: it holds the loader, whose worker runs
        return (
            describe(error, rank=0, step=3),
            "".join(traceback.format_exception(error)),
            *RAISED[request.param],
        )
    raise AssertionError("the sample was read")


def of_records(*records: ErrorRecord) -> Verdict:
    """The verdict on workers that left a record each."""
    ranks = (RankEvidence(rank=rank, exit_code=1, order=rank, error=each) for rank, each in enumerate(records))
    return classify(Evidence(ranks=tuple(ranks)))


def of_text(text: str) -> Verdict:
    """The verdict on a worker that left a text on stderr."""
    return classify(Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0, stderr_tail=text),)))


def test_what_a_loaders_worker_raised_is_quoted_with_its_own_place(carried: tuple[ErrorRecord, str, str, str]) -> None:
    """By the worker's record, by what torchelastic keeps of it, by stderr, and by a log: the same fault each time."""
    record, text, name, message = carried
    assert record.message.startswith(("Caught ", "'Caught ")), "as torch carries it"
    verdicts = [of_records(record), of_text(text), classify(read_log(text, Ending(code=1)))]
    verdicts.append(of_records(replace(record, frame=None, function=None)))
    for verdict in verdicts:
        assert verdict.why.startswith("test_carried.py:")
        assert (
            f" in decode: the code of {'a worker' if verdict.culprit is None else 'rank 0'} raised {name}"
            in verdict.why
        )
        assert f": {message}" in verdict.why
        assert "Caught" not in verdict.why
        assert verdict.fingerprint.endswith(f":{name}@test_carried.py:decode")
    assert len({verdict.fingerprint for verdict in verdicts}) == 1


def test_a_record_whose_traceback_is_cut_off_still_quotes_the_worker(
    carried: tuple[ErrorRecord, str, str, str],
) -> None:
    """The message holds the worker's traceback as well; where that is cut too, it is quoted as it stands."""
    record, _, name, message = carried
    assert message in of_records(replace(record, traceback="")).why
    short = replace(record.chain[0], message=record.message[:80])
    assert f"raised {name}" in of_records(replace(record, traceback="", chain=(short,))).why


def test_ranks_are_compared_by_what_their_loaders_raised(carried: tuple[ErrorRecord, str, str, str]) -> None:
    """All loaders carry alike: only where they carry the same has no rank begun it."""
    record, _, _, message = carried
    assert of_records(record, record, record).culprit is None
    other = replace(record, traceback=record.traceback.replace(message, f"{message} of another kind"))
    assert of_records(record, other).culprit == 0


def test_a_users_own_words_are_no_carriers() -> None:
    """Whoever catches and raises anew is quoted."""
    text = """\
Traceback (most recent call last):
  File "/app/train.py", line 3, in step
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/app/train.py", line 5, in main
ValueError: Caught nothing in step
"""
    assert of_text(text).why.startswith("train.py:5 in main: ")
    assert of_text(text).why.endswith(": Caught nothing in step")


TORCHRUN = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/app/train.py", line 6, in main
[rank1]:     raise ValueError("bad label")
[rank1]: ValueError: bad label
E1127 11:49:17.000000 4242 torch/distributed/elastic/multiprocessing/api.py:882] failed (exitcode: 1) local_rank: 1
Traceback (most recent call last):
  File "/usr/bin/torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
"""


def test_a_launchers_own_traceback_hides_none_of_what_it_had_started() -> None:
    """torchrun below a shell ends as the worker's parent; what came long before it was survived."""
    assert of_text(TORCHRUN).why == "train.py:6 in main: the code of rank 0 raised ValueError: bad label"
    apart = TORCHRUN.replace("E1127", "step 7\n" * 80 + "E1127")
    assert "bad label" not in of_text(apart).why
