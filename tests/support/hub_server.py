"""A hub of one data set, or one model, on this machine: as much of the Hugging Face hub's protocol as its
libraries ask for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """``files`` by path of the set, or model, ``org/set``; the next ``busy`` answers are 429; ``requests``
    are what was asked."""

    def __init__(self, files: dict[str, bytes], status: int = 200, kind: str = "datasets") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.kind = files, kind
        self.status = status
        """What all requests are answered where it is not 200."""
        self.busy = 0
        self.refused: tuple[str, ...] = ()
        """Files that are answered 429 for as long as they are named here."""
        self.commit = COMMIT
        self.requests: list[str] = []
        self.sent = 0
        """Bytes of files."""

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must say."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(files: dict[str, bytes], status: int = 200, kind: str = "datasets") -> Iterator[Hub]:
    """A hub that runs as long as the block; ``kind`` is ``datasets`` or ``models``."""
    server = Hub(files, status, kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.status != 200 or self.server.busy > 0:
            self.server.busy -= 1
            return self._answer(
                self.server.status if self.server.status != 200 else 429, b"{}", **{"Retry-After": "0"}
            )
        kind = self.server.kind
        if path.startswith(f"/api/{kind}/org/set"):
            return self._api(path.removeprefix(f"/api/{kind}/org/set"), body)
        if match := re.fullmatch(
            rf"{'' if kind == 'models' else f'/{kind}'}/org/set/resolve/[^/]+/(.*)", path
        ):
            return self._file(match[1])
        return self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _api(self, path: str, body: bytes) -> None:
        described = [self._described(name) for name in self.server.files]
        if path in ("", "/revision/main", f"/revision/{self.server.commit}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            info = {
                "id": "org/set",
                "sha": self.server.commit,
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            return self._json({**info, "gated": False, "disabled": False, "downloads": 0, "likes": 0})
        if path.startswith("/paths-info/"):
            asked = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else [part.split("=")[1] for part in body.decode().split("&")]
            )
            folders = [
                {"type": "directory", "path": name, "oid": "0" * 40}
                for name in asked
                if self._is_folder(name)
            ]
            return self._json([*(each for each in described if each["path"] in asked), *folders])
        if match := re.fullmatch(r"/tree/[^/]+(/.*)?", path):
            return self._json(self._tree((match[1] or "").strip("/"), described))
        return self._answer(404, b"{}")

    def _tree(self, folder: str, described: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What lies in a folder, its folders whole where that was asked for."""
        start = f"{folder}/" if folder else ""
        inside = [each for each in described if each["path"].startswith(start)]
        below = {
            start + each["path"].removeprefix(start).split("/")[0]
            for each in inside
            if "/" in each["path"].removeprefix(start)
        }
        if "recursive=true" not in self.path.lower():
            inside = [each for each in inside if "/" not in each["path"].removeprefix(start)]
        return [*inside, *({"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(below))]

    def _is_folder(self, name: str) -> bool:
        return any(file.startswith(f"{name}/") for file in self.server.files)

    def _described(self, name: str) -> dict[str, Any]:
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _file(self, name: str) -> None:
        if name in self.server.refused:
            return self._answer(429, b"{}", **{"Retry-After": "0"})
        data = self.server.files.get(name)
        if data is None:
            return self._answer(
                404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.server.commit}
            )
        start, end, status = 0, len(data), 200
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": self.server.commit,
            "Accept-Ranges": "bytes",
        }
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end, status = int(match[1]), min(len(data), int(match[2] or len(data) - 1) + 1), 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self.server.sent += 0 if self.command == "HEAD" else end - start
        return self._answer(status, data[start:end], **headers)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
