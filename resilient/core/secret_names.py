# SPDX-License-Identifier: Apache-2.0
"""Which names promise a secret: of variables, flags, fields and query parameters.

Training code is full of tokens and keys that are none (``max_tokens``,
``eos_token``, ``num_keys``); a name is judged by its words, not by its letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

MIN_SECRET: Final = 6

# As a whole word, or at the end of one: PGPASSWORD, apikey.
_ALWAYS: Final = (
    "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "credential", "credentials",
    "apikey", "accesskey", "secretkey", "authkey", "privatekey", "accountkey", "authtoken", "accesstoken",
    "apitoken", "authorization",
)  # fmt: skip
_AS_LAST_WORD: Final = frozenset({"token", "key", "pat", "signature", "sig"})
_ORDINARY_TOKENS: Final = frozenset({
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "special", "next", "prev", "num", "per", "max", "min", "last",
    "first", "new", "stop", "end", "start", "image", "audio", "video", "begin", "each", "every", "single", "text",
    "word", "sub", "current", "decoder", "encoder", "prompt",
})  # fmt: skip
_SECRET_KEYS: Final = frozenset({
    "api", "access", "secret", "private", "auth", "encryption", "signing", "ssh", "account", "master", "storage",
    "shared", "service", "session", "client", "license", "deploy", "hmac", "aws", "azure", "gcp", "wandb", "hf",
    "openai",
})  # fmt: skip
# The value is about the secret, not the secret.
_ABOUT: Final = frozenset({
    "file", "path", "dir", "name", "names", "count", "length", "len", "size", "type", "url", "uri", "endpoint",
    "version",
})  # fmt: skip
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NUMBER: Final = re.compile(r"[-+]?[\d_.]{1,16}(?:[eE][-+]?\d{1,3})?")
_NOTHING: Final = frozenset({
    "", "none", "null", "true", "false", "str", "int", "bool", "float", "bytes", "optional",
    # How a sentence about it goes on: without these it says the contrary.
    "not", "no", "is", "was", "unable", "cannot", "missing", "invalid", "expired", "denied", "required", "unset",
})  # fmt: skip
_PLAIN_WORDS: Final = re.compile(r"<?\|?[a-z]{1,15}(?:[._/-][a-z0-9]{1,15}){0,12}\|?>?|.{0,11}")
_ASSIGNED: Final = re.compile(r"[-+]{0,2}([A-Za-z_][\w.-]{0,127})")
_CHOICE: Final = re.compile(r"[a-z]+(?:[._/-][a-z]+)*")
_BETWEEN_WORDS: Final = re.compile(r"[\s;]+")
_URL_PASSWORD: Final = re.compile(r"://([^\s/@:]{0,256}):([^\s@]{1,256})@")


def promises_secret(name: str, *, variable: bool = False) -> bool:
    """Say whether a value under this name must be taken for a secret.

    ``variable`` is stricter, for environment variables and flags: there is no
    prose among them, and any KEY or TOKEN counts.
    """
    if name in ("PWD", "OLDPWD"):  # the shell's working directory
        return False
    words = [word.lower() for word in _WORD.findall(name[:128])]
    while words and words[-1].isdigit():
        words.pop()
    if len(words) > 1 and words[-1] == "id" and words[-2] == "key":
        words.pop()
    if not words or words[-1] in _ABOUT:
        return False
    if any(word.endswith(_ALWAYS) for word in words):
        return True
    if variable and {"key", "keys", "token"}.intersection(words):
        return words[-1] in ("key", "keys") or not _ORDINARY_TOKENS.intersection(words)
    if words[-1] not in _AS_LAST_WORD:
        return False
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "token":
        return before not in _ORDINARY_TOKENS
    return words[-1] == "key" and (before in _SECRET_KEYS or name.isupper())


def may_be_secret(name: str) -> bool:
    """Say whether a name is a bare ``key``: a secret only where the value looks like one."""
    words = [word.lower() for word in _WORD.findall(name[:128])]
    return bool(words) and words[-1] in ("key", "keys", "signature", "sig", "pat")


def is_ordinary(name: str, value: str, *, sure: bool) -> bool:
    """Say whether a value under a suspicious name is plainly no secret, and worth reading."""
    bare = value.strip("\"'")
    if bare.lower() in _NOTHING:
        return True
    word = name.lower()
    if _NUMBER.fullmatch(bare) and len(bare) < 8 and ("token" in word or "key" in word):
        return True
    return not sure and (_PLAIN_WORDS.fullmatch(bare) is not None or _NUMBER.fullmatch(bare) is not None)


def secrets_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Pick the secrets out of an environment: values of telling names, and passwords inside of URLs."""
    found: dict[str, None] = {}
    for name, value in environ.items():
        if promises_secret(name, variable=True) and len(value.strip()) >= MIN_SECRET:
            found[value.strip()] = None
        found.update(dict.fromkeys(_url_passwords(value)))
    return tuple(secret for secret in found if secret.lower() not in _NOTHING)


def secrets_of_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """Pick the secrets out of a command line: values of telling flags and assignments, and passwords inside of URLs."""
    found: dict[str, None] = {}
    # An item may be a command line itself: bash -c "train --token ...".
    for words in (argv, *(_BETWEEN_WORDS.split(item) for item in argv if _BETWEEN_WORDS.search(item))):
        for word, following in zip(words, (*words[1:], ""), strict=False):
            name, equals, value = word.partition("=")
            if not equals and name.startswith("-") and not following.startswith("--"):
                value = following
            value = value.strip(" \t\n\"'")
            if (named := _ASSIGNED.fullmatch(name)) and len(value) >= MIN_SECRET and _tells_secret(named[1], value):
                found[value] = None
            found.update(dict.fromkeys(_url_passwords(word)))
    return tuple(found)


def _tells_secret(name: str, value: str) -> bool:
    """Whether to look for a value everywhere: the word of ``--sort-key timestamp`` would be missed in every text."""
    if not promises_secret(name, variable=True) or is_ordinary(name, value, sure=True):
        return False
    return promises_secret(name) or _CHOICE.fullmatch(value) is None


def _url_passwords(text: str) -> Iterator[str]:
    for match in _URL_PASSWORD.finditer(text[:8192]):
        yield from (part for part in (match[2], unquote(match[2])) if len(part) >= MIN_SECRET)
