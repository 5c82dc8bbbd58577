"""A server of one file, which can misbehave."""

from __future__ import annotations

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from gradshare.tasks.dataset import Archive

DATA = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file and can misbehave.

    Attributes:
        data: the file.
        etag: its version; None sends none.
        ranges: whether Range is honoured.
        drop_after: bytes after which the connection is dropped, for each answer to come.
        statuses: what to answer instead, for each answer to come.
        content_type: of the file.
        requests: the Range header of each request, None without one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.drop_after: list[int] = []
        self.statuses: list[int] = []
        self.content_type = "application/zip"
        self.requests: list[str | None] = []

    def archive(self, md5: str | None = MD5) -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_port}/a.zip", "a.zip", md5)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers["Range"]
        server.requests.append(wanted)
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        start, size = 0, len(server.data)
        same = self.headers["If-Range"] in (None, server.etag)
        if server.ranges and wanted and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        body = server.data[start:]
        self.wfile.write(body[: server.drop_after.pop(0)] if server.drop_after else body)

    def log_message(self, format: str, *args: object) -> None:
        pass
