# SPDX-License-Identifier: Apache-2.0
"""The verb ``manifest``: writes one, adds the contract to one, checks some.

Everything after ``--`` is the training's command, so it is split off before the rest is read.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.core.redact import Redactor, clean_argv, secrets_of_argv
from resilient.durations import parse_duration
from resilient.errors import SettingsError
from resilient.verbs.manifest_flags import USAGE, WITH_FROM, add_check_flags, parser
from resilient.verbs.parsing import Parser, Verbs

_SUMMARY: Final = "write the Kubernetes manifest of a training, add the exit codes' rules to one, or check some"
_SECRET: Final = (
    "the command holds what looks like a secret, and manifests are read by many; put it into a Secret, name that with "
    "--secret-env, and read the variable in the script"
)


_MOST_FOUND: Final = 10


def add(verbs: Verbs) -> None:
    verbs.add_parser("manifest", help=_SUMMARY, add_help=False)


def manifest(argv: list[str]) -> int:
    """``resilient manifest ARGV``."""
    flags, command = split(argv)
    if "--check" in flags and "--help" not in flags:
        return _check(flags)
    asked = parser().parse_args(flags)
    if asked.source:
        return _add(asked, command)
    return _write(asked, command, argv)


def split(argv: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...]]:
    """Our flags, and the training's command."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], tuple(argv[at + 1 :])


def _check(flags: Sequence[str]) -> int:
    """Files may stand on either side of the other flags, so they are read as what is left."""
    reading = Parser(prog="resilient manifest", usage=USAGE, allow_abbrev=False)
    reading.add_argument("--check", action="store_true")
    reading.add_argument("files", nargs="*", metavar="FILE")
    add_check_flags(reading)
    asked = reading.parse_args(flags)
    if not asked.files and not asked.vectors:
        raise SettingsError("cannot check: no file is named; name manifests, or - for stdin")
    from resilient.report.lint import check_command

    return check_command(asked.files, as_json=asked.json, vectors=asked.vectors)


def _add(asked: argparse.Namespace, command: tuple[str, ...]) -> int:
    given = [name for name, value in vars(asked).items() if value != parser().get_default(name)]
    said = sorted(f"--{name.replace('_', '-')}" for name in given if name not in WITH_FROM and name != "kind")
    said += [asked.kind] if asked.kind != "job" else []
    said += ["a command"] if command else []
    if said:
        raise SettingsError(
            f"cannot use {said[0]} with --from: it is for new manifests; change yours by hand, or leave it out"
        )
    if asked.namespace and not asked.rbac:
        raise SettingsError(
            "cannot use --namespace with --from: it is for the Role of --rbac; give that too, or leave it out"
        )
    from resilient.kubernetes import documents
    from resilient.kubernetes.adding import add_contract
    from resilient.kubernetes.completing import Addition

    addition = Addition(
        container=asked.container,
        checkpoints=asked.checkpoints,
        grace_s=_seconds(asked.grace) if "grace" in given else None,
        days=asked.days,
        faults_per_device_day=asked.faults_per_device_day,
        restart_rules=asked.restart_rules,
        sidecars=asked.sidecars,
        permissions=asked.rbac,
        namespace=asked.namespace,
    )
    text, notes = add_contract(documents.read_file(asked.source), addition)
    print(text, end="")
    for note in notes:
        print(f"resilient: {note}", file=sys.stderr)
    return ExitCode.FINISHED


def _write(asked: argparse.Namespace, command: tuple[str, ...], argv: Sequence[str]) -> int:
    _require(asked, command)
    from resilient.kubernetes import documents
    from resilient.kubernetes import manifest as writing
    from resilient.kubernetes.submission import Submission, name_of, run_words

    words = run_words(command)
    submission = Submission(
        name=asked.name or name_of(command),
        image=asked.image,
        command=words,
        memory=asked.memory,
        checkpoints=asked.checkpoints,
        claim=asked.claim,
        namespace=asked.namespace,
        pods=asked.pods,
        devices=asked.devices,
        device_resource=asked.device_resource,
        cpu=asked.cpu,
        state=asked.state,
        shm=asked.shm,
        grace_s=_seconds(asked.grace),
        days=asked.days,
        faults_per_device_day=asked.faults_per_device_day,
        queue=asked.queue,
        env=_pairs(asked.env, "--env", "NAME=VALUE"),
        secrets=tuple(asked.secret),
        secret_env=_keys(asked.secret_env),
        uid=asked.user,
        sidecars=asked.sidecars,
        restart_rules=asked.restart_rules,
        permissions=asked.rbac,
    )
    patches = documents.read_file(asked.patch) if asked.patch else ()
    again = "Written by: " + shlex.join(("resilient", "manifest", *clean_argv(argv)))
    text = writing.write(asked.kind, submission, patches=patches, patch_type=asked.patch_type, head=(again,))
    print(text, end="")
    for line in _patched_wrong(text) if patches else ():
        print(f"resilient: {line}", file=sys.stderr)
    if secrets_of_argv(command):
        print(f"resilient: {_SECRET}", file=sys.stderr)
    return ExitCode.FINISHED


def _patched_wrong(text: str) -> Iterator[str]:
    """What patches have made wrong, as a person should know before it is applied; without them there is nothing."""
    from resilient.kubernetes import documents, lint

    found = lint.check(documents.read(text, "the manifest"))
    for finding in found[:_MOST_FOUND]:
        where = f"with the patch line {finding.line} is {'an error' if finding.is_error else 'doubtful'}"
        said = Redactor().clean(": ".join(filter(None, (finding.row.why.removesuffix("."), finding.detail))), 400)
        yield f"{where}: {said}; {finding.row.fix}"
    if found[_MOST_FOUND:]:
        yield f"there are {len(found) - _MOST_FOUND} others; see resilient manifest --check"


def _require(asked: argparse.Namespace, command: tuple[str, ...]) -> None:
    """All that is missing, at once."""
    missing = [flag for flag, value in (("--image", asked.image), ("--memory", asked.memory)) if not value]
    missing += [] if asked.checkpoints or asked.claim else ["--checkpoints or --claim"]
    missing += [] if command else ["-- and the command of the training"]
    if missing:
        raise SettingsError(
            f"cannot write a manifest: what nobody can guess is not given; add {', '.join(missing)}; "
            "see resilient manifest --help"
        )


def _seconds(text: str) -> int:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"cannot use {text!r} for --grace: {error}") from error
    if seconds != int(seconds):
        raise SettingsError(f"cannot use {text!r} for --grace: Kubernetes counts whole seconds; write for example 120s")
    return int(seconds)


def _pairs(texts: Sequence[str], flag: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"cannot use {name!r} for {flag}: it has no '='; write {form}")
        if name in pairs:
            raise SettingsError(f"cannot use {flag} {name} twice: only one value can hold; leave one out")
        pairs[name] = value
    return pairs


def _keys(texts: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    form = "NAME=SECRET:KEY"
    found: dict[str, tuple[str, str]] = {}
    for name, value in _pairs(texts, "--secret-env", form).items():
        secret, colon, key = value.partition(":")
        if not colon:
            raise SettingsError(f"cannot use {name} for --secret-env: it names no key; write {form}")
        found[name] = (secret, key)
    return found


ANSWERS: Final[Mapping[str, Callable[[list[str]], int]]] = {"manifest": manifest}
"""Read by itself: what comes after ``--`` is not ours."""
