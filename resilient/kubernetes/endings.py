# SPDX-License-Identifier: Apache-2.0
"""How pods end, as people and programs write it for a simulation.

On the command line ``INDEX=CODE@TIME``, and after commas what else is to be said:
``0=194@1h,mesh:143,DisruptionTarget``. In a file a JSON list of objects: ``{"index": 0, "code": 194, "at": "1h",
"codes": {"mesh": 143}, "conditions": ["DisruptionTarget"], "deleted": "59min", "job": "node-0"}``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from resilient.checkpoint.untrusted import Json, list_of, object_of, parse_json, text_of
from resilient.core.kube_job import JobSpec
from resilient.core.kube_jobset import JobSetSpec
from resilient.core.kube_pod_failure import PodCondition
from resilient.core.kube_timeline import Ending, Suspension
from resilient.durations import parse_duration
from resilient.errors import SettingsError
from resilient.kubernetes.parts import refusal
from resilient.kubernetes.simulated import Workload

MOST: Final = 10_000
_MOST_WORK: Final = 2_000_000
"""Moments at which pods end, times pods: some 20 s of a core."""
_MAX_BYTES: Final = 4 * 1024 * 1024
_KEYS: Final = frozenset({"index", "code", "at", "codes", "conditions", "deleted", "job"})
_NAME: Final = r"[A-Za-z0-9]([-A-Za-z0-9./_]{0,250}[A-Za-z0-9])?"
_HIGHEST_CODE: Final = 255
_CODE: Final = r"(?:(?P<container>[a-z0-9][-a-z0-9]{0,62}):)?(?P<code>\d{1,18})"
_FIRST: Final = re.compile(rf"(?:(?P<job>[a-z0-9][-a-z0-9.]{{0,252}})/)?(?P<index>\*|\d{{1,18}})={_CODE}@(?P<at>[^,]+)")
_MORE: Final = re.compile(rf"deleted@(?P<deleted>.+)|{_CODE}|(?P<type>{_NAME})(?:=(?P<status>True|False|Unknown))?")
_EXAMPLE: Final = "write for example 0=194@1h, *=0@2d or node-0/1=137@90s,DisruptionTarget,deleted@60s"
_IN_FILE: Final = 'write a list of objects such as {"index": 0, "code": 194, "at": "1h"}'


def parse_ending(text: str) -> Ending:
    """One ending of a command line."""
    first, *rest = text.split(",")
    found = _FIRST.fullmatch(first)
    try:
        if found is None:
            raise ValueError("it is not INDEX=CODE@TIME")
        codes = {found["container"] or "": _code(int(found["code"]))}
        conditions: list[PodCondition] = []
        deleted_s: float | None = None
        for part in rest:
            more = _MORE.fullmatch(part)
            if more is None:
                raise ValueError(f"{part[:60]!r} is no NAME:CODE, condition or deleted@TIME")
            if more["deleted"]:
                deleted_s = _time(more["deleted"])
            elif more["code"]:
                codes[more["container"] or ""] = _code(int(more["code"]))
            else:
                conditions.append(PodCondition(type=more["type"], status=more["status"] or "True"))
        return Ending(
            at_s=_time(found["at"]),
            codes=codes,
            index=None if found["index"] == "*" else int(found["index"]),
            job=found["job"] or "",
            conditions=tuple(conditions),
            deleted_s=deleted_s,
        )
    except ValueError as error:
        raise SettingsError(f"cannot read the ending {text[:100]!r}: {_with(_EXAMPLE, error)}") from error


def parse_suspension(text: str) -> Suspension:
    """A while of a command line: ``1h..2h``, or ``1h..`` for ever."""
    begins, dots, ends = text.partition("..")
    try:
        from_s, to_s = _time(begins), _time(ends) if ends else None
        if not dots or (to_s is not None and to_s <= from_s):
            raise ValueError("it is not FROM..TO")
    except ValueError as error:
        raise SettingsError(
            f"cannot read the suspension {text[:100]!r}: {_with('write for example 1h..2h, or 1h.. for ever', error)}"
        ) from error
    return Suspension(from_s=from_s, to_s=to_s)


def _with(example: str, error: ValueError) -> str:
    """What is wrong, and what to write, which a time says itself."""
    return str(error) if "; " in str(error) else f"{error}; {example}"


def read_endings(path: str) -> list[Ending]:
    """The endings in a file."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        listed = list_of(parse_json(content.decode()))
        if len(listed) > MOST:
            raise ValueError(f"it has more than {MOST} endings")
        return [_of_object(number, item) for number, item in enumerate(listed)]
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SettingsError(f"cannot read the endings in {Path(path)}: {why}; {_IN_FILE}") from error


