# SPDX-License-Identifier: Apache-2.0
"""Whether the supervisor gets the signal, has the time, and its exit is what the pod ends with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resilient.durations import parse_duration
from resilient.kubernetes.api_problems import inside, items, mapping, number, text
from resilient.kubernetes.lint_command import Starts, flag_value, is_training
from resilient.kubernetes.lint_rows import Hit, Rule, Scope, error, warning
from resilient.kubernetes.lint_subject import Subject, argv

_DEFAULT_GRACE_S: Final = 30
_GRACE: Final = "RESILIENT_GRACE_S"
_ASKED_FOR: Final = (
    ("sidecar.istio.io/inject", "true"),
    ("linkerd.io/inject", "enabled"),
    ("vault.hashicorp.com/agent-inject", "true"),
    ("dapr.io/enabled", "true"),
)
"""What asks an injector for a container beside the training's."""
_NATIVE: Final = (
    ("sidecar.istio.io/nativeSidecar", "true"),
    ("config.alpha.linkerd.io/proxy-enable-native-sidecar", "true"),
    ("config.beta.linkerd.io/proxy-enable-native-sidecar", "true"),
    ("vault.hashicorp.com/agent-pre-populate-only", "true"),
)


def _other_program(subject: Subject) -> Iterator[Hit]:
    # A runtime's command comes with the TrainJob, unless what stands there trains.
    words = argv(subject.trainer)
    if subject.command.starts is Starts.OTHER and (not subject.kind.endswith("Runtime") or is_training(words)):
        place = "command" if "command" in subject.trainer else "args"
        yield Hit(path=(*subject.trainer_path, place), detail=" ".join(words)[:80].split("\n")[0])


def _unseen(subject: Subject) -> Iterator[Hit]:
    # A runtime's command comes with the TrainJob.
    if subject.command.starts is Starts.NOTHING and not (subject.kind.endswith("Runtime") or subject.is_partial):
        yield Hit(path=(*subject.trainer_path, "command"), detail=f"container {subject.name}")


def _in_shell(subject: Subject) -> Iterator[Hit]:
    if subject.command.in_shell:
        yield Hit(path=(*subject.trainer_path, "command"))


def _in_pipe(subject: Subject) -> Iterator[Hit]:
    if subject.command.in_pipe:
        yield Hit(path=(*subject.trainer_path, "command"))


def _wrapped(subject: Subject) -> Iterator[Hit]:
    if subject.command.wrapper:
        yield Hit(path=(*subject.trainer_path, "command"), detail=subject.command.wrapper)


def _observing(subject: Subject) -> Iterator[Hit]:
    if "--observe" in subject.command.arguments:
        yield Hit(path=(*subject.trainer_path, "args"))
    elif (subject.variable("RESILIENT_OBSERVE") or "").lower() in ("1", "true", "yes", "on"):
        yield Hit(path=subject.env["RESILIENT_OBSERVE"][0])


def _restarts(subject: Subject) -> Iterator[Hit]:
    """The container's own policy holds before the pod's, to which in a Job with rules the API server sees."""
    own = text(subject.trainer.get("restartPolicy"))
    if own in ("Always", "OnFailure"):
        yield Hit(path=(*subject.trainer_path, "restartPolicy"), detail=own)
    if own or subject.is_partial or (subject.job is not None and "podFailurePolicy" in subject.job):
        return
    default = "Always" if subject.kind == "Pod" else "Never" if subject.jobset is None else "OnFailure"
    policy = text(subject.pod.get("restartPolicy")) or default
    if policy != "Never":
        yield Hit(path=(*subject.pod_path, "restartPolicy"), detail=policy)


def _sidecar(subject: Subject) -> Iterator[Hit]:
    for index, container in enumerate(subject.containers):
        if index != subject.index:
            yield Hit(path=(*subject.pod_path, "containers", index), detail=text(container.get("name")))


def _injected(subject: Subject) -> Iterator[Hit]:
    for group in ("labels", "annotations"):
        given = mapping(subject.metadata.get(group))
        if any(text(given.get(name)) == value for name, value in _NATIVE):
            continue
        for name, value in _ASKED_FOR:
            if text(given.get(name)) == value:
                yield Hit(path=(*subject.metadata_path, group, name), detail=name)


