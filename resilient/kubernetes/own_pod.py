# SPDX-License-Identifier: Apache-2.0
"""The own pod at the API server: its status is read, it is annotated, and Events are written about it.

Owns every live call. The official client knows the place, the certificates and the token, and has the types; its
connections are used directly, because its calls read an answer whole, however long it is, and follow redirections.
Nothing here waits longer than its time-outs: patience is the caller's (:mod:`resilient.retry`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import urllib3
from kubernetes import client, config
from kubernetes.config.incluster_config import InClusterConfigLoader

from resilient.core.pod_report import ANNOTATION, Report
from resilient.core.pod_status import PodStatus, read_pod
from resilient.facts import Platform
from resilient.kubernetes.pod_watcher import NotDone

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_S: Final = 3.0
READ_S: Final = 5.0
"""Between two pieces of an answer."""
MOST_BYTES: Final = 4 << 20
"""More than the store behind the API server takes of one object."""
CONTROLLER: Final = "resilient.dev/supervisor"
_INSTANCE_CHARS: Final = 128
_SAID_CHARS: Final = 200
_MOST_WAIT_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    what: str
    grant: str
    method: str
    body_type: str = "application/json"
    done_already: int = 0
    """The status that says that an earlier try had come through after all."""


_READ: Final = _Call(what="read the own pod", grant="get on pods", method="GET")
_ANNOTATE: Final = _Call(
    what="annotate the own pod", grant="patch on pods", method="PATCH", body_type="application/merge-patch+json"
)
_WRITE: Final = _Call(what="write an Event", grant="create on events of events.k8s.io", method="POST", done_already=409)

_BUSY: Final = frozenset({401, 408, 409, 429, 500, 502, 503, 504})
"""The same request may have another answer soon: a token that was changed, a conflict, a server that rests."""
_DO: Final[Mapping[int, str]] = {
    401: "see whether its service account and token are still good",
    403: "grant its service account {grant}, as resilient manifest --rbac does",
    404: "see whether RESILIENT_POD and RESILIENT_NAMESPACE name it",
    409: "see who else changes it",
    422: "see which admission policy refuses it",
    429: "see why the API server refuses so many requests",
}
_ELSE: Final = "see how the API server is"


def configuration(environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> client.Configuration:
    """How the API server is reached: by the pod's own service account, else by a kubeconfig."""
    found = client.Configuration()
    inside = bool(environ.get("KUBERNETES_SERVICE_HOST")) and not environ.get("KUBECONFIG")
    try:
        if inside:
            loader = InClusterConfigLoader(
                token_filename=str(service_account / "token"),
                cert_filename=str(service_account / "ca.crt"),
                environ=environ,
            )
            loader.load_and_set(found)
        else:
            path = environ.get("KUBECONFIG") or str(Path(environ.get("HOME", "/")) / ".kube/config")
            config.load_kube_config(config_file=path, client_configuration=found)
    except Exception as error:  # whatever a file of others has wrong: YAML, base64, a program that gives the token
        do = (
            f"mount the token of a service account at {service_account} (automountServiceAccountToken: true)"
            if inside
            else "correct the kubeconfig, or run in a pod with a service account"
        )
        raise NotDone(f"cannot reach the API server: {type(error).__name__}: {error}; {do}", again_s=None) from error
    return found


