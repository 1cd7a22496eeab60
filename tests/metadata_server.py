# SPDX-License-Identifier: Apache-2.0
"""A metadata service that speaks as the clouds document theirs, over real HTTP.

Run as a program in a network namespace of its own it does so at the real address.
"""

import fcntl
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

REAL = ("169.254.169.254", 80)
_SIOCSIFFLAGS, _SIOCSIFADDR, _IFF_UP = 0x8914, 0x8916, 1  # linux/sockios.h, linux/if.h
LIVES_S = 120.0
"""No request waits longer for a change."""


class Service:
    """What there is to be said, by path; a change wakes who waits for one."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.status: dict[str, int] = {}
        """Of paths that do not answer with 200 or 404."""
        self.tokens: list[str] = []
        self.asked: list[str] = []
        self.version = 1
        self.changed = threading.Condition()

    def say(self, path: str, text: str) -> None:
        with self.changed:
            self.answers[path] = text
            self.version += 1
            self.changed.notify_all()

    def until_asked(self, path: str, times: int = 1) -> None:
        """Wait until somebody has asked so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked.count(path) >= times, LIVES_S)

    def note(self, path: str) -> None:
        with self.changed:
            self.asked.append(path)
            self.changed.notify_all()

    def wait(self, version: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: str(self.version) != version, LIVES_S)

    def token(self) -> str:
        with self.changed:
            self.tokens.append(f"token-{len(self.tokens)}")
            return self.tokens[-1]


def requests(service: Service) -> type[BaseHTTPRequestHandler]:
    class Requests(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            path = urlsplit(self.path).path
            service.note(path)
            lasting = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            good = path == "/latest/api/token" and lasting.isdecimal() and 1 <= int(lasting) <= 21600
            status = service.status.get(path, 200 if good else 400)
            self._answer(status, service.token() if status == 200 else "")

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            service.note(url.path)
            status = service.status.get(url.path) or self._refusal(url.path, query)
            if status == 200 and query.get("wait_for_change") == "true":
                service.wait(query["last_etag"])
            text = service.answers.get(url.path)
            if status == 200 and text is None:
                status = 404
            self._answer(status, text or "", etag=str(service.version))

        def _refusal(self, path: str, query: Mapping[str, str]) -> int:
            """What each cloud asks for; 200 where all of it is there."""
            if path.startswith("/latest/"):
                return 200 if self.headers.get("X-aws-ec2-metadata-token") in service.tokens[-1:] else 401
            if path.startswith("/computeMetadata/v1/"):
                return 200 if self.headers.get("Metadata-Flavor") == "Google" else 403
            return 200 if self.headers.get("Metadata") == "true" and "api-version" in query else 400

        def _answer(self, status: int, text: str, etag: str = "") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", etag)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: it would be taken for output of the test."""

    return Requests


@contextmanager
def serving(service: Service, address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[tuple[str, int]]:
    """Serve in threads, and give the address."""
    with ThreadingHTTPServer(address, requests(service)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[0], server.server_address[1]  # type: ignore[misc]  # of AF_INET
        finally:
            server.shutdown()
            thread.join()


def have_the_address() -> None:
    """Give the link-local address to the loopback of a network namespace of our own."""
    name, alias = b"lo", b"lo:1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", name, _IFF_UP))
        address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(REAL[0]))
        fcntl.ioctl(any_socket, _SIOCSIFADDR, struct.pack("16s16s", alias, address))


def main() -> None:
    """Serve at the real address until stdin ends; each line of it is a path and what there is to be said."""
    have_the_address()
    service = Service()
    service.answers = dict(json.loads(sys.argv[1]))
    with serving(service, REAL):
        print("serving", flush=True)
        for line in sys.stdin:
            service.say(*json.loads(line))


if __name__ == "__main__":
    main()