def _grace(subject: Subject) -> tuple[float, float] | None:
    """What the pod has and what the supervisor believes, in seconds; None where that cannot be told."""
    if subject.is_partial:
        return None
    given = number(subject.pod.get("terminationGracePeriodSeconds"))
    flag, variable = flag_value(subject.command.arguments, "--grace"), subject.variable(_GRACE)
    if flag is None and variable is None and _GRACE in subject.env:  # from somewhere else
        return None
    try:
        told = parse_duration(flag or (f"{variable}s" if variable else f"{_DEFAULT_GRACE_S}s"))
    except ValueError:  # the supervisor will refuse it
        return None
    return float(_DEFAULT_GRACE_S if given is None else given), told


def _grace_too_short(subject: Subject) -> Iterator[Hit]:
    known = _grace(subject)
    if known and known[0] < known[1]:
        path = (*subject.pod_path, "terminationGracePeriodSeconds")
        yield Hit(path=path, detail=f"the pod has {known[0]:g} s, the supervisor counts on {known[1]:g} s")


def _grace_unused(subject: Subject) -> Iterator[Hit]:
    known = _grace(subject)
    if known and known[0] > known[1]:
        path = subject.env[_GRACE][0] if _GRACE in subject.env else (*subject.trainer_path, "env")
        yield Hit(path=path, detail=f"the pod has {known[0]:g} s, the supervisor counts on {known[1]:g} s")


def _grace_not_told(subject: Subject) -> Iterator[Hit]:
    stands = _GRACE in subject.env or flag_value(subject.command.arguments, "--grace") is not None
    if not stands and not subject.is_partial and number(subject.pod.get("terminationGracePeriodSeconds")) in (None, 30):
        yield Hit(path=(*subject.trainer_path, "env"))


def _pre_stop(subject: Subject) -> Iterator[Hit]:
    if mapping(inside(subject.trainer, "lifecycle", "preStop")):
        yield Hit(path=(*subject.trainer_path, "lifecycle", "preStop"))


def _probed(subject: Subject) -> Iterator[Hit]:
    for name in ("livenessProbe", "startupProbe"):
        if mapping(subject.trainer.get(name)):
            yield Hit(path=(*subject.trainer_path, name))


def _foreign_processes(subject: Subject) -> Iterator[Hit]:
    for name in ("shareProcessNamespace", "hostPID"):
        if subject.pod.get(name) is True:
            yield Hit(path=(*subject.pod_path, name), detail=name)


def _token_missing(subject: Subject) -> Iterator[Hit]:
    """An account whose token is never mounted, unless the pod says otherwise, is another object's affair."""
    if subject.asks_api and subject.pod.get("automountServiceAccountToken") is False:
        yield Hit(path=(*subject.pod_path, "automountServiceAccountToken"))


def _token(subject: Subject) -> Iterator[Hit]:
    """An account that is named is meant."""
    if subject.asks_api:
        return
    named = text(subject.pod.get("serviceAccountName")) or text(subject.pod.get("serviceAccount"))
    if not subject.is_partial and not named and subject.pod.get("automountServiceAccountToken") is not False:
        yield Hit(path=(*subject.pod_path, "automountServiceAccountToken"))


def _message_policy(subject: Subject) -> Iterator[Hit]:
    if not subject.is_partial and text(subject.trainer.get("terminationMessagePolicy")) != "FallbackToLogsOnError":
        yield Hit(path=(*subject.trainer_path, "terminationMessagePolicy"))


def _message_path(subject: Subject) -> Iterator[Hit]:
    path = text(subject.trainer.get("terminationMessagePath")) or "/dev/termination-log"
    told = subject.variable("RESILIENT_TERMINATION_LOG") or flag_value(subject.command.arguments, "--termination-log")
    if not subject.is_partial and path != (told or "/dev/termination-log"):
        yield Hit(path=(*subject.trainer_path, "terminationMessagePath"), detail=path)


def _alone(subject: Subject) -> Iterator[Hit]:
    if subject.kind == "Pod" and not items(inside(subject.whole, "metadata", "ownerReferences")):
        yield Hit(path=("kind",))


