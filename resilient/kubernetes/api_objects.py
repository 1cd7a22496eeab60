# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses of a whole object: its metadata, its fields and its spec.

Jobs, CronJobs and Pods it validates itself, and so does this; what the JobSets and runtimes of others hold of these is
looked at by its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from resilient.kubernetes import api_cron, api_names, api_schema
from resilient.kubernetes.api_job import defaulted, job_spec
from resilient.kubernetes.api_pod import pod_spec
from resilient.kubernetes.api_problems import (
    Key,
    Problem,
    contradiction,
    inside,
    invalid,
    mapping,
    number,
    required,
    text,
    too_long,
)
from resilient.kubernetes.api_update import job_update
from resilient.kubernetes.building import PartPath

Object = Mapping[str, Any]

_UID_LABELS: Final = ("batch.kubernetes.io/controller-uid", "controller-uid")
_NAME_LABELS: Final = ("batch.kubernetes.io/job-name", "job-name")
_SPEC: Final = ("spec",)
_MOST_CRON_NAME: Final = 52
_MOST_NOTES: Final = 256 * 1024
"""Bytes of all annotations of an object together."""


def problems(found: Object) -> list[Problem]:
    """What is wrong with an object that is created; nothing for a kind that is not ours to judge."""
    known = _KINDS.get(text(found.get("kind")))
    if known is None:
        return []
    model, judge = known
    wrong = list(api_schema.fields(found, model))
    if any(problem.id == "api-type" for problem in wrong):  # nothing is looked at that cannot be read
        return wrong
    return [*wrong, *_metadata(found), *judge(found)]


def update_problems(old: Object, new: Object) -> list[Problem]:
    """What is wrong with the change of a Job."""
    before, after = mapping(old.get("spec")), mapping(new.get("spec"))
    return [*job_spec(after, _SPEC), *_template(after, _SPEC), *job_update(before, after, _SPEC)]


def embedded_job(spec: Object, path: PartPath, *, claimed: Collection[str] = ()) -> list[Problem]:
    """What is wrong with a Job's spec in an object of others, where a pod may still be unfinished.

    ``claimed``: the volumes that are added to it.
    """
    wrong = list(api_schema.fields(spec, "V1JobSpec", path))
    if any(problem.id == "api-type" for problem in wrong):
        return wrong
    pod = mapping(inside(spec, "template", "spec"))
    found = pod_spec(pod, (*path, "template", "spec"), is_whole=False, claimed=claimed)
    return [*wrong, *job_spec(spec, path), *found]


def _metadata(found: Object) -> Iterator[Problem]:
    metadata, where = mapping(found.get("metadata")), ("metadata", "name")
    name = text(metadata.get("name"))
    if not name and not text(metadata.get("generateName")):
        yield required("name-malformed", where, "name or generateName is required")
    for complaint in api_names.subdomain(name) if name else ():
        yield invalid("name-malformed", where, name, complaint)
    namespace = text(metadata.get("namespace"))
    for complaint in api_names.label(namespace) if namespace else ():
        yield invalid("name-malformed", ("metadata", "namespace"), namespace, complaint)
    yield from _marks(metadata, ("metadata",), ("metadata",))


def _marks(metadata: Object, path: PartPath, named: PartPath) -> Iterator[Problem]:
    """Labels and annotations; ``named``: where the API server says that they are."""
    labels, annotations = mapping(metadata.get("labels")), mapping(metadata.get("annotations"))
    where = (*named, "labels")
    for key, value in labels.items():
        for complaint in api_names.qualified(key):
            yield invalid("label-malformed", (*path, "labels", key), key, complaint, named=where)
        for complaint in api_names.label_value(text(value)):
            yield invalid("label-malformed", (*path, "labels", key), value, complaint, named=where)
    where = (*named, "annotations")
    for key in annotations:
        for complaint in api_names.qualified(key.lower()):  # here their case does not matter
            yield invalid("annotation-malformed", (*path, "annotations", key), key, complaint, named=where)
    if sum(len(key.encode()) + len(text(value).encode()) for key, value in annotations.items()) > _MOST_NOTES:
        yield too_long("annotation-malformed", (*path, "annotations"), _MOST_NOTES)


def _job(found: Object) -> Iterator[Problem]:
    spec, name = mapping(found.get("spec")), text(inside(found, "metadata", "name"))
    yield from job_spec(spec, _SPEC)
    yield from _template(spec, _SPEC)
    yield from _selector(spec, name)
    completions = number(defaulted(spec).get("completions")) or 0
    host = f"{name}-{completions - 1}"
    if name and text(spec.get("completionMode")) == "Indexed" and completions > 0 and api_names.label(host):
        why = f"will not able to create pod with invalid DNS label: {host}"
        yield invalid("indexed-name-too-long", ("metadata", "name"), name, why)
    elif len(name) > api_names.LABEL_BYTES:  # it becomes a label of the pods
        why = f"must be no more than {api_names.LABEL_BYTES} bytes"
        yield invalid("job-name-too-long", ("spec", "template", "labels"), name, why)


def _template(spec: Object, path: PartPath) -> Iterator[Problem]:
    template = mapping(spec.get("template"))
    yield from _marks(mapping(template.get("metadata")), (*path, "template", "metadata"), (*path, "template"))
    yield from pod_spec(mapping(template.get("spec")), (*path, "template", "spec"))


def _selector(spec: Object, name: str) -> Iterator[Problem]:
    """The controller makes the selector and its labels, unless it is told not to."""
    selector, labels = mapping(spec.get("selector")), mapping(inside(spec, "template", "metadata", "labels"))
    where: PartPath = ("spec", "template", "metadata", "labels")
    wanted = mapping(selector.get("matchLabels"))
    if spec.get("manualSelector") is True:
        if not selector:
            yield required("selector-of-its-own", ("spec", "selector"))
        if any(labels.get(key) != value for key, value in wanted.items()):
            yield invalid("selector-of-its-own", where, labels, "`selector` does not match template `labels`")
        return
    ours = {**dict.fromkeys(_NAME_LABELS, name)}
    if any(ours.get(key) != value for key, value in wanted.items()):
        yield invalid("selector-of-its-own", ("spec", "selector"), selector, "`selector` not auto-generated")
    for key in (*_UID_LABELS, *_NAME_LABELS):
        if key in labels and labels[key] != ours.get(key):
            must = f"must be '{name}'" if key in ours else "must be the uid that the Job is given"
            yield required("label-of-the-controller", (*where, Key(key)), must)


def _cron_job(found: Object) -> Iterator[Problem]:
    spec, name = mapping(found.get("spec")), text(inside(found, "metadata", "name"))
    if len(name) > _MOST_CRON_NAME:
        why = f"must be no more than {_MOST_CRON_NAME} characters"
        yield invalid("cron-name-too-long", ("metadata", "name"), name, why)
    yield from api_cron.schedule(spec, _SPEC)
    job, where = mapping(inside(spec, "jobTemplate", "spec")), ("spec", "jobTemplate", "spec")
    yield from job_spec(job, where)
    yield from _template(job, where)
    if job.get("selector") is not None:
        yield contradiction("selector-of-its-own", (*where, "selector"), "`selector` will be auto-generated")


def _pod(found: Object) -> Iterator[Problem]:
    yield from pod_spec(mapping(found.get("spec")), _SPEC)


_KINDS: Final[Mapping[str, tuple[str, Callable[[Object], Iterator[Problem]]]]] = {
    "Job": ("V1Job", _job),
    "CronJob": ("V1CronJob", _cron_job),
    "Pod": ("V1Pod", _pod),
}
