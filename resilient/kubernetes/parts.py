# SPDX-License-Identifier: Apache-2.0
"""Parts of a manifest, read by the type that they must have; what is wrong is said with file and line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.redact import Redactor
from resilient.errors import SettingsError
from resilient.kubernetes.building import PartPath
from resilient.kubernetes.documents import Document

_HIGHEST: Final = 2_147_483_647
_MESSAGE_CHARS: Final = 600


def refusal(message: str) -> SettingsError:
    """An error whose message may hold what somebody has written."""
    return SettingsError(Redactor().clean(message, _MESSAGE_CHARS).replace("\n", " "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something in a document, or the place where it would be. A null is as good as nothing, as for the API server."""

    document: Document
    data: Any
    path: PartPath = ()

    @property
    def is_there(self) -> bool:
        return self.data is not None

    def at(self, *names: str) -> Part:
        """What lies below."""
        part = self
        for name in names:
            inside = part._expect(dict, "object") or {}
            part = Part(document=part.document, data=inside.get(name), path=(*part.path, name))
        return part

    def items(self) -> Iterator[Part]:
        for index, item in enumerate(self._expect(list, "list") or ()):
            yield Part(document=self.document, data=item, path=(*self.path, index))

    def text(self, default: str = "") -> str:
        found = self._expect(str, "text")
        return default if found is None else str(found)

    def flag(self) -> bool:
        return bool(self._expect(bool, "true or false"))

    def whole(self, *, least: int = 0) -> int | None:
        """A number that fits into 32 bits, as in the API."""
        is_whole = isinstance(self.data, float) and self.data.is_integer()  # 1e3, as the API server reads it
        found = self.data if is_whole else self._expect(int, "whole number")
        if found is not None and not least <= found <= _HIGHEST:
            raise self.wrong(f"must lie between {least} and {_HIGHEST}")
        return None if found is None else int(found)

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())

    def wholes(self) -> tuple[int, ...]:
        return tuple(item.whole(least=-_HIGHEST) or 0 for item in self.items())

    def wrong(self, why: str, do: str = "correct it") -> SettingsError:
        """An error about this part."""
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).lstrip(".")
        place = f"{self.document.name}:{self.document.line(self.path)}"
        return refusal(f"cannot simulate {place}: {name or 'the document'} {why}; {do}")

    def _expect(self, kind: type, word: str) -> Any:
        if self.data is None or type(self.data) is kind:
            return self.data
        raise self.wrong(f"is no {word}" if word != "true or false" else f"is not {word}")
