# SPDX-License-Identifier: Apache-2.0
"""Reading Python tracebacks back from text, for workers that left no error record.

Owns the layout that CPython prints. The text is untrusted: it is clipped
before it is parsed, and what cannot be read is left out.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.evidence import ErrorLink, ErrorRecord

# They report that a process of theirs failed, and nothing of why.
LAUNCHERS: Final = frozenset(
    {"ChildFailedError", "CalledProcessError", "ProcessRaisedException", "ProcessExitedException", "SignalException"}
)
# What torch puts in front of an exception that it carries over from a process or thread (torch/_utils.py); up to torch
# 1.1 it was nothing: the traceback there is the whole message of an exception of the same type.
_CAUGHT: Final = re.compile(
    r"Caught [\w.]{1,200} in (?:DataLoader worker process|replica|pin memory thread|background)\b"
    r"|Traceback \(most recent call last\):"
)
# A launcher's own traceback comes so soon after that of what it had started.
_SOON_LINES: Final = 60
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
# torchrun's summary gives what a rank recorded, indented by two.
_RECORDED: Final = re.compile(r"^ {0,8}traceback {1,8}: (Traceback \(most recent call last\):)$")
_MEMBER: Final = re.compile(r"^ {2,60}[+-]{2,70} (?:\d{1,4}|\.\.\.) -{4,}$")
_GROUP_END: Final = re.compile(r"^ {2,60}\+-")
_FRAME: Final = re.compile(r'^  File "([^"]{1,1000})", line (\d{1,9})(?:, in (.{1,200}))?$')
_ERROR: Final = re.compile(r"^([A-Za-z_][\w.]{0,199})(?:: ?(.*))?$")
_SYNTAX: Final = re.compile(r"^(?:SyntaxError|IndentationError|TabError): ")
_CONNECTORS: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
# No line that begins otherwise is one of those above.
_TELLING: Final = (*_CONNECTORS, "  ", "Traceback ", "Exception Group Traceback ", "Original Traceback ")
# The last line of a traceback that somebody else has drawn (rich, loguru), or whose beginning is cut off.
_LAST_LINE: Final = re.compile(r"^(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z_]\w{0,80}(?:Error|Exception|Interrupt): \S")
_LAST_LINES: Final = 60
# The same, but anywhere in a log: a dotted name may end as it likes.
_LONE_ERROR: Final = re.compile(
    r"^(?:(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z_]\w{0,80}(?:Error|Exception|Interrupt)|Exception(?=: \S)"
    r"|(?:[a-z_]\w{0,60}\.){1,8}(?:[A-Z]\w{2,80}|error(?=: ))|KeyboardInterrupt|StopIteration)(?:: ?(?:\S.*)?)?$"
)
# An error that a logger printed on one line, and the level that it put in front.
_LOGGED: Final = re.compile(r"(?<![\w.])(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z_]\w{0,80}(?:Error|Exception): \S")
_LEVEL: Final = re.compile(r"\b(?:[Ee]rror|ERROR|CRITICAL|FATAL)\b.{0,120}[\]:|>-] ?$")
_LOGGED_CHARS: Final = 240
# What std::terminate prints of an exception that nothing in C++ caught.
_TERMINATE: Final = re.compile(r"terminate called after throwing an instance of '([A-Za-z_][\w:]{0,199})'")
_WHAT: Final = re.compile(r"^ {0,8}what\(\): {1,4}(.*)")
# The type that Python would have raised: pybind11's table, and torch's own types by their names.
_IN_PYTHON: Final[Mapping[str, str]] = {
    "std::bad_alloc": "MemoryError",
    "std::out_of_range": "IndexError",
    "std::invalid_argument": "ValueError",
    "std::length_error": "ValueError",
    "std::domain_error": "ValueError",
    "c10::OutOfMemoryError": "OutOfMemoryError",
}
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
    lines = (shown(line)[:LINE_CHARS] for line in text[-TAIL_CHARS:].split("\n"))
    return [_PREFIX.sub("", line) if line.startswith("[") else line for line in lines]


def shown(line: str) -> str:
    """Give what a terminal would show in the end: a progress bar is written over itself."""
    return line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line


def carries(link: ErrorLink) -> bool:
    """Say whether all that this exception says is which process had raised another."""
    return _CAUGHT.match(link.message) is not None


def unwrapped(record: ErrorRecord) -> ErrorRecord:
    """The record of the exception that torch carried over from a DataLoader's worker, where the record is about one."""
    if not any(map(carries, record.chain)):
        return record
    texts = (record.traceback, *(link.message for link in record.chain))
    told = next((told for text in texts if (told := parse_traceback(text)) and not any(map(carries, told.chain))), None)
    if told is None:
        return record
    bases = {link.type.rpartition(".")[2]: link.bases for link in reversed(record.chain)}
    chain = tuple(replace(link, bases=link.bases or bases.get(link.type.rpartition(".")[2], ())) for link in told.chain)
    if told.function is None:
        return replace(record, chain=chain)
    return replace(record, chain=chain, frame=told.frame, function=told.function)


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
    return parse_lines(clip(text))


