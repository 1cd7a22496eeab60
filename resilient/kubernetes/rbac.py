# SPDX-License-Identifier: Apache-2.0
"""The least that lets a pod annotate itself, write Events and read its own status, where somebody asks for it.

A Role cannot say "its own pod": whoever may patch pods may give any pod of the namespace another image. A policy at
admission says it instead, by the name of the pod that the API server finds in the token.
"""

from __future__ import annotations

from typing import Final

from kubernetes import client

from resilient.kubernetes.writing import Path

ANNOTATIONS: Final = "resilient.dev/"
"""What annotations of ours begin with."""
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_RBAC: Final = "rbac.authorization.k8s.io"
_ADMISSION: Final = "admissionregistration.k8s.io/v1"

COMMENTS: Final[dict[Path, str]] = {
    ("rules", 0): "Its own annotation and its own status; the admission policy below keeps it to its own pod.",
    ("rules", 1): "The verdict as an Event.",
    ("spec", "matchConstraints"): "Cluster-wide, so an administrator applies it. Without it this service account may "
    "patch every pod of the namespace.",
}


def permissions(account: str, namespace: str, *, role: str | None = None, with_account: bool = True) -> list[object]:
    """Service account, Role, binding, and the policy that keeps them to the pod's own.

    ``role``: what all but the account are called, if not as it is.
    """
    name = role or account
    metadata = client.V1ObjectMeta(name=name, namespace=namespace)
    reference = client.V1RoleRef(api_group=_RBAC, kind="Role", name=name)
    subject = client.RbacV1Subject(kind="ServiceAccount", name=account, namespace=namespace)
    its_own = client.V1ObjectMeta(name=account, namespace=namespace)
    return [
        *([client.V1ServiceAccount(api_version="v1", kind="ServiceAccount", metadata=its_own)] if with_account else ()),
        client.V1Role(
            api_version=f"{_RBAC}/v1",
            kind="Role",
            metadata=metadata,
            rules=[
                client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["get", "patch"]),
                client.V1PolicyRule(api_groups=["events.k8s.io"], resources=["events"], verbs=["create"]),
            ],
        ),
        client.V1RoleBinding(
            api_version=f"{_RBAC}/v1", kind="RoleBinding", metadata=metadata, role_ref=reference, subjects=[subject]
        ),
        *_own_pod_only(f"{name}-own-pod.{namespace}", f"system:serviceaccount:{namespace}:{account}"),
    ]


def _own_pod_only(name: str, account: str) -> list[object]:
    policy = client.V1ValidatingAdmissionPolicy(
        api_version=_ADMISSION,
        kind="ValidatingAdmissionPolicy",
        metadata=client.V1ObjectMeta(name=name),
        spec=client.V1ValidatingAdmissionPolicySpec(
            failure_policy="Fail",
            match_constraints=client.V1MatchResources(
                resource_rules=[
                    client.V1NamedRuleWithOperations(
                        api_groups=[""], api_versions=["v1"], operations=["UPDATE"], resources=["pods"]
                    )
                ]
            ),
            match_conditions=[
                client.V1MatchCondition(name="this-account", expression=f"request.userInfo.username == '{account}'")
            ],
            variables=[client.V1Variable(name=name, expression=words) for name, words in VARIABLES.items()],
            validations=[client.V1Validation(expression=words, message=why) for words, why in RULES],
        ),
    )
    binding = client.V1ValidatingAdmissionPolicyBinding(
        api_version=_ADMISSION,
        kind="ValidatingAdmissionPolicyBinding",
        metadata=client.V1ObjectMeta(name=name),
        spec=client.V1ValidatingAdmissionPolicyBindingSpec(policy_name=name, validation_actions=["Deny"]),
    )
    return [policy, binding]


def _kept(here: str, there: str) -> str:
    """CEL: every annotation here that is not ours is there, and the same."""
    same = f"key in variables.{there} && variables.{here}[key] == variables.{there}[key]"
    return f"variables.{here}.all(key, key.startsWith('{ANNOTATIONS}') || ({same}))"


def _map(owner: str, name: str) -> str:
    """CEL for a map of the metadata, which may be missing."""
    return f"has({owner}.metadata.{name}) ? {owner}.metadata.{name} : {{}}"


VARIABLES: Final = {
    "labels": _map("object", "labels"),
    "oldLabels": _map("oldObject", "labels"),
    "annotations": _map("object", "annotations"),
    "oldAnnotations": _map("oldObject", "annotations"),
}
RULES: Final = (
    (
        f"'{_POD_NAME}' in request.userInfo.extra && request.userInfo.extra['{_POD_NAME}'][0] == object.metadata.name",
        "a training may change its own pod only",
    ),
    ("object.spec == oldObject.spec", "a training may not change what its pod is"),
    ("variables.labels == variables.oldLabels", "a training may not change labels"),
    (_kept("annotations", "oldAnnotations"), f"a training may set annotations under {ANNOTATIONS} only"),
    (_kept("oldAnnotations", "annotations"), f"a training may remove annotations under {ANNOTATIONS} only"),
)
"""Each a condition in CEL, and what is said where it does not hold."""
