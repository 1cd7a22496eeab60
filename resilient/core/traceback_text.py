# SPDX-License-Identifier: Apache-2.0
"""Reading Python tracebacks back from text, for workers that left no error record.

Owns the layout that CPython prints. The text is untrusted: it is clipped
before it is parsed, and what cannot be read is left out.
"""

from __future__ import annotations

import builtins
import re
from dataclasses import dataclass
from typing import Final

from resilient.core.evidence import ErrorLink, ErrorRecord

# They report that a process of theirs failed, and nothing of why.
LAUNCHERS: Final = frozenset(
    {"ChildFailedError", "CalledProcessError", "ProcessRaisedException", "ProcessExitedException", "SignalException"}
)
TAIL_CHARS: Final = 64 * 1024
LINE_CHARS: Final = 2000
_MESSAGE_LINES: Final = 20
_MAX_LINKS: Final = 16

# torch.distributed installs an excepthook that prefixes each line of a traceback.
_PREFIX: Final = re.compile(r"^\[(?:rank|default)\d{1,6}\]: ?")
# Groups are drawn with a bar in front of each line.
_BAR: Final = re.compile(r"^ {2,60}[|+] ")
_HEADER: Final = re.compile(r"^(?:Exception Group )?Traceback \(most recent call last\):$")
# torch.distributed.checkpoint prints what each rank failed of below its own exception.
# So do DataLoader and DataParallel with what one of their workers raised.
_NESTED: Final = re.compile(
    r"^Traceback \(most recent call last\): \(RANK \d{1,6}\)$|^Original Traceback \(most recent call last\):$"
)
_MEMBER: Final = re.compile(r"^ {2,60}[+-]{2,70} (?:\d{1,4}|\.\.\.) -{4,}$")
_GROUP_END: Final = re.compile(r"^ {2,60}\+-")
_FRAME: Final = re.compile(r'^  File "([^"]{1,1000})", line (\d{1,9})(?:, in (.{1,200}))?$')
_ERROR: Final = re.compile(r"^([A-Za-z_][\w.]{0,199})(?:: ?(.*))?$")
_SYNTAX: Final = re.compile(r"^(?:SyntaxError|IndentationError|TabError): ")
_CONNECTORS: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
# The last line of a traceback that somebody else has drawn (rich, loguru), or whose beginning is cut off.
_LAST_LINE: Final = re.compile(r"^(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z_]\w{0,80}(?:Error|Exception|Interrupt): \S")
_LAST_LINES: Final = 60
# The same, but anywhere in a log: a dotted name may end as it likes.
_LONE_ERROR: Final = re.compile(
    r"^(?:(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z_]\w{0,80}(?:Error|Exception|Interrupt)"
    r"|(?:[a-z_]\w{0,60}\.){1,8}[A-Z]\w{2,80}|KeyboardInterrupt|StopIteration)(?:: ?\S.*)?$"
)
# Tracebacks that Python prints without dying of them.
_HARMLESS: Final = ("Exception ignored in", "Exception in thread", "--- Logging error ---")
_NOT_THE_USERS: Final = re.compile(
    r"[/\\](?:site-packages|dist-packages)[/\\]|[/\\]lib[/\\]python3|[/\\]torch[/\\](?:nn|_|distributed|utils|optim)"
    r"|[/\\]resilient[/\\](?:core|training|supervisor)[/\\]|^<frozen "
)


@dataclass(frozen=True, slots=True)
class _Block:
    frames: tuple[tuple[str, str, str], ...]
    link: ErrorLink
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Found:
    """A traceback in a text, and the lines that it takes up."""

    record: ErrorRecord
    begin: int
    end: int


def clip(text: str) -> list[str]:
    """Give the last 64 KiB of ``text`` as lines of at most 2,000 characters, rank prefixes removed."""
    return [_PREFIX.sub("", line[:LINE_CHARS]).rstrip("\r") for line in text[-TAIL_CHARS:].split("\n")]


def is_users(path: str) -> bool:
    """Say whether a file of this path is the user's own, not an installed library's."""
    return _NOT_THE_USERS.search(path) is None


