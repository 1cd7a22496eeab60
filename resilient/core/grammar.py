# SPDX-License-Identifier: Apache-2.0
"""English for messages that are put together."""

from __future__ import annotations


def with_article(noun: str) -> str:
    """``a Linear``, ``an Adam``: by the first letter."""
    return f"{'an' if noun[:1].lower() in {*'aeiou'} else 'a'} {noun}"


def type_of(value: object) -> str:
    """What a value is, as in ``it is a list``."""
    return with_article(type(value).__name__)