class OwnPod:
    """This pod, and no other of its name."""

    def __init__(self, platform: Platform, configure: Callable[[], client.Configuration]) -> None:
        """``configure`` is asked again when a token has been refused: it may have been changed."""
        if platform.pod is None or platform.namespace is None or platform.pod_uid is None:
            raise NotDone(platform.unnamed_pod, again_s=None)
        self._name, self._namespace, self._uid = platform.pod, platform.namespace, platform.pod_uid
        self._configure = configure
        self._client = client.ApiClient(configure())

    def read(self) -> PodStatus:
        """Its status."""
        data = self._ask(_READ, f"/api/v1/namespaces/{self._namespace}/pods/{self._name}")
        try:
            status = read_pod(data)
        except ValueError as error:
            raise NotDone(
                f"cannot {_READ.what}: the answer is not what was asked for: {error}; {_ELSE}", again_s=0.0
            ) from error
        if status.uid != self._uid:
            why = f"{self._name} is another pod by now"
            raise NotDone(f"cannot {_READ.what}: {why}; see whether RESILIENT_POD_UID is its uid", again_s=None)
        return status

    def annotate(self, value: str) -> None:
        """Set the annotation; of a pod with another uid the API server refuses it."""
        metadata = {"uid": self._uid, "annotations": {ANNOTATION: value}}
        self._ask(_ANNOTATE, f"/api/v1/namespaces/{self._namespace}/pods/{self._name}", {"metadata": metadata})

    def event(self, report: Report) -> Mapping[str, Any]:
        """An Event about it, for ``emit``."""
        now = datetime.now(timezone.utc)
        made = client.EventsV1Event(
            api_version="events.k8s.io/v1",
            kind="Event",
            metadata=client.V1ObjectMeta(name=f"{self._name[:230]}.{time.time_ns():x}", namespace=self._namespace),
            event_time=now,
            type="Warning" if report.warning else "Normal",
            reason=report.reason,
            action=report.action,
            note=report.note,
            regarding=client.V1ObjectReference(
                api_version="v1", kind="Pod", namespace=self._namespace, name=self._name, uid=self._uid
            ),
            reporting_controller=CONTROLLER,
            reporting_instance=self._name[:_INSTANCE_CHARS],
        )
        body: dict[str, Any] = self._client.sanitize_for_serialization(made)
        # A MicroTime has six digits, also where they are 0.
        return {**body, "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}

    def emit(self, event: Mapping[str, Any]) -> None:
        """Write it; sent more than once it is written once, as it has its name already."""
        self._ask(_WRITE, f"/apis/events.k8s.io/v1/namespaces/{self._namespace}/events", event)

    def _ask(self, call: _Call, path: str, body: object = None) -> object:
        """Ask once; the answer as JSON."""
        try:
            settings = self._client.configuration.auth_settings().values()
            headers = {one["key"]: one["value"] for one in settings if one["in"] == "header"}
            response = self._client.rest_client.pool_manager.request(
                call.method,
                self._client.configuration.host.rstrip("/") + path,
                body=None if body is None else json.dumps(body).encode(),
                headers={
                    "Accept": "application/json",
                    "User-Agent": CONTROLLER,
                    **({} if body is None else {"Content-Type": call.body_type}),
                    **headers,
                },
                timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            data = response.read(MOST_BYTES + 1)
        except (urllib3.exceptions.HTTPError, OSError, config.ConfigException) as error:
            raise NotDone(f"cannot {call.what}: {_named(error)}; {_ELSE}", again_s=0.0) from error
        finished = len(data) <= MOST_BYTES
        response.release_conn() if finished else response.close()
        return self._answer(call, response, data if finished else b"")

    def _answer(self, call: _Call, response: urllib3.BaseHTTPResponse, data: bytes) -> object:
        status = response.status
        if not 200 <= status < 300 and status != call.done_already:
            if status == 401:
                self._client = client.ApiClient(self._configure())
            do = _DO.get(status, _ELSE).format(grant=call.grant)
            again_s = _retry_after(response.headers.get("Retry-After")) if status in _BUSY else None
            said = _message(data)
            raise NotDone(f"cannot {call.what}: HTTP status {status}{said}; {do}", again_s=again_s)
        if not data:
            raise NotDone(
                f"cannot {call.what}: the answer is empty, or over {MOST_BYTES >> 20} MiB; {_ELSE}", again_s=0.0
            )
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise NotDone(f"cannot {call.what}: the answer is not JSON; {_ELSE}", again_s=0.0) from error


def _named(error: Exception) -> str:
    """What went wrong, without the objects that urllib3 names."""
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return f"the API server does not answer within {CONNECT_S:.0f} s to connect and {READ_S:.0f} s to read"
    return f"{type(error).__name__}: {error}"[:_SAID_CHARS]


def _retry_after(text: str | None) -> float:
    """Seconds; a date, which the API server does not give, is taken for none."""
    return min(float(text), _MOST_WAIT_S) if text is not None and text.isdecimal() and len(text) < 10 else 0.0


def _message(data: bytes) -> str:
    """What the API server says of it, as far as it is a Status."""
    try:
        status: Any = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    said = status.get("message") if isinstance(status, Mapping) else None
    return f" ({' '.join(said.split())[:_SAID_CHARS]})" if isinstance(said, str) and said else ""