def builtin_bases(name: str) -> tuple[str, ...]:
    """Name the bases of a built-in exception, nearest first; nothing for any other name."""
    found = getattr(builtins, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        return ()
    # IOError and its like are other names of OSError.
    return tuple(base.__name__ for base in found.__mro__[:-1] if base.__name__ != name)


def innermost(traceback: str) -> tuple[str | None, str | None]:
    """Find the innermost frame of the user's in a formatted traceback, as ``(frame, function)``."""
    record = parse_traceback(traceback)
    return (record.frame, record.function) if record else (None, None)


def parse_traceback(text: str) -> ErrorRecord | None:
    """Read the last traceback in ``text`` that a process may have died of."""
    lines = [_BAR.sub("", line) for line in clip(text)]
    chains = _chains(lines)
    chain = chains[-1] if chains else _without_header(lines)
    return _record(chain) if chain else None


def find_errors(lines: list[str]) -> list[Found]:
    """Find every traceback in ``lines``, and every error whose traceback is cut off, in order."""
    lines = [_BAR.sub("", line) for line in lines]
    chains = _chains(lines)
    taken = {at for chain in chains for block in chain for at in range(block.begin, block.end)}
    for at, line in enumerate(lines):
        if at in taken or not _LONE_ERROR.match(line) or any(map(line.startswith, _HARMLESS)):
            continue
        begin = at
        while begin > 0 and begin - 1 not in taken and lines[begin - 1].startswith("  "):
            begin -= 1
        if block := _block(lines, begin):
            chains.append([block])
            taken.update(range(block.begin, block.end))
    spans = ((chain, min(b.begin for b in chain), max(b.end for b in chain)) for chain in chains)
    return sorted((Found(_record(chain), begin, end) for chain, begin, end in spans), key=lambda found: found.begin)


def _record(chain: list[_Block]) -> ErrorRecord:
    links = tuple(block.link for block in chain)[:_MAX_LINKS]
    frame, function = _users_frame(chain)
    return ErrorRecord(chain=links, frame=frame, function=function)


def _chains(lines: list[str]) -> list[list[_Block]]:
    """Collect each chain of tracebacks, the exception that was raised last in front."""
    chains: list[list[_Block]] = []
    connected = grouped = False
    at = 0
    while at < len(lines):
        line = lines[at]
        if line in _CONNECTORS:
            connected = True
        elif _MEMBER.match(line):
            grouped = True
        elif grouped or _HEADER.match(line) or _NESTED.match(line) or _is_bare_syntax_error(lines, at):
            block = _block(lines, at)
            if block is None:
                grouped = False
                at += 1
                continue
            harmless = any(lines[at - back].startswith(_HARMLESS) for back in (1, 2) if at >= back)
            if (connected or grouped or _NESTED.match(line)) and chains:
                # A cause is printed before what it led to; the members of a group, and ranks' failures, after it.
                chains[-1].insert(0 if connected else len(chains[-1]), block)
            elif not harmless:
                chains.append([block])
            connected = grouped = False
            at = block.end
            continue
        at += 1
    return chains


def _without_header(lines: list[str]) -> list[_Block]:
    """Read the last line that names an error, with what frames stand above it."""
    for at in range(len(lines) - 1, max(-1, len(lines) - 1 - _LAST_LINES), -1):
        if _LAST_LINE.match(lines[at]):
            while at > 0 and lines[at - 1].startswith("  "):
                at -= 1
            block = _block(lines, at)
            return [block] if block else []
    return []


def _is_bare_syntax_error(lines: list[str], at: int) -> bool:
    """A script that does not parse dies with a frame and the error, and no header."""
    return _FRAME.match(lines[at]) is not None and any(_SYNTAX.match(line) for line in lines[at + 1 : at + 4])


def _block(lines: list[str], at: int) -> _Block | None:
    frames: list[tuple[str, str, str]] = []
    begin = at
    at += 1 if _HEADER.match(lines[at]) or _NESTED.match(lines[at]) else 0
    while at < len(lines) and (lines[at].startswith(" ") or not lines[at]):
        if found := _FRAME.match(lines[at]):
            frames.append((found[1], found[2], found[3] or "<module>"))
        at += 1
    if at >= len(lines) or not (found := _ERROR.match(lines[at])):
        return None
    message = [found[2] or ""]
    at += 1
    while at < len(lines) and len(message) < _MESSAGE_LINES and _continues(lines[at]):
        message.append(lines[at])
        at += 1
    name = found[1].removeprefix("builtins.")
    link = ErrorLink(type=name, message="\n".join(message).strip(), bases=builtin_bases(name))
    return _Block(frames=tuple(frames), link=link, begin=begin, end=at)


def _continues(line: str) -> bool:
    """Say whether a line may still belong to the message above it."""
    if not line or line in _CONNECTORS or line.startswith(_HARMLESS) or _GROUP_END.match(line):
        return False
    return not (_HEADER.match(line) or _NESTED.match(line) or _FRAME.match(line) or _LAST_LINE.match(line))


def _users_frame(chain: list[_Block]) -> tuple[str | None, str | None]:
    for block in chain:
        for path, line, name in reversed(block.frames):
            if is_users(path):
                file = re.split(r"[/\\]", path)[-1]
                return f"{file}:{line} in {name}", f"{file}:{name}"
    return None, None
