# SPDX-License-Identifier: Apache-2.0
"""As much of a Kubernetes API server as a pod asks of itself: over TLS, with real objects of the client's own types."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client

POD: Final = "train-0-abcde"
NAMESPACE: Final = "team-a"
UID: Final = "0f1e2d3c-0000-4111-8222-333344445555"
IDENTITY: Final = {"RESILIENT_POD": POD, "RESILIENT_NAMESPACE": NAMESPACE, "RESILIENT_POD_UID": UID}
GPU: Final = "GPU-5f1c2d3e-0000-1111-2222-333344445555"
POD_PATH: Final = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}"
EVENTS_PATH: Final = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"
LIMIT_S: Final = 60.0
_MICRO_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said instead of the right answer; a status of 0 says nothing, for as long as the server lives."""

    status: int
    message: str = ""
    headers: Mapping[str, str] | None = None
    body: bytes | None = None


def pod(*devices: tuple[str, str], disruption: str | None = None, uid: str = UID) -> client.V1Pod:
    """The pod, with these devices and their health, and the condition that says why it is to go."""
    healths = [client.V1ResourceHealth(resource_id=name, health=health) for name, health in devices]
    resources = [client.V1ResourceStatus(name="nvidia.com/gpu", resources=healths)] if healths else None
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    conditions = [client.V1PodCondition(type="Ready", status="True", last_transition_time=now)]
    if disruption is not None:
        conditions.append(client.V1PodCondition(type="DisruptionTarget", status="True", reason=disruption))
    return client.V1Pod(
        api_version="v1",
        kind="Pod",
        metadata=client.V1ObjectMeta(name=POD, namespace=NAMESPACE, uid=uid, annotations={"team": "a"}),
        spec=client.V1PodSpec(containers=[client.V1Container(name="trainer", image="x:1")]),
        status=client.V1PodStatus(
            phase="Running",
            conditions=conditions,
            container_statuses=[
                client.V1ContainerStatus(
                    name="trainer",
                    image="x:1",
                    image_id="x",
                    ready=True,
                    restart_count=0,
                    allocated_resources_status=resources,
                )
            ],
        ),
    )


class Api:
    """What the server holds, what it is to answer next, and what it was asked."""

    def __init__(self) -> None:
        self.pod = pod()
        self.annotations: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        self.asked: list[str] = []
        """Methods, in order."""
        self.tokens = {"token-1"}
        self.next: dict[str, deque[Answer]] = {method: deque() for method in ("GET", "PATCH", "POST")}
        self.always: dict[str, Answer] = {}
        self.hanging = 0
        self.changed = threading.Condition()
        self.over = threading.Event()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it has been asked what makes this true."""
        with self.changed:
            assert self.changed.wait_for(holds, LIMIT_S), f"it never was: asked {self.asked}"

    def serve(self, method: str, path: str, headers: Message, body: bytes) -> Answer:
        with self.changed:
            self.asked.append(method)
            self.changed.notify_all()
            if headers.get("Authorization", "").lower() not in {f"bearer {token}" for token in self.tokens}:
                return Answer(status=401, message="Unauthorized")
            scripted = self.next[method].popleft() if self.next[method] else self.always.get(method)
            answer = scripted or self._answer(method, path, headers, body)
            if answer.status == 0:
                self.hanging += 1
            self.changed.notify_all()
        if answer.status == 0:
            self.over.wait()
        return answer

    def _answer(self, method: str, path: str, headers: Message, body: bytes) -> Answer:
        if method == "POST" and path == EVENTS_PATH:
            return self._write_event(json.loads(body))
        if path != POD_PATH or method == "POST":
            return Answer(status=404, message=f'pods "{path.rpartition("/")[2]}" not found')
        if method == "PATCH":
            assert headers["Content-Type"] in ("application/merge-patch+json", "application/strategic-merge-patch+json")
            patch = json.loads(body)["metadata"]
            if self.pod.metadata is None or patch.get("uid") != self.pod.metadata.uid:
                return Answer(status=409, message="the UID in the precondition does not match the UID in record")
            assert set(patch) == {"uid", "annotations"}
            self.annotations |= patch["annotations"]
        return Answer(status=200, body=json.dumps(client.ApiClient().sanitize_for_serialization(self.pod)).encode())

    def _write_event(self, event: dict[str, Any]) -> Answer:
        """By the API server's own rules: pkg/apis/core/validation/events.go."""
        if event["metadata"]["name"] in [known["metadata"]["name"] for known in self.events]:
            return Answer(status=409, message="already exists")
        wrong = [
            name for name in ("reason", "action", "reportingController", "reportingInstance") if not event.get(name)
        ]
        wrong += [name for name in ("reason", "action", "reportingInstance") if len(event[name]) > 128]
        if wrong or len(event["note"].encode()) > 1024 or event["type"] not in ("Normal", "Warning"):
            return Answer(status=422, message=f"Event is invalid: {wrong}")
        if not _MICRO_TIME.fullmatch(event["eventTime"]) or event["regarding"]["namespace"] != NAMESPACE:
            return Answer(status=400, message="cannot be handled as a Event")
        self.events.append(event)
        return Answer(status=201, body=json.dumps(event).encode())

    @property
    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.events]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server, and what a client needs to reach it."""

    api: Api
    port: int
    service_account: Path
    """A directory as the kubelet mounts it."""
    kubeconfig: Path

    @property
    def inside(self) -> dict[str, str]:
        """The environment of a pod."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    @property
    def outside(self) -> dict[str, str]:
        """The environment of somebody with a kubeconfig."""
        return {"KUBECONFIG": str(self.kubeconfig), **IDENTITY}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve in threads until the end of the block; what hangs then is let go."""
    certificate, key = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    api = Api()
    with ThreadingHTTPServer(("127.0.0.1", 0), _requests(api)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Server(
                api=api,
                port=port,
                service_account=_service_account(folder, certificate),
                kubeconfig=_kubeconfig(folder, certificate, port),
            )
        finally:
            api.over.set()
            server.shutdown()
            thread.join()


def _requests(api: Api) -> type[BaseHTTPRequestHandler]:
    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = api.serve(self.command, self.path, self.headers, body)
            if answer.status == 0:
                self.close_connection = True
                return
            status = client.V1Status(api_version="v1", kind="Status", status="Failure", message=answer.message)
            failure = json.dumps(client.ApiClient().sanitize_for_serialization(status)).encode()
            data = failure if answer.body is None else answer.body
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (answer.headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(data)
            except OSError:  # who asked has read enough
                self.close_connection = True

        do_GET = do_PATCH = do_POST = _serve  # noqa: N815  # the names that http.server calls

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: it would be taken for output of the test."""

    return Requests


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "server.crt", folder / "server.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return certificate, private


def _service_account(folder: Path, certificate: Path) -> Path:
    mounted = folder / "serviceaccount"
    mounted.mkdir()
    (mounted / "token").write_text("token-1")
    (mounted / "namespace").write_text(NAMESPACE)
    (mounted / "ca.crt").write_bytes(certificate.read_bytes())
    return mounted


def _kubeconfig(folder: Path, certificate: Path, port: int) -> Path:
    path = folder / "kubeconfig"
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(certificate)}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": "token-1"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
                "current-context": "x",
            }
        )
    )
    return path
