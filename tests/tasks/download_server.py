"""A server of one file, which can misbehave."""

from __future__ import annotations

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from gradshare.tasks.readers.dataset import Archive

DATA = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file and can misbehave.

    Attributes:
        data: the file.
        drop_after: bytes after which the connection is dropped, for each answer to come.
        statuses: what to answer instead, for each answer to come.
        requests: how many there were.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.drop_after: list[int] = []
        self.statuses: list[int] = []
        self.requests = 0

    def archive(self, md5: str | None = MD5) -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_port}/a.zip", "a.zip", md5)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(server.data)))
        self.end_headers()
        self.wfile.write(
            server.data[: server.drop_after.pop(0)] if server.drop_after else server.data
        )

    def log_message(self, format: str, *args: object) -> None:
        pass
