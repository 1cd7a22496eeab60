# SPDX-License-Identifier: Apache-2.0
"""What the kubelet does when a container of a pod ends: restart it in place, or let the pod end.

Facts from ``pkg/api/v1/pod/util.go`` (``ContainerShouldRestart``), KEP-5307 and KEP-5532: a container's own rules, the
first that matches; then its own policy; then the pod's. Nothing is restarted in a pod that is being deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from resilient.core.kube_backoff import container_delay_s
from resilient.core.kube_job import Container, ContainerRun, Pod, PodPhase, PodTemplate
from resilient.core.kube_pod_failure import PodCondition, code_matches

RESTART: Final = "Restart"
RESTART_ALL: Final = "RestartAllContainers"
_KILLED: Final = 137


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A pod after some of its containers have ended."""

    pod: Pod
    said: tuple[str, ...] = ()
    """What was done about each, in words."""
    runs_again_s: float | None = None
    """When what was restarted in place runs again."""


def new_containers(template: PodTemplate) -> tuple[ContainerRun, ...]:
    """The containers of a pod that begins: init containers that are no sidecars have ended well by then."""
    return tuple(
        ContainerRun(
            name=container.name,
            is_init=container.is_init,
            exit_code=0 if container.is_init and not container.is_sidecar else None,
        )
        for container in template.containers
    )


def restart_action(container: Container, template: PodTemplate, code: int) -> str | None:
    """How the kubelet restarts a container that ended with this code; None: not at all."""
    if container.restart_policy is not None:
        for rule in container.restart_rules:
            if rule.action in (RESTART, RESTART_ALL) and code_matches(rule.operator, rule.values, code):
                return rule.action
    policy = container.restart_policy or template.restart_policy
    return RESTART if policy == "Always" or (policy == "OnFailure" and code != 0) else None


def end_containers(
    pod: Pod,
    template: PodTemplate,
    codes: Mapping[str, int],
    now_s: float,
    conditions: tuple[PodCondition, ...] = (),
) -> Ended:
    """The pod once these containers have ended, all at the same moment."""
    pod = dataclasses.replace(pod, conditions=(*pod.conditions, *conditions))
    by_name = {container.name: container for container in template.containers}
    said: list[str] = []
    runs_again_s: float | None = None
    for name in sorted(codes, key=lambda one: by_name[one].is_sidecar):
        code = codes[name]
        is_left = pod.deleted_s is not None or (by_name[name].is_sidecar and _mains_ended(pod))
        action = None if is_left else restart_action(by_name[name], template, code)
        if action is None:
            pod = _with_run(pod, name, exit_code=code)
            continue
        pod, again_s = _restarted(pod, name, code, action, now_s)
        runs_again_s = max(again_s, runs_again_s or 0.0)
        whole = "all containers start" if action == RESTART_ALL else f"{name} starts"
        waits = f" after a back-off of {again_s - now_s:g} s" if again_s > now_s else ""
        said.append(f"{whole} again in the same pod{waits}")
    if runs_again_s is not None:
        return Ended(pod=pod, said=tuple(said), runs_again_s=runs_again_s)
    pod = _finished(pod, by_name, now_s)
    if pod.is_running and codes:
        still = [run.name for run in pod.containers if run.exit_code is None and not by_name[run.name].is_sidecar]
        said.append(f"{', '.join(still)} still runs, so the pod does not end and no rule is evaluated")
    return Ended(pod=pod, said=tuple(said))


def kill(pod: Pod, template: PodTemplate, now_s: float) -> Pod:
    """The pod once its grace period has run out: what still runs is killed."""
    for run in pod.containers:
        if run.exit_code is None:
            pod = _with_run(pod, run.name, exit_code=_KILLED)
    return _finished(pod, {container.name: container for container in template.containers}, now_s)


def _restarted(pod: Pod, name: str, code: int, action: str, now_s: float) -> tuple[Pod, float]:
    again_s = now_s
    for run in pod.containers:
        is_it = run.name == name
        if not is_it and action != RESTART_ALL:
            continue
        delay_s, next_s = container_delay_s(run.backoff_s, run.backed_off_s, now_s) if is_it else (0.0, run.backoff_s)
        again_s = max(again_s, now_s + delay_s)
        pod = _with_run(
            pod,
            run.name,
            exit_code=0 if run.is_init and not is_it and run.exit_code == 0 else None,
            restarts=run.restarts + 1,
            last_code=code if is_it else _KILLED,
            last_end_s=now_s,
            backoff_s=next_s,
            backed_off_s=now_s + delay_s if is_it else run.backed_off_s,
        )
    return pod, again_s


def _finished(pod: Pod, by_name: Mapping[str, Container], now_s: float) -> Pod:
    """Failed or Succeeded, if nothing that the pod waits for runs any more; the kubelet ends native sidecars then."""
    init_failed = any(run.is_init and run.exit_code and not by_name[run.name].is_sidecar for run in pod.containers)
    if not init_failed and not _mains_ended(pod):
        return pod
    failed = init_failed or any(run.exit_code for run in pod.containers if not run.is_init)
    for run in pod.containers:
        if run.is_init and run.exit_code is None:
            pod = _with_run(pod, run.name, exit_code=0)
    return dataclasses.replace(pod, phase=PodPhase.FAILED if failed else PodPhase.SUCCEEDED, finished_s=now_s)


def _mains_ended(pod: Pod) -> bool:
    """From then on sidecars are ended too, and restarted no more."""
    return all(run.exit_code is not None for run in pod.containers if not run.is_init)


def _with_run(pod: Pod, name: str, **changes: object) -> Pod:
    runs = tuple(dataclasses.replace(run, **changes) if run.name == name else run for run in pod.containers)  # type: ignore[arg-type]  # fields by name
    return dataclasses.replace(pod, containers=runs)
