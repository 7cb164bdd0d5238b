"""A local HTTP server that fails on request, in every way a server can."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import random
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    """The path says what happens: /status/503, /reset, /silence, /cut, /close, /garbage, /loop, /chance/0.2."""

    protocol_version = "HTTP/1.1"
    # One packet an answer: head and body in two would wait 40 ms for each other.
    wbufsize = 65_536
    disable_nagle_algorithm = True
    server: FlakyServer

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        url = urllib.parse.urlsplit(self.path)
        # API clients append their own paths and parameters to a base address.
        behaviour, *arguments = url.path.strip("/").split("/")
        headers = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
        self.server.count()
        getattr(self, f"be_{behaviour or 'fine'}")(arguments, headers)

    do_POST = do_PUT = do_GET  # noqa: N815  # the names that http.server calls

    def be_fine(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.answer(200, {}, {"ok": True})

    def be_status(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.answer(int(arguments[0]), headers | self.server.headers, self.server.body)

    def be_chance(self, arguments: list[str], headers: dict[str, str]) -> None:
        if self.server.random.random() >= float(arguments[0]):
            self.be_fine(arguments, headers)
        elif self.server.random.random() < 0.1:
            self.be_reset(arguments, headers)
        else:
            self.answer(503, {}, {"error": "try again"})

    def be_reset(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # Both: the reading half keeps the socket open otherwise.
        self.rfile.close()
        self.connection.close()

    def be_silence(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.server.released.wait(30)
        self.close_connection = True

    def be_cut(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"too short")
        self.close_connection = True

    def be_close(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.close_connection = True

    def be_garbage(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.wfile.write(b"this is not HTTP\r\n\r\n")
        self.close_connection = True

    def be_loop(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.answer(302, {"Location": "/loop"}, {})

    def be_undecodable(self, arguments: list[str], headers: dict[str, str]) -> None:
        self.answer(200, {"Content-Encoding": "gzip"}, {"not": "gzip"})

    def answer(self, status: int, headers: dict[str, str], body: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


class FlakyServer(ThreadingHTTPServer):
    """The server; `headers` and `body` are what /status answers with."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.headers: dict[str, str] = {}
        self.body: Any = {}
        self.random = random.Random(20)
        self.released = threading.Event()
        self.requests = 0
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self) -> None:
        with self._lock:
            self.requests += 1

    def handle_error(self, *args: object) -> None:
        """Clients that give up are part of the plan."""


@contextlib.contextmanager
def flaky_server() -> Iterator[FlakyServer]:
    """Run a server in a thread."""
    server = FlakyServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@functools.cache
def refused_url() -> str:
    """Return an address that refuses connections: its port is taken, so that nobody else gets it, and nobody listens."""
    taken = socket.socket()
    atexit.register(taken.close)
    taken.bind(("127.0.0.1", 0))
    return f"http://127.0.0.1:{taken.getsockname()[1]}"
