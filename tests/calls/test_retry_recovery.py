"""What retrying is for: calls to a server that fails, over real sockets."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from resilience.calls.budgets import RetryBudget
from resilience.calls.retries import RetryConfig, retry
from resilience.circuits.config import CircuitBreakerConfig
from resilience.policies import Policy, resilient
from tests.calls.flaky_server import FlakyServer, flaky_server

CALLS = 10_000


class StatusError(Exception):
    """An answer that is no success."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__(f"HTTP {response.status}")
        self.response = SimpleNamespace(status_code=response.status, headers=response.headers)


class Client:
    """A keep-alive client, one connection a thread."""

    def __init__(self, server: FlakyServer) -> None:
        self._server = server
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def get(self, path: str) -> bytes:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=20)
            self._connections.append(connection)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except BaseException:
            connection.close()
            raise
        if response.status >= 400:
            raise StatusError(response)
        return bytes(body)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    """A server that fails on request."""
    with flaky_server() as running:
        yield running


@pytest.fixture
def client(server: FlakyServer) -> Iterator[Client]:
    """A client of that server."""
    client = Client(server)
    yield client
    client.close()


def test_retry__recovers_from_a_server_that_fails_every_fifth_time(server: FlakyServer, client: Client) -> None:
    """Five attempts recover more than 99.9 % of 10,000 calls to a server that fails 20 % of the time."""

    @retry(max_attempts=5, delay=0.0005)
    def call() -> bytes:
        return client.get("/chance/0.2")

    def succeeds(_: int) -> bool:
        try:
            return call() == b'{"ok": true}'
        except (OSError, http.client.HTTPException, StatusError):
            return False

    with ThreadPoolExecutor(4) as pool:
        successes = sum(pool.map(succeeds, range(CALLS)))

    assert successes > 0.999 * CALLS
    assert server.requests > 1.15 * CALLS, "the server has to have failed for this to mean anything"


def test_retry__with_a_budget_an_outage_is_not_made_worse(server: FlakyServer, client: Client) -> None:
    """At 100 % failures the server sees at most 1.25 requests a call; plain retries would triple its load."""
    calls = 2_000

    @retry(max_attempts=3, delay=0, budget=RetryBudget(ratio=0.2, min_per_second=3))
    def call() -> bytes:
        return client.get("/status/503")

    for _ in range(calls):
        with pytest.raises(StatusError):
            call()

    assert 1.1 < server.requests / calls <= 1.25


def test_policy__answers_every_call_to_a_server_that_fails_most_of_the_time(server: FlakyServer, client: Client) -> None:
    """Against 60 % failures a policy with a fallback answers 100 % of the calls, most of them from the server."""
    policy = Policy(
        "recovery-sixty",
        retry=RetryConfig(max_attempts=4, delay=0.0005),
        circuit=CircuitBreakerConfig(scope="process", failure_rate_threshold=0.95),
        fallback=b"from the shelf",
    )

    @resilient(policy)
    def call() -> bytes:
        return client.get("/chance/0.6")

    with ThreadPoolExecutor(4) as pool:
        answers = Counter(pool.map(lambda _: call(), range(CALLS // 5)))

    assert set(answers) == {b'{"ok": true}', b"from the shelf"}
    assert answers[b'{"ok": true}'] > 0.8 * CALLS / 5
    assert server.requests > 1.5 * CALLS / 5, "the server has to have failed for this to mean anything"
