"""An S3 server on this machine, and a proxy before it that loses or refuses requests: real sockets, nothing
of ours replaced."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A server with the empty bucket ``bucket``; its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    try:
        ask(address, "/moto-api/reset", "POST")  # what it holds belongs to the process
        ask(address, "/bucket", "PUT")
        yield address
    finally:
        server.stop()


def ask(address: str, path: str, method: str, body: bytes = b"") -> bytes:
    """One request beside the code under test."""
    request = urllib.request.Request(
        address + path, data=body, method=method, headers={"Content-Type": "text/plain"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read()


def settings(address: str) -> dict[str, str]:
    """The usual environment of somebody whose store is there."""
    return {
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "NO_PROXY": "127.0.0.1",
    }


def closed_port() -> str:
    """An address where nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


class Proxied(BaseHTTPRequestHandler):
    """One connection to the proxy."""

    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.command)
        fault = self.server.next_fault(self.command)
        if fault is not None:
            fault(self, body)
            return
        status, headers, content = self.forward(body)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_DELETE = do_POST = do_GET  # noqa: N815

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server behind."""
        behind = http.client.HTTPConnection(self.server.behind.removeprefix("http://"), timeout=20)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        found = answer.status, answer.getheaders(), answer.read()
        behind.close()
        return found

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class FaultyProxy(ThreadingHTTPServer):
    """Hands requests on, but the first ``times`` of ``method`` go wrong by ``fault``."""

    daemon_threads = True

    def __init__(self, behind: str, method: str, times: int, fault: Callable[[Proxied, bytes], None]) -> None:
        super().__init__(("127.0.0.1", 0), Proxied)
        self.behind, self.method, self.left, self.fault = behind, method, times, fault
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def next_fault(self, method: str) -> Callable[[Proxied, bytes], None] | None:
        with self._lock:
            if method != self.method or self.left == 0:
                return None
            self.left -= 1
            return self.fault

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def unavailable(request: Proxied, body: bytes) -> None:
    """A 503."""
    request.send_response_only(503)
    request.send_header("Content-Length", "0")
    request.end_headers()


def reset(request: Proxied, body: bytes) -> None:
    """The connection is reset before anything is stored."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.rfile.close()
    request.wfile.close()
    os.close(request.connection.detach())


def store_and_reset(request: Proxied, body: bytes) -> None:
    """The request works, but its answer is lost."""
    request.forward(body)
    reset(request, body)


def store_and_fail(request: Proxied, body: bytes) -> None:
    """The request works, but a gateway on the way says 503."""
    request.forward(body)
    unavailable(request, body)
