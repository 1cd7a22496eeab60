# SPDX-License-Identifier: Apache-2.0
"""A server that speaks S3, and a proxy in front of it that fails in the ways in which such servers fail."""

import contextlib
import http.client
import threading
from collections import Counter, deque
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from moto.server import ThreadedMotoServer

REFUSALS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "late": (400, "RequestTimeout", "Your socket connection to the server was not read from or written to in time."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "skewed": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    ),
    "no upload": (404, "NoSuchUpload", "The specified multipart upload does not exist."),
    "gone": (404, "NoSuchBucket", "The specified bucket does not exist"),
}
"""Status, code and message, from the list of error responses in the API reference of S3."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on, but for those that are to fail; ``calls`` counts them by operation."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.target = urlsplit(target).netloc
        self.calls: Counter[str] = Counter()
        self.released = threading.Event()
        """Set at the end: nothing hangs any longer."""
        self._faults: dict[str, deque[str]] = {}
        self._always: dict[str, str] = {}
        self._lock = threading.Lock()

    def fail(self, operation: str, *words: str) -> None:
        """The next calls of an operation (``UploadPart``) fail, each by one word; see ``_Request.answer``."""
        self._faults[operation] = deque(words)

    def fail_always(self, operation: str, word: str) -> None:
        """Every call of it fails."""
        self._always[operation] = word

    def mend(self) -> None:
        """All is well again, and nothing was counted yet."""
        self._faults, self._always = {}, {}
        self.calls.clear()

    def fault(self, operation: str) -> str:
        """Count a call; how it is to fail, if at all."""
        with self._lock:
            self.calls[operation] += 1
            queued = self._faults.get(operation)
            return queued.popleft() if queued else self._always.get(operation, "")

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that gave up is no news."""


class _Request(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        """Nothing: the tests look at ``calls``."""

    def _operation(self) -> str:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "uploadId" in query:
            named = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
            return named[self.command]
        if "uploads" in query:
            return {"POST": "CreateMultipartUpload", "GET": "ListMultipartUploads"}[self.command]
        if "list-type" in query:
            return "ListObjects"
        return f"{self.command.capitalize()}Object"

    def answer(self) -> None:
        """``cut``: half the body is read; ``lost``: done, and not answered; ``half``: half the answer; ``hang``: none;
        ``deaf``: nothing is read; ``slow``: late; ``ahead``: by a clock an hour ahead; else a refusal."""
        operation = self._operation()
        word = self.server.fault(operation)
        size = int(self.headers.get("Content-Length", 0))
        if word in ("deaf", "cut"):
            if word == "deaf":
                self.server.released.wait(60)
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        body = self.rfile.read(size)
        if word == "hang":
            self.server.released.wait(60)
            self.close_connection = True
        elif word in REFUSALS:
            status, code, message = REFUSALS[word]
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self._send(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text, 1)
        else:
            if word == "slow":
                self.server.released.wait(0.3)
            self._pass_on(body, word)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815  # as the base class wants them

    def _pass_on(self, body: bytes, word: str) -> None:
        connection = http.client.HTTPConnection(self.server.target)
        with contextlib.closing(connection):
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        if word == "lost":
            self.close_connection = True
            return
        skipped = {"content-length", "connection", "transfer-encoding", "date", "server"}
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
        if word == "ahead":
            times = {name: parsedate_to_datetime(value) for name, value in kept if name.lower() == "last-modified"}
            kept = [(name, value) for name, value in kept if name not in times]
            kept += [(name, format_datetime(t + timedelta(hours=1), usegmt=True)) for name, t in times.items()]
        if self.command == "HEAD":
            kept.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        self._send(answer.status, kept, content, 2 if word == "half" else 1)

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, share: int) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // share])
        self.close_connection |= share > 1


@contextlib.contextmanager
def running() -> Iterator[Proxy]:
    """A server with an empty bucket behind a proxy; for s3fs in this process and its children it is the S3."""
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        proxy = Proxy("http://{}:{}".format(*server.get_host_and_port()))
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        try:
            import s3fs

            s3fs.S3FileSystem(skip_instance_cache=True).makedirs("bucket", exist_ok=True)
            yield proxy
        finally:
            proxy.released.set()
            proxy.shutdown()
            thread.join()
            proxy.server_close()
            server.stop()