def parse_lines(lines: Sequence[str]) -> ErrorRecord | None:
    """The same of lines that are clipped already."""
    lines = _without_bars(lines)
    chains = _chains(lines)
    chain = _last(chains) if chains else _without_header(lines)
    return _record(chain) if chain else None


def _last(chains: list[list[_Block]]) -> list[_Block]:
    """What a process died of; where that is a launcher, what it had started."""
    last = chains[-1]
    if last[0].link.type.rpartition(".")[2] not in LAUNCHERS:
        return last
    begin = min(block.begin for block in last)
    for chain in reversed(chains[:-1]):
        if begin - max(block.end for block in chain) > _SOON_LINES:
            break
        if chain[0].link.type.rpartition(".")[2] not in LAUNCHERS:
            return chain
        begin = min(block.begin for block in chain)
    return last


def _without_bars(lines: Sequence[str]) -> list[str]:
    return [_BAR.sub("", line) if line.startswith("  ") else line for line in lines]


def parse_native(lines: Sequence[str]) -> ErrorRecord | None:
    """Read the last exception in ``lines`` that a process died of in C++; only one that aborted has."""
    blocks = [block for at in range(len(lines)) if (block := _native(lines, at))]
    return _record(blocks[-1:]) if blocks else None


def find_errors(lines: Sequence[str]) -> list[Found]:
    """Find every traceback in ``lines``, and every error whose traceback is cut off, in order."""
    lines = _dedented(_without_bars(lines))
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
    chains += [[block] for at in range(len(lines)) if at not in taken and (block := _native(lines, at))]
    # What is merely logged may have been survived, so it counts where nothing else says anything.
    chains = chains or [[block] for at in range(len(lines)) if (block := _logged(lines, at))]
    spans = ((chain, min(b.begin for b in chain), max(b.end for b in chain)) for chain in chains)
    return sorted((Found(_record(chain), begin, end) for chain, begin, end in spans), key=lambda found: found.begin)


def _dedented(lines: list[str]) -> list[str]:
    """Give the lines with what torchrun's summary quotes moved back to where it was printed."""
    quoted = False
    for at, line in enumerate(lines):
        if found := _RECORDED.match(line):
            lines[at] = found[1]
        elif quoted:
            lines[at] = line[2:]
        else:
            continue
        quoted = lines[at + 1 : at + 2] != [] and lines[at + 1].startswith("  ")
    return lines


def _record(chain: list[_Block]) -> ErrorRecord:
    # Whoever merely carries an exception over has a place of its own, where nothing was wrong.
    own = [block for block in chain if not carries(block.link)] or chain
    links = tuple(block.link for block in own)[:_MAX_LINKS]
    frame, function = _users_frame([*own, *chain])
    return ErrorRecord(chain=links, frame=frame, function=function)


def _chains(lines: list[str]) -> list[list[_Block]]:
    """Collect each chain of tracebacks, the exception that was raised last in front."""
    chains: list[list[_Block]] = []
    connected = grouped = quoted = False
    at = 0
    while at < len(lines):
        line = lines[at]
        if not grouped and not quoted and not line.startswith(_TELLING):
            at += 1
            continue
        if line in _CONNECTORS:
            connected = True
        elif _MEMBER.match(line):
            grouped = True
        elif grouped or quoted or _HEADER.match(line) or _NESTED.match(line) or _is_bare_syntax_error(lines, at):
            block = _block(lines, at)
            if block is None:
                grouped = quoted = False
                at += 1
                continue
            harmless = any(lines[at - back].startswith(_HARMLESS) for back in (1, 2) if at >= back)
            if (connected or grouped or quoted or _NESTED.match(line)) and chains:
                # A cause is printed before what it led to; the members of a group, and ranks' failures, after it.
                chains[-1].insert(0 if connected else len(chains[-1]), block)
            elif not harmless:
                chains.append([block])
            connected = grouped = False
            # What comes next is then the traceback that this exception has for its message.
            quoted = _HEADER.match(block.link.message) is not None
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


def _native(lines: Sequence[str], at: int) -> _Block | None:
    """Read an exception that C++ died of; torch's watchdog has lines of its own, which say more."""
    found = _TERMINATE.search(lines[at])
    said = _WHAT.match(lines[at + 1]) if found and at + 1 < len(lines) else None
    if found is None or said is None or "atchdog" in said[1]:
        return None
    bases = (_IN_PYTHON.get(found[1], "RuntimeError"),)
    return _Block(frames=(), link=ErrorLink(type=found[1], message=said[1].strip(), bases=bases), begin=at, end=at + 2)


def _logged(lines: list[str], at: int) -> _Block | None:
    """Read an error off a line of a logger's."""
    found = _LOGGED.search(lines[at][:_LOGGED_CHARS])
    if found is None or not _LEVEL.search(lines[at][: found.start()]):
        return None
    block = _block([lines[at][found.start() :]], 0)
    return replace(block, begin=at, end=at + 1) if block else None


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
