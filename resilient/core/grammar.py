# SPDX-License-Identifier: Apache-2.0
"""English for messages that are put together."""

from __future__ import annotations


def with_article(noun: str) -> str:
    """``a Linear``, ``an Adam``: by the first letter."""
    return f"{'an' if noun[:1].lower() in {*'aeiou'} else 'a'} {noun}"


def type_of(value: object) -> str:
    """What a value is, as in ``it is a list``."""
    return with_article(type(value).__name__)


def going_on(sentence: str) -> str:
    """A sentence that another part follows: without its full stop, which quoted text often has."""
    text = sentence.rstrip()
    return text if text.endswith("..") else text.removesuffix(".")


def remedy_apart(message: str) -> tuple[str, str]:
    """``cannot X: why; do Y`` as what is wrong and what to do about it; the latter is empty where it is not said."""
    why, found, do = message.rpartition("; ")
    return (why, do) if found else (message, "")
