"""A labelling service that misbehaves on command: its own process, plain HTTP on the loopback interface.

GET  /label/<number>   the label as JSON, or what the present mood makes of it
POST /mood/<name>      change the mood: "flaky", "outage" or "healthy"; answers with the counts of the old one
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from project.demo import digits

__all__ = ["LabelServer", "LabellingService"]

_HANG = 1.5


class LabelServer(ThreadingHTTPServer):
    """The server with its mood and its counts."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, seed: int = 1) -> None:
        # Before the port is open: whoever connects gets an answer.
        self.labels = digits.load_arrays()[1].tolist()
        super().__init__(("127.0.0.1", port), LabellingService)
        self.mood = "healthy"
        self.requests: Counter[str] = Counter()
        self.random = random.Random(seed)


class LabellingService(BaseHTTPRequestHandler):
    """One connection to the service."""

    protocol_version = "HTTP/1.1"
    server: LabelServer

    def do_GET(self) -> None:
        """Answer with a label, or fail as the mood wants it."""
        self.server.requests[self.server.mood] += 1
        roll = self.server.random.random()
        if self.server.mood == "outage":
            self._fail_hard(roll)
        elif self.server.mood == "flaky" and roll < 0.30:  # 15 % errors, 10 % refusals, 5 % hangs
            self._fail_softly(roll)
        else:
            number = int(self.path.rpartition("/")[2])
            self._answer(200, {"label": self.server.labels[number]})

    def do_POST(self) -> None:
        """Change the mood."""
        counts = dict(self.server.requests)
        self.server.mood = self.path.rpartition("/")[2]
        self._answer(200, counts)

    def _fail_softly(self, roll: float) -> None:
        if roll < 0.15:  # see do_GET
            self._answer(500, {"error": "internal error"})
        elif roll < 0.25:  # see do_GET
            self._answer(429, {"error": "slow down"}, {"Retry-After": "0.1"})
        else:
            time.sleep(_HANG)
            self.close_connection = True

    def _fail_hard(self, roll: float) -> None:
        if roll < 0.5:  # half of the calls get an error page, half a closed connection
            self._answer(503, {"error": "down"})
        else:
            self.close_connection = True

    def _answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep the terminal for the demo."""