def check_endings(endings: list[Ending], workload: Workload) -> None:
    """Refuse what names a Job, an index or a container that there is not."""
    if len(endings) > MOST:
        raise SettingsError(f"cannot simulate more than {MOST} endings; give fewer")
    jobs = _jobs(workload.spec)
    moments = len({int(ending.at_s) for ending in endings})
    pods = sum(job.most_pods * (len(names) - 1) for names, job in jobs)
    if moments * pods > _MOST_WORK:
        raise SettingsError(
            f"cannot simulate {pods} pods that end at {moments} moments: it would take long; give fewer"
        )
    for ending in endings:
        meant = [job for names, job in jobs if ending.job in ("", *names)]
        if not meant:
            known = ", ".join(sorted({name for names, _ in jobs for name in names if name})[:20])
            raise refusal(f"cannot end a pod of {ending.job}: {workload.name} has no such Job; take one of {known}")
        reach = max((job.completions or 0) if job.is_indexed else job.most_pods for job in meant)
        if ending.index is not None and ending.index >= reach:
            raise SettingsError(f"cannot end index {ending.index}: there are {reach}; the first is 0")
        names = {container.name for job in meant for container in job.template.containers}
        unknown = [name for name in ending.codes if name and name not in names]
        if unknown:
            raise refusal(f"cannot end container {unknown[0]}: the pods have {', '.join(sorted(names))}")


def _jobs(spec: JobSpec | JobSetSpec) -> list[tuple[tuple[str, ...], JobSpec]]:
    """Each template with its name, the names of the Jobs that are made from it, and their spec."""
    if isinstance(spec, JobSpec):
        return [(("", spec.name), spec)]
    return [((one.name, *one.names(spec.name)), one.job) for one in spec.replicated]


def _of_object(number: int, item: Json) -> Ending:
    try:
        given = object_of(item)
        unknown = sorted(set(given) - _KEYS)
        if unknown:
            raise ValueError(f"it has {unknown[0]!r}, which nobody reads")
        index, deleted = given.get("index"), given.get("deleted")
        codes = {"": given["code"]} if "code" in given else {}
        codes |= object_of(given.get("codes", {}))
        if not codes or "at" not in given:
            raise ValueError("it needs a code and a time")
        return Ending(
            at_s=_time(given["at"]),
            codes={name: _code(code) for name, code in codes.items()},
            index=None if index in (None, "*") else _whole(index),
            job=text_of(given.get("job", "")),
            conditions=tuple(_condition(text_of(one)) for one in list_of(given.get("conditions", []))),
            deleted_s=None if deleted is None else _time(deleted),
        )
    except ValueError as error:
        raise ValueError(f"ending {number}: {error}") from error


def _condition(text: str) -> PodCondition:
    kind, _, status = text.partition("=")
    return PodCondition(type=kind, status=status or "True")


def _code(value: Json) -> int:
    code = _whole(value)
    if code > _HIGHEST_CODE:
        raise ValueError(f"no exit code is above {_HIGHEST_CODE}, and {code} is")
    return code


def _whole(value: Json) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a code or an index is no whole number")
    return value


def _time(value: Json) -> float:
    """A duration, or bare seconds; 0 too, which is the beginning."""
    if isinstance(value, str):
        seconds = re.fullmatch(r"(\d+(?:\.\d+)?)s?", value)
        if seconds is None:
            return parse_duration(value)
        value = seconds[1]
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("a time is neither a duration nor seconds")
    moment_s = float(value)
    if not 0 <= moment_s < 1e9:
        raise ValueError("a time is out of reach; give less than 1000000000 seconds")
    return moment_s
