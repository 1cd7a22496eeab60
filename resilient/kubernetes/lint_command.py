# SPDX-License-Identifier: Apache-2.0
"""What a container's command line starts, and whether its code and its signals get through.

The supervisor must be PID 1, or the child of something that passes both on: an init, or a program that ends in exec.
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_TRANSPARENT: Final = frozenset(
    {
        "tini",
        "dumb-init",
        "catatonit",
        "docker-init",
        "env",
        "nice",
        "ionice",
        "numactl",
        "taskset",
        "stdbuf",
        "setpriv",
    }
)
"""Inits that pass on signals and codes, and programs that become the one that they start."""
_PYTHON: Final = re.compile(r"python[0-9.]*")
_FLAG_C: Final = re.compile(r"-[a-z]*c")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_TRAINING: Final = re.compile(
    r"\b(torchrun|torch\.distributed|accelerate launch|deepspeed|horovodrun|colossalai)\b"
    r"|train\w{0,80}\.py\b|-m [\w.]{0,200}train",
    re.IGNORECASE,
)
"""A launcher, or a script or module of that name. The mere word stands in many a job that prepares data for one."""
_OPERATORS: Final = re.compile(r"(;|&&|\|\||\||&)")
_MOST_SCRIPT: Final = 16_384
"""Characters that shlex is given: a word of so many more costs it the square of their number."""
_ENDS_STATEMENT: Final = frozenset({";", "&&", "||", "&", "|", "|&", ";;", ")", "("})


class Starts(enum.Enum):
    """What one can tell from a command line."""

    NOTHING = "the image's own entry point, or a script: what it starts is not to be seen"
    SUPERVISOR = "resilient run"
    OTHER = "something else"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What a command line starts and how."""

    starts: Starts
    in_shell: bool = False
    """The supervisor is the child of a shell, which passes on no signal."""
    in_pipe: bool = False
    """The code is that of another program."""
    wrapper: str = ""
    """The program above the supervisor of which nobody knows what it passes on."""
    arguments: tuple[str, ...] = ()
    """The supervisor's."""


def read_command(argv: Sequence[str]) -> CommandLine:
    """Judge the words of ``command`` and ``args`` together."""
    words = _without_transparent(list(argv))
    if not words:
        return CommandLine(starts=Starts.NOTHING)
    name = PurePosixPath(words[0]).name
    if (at := _supervisor_at(words, 0)) is not None:
        return CommandLine(starts=Starts.SUPERVISOR, arguments=tuple(words[at:]))
    if name in _SHELLS:
        flag = next((index for index, word in enumerate(words[1:], 1) if _FLAG_C.fullmatch(word)), None)
        script = words[flag + 1] if flag is not None and flag + 1 < len(words) else None
        return _read_script(script) if script is not None else CommandLine(starts=Starts.NOTHING)
    if name.endswith(".sh"):
        return CommandLine(starts=Starts.NOTHING)
    found = next((at for index in range(1, len(words)) if (at := _supervisor_at(words, index)) is not None), None)
    if found is not None:
        return CommandLine(starts=Starts.SUPERVISOR, wrapper=name, arguments=tuple(words[found:]))
    return CommandLine(starts=Starts.OTHER)


def is_training(argv: Sequence[str]) -> bool:
    """Whether a command line speaks of a training."""
    return _TRAINING.search(" ".join(argv)) is not None


def flag_value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag of the supervisor, in either form."""
    for index, word in enumerate(arguments):
        if word == "--" or (word.endswith(".py") and not word.startswith("-")):
            break
        if word == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _supervisor_at(words: Sequence[str], index: int) -> int | None:
    """Where the arguments of ``resilient run`` begin, if it stands at this word."""
    if PurePosixPath(words[index]).name == "resilient" and words[index + 1 : index + 2] == ["run"]:
        return index + 2
    if _PYTHON.fullmatch(PurePosixPath(words[index]).name):
        after = index + 1
        while after < len(words) and words[after] in ("-u", "-I", "-E", "-s", "-B", "-O"):
            after += 1
        if list(words[after : after + 3]) == ["-m", "resilient", "run"]:
            return after + 3
    return None


def _without_transparent(words: list[str]) -> list[str]:
    while words and PurePosixPath(words[0]).name in _TRANSPARENT:
        del words[0]
        while words and (words[0].startswith(("-", "+")) or _ASSIGNMENT.fullmatch(words[0]) or words[0].isdecimal()):
            del words[0]
    return words


def _read_script(script: str) -> CommandLine:
    words = _words(script)
    found = next(((index, at) for index in range(len(words)) if (at := _supervisor_at(words, index)) is not None), None)
    if found is None:
        is_file = any(word.endswith(".sh") for word in words)
        return CommandLine(starts=Starts.NOTHING if is_file else Starts.OTHER)
    index, at = found
    end = next((later for later in range(at, len(words)) if words[later] in _ENDS_STATEMENT), len(words))
    begin = next((earlier + 1 for earlier in range(index - 1, -1, -1) if words[earlier] in _ENDS_STATEMENT), 0)
    before = [word for word in words[begin:index] if not _ASSIGNMENT.fullmatch(word)]
    in_pipe = words[end : end + 1] in (["|"], ["|&"]) or (begin > 0 and words[begin - 1] in ("|", "|&"))
    return CommandLine(
        starts=Starts.SUPERVISOR,
        in_pipe=in_pipe,
        in_shell=not in_pipe and before[:1] != ["exec"],
        arguments=tuple(words[at:end]),
    )


def _words(script: str) -> list[str]:
    """The words and the operators of a shell script, as well as they can be told without being a shell."""
    lines = script.replace("\\\n", " ").replace("\n", " ; ")
    if len(lines) > _MOST_SCRIPT:
        return _OPERATORS.sub(r" \1 ", lines).split()
    lexer = shlex.shlex(lines, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # an open quotation mark
        return _OPERATORS.sub(r" \1 ", lines).split()