RULES: Final[tuple[Rule, ...]] = (
    error(
        "not-supervised",
        "What runs is not resilient run: its failures end with 1 or a signal, and no rule can tell them apart.",
        "start it by resilient run (a torchrun behind it is unwrapped: resilient run -- torchrun train.py)",
        _other_program,
        scope=Scope.TRAINING,
    ),
    warning(
        "command-unseen",
        "The image or a script decides what is started: whether its exit codes are the contract's is not to be seen.",
        "write command: [resilient, run] and the training in args",
        _unseen,
        scope=Scope.TRAINING,
    ),
    error(
        "shell-in-front",
        "A shell is PID 1: it does not pass on SIGTERM, so that nothing is saved, and it may replace the exit code.",
        "write command: [resilient, run] in exec form, or let the script end with exec resilient run",
        _in_shell,
    ),
    error(
        "pipe-takes-the-code",
        "In a pipe the container ends with the code of the last program, which is 0 although the training failed.",
        "remove the pipe: the kubelet keeps the log, and the journal what is worth keeping",
        _in_pipe,
    ),
    warning(
        "wrapper-unknown",
        "Between the container and the supervisor stands a program that may keep signals or codes for itself.",
        "remove it, or take one that passes both on (tini, dumb-init, catatonit)",
        _wrapped,
    ),
    warning(
        "observing",
        "With --observe every failure ends with 1, as torchrun's does, and no rule of the policy fits.",
        "leave it out once the verdicts are believed",
        _observing,
    ),
    error(
        "container-restarts",
        "The kubelet restarts the container after every failure, whatever its code says, and no budget is asked.",
        "write restartPolicy: Never; what may be restarted in place, restartPolicyRules say",
        _restarts,
    ),
    error(
        "classic-sidecar",
        "A pod ends only when all its containers have: this one keeps it running, and no rule is ever evaluated.",
        "make it an initContainer with restartPolicy: Always",
        _sidecar,
        scope=Scope.TRAINING,
    ),
    warning(
        "sidecar-injected",
        "The injected container keeps the pod running after the training has ended, unless it is a native sidecar.",
        "switch the injection off for this pod, or have it inject a native sidecar",
        _injected,
        scope=Scope.TRAINING,
    ),
    error(
        "grace-too-short",
        "The pod is killed before the time is over in which the supervisor means to save.",
        "make terminationGracePeriodSeconds and RESILIENT_GRACE_S the same",
        _grace_too_short,
    ),
    warning(
        "grace-unused",
        "A pod cannot read its own grace period, and the supervisor saves as if there were less of it.",
        "make RESILIENT_GRACE_S the same as terminationGracePeriodSeconds",
        _grace_unused,
    ),
    warning(
        "grace-not-told",
        "The supervisor counts on 30 s because nobody says otherwise; one step and one save seldom fit into that.",
        "write terminationGracePeriodSeconds, and the same number into RESILIENT_GRACE_S",
        _grace_not_told,
    ),
    warning(
        "pre-stop",
        "The hook runs within the grace period, before SIGTERM: its time is missing for the save.",
        "remove the hook, or subtract its time from RESILIENT_GRACE_S",
        _pre_stop,
    ),
    warning(
        "probe-kills",
        "A failing probe has the kubelet kill the training, as an OOM kill would; hangs are the supervisor's to find.",
        "remove the probe",
        _probed,
    ),
    warning(
        "foreign-processes",
        "The supervisor is not PID 1 here: it neither gets the signals meant for it nor the orphans of its workers.",
        "remove it",
        _foreign_processes,
    ),
    warning(
        "token-mounted",
        "The training asks the cluster for nothing, and everything that runs in it can read the token.",
        "write automountServiceAccountToken: false",
        _token,
    ),
    warning(
        "token-missing",
        "The supervisor is to ask Kubernetes of its own pod, and no token is mounted with which it could.",
        "write automountServiceAccountToken: true; resilient manifest --rbac shows what its account must be allowed",
        _token_missing,
    ),
    warning(
        "message-policy",
        "When the supervisor itself is killed, kubectl describe pod shows nothing of why.",
        "write terminationMessagePolicy: FallbackToLogsOnError",
        _message_policy,
    ),
    warning(
        "message-elsewhere",
        "The kubelet reads the last word from another file than the one that the supervisor writes.",
        "remove terminationMessagePath, or name the same file in RESILIENT_TERMINATION_LOG",
        _message_path,
    ),
    warning(
        "bare-pod",
        "Nobody acts on the exit codes of a pod that no controller has made, and nobody replaces it.",
        "make it a Job: resilient manifest",
        _alone,
    ),
)
