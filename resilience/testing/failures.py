"""Failures on order: functions, HTTP services and databases that misbehave exactly as a test wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from typing import Any, ParamSpec, TypeVar

__all__ = ["FaultyService", "fail_database", "failing", "faulty_service", "inject_faults"]

P = ParamSpec("P")
R = TypeVar("R")


def failing(
    function: Callable[P, R],
    error: BaseException | type[BaseException] = ConnectionError,
    *,
    times: int = 1,
    latency: float = 0.0,
) -> Callable[P, R]:
    """Return a function that fails a number of times before it does what `function` does.

    Args:
        function: What to call afterwards.
        error: The exception to raise, or its class.
        times: How often to fail; 0 or more.
        latency: Seconds to wait before each call, by the app's clock.

    Example:
        >>> flaky = failing(len, TimeoutError, times=2)
        >>> [type(error).__name__ for error in (_raised(flaky), _raised(flaky), _raised(flaky)) if error]
        ['TimeoutError', 'TimeoutError']
    """
    from resilience import clock

    turns = chain(repeat(True, times), repeat(False))

    @wraps(function)
    def fail_first(*args: P.args, **kwargs: P.kwargs) -> R:
        if latency:
            clock.sleep(latency)
        if next(turns):
            raise error
        return function(*args, **kwargs)

    return fail_first


def _raised(function: Callable[..., object]) -> BaseException | None:
    try:
        function("")
    except Exception as error:  # noqa: BLE001  # the example above shows whatever is raised
        return error
    return None


class FaultyService:
    """An HTTP service on the loopback interface that answers as scripted.

    Each entry of the script is one answer: a status code; a pair of a status code and headers; "hang" to keep the
    caller waiting; "reset" to close the connection without an answer. The last entry repeats.

    Args:
        script: The answers, in order.
        hang: Seconds that "hang" keeps the caller waiting.
    """

    def __init__(self, script: Iterable[int | str | tuple[int, dict[str, str]]], hang: float = 30.0) -> None:
        answers = list(script)
        self._answers = chain(answers, repeat(answers[-1]))
        self._hang = hang
        self._lock = threading.Lock()
        self._closed = threading.Event()
        #: How many requests came in.
        self.requests = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The address of the service."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Serve in a thread of this process until `close`."""
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """End the service; callers kept waiting are let go."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _next(self) -> int | str | tuple[int, dict[str, str]]:
        with self._lock:
            self.requests += 1
            return next(self._answers)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                if length := int(self.headers.get("Content-Length", 0)):
                    self.rfile.read(length)
                answer = service._next()  # the handler is part of the service
                if isinstance(answer, str):
                    self.close_connection = True
                    if answer == "hang":
                        service._closed.wait(service._hang)  # the handler is part of the service
                    return
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                self.send_response(status)
                for name, value in {"Content-Length": "2", "Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _respond  # noqa: N815  # names that http.server prescribes

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        return Handler


@contextmanager
def faulty_service(*script: int | str | tuple[int, dict[str, str]], hang: float = 30.0) -> Iterator[FaultyService]:
    """Run a `FaultyService` until the block ends.

    Args:
        script: The answers in order, as `FaultyService` takes them; the last one repeats.
        hang: Seconds that "hang" keeps the caller waiting.

    Example:
        >>> from urllib.request import urlopen
        >>> with faulty_service(200) as service:
        ...     urlopen(service.url).status
        200
    """
    service = FaultyService(script or (200,), hang)
    service.start()
    try:
        yield service
    finally:
        service.close()


@contextmanager
def fail_database(code: str | int, *, using: str = "default", times: int = 1) -> Iterator[None]:
    """Make this thread's next statements on a database alias fail as its driver would report it, until the block ends.

    Nothing is sent to the server for a statement that fails so. BEGIN, COMMIT and savepoints are no statements of a
    cursor and go through.

    Args:
        code: SQLSTATE for PostgreSQL ("40001"), error number for MySQL and MariaDB (1213), extended result code
            for SQLite (5).
        using: The database alias.
        times: How many statements fail.

    Example:
        >>> from django.contrib.auth.models import Group
        >>> with fail_database(5):
        ...     Group.objects.count()
        Traceback (most recent call last):
            ...
        django.db.utils.OperationalError: injected failure 5
    """
    from django.db import connections

    connection = connections[using]
    turns = chain(repeat(True, times), repeat(False))

    def refuse(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if not next(turns):
            return execute(sql, params, many, context)
        with connection.wrap_database_errors:  # Django chooses its own class, as it does for the real error
            raise _driver_error(connection, code)

    with connection.execute_wrapper(refuse):
        yield


@contextmanager
def inject_faults(policy: str, *, seed: int | str | None = 0, **fields: Any) -> Iterator[None]:
    """Disturb the calls of a policy at given rates, as `RESILIENCE["CHAOS"]` does, until the block ends.

    Args:
        policy: The policy's name.
        seed: Makes the faults the same in each run; None for other ones each time.
        **fields: Those of `resilience.chaos.ChaosConfig`: `error_rate`, `error`, `latency`, `latency_rate`,
            `hang_rate`, `hang`.

    Raises:
        ValueError: A rate or a duration is out of range, or there is no such error.
        TypeError: A field is unknown or of the wrong type.

    Example:
        >>> from resilience import Policy, RetryConfig
        >>> policy = Policy("docs-drill", retry=RetryConfig(max_attempts=10, delay=0))
        >>> with inject_faults("docs-drill", error_rate=0.5, error="overloaded"):
        ...     [policy.call(len, "abc") for _ in range(5)]
        [3, 3, 3, 3, 3]
    """
    from resilience import conf
    from resilience.chaos import ChaosConfig

    ChaosConfig(**fields)  # refuses wrong fields where they are written

    def disturb(settings: conf.Settings) -> conf.Settings:
        return replace(settings, chaos={**settings.chaos, policy: fields, "ALLOW_WITHOUT_DEBUG": True, "SEED": seed})

    with conf.override(disturb):
        yield


#: Numbers for which MySQL's drivers raise IntegrityError; SQLite's constraints share one primary code.
_MYSQL_INTEGRITY = {1048, 1062, 1451, 1452, 1557, 3819, 4025}
_SQLITE_CONSTRAINT = 19


def _driver_error(connection: Any, code: str | int) -> Exception:
    message = f"injected failure {code}"
    driver = connection.Database
    error: Exception
    if connection.vendor == "postgresql":
        error = driver.errors.lookup(str(code))(message)
    elif connection.vendor == "mysql":
        kind = driver.IntegrityError if int(code) in _MYSQL_INTEGRITY else driver.OperationalError
        error = kind(int(code), message)
    else:
        kind = driver.IntegrityError if int(code) & 0xFF == _SQLITE_CONSTRAINT else driver.OperationalError
        error = kind(message)
        error.sqlite_errorcode = int(code)  # type: ignore[attr-defined]  # sqlite3 sets it on real errors
    return error
