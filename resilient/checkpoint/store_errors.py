# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a store, in six words, and how every back end's errors map to them.

The back ends raise whatever they like: ``OSError`` with an invented ``errno``, botocore's
``ClientError``, aiohttp's and azure's own types. The HTTP status or code of the service is
looked for first, because s3fs turns any code it does not know into EIO.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from typing import Final

from resilient.errors import SettingsError, StoreError


class Unreachable(StoreError):
    """No answer, or one that asks to come back later: worth another try."""

    kind = "unreachable"

    def __init__(self, message: str) -> None:
        super().__init__(message, answered=False)


class Answered(StoreError):
    """The store answered: the same question gets the same answer."""

    kind = "refused"

    def __init__(self, message: str) -> None:
        super().__init__(message, answered=True)


class Denied(Answered):
    """No permission, no or expired credentials, or a read-only file system."""

    kind = "denied"


class Full(Answered):
    """No space, or the quota is used up."""

    kind = "full"


class Missing(Answered):
    """No such object, directory or bucket."""

    kind = "missing"


class Exists(Answered):
    """Exclusive creation of something that is there already."""

    kind = "conflict"


_BY_ERRNO: Final[dict[int, type[Answered]]] = {
    errno.ENOSPC: Full,
    errno.EDQUOT: Full,
    errno.EFBIG: Full,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
    errno.ENOENT: Missing,
    errno.ENOTDIR: Missing,
    errno.EEXIST: Exists,
    errno.ELOOP: Answered,
    errno.EISDIR: Answered,
    errno.EINVAL: Answered,
    errno.ENAMETOOLONG: Answered,
    errno.ENOSYS: Answered,
    errno.ENOTSUP: Answered,
}
_BY_STATUS: Final[dict[int, type[Answered]]] = {401: Denied, 403: Denied, 404: Missing, 412: Exists, 507: Full}
_COME_BACK: Final = frozenset({408, 409, 425, 429})
_BY_CODE: Final[dict[str, type[Unreachable] | type[Answered]]] = {
    **dict.fromkeys(("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"), Denied),
    **dict.fromkeys(("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"), Unreachable),
}
"""Where the status alone, 400, says too little: who asks is not known; what was sent did not arrive as it was sent
(https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""
_DENIED_TYPES: Final = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}
)
_BROKEN_TYPES: Final = frozenset({"ClientPayloadError", "ContentLengthError", "IncompleteRead", "IncompleteReadError"})
"""An answer that broke off. aiohttp gives these a status of their own making, 400."""


if sys.version_info >= (3, 11):
    _NO_ANSWER: Final = (TimeoutError, ConnectionError)
else:
    import asyncio  # whose own this was until then

    _NO_ANSWER: Final = (TimeoutError, ConnectionError, asyncio.TimeoutError)
_NO_ANSWER_BASE: Final = "ClientConnectionError"
"""aiohttp's, of a host that has no name or does not listen: fsspec's HTTP file system makes "no such file" of it."""


def explain(error: BaseException, doing: str, *secrets: str) -> StoreError:
    """The store error for what a back end raised while ``doing`` (``write checkpoints/1-2/manifest.json``)."""
    if isinstance(error, StoreError):
        return error
    kind = _kind(error)
    told = _without_answer(error) or error
    said = next((text for text in map(str, _chain(told)) if text), "")
    said = said or ("its file system cannot do that" if isinstance(told, NotImplementedError) else "it said nothing")
    text = scrub(" ".join(said.split())[:300], *secrets)
    if any(type(cause).__name__ in _DENIED_TYPES for cause in _chain(told)):
        return kind(
            f"cannot {doing}: there are no credentials for the store ({type(told).__name__}: {text}); {_NO_CREDENTIALS}"
        )
    advice = next((_ADVICE_BY_CODE[code] for code in map(_code, _chain(error)) if code in _ADVICE_BY_CODE), "")
    return kind(f"cannot {doing}: {type(told).__name__}: {text}; {advice or _ADVICE[kind]}")


def kind_of(error: BaseException) -> str:
    """One word for an error of this package."""
    if isinstance(error, SettingsError):
        return "settings"
    return str(getattr(error, "kind", "refused" if isinstance(error, StoreError) else "damaged"))


def code_of(error: BaseException) -> str:
    """The service's own word for what is behind an error; empty where it had none."""
    return next((code for code in map(_code, _chain(error)) if code), "")


_ADVICE: Final[dict[type[StoreError], str]] = {
    Unreachable: "it is tried again: check that the store can be reached from this pod",
    Answered: "check the URL of the checkpoints",
    Denied: "allow this pod, or the credentials that it has, to list, read, write and delete in this store",
    Full: "free space there, or keep fewer checkpoints",
    Missing: "check the URL of the checkpoints, and that its bucket or mount exists",
    Exists: "somebody else was first",
}


_NO_CREDENTIALS: Final = "give this pod credentials for this store, in its environment or by its service account"
_ADVICE_BY_CODE: Final = {
    "RequestTimeTooSkewed": "set the clock of this node: it differs from that of the store",
    "ExpiredToken": "give this pod credentials that last, or that are renewed",
}


def _code(error: BaseException) -> str:
    """The service's own word for an error."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _kind(error: BaseException) -> type[Unreachable] | type[Answered]:
    for cause in _chain(error):
        kind = _kind_of_answer(cause)
        if kind is not None:
            return kind
    if _without_answer(error) is not None:
        return Unreachable
    if isinstance(error, FileExistsError):
        return Exists
    if isinstance(error, FileNotFoundError):
        return Missing
    if isinstance(error, PermissionError):
        return Denied
    if isinstance(error, OSError):
        return _BY_ERRNO.get(error.errno or 0, Unreachable)
    if isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return Answered
    return Unreachable


def _without_answer(error: BaseException) -> BaseException | None:
    """What of an error and its causes says that nobody answered, if one does."""
    return next((cause for cause in _chain(error) if isinstance(cause, _NO_ANSWER) or _is_of_aiohttp(cause)), None)


def _is_of_aiohttp(error: BaseException) -> bool:
    return any(base.__name__ == _NO_ANSWER_BASE for base in type(error).__mro__)


def _kind_of_answer(error: BaseException) -> type[Unreachable] | type[Answered] | None:
    """By what the service itself said, if this exception carries it."""
    if type(error).__name__ in _DENIED_TYPES:
        return Denied
    if type(error).__name__ in _BROKEN_TYPES:
        return Unreachable
    response = getattr(error, "response", None)
    status: object = None
    if isinstance(response, dict):
        if (code := _code(error)) in _BY_CODE:
            return _BY_CODE[code]
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):
        status = status or getattr(error, name, None)
    if isinstance(status, str) and status.isdigit():
        status = int(status)
    if not isinstance(status, int) or not 400 <= status < 600:
        return None
    if status in _COME_BACK:
        return Unreachable
    return _BY_STATUS.get(status, Answered if status < 500 else Unreachable)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was explicitly raised from (``__context__`` may be an unrelated, handled one)."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


_USER: Final = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY: Final = re.compile(r"\?\S*=\S*")


def scrub(text: str, *secrets: str) -> str:
    """``text`` without user names and passwords of URLs, query strings (signatures) and ``secrets``."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _QUERY.sub("?***", _USER.sub("***@", text))
