# SPDX-License-Identifier: Apache-2.0
"""Which notices each cloud gives, and how it is asked for them.

Another cloud is a class with ``look`` and a row in ``WATCHES``. Each watch has a thread of its own: Google's service
answers when something changes, the others are asked again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

from resilient.cloud.metadata import Metadata, NoAnswer
from resilient.core import notices
from resilient.core.cloud import Cloud, maker
from resilient.core.notices import Notice

_T = TypeVar("_T")
FIRMWARE: Final = Path("/sys/class/dmi/id")
_TOKEN_S: Final = 21600


class Watch(Protocol):
    """Something to be asked for notices."""

    @property
    def pause_s(self) -> float:
        """How long to wait before it is asked again."""

    def look(self) -> tuple[Notice, ...]:
        """All notices that stand now; ``NoAnswer`` where the service gives none of the documented answers."""


class Aws:
    """``spot/instance-action`` and the recommendation to rebalance, by IMDSv2."""

    pause_s: Final = 5.0
    """As AWS recommends."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._token: str | None = None

    def look(self) -> tuple[Notice, ...]:
        """Ask for both; a token that has run out is replaced with the next look."""
        if self._token is None:
            self._token = self._new_token()
        paths = {
            "/latest/meta-data/spot/instance-action": notices.aws_action,
            "/latest/meta-data/events/recommendations/rebalance": notices.aws_rebalance,
        }
        found = []
        for path, read in paths.items():
            try:
                text = self._metadata.ask(path, {"X-aws-ec2-metadata-token": self._token}).text
            except NoAnswer:
                self._token = None
                raise
            if text is not None:
                found.append(_read(path, partial(read, text)))
        return tuple(found)

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
        token = self._metadata.ask("/latest/api/token", headers, method="PUT").text
        if not token or not token.isascii() or not token.isprintable():
            raise NoAnswer("/latest/api/token: no token")
        return token


class Gcp:
    """One key of ``instance/``; the service answers when its value has changed."""

    pause_s: Final = 1.0
    """A service that answers at once although nothing has changed must not cost a processor."""
    _WAIT_S: Final = 60

    def __init__(self, metadata: Metadata, key: str, read: Callable[[str], tuple[Notice, ...]]) -> None:
        self._metadata = metadata
        self._path = f"/computeMetadata/v1/instance/{key}"
        self._read = read
        self._etag: str | None = None

    def look(self) -> tuple[Notice, ...]:
        """Wait for a change, the first time for nothing."""
        path = self._path
        if self._etag is not None:
            path += f"?wait_for_change=true&timeout_sec={self._WAIT_S}&last_etag={quote(self._etag, safe='')}"
        try:
            answer = self._metadata.ask(path, {"Metadata-Flavor": "Google"}, timeout_s=self._WAIT_S + 10)
        except NoAnswer:
            self._etag = None
            raise
        if answer.text is None or answer.etag is None:
            raise NoAnswer(f"{self._path}: no such value")
        found = _read(self._path, partial(self._read, answer.text))
        self._etag = answer.etag
        return found


class Azure:
    """``scheduledevents``, of which those count that name this machine."""

    pause_s: Final = 1.0
    """As Azure recommends: an eviction is announced half a minute ahead."""
    _FIRST_S: Final = 130.0
    """The first question turns the service on, which takes up to two minutes."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._machine: str | None = None

    def look(self) -> tuple[Notice, ...]:
        """Ask for the document of the whole group."""
        if self._machine is None:
            self._machine = self._ask("instance/compute/name?api-version=2021-02-01&format=text")
        text = self._ask("scheduledevents?api-version=2020-07-01", timeout_s=self._FIRST_S)
        return _read("scheduledevents", partial(notices.azure_events, text, self._machine))

    def _ask(self, what: str, timeout_s: float = 5.0) -> str:
        text = self._metadata.ask(f"/metadata/{what}", {"Metadata": "true"}, timeout_s=timeout_s).text
        if text is None:
            raise NoAnswer(f"/metadata/{what.partition('?')[0]}: not there")
        return text


def _aws(metadata: Metadata) -> tuple[Watch, ...]:
    return (Aws(metadata),)


def _gcp(metadata: Metadata) -> tuple[Watch, ...]:
    keys = {"preempted": notices.gcp_preempted, "maintenance-event": notices.gcp_maintenance}
    return tuple(Gcp(metadata, key, read) for key, read in keys.items())


def _azure(metadata: Metadata) -> tuple[Watch, ...]:
    return (Azure(metadata),)


WATCHES: Final[Mapping[Cloud, Callable[[Metadata], tuple[Watch, ...]]]] = {
    Cloud.AWS: _aws,
    Cloud.AZURE: _azure,
    Cloud.GCP: _gcp,
}


def cloud_here(asked: Cloud, firmware: Path = FIRMWARE) -> Cloud | None:
    """The cloud that was named, else the one that made this machine, where its firmware says so."""
    return asked if asked is not Cloud.AUTO else maker(*(_line(firmware / name) for name in _FIRMWARE))


_FIRMWARE: Final = ("sys_vendor", "chassis_asset_tag")


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:256].strip()
    except OSError:
        return ""


def _read(path: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except ValueError as error:
        raise NoAnswer(f"{path}: not as documented: {error}") from error
