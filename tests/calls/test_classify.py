from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import errno
import math
import pickle
import socket
import sqlite3
import ssl
import subprocess
import sys
from pathlib import Path

import amqp.exceptions
import billiard.exceptions
import celery.exceptions
import kombu.exceptions
import pytest
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from django.db.models import ProtectedError
from django.db.transaction import TransactionManagementError
from django.http import Http404
from django.test import override_settings

from resilience import exceptions
from resilience.calls import database_rules, error_readers, retry_after
from resilience.calls.classification_rules import RULES
from resilience.calls.classify import ErrorInfo, ErrorKind, _registered, classify, register_classifier
from resilience.db.errors import classify_db_error

SAFE, UNSURE, PERMANENT = (True, False), (True, True), (False, False)


def judged(exc: BaseException) -> tuple[ErrorKind, tuple[bool, bool]]:
    info = classify(exc)
    return info.kind, (info.transient, info.maybe_executed)


def caused(outer: Exception, inner: BaseException) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "exc",
    [
        celery.exceptions.Retry(),
        celery.exceptions.Ignore(),
        celery.exceptions.Reject(),
        billiard.exceptions.SoftTimeLimitExceeded(),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        GeneratorExit(),
        KeyboardInterrupt(),
        SystemExit(),
        celery.exceptions.WorkerShutdown(),
        exceptions.RunInterrupted("shutdown"),
        BaseExceptionGroup("several", [KeyboardInterrupt()]),
    ],
    ids=repr,
)
def test_classify__control_flow_is_cancelled(exc: BaseException) -> None:
    """What steers the program is no error, whatever a classifier says."""
    register_classifier(lambda exc: ErrorInfo(ErrorKind.TIMEOUT, transient=True))

    assert classify(exc).kind is ErrorKind.CANCELLED
    assert not classify(exc).transient


@pytest.mark.parametrize(
    "exc",
    [
        ExceptionGroup("several", [TimeoutError(), celery.exceptions.Ignore()]),
        caused(RuntimeError("wrapped"), billiard.exceptions.SoftTimeLimitExceeded()),
    ],
    ids=repr,
)
def test_classify__control_flow_inside_another_exception(exc: Exception) -> None:
    """A task's time limit is not retried away because somebody wrapped it."""
    assert classify(exc).kind is ErrorKind.CANCELLED


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (TimeoutError(), (ErrorKind.TIMEOUT, UNSURE)),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), (ErrorKind.CONNECTION, SAFE)),
        (ConnectionResetError(), (ErrorKind.CONNECTION, UNSURE)),
        (ConnectionResetError(errno.ECONNRESET, "reset"), (ErrorKind.CONNECTION, UNSURE)),
        (BrokenPipeError(), (ErrorKind.CONNECTION, UNSURE)),
        (OSError(errno.EHOSTUNREACH, "no route"), (ErrorKind.CONNECTION, SAFE)),
        (OSError(errno.ENOSPC, "full"), (ErrorKind.UNKNOWN, PERMANENT)),
        (PermissionError(errno.EACCES, "no"), (ErrorKind.UNKNOWN, PERMANENT)),
        (FileNotFoundError(errno.ENOENT, "timed out.txt"), (ErrorKind.UNKNOWN, PERMANENT)),
        (socket.gaierror(socket.EAI_AGAIN, "again"), (ErrorKind.CONNECTION, SAFE)),
        (socket.gaierror(socket.EAI_NONAME, "no name"), (ErrorKind.CONNECTION, PERMANENT)),
        (ValueError("x"), (ErrorKind.UNKNOWN, PERMANENT)),
        (TypeError("f() timed out of order"), (ErrorKind.UNKNOWN, PERMANENT)),
        (KeyError("rate limit"), (ErrorKind.UNKNOWN, PERMANENT)),
        (asyncio.IncompleteReadError(b"", 5), (ErrorKind.CONNECTION, UNSURE)),
    ],
    ids=repr,
)
def test_classify__builtins(exc: Exception, expected: object) -> None:
    """Python's own exceptions, by class and errno; the message of a programming error says nothing."""
    assert judged(exc) == expected


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (celery.exceptions.TimeoutError(), (ErrorKind.TIMEOUT, SAFE)),
        (celery.exceptions.BackendGetMetaError("x"), (ErrorKind.CONNECTION, SAFE)),
        (celery.exceptions.MaxRetriesExceededError(), (ErrorKind.UNKNOWN, PERMANENT)),
        (celery.exceptions.NotRegistered("task"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (celery.exceptions.TaskRevokedError(), (ErrorKind.UNKNOWN, PERMANENT)),
        (billiard.exceptions.WorkerLostError(), (ErrorKind.SERVER_ERROR, UNSURE)),
        (billiard.exceptions.TimeLimitExceeded(), (ErrorKind.TIMEOUT, UNSURE)),
        (kombu.exceptions.OperationalError("broker"), (ErrorKind.CONNECTION, SAFE)),
        (kombu.exceptions.EncodeError("x"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (kombu.exceptions.ContentDisallowed("x"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (kombu.exceptions.ConnectionLimitExceeded("x"), (ErrorKind.OVERLOADED, SAFE)),
        (amqp.exceptions.ConnectionForced("x"), (ErrorKind.CONNECTION, UNSURE)),
        (amqp.exceptions.MessageNacked("x"), (ErrorKind.CONNECTION, UNSURE)),
        (amqp.exceptions.ResourceLocked("x"), (ErrorKind.CONFLICT, SAFE)),
        (amqp.exceptions.AccessRefused("x"), (ErrorKind.PERMISSION, PERMANENT)),
        (amqp.exceptions.NotFound("x"), (ErrorKind.NOT_FOUND, PERMANENT)),
        (amqp.exceptions.PreconditionFailed("x"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (exceptions.OperationTimeoutError(), (ErrorKind.TIMEOUT, UNSURE)),
        (exceptions.BulkheadFullError("x", 1), (ErrorKind.OVERLOADED, SAFE)),
        (exceptions.AbandonedCallsError("x", 100), (ErrorKind.OVERLOADED, SAFE)),
        (exceptions.ConcurrentUpdateError("x", 1), (ErrorKind.CONFLICT, SAFE)),
        (exceptions.RunBusyError("x"), (ErrorKind.CONFLICT, SAFE)),
        (exceptions.RunConfigChangedError("x"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (exceptions.CheckpointError(), (ErrorKind.UNKNOWN, PERMANENT)),
        (exceptions.CommitOutcomeUnknownError("x"), (ErrorKind.CONNECTION, (False, True))),
        (exceptions.TransientError("x", "rate_limit"), (ErrorKind.RATE_LIMIT, SAFE)),
        (exceptions.PermanentError("x", "auth"), (ErrorKind.AUTH, PERMANENT)),
        (exceptions.PermanentError("x", "other"), (ErrorKind.UNKNOWN, PERMANENT)),
        (ObjectDoesNotExist(), (ErrorKind.NOT_FOUND, PERMANENT)),
        (Http404(), (ErrorKind.NOT_FOUND, PERMANENT)),
        (PermissionDenied(), (ErrorKind.PERMISSION, PERMANENT)),
        (ValidationError("x"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (TransactionManagementError("x"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (ProtectedError("x", set()), (ErrorKind.INTEGRITY, PERMANENT)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_classify__django_and_celery(exc: Exception, expected: object) -> None:
    """The exceptions of Django, Celery and its transports, most specific class first."""
    assert judged(exc) == expected


class DriverError(Exception):
    """A driver's exception with its code."""

    def __init__(self, *args: object, sqlstate: str | None = None, pgcode: str | None = None) -> None:
        super().__init__(*args)
        self.sqlstate, self.pgcode = sqlstate, pgcode


@pytest.mark.parametrize(
    ("outer", "driver", "expected"),
    [
        (OperationalError, DriverError(sqlstate="40P01"), (ErrorKind.CONFLICT, SAFE)),
        (OperationalError, DriverError(pgcode="40001"), (ErrorKind.CONFLICT, SAFE)),
        (OperationalError, DriverError(sqlstate="57014"), (ErrorKind.TIMEOUT, UNSURE)),
        (OperationalError, DriverError(sqlstate="57P01"), (ErrorKind.CONNECTION, UNSURE)),
        (OperationalError, DriverError(sqlstate="08006"), (ErrorKind.CONNECTION, UNSURE)),
        (OperationalError, DriverError(sqlstate="53300"), (ErrorKind.OVERLOADED, SAFE)),
        (OperationalError, DriverError(sqlstate="28P01"), (ErrorKind.AUTH, PERMANENT)),
        (OperationalError, DriverError(sqlstate="3D000"), (ErrorKind.NOT_FOUND, PERMANENT)),
        (IntegrityError, DriverError(sqlstate="23505"), (ErrorKind.INTEGRITY, PERMANENT)),
        (OperationalError, DriverError(sqlstate="25006"), (ErrorKind.SERVER_ERROR, SAFE)),
        (OperationalError, DriverError(sqlstate="57P05"), (ErrorKind.CONNECTION, UNSURE)),
        (OperationalError, DriverError(sqlstate="08007"), (ErrorKind.CONNECTION, UNSURE)),
        (DatabaseError, DriverError(sqlstate="XX000"), (ErrorKind.SERVER_ERROR, PERMANENT)),
        (DatabaseError, DriverError(sqlstate="ZZ000"), (ErrorKind.UNKNOWN, PERMANENT)),
        (OperationalError, DriverError(1290, "running with the --read-only option"), (ErrorKind.SERVER_ERROR, SAFE)),
        (OperationalError, DriverError(1836, "Running in read-only mode"), (ErrorKind.SERVER_ERROR, SAFE)),
        (OperationalError, DriverError(4031, "disconnected by the server because of inactivity"), (ErrorKind.CONNECTION, UNSURE)),
        (OperationalError, DriverError(1213, "Deadlock found"), (ErrorKind.CONFLICT, SAFE)),
        (OperationalError, DriverError(1205, "Lock wait timeout"), (ErrorKind.CONFLICT, SAFE)),
        (OperationalError, DriverError(2003, "Can't connect"), (ErrorKind.CONNECTION, SAFE)),
        (OperationalError, DriverError(2013, "Lost connection"), (ErrorKind.CONNECTION, UNSURE)),
        (OperationalError, DriverError(1040, "Too many connections"), (ErrorKind.OVERLOADED, SAFE)),
        (OperationalError, DriverError(1045, "Access denied"), (ErrorKind.AUTH, PERMANENT)),
        (ProgrammingError, DriverError("no code"), (ErrorKind.INVALID_REQUEST, PERMANENT)),
        (InterfaceError, None, (ErrorKind.CONNECTION, UNSURE)),
        (IntegrityError, None, (ErrorKind.INTEGRITY, PERMANENT)),
        (ProgrammingError, None, (ErrorKind.INVALID_REQUEST, PERMANENT)),
    ],
)
def test_classify__databases_by_code(outer: type[Exception], driver: Exception | None, expected: object) -> None:
    """The driver's code behind Django's exception decides."""
    assert judged(caused(outer("x"), driver) if driver else outer("x")) == expected


@pytest.mark.parametrize("message", ["deadlock detected", "database is locked", "could not serialize access"])
def test_classify__databases_without_a_code_by_message(message: str) -> None:
    """Without any code the words have to do."""
    assert judged(OperationalError(message)) == (ErrorKind.CONFLICT, SAFE)


def test_classify__a_locked_sqlite_database(tmp_path: Path) -> None:
    """A real SQLITE_BUSY is a conflict, raw and as Django wraps it."""
    with sqlite3.connect(tmp_path / "db", timeout=0) as holder, sqlite3.connect(tmp_path / "db", timeout=0) as other:
        holder.execute("CREATE TABLE t (x)")
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            other.execute("BEGIN IMMEDIATE")
    holder.close()
    other.close()

    assert classify(caught.value) == ErrorInfo(ErrorKind.CONFLICT, transient=True, code="SQLITE_BUSY")
    assert classify(caused(OperationalError(str(caught.value)), caught.value)).code == "SQLITE_BUSY"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("the request timed out", (ErrorKind.TIMEOUT, UNSURE)),
        ("Rate limit reached for requests", (ErrorKind.RATE_LIMIT, SAFE)),
        ("Connection refused", (ErrorKind.CONNECTION, SAFE)),
        ("Invalid API key provided", (ErrorKind.AUTH, PERMANENT)),
        ("Model not found: gpt-9", (ErrorKind.NOT_FOUND, PERMANENT)),
        ("timeout must be positive", (ErrorKind.UNKNOWN, PERMANENT)),
    ],
)
def test_classify__messages_are_the_last_resort(message: str, expected: object) -> None:
    """Words count only where neither class nor status nor code is known."""
    assert judged(Exception(message)) == expected


def test_classify__a_message_is_read_at_its_beginning_only() -> None:
    """Words deep in a page that came with an error say nothing about it."""
    assert judged(Exception(f"bad page {' ' * 2000} request timed out")) == (ErrorKind.UNKNOWN, PERMANENT)


def test_classify__an_os_error_without_a_number_goes_by_its_message() -> None:
    """Libraries raise OSError with nothing but words."""
    assert judged(OSError("connection refused")) == (ErrorKind.CONNECTION, SAFE)


def test_classify__a_client_that_hides_a_ring_behind_no_connection() -> None:
    """Following the reasons of a connection error ends, whatever leads where."""
    import httpx

    outer, inner = httpx.ConnectError("no"), RuntimeError("ring")
    outer.__cause__, inner.__cause__ = inner, outer

    assert judged(outer) == (ErrorKind.CONNECTION, SAFE)


def test_classify__a_connection_error_is_not_explained_by_what_was_being_handled() -> None:
    """A TLS mistake elsewhere, being handled when httpx fails to connect, is not its reason."""
    import httpx

    error = httpx.ConnectError("no")
    error.__context__ = ssl.SSLError("elsewhere")

    assert judged(error) == (ErrorKind.CONNECTION, SAFE)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b'{"error": {"code": "insufficient_quota"}}', "insufficient_quota")]
    + [
        (body, "")
        for body in (
            b"",
            b"not json",
            b"[" * 50_000,
            b'{"error": "text"}',
            b"[]",
            b'{"error": {"code": 5}}',
            b" " * 70_000 + b"{}",
        )
    ],
)
def test_classify__reads_codes_from_a_body_only_if_it_makes_sense(content: bytes, code: str) -> None:
    """A body is text from outside: whatever it holds, the status decides at least."""
    info = classify(StatusError(response=Response(status_code=429, content=content, _content_consumed=True)))
    unread = classify(StatusError(response=Response(status_code=429, content=content)))

    assert info.code == code
    assert info.kind is (ErrorKind.QUOTA if code else ErrorKind.RATE_LIMIT)
    assert unread.code == ""


def test_classify__a_class_beats_the_message() -> None:
    """A known class is not overruled by what its message happens to say."""
    assert judged(ConnectionResetError("invalid api key"))[0] is ErrorKind.CONNECTION


class StatusError(Exception):
    def __init__(self, **attributes: object) -> None:
        super().__init__("failed")
        self.__dict__.update(attributes)


class Response:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    "exc",
    [
        StatusError(status=503),
        StatusError(status_code=503),
        StatusError(response=Response(status_code=503)),
        StatusError(response=Response(status=503)),
        type("ApiDown", (RuntimeError,), {"status_code": 503})(),
        type("ApiDown", (KeyError,), {"status_code": 503})(),
        type("ApiDown", (OSError,), {"status_code": 503})(),
        caused(RuntimeError("wrapped"), StatusError(status=503)),
    ],
)
def test_classify__any_exception_with_a_status(exc: Exception) -> None:
    """A status is read wherever it stands, also on a response that is false, and on a project's own class."""
    info = classify(exc)

    assert (info.kind, info.transient, info.status) == (ErrorKind.SERVER_ERROR, True, 503)


@pytest.mark.parametrize("status", [200, 302, 0, 1000, True, "503", None])
def test_classify__what_is_no_error_status_says_nothing(status: object) -> None:
    """Only the whole numbers from 400 to 599 are error statuses."""
    assert classify(StatusError(status=status)).kind is ErrorKind.UNKNOWN


def test_classify__attributes_that_raise_do_not_matter() -> None:
    """A property that fails cannot hide the error it belongs to."""

    class NastyError(Exception):
        @property
        def response(self) -> object:
            raise RuntimeError("no response")

        @property
        def retry_after(self) -> object:
            raise RuntimeError("no such thing")

    assert classify(NastyError("connection refused")).kind is ErrorKind.CONNECTION


@pytest.mark.parametrize(("value", "seconds"), [(3, 3.0), ("7", 7.0), (-1, None), ("soon", None), (None, None)])
def test_classify__reads_a_retry_after_attribute(value: object, seconds: float | None) -> None:
    """Many clients put the wait on the exception itself."""
    assert classify(StatusError(status=429, retry_after=value)).retry_after == seconds


def test_classify__an_open_circuit_says_when_to_come_back() -> None:
    """The refusal's own wait is passed on."""
    info = classify(exceptions.CircuitOpenError("x", "open", 12.0))

    assert (info.kind, info.transient, info.retry_after) == (ErrorKind.OVERLOADED, True, 12.0)


def test_classify__survives_a_ring_of_causes() -> None:
    """Exceptions that cause each other end somewhere."""
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first

    assert classify(first).kind is ErrorKind.UNKNOWN


def test_classify__an_implicit_context_is_no_cause() -> None:
    """What was merely being handled when the error was raised explains nothing."""
    error = RuntimeError("bug in the handler")
    error.__context__ = TimeoutError()

    assert classify(error).kind is ErrorKind.UNKNOWN


def test_classify__a_group_is_as_good_as_its_worst_member() -> None:
    """All of a group runs again, so all of it must be worth running again."""
    passing = ExceptionGroup(
        "x", [StatusError(status=429, retry_after=2), StatusError(status=429, retry_after=5), TimeoutError()]
    )
    lasting = ExceptionGroup("x", [TimeoutError(), ValueError()])

    assert classify(passing) == ErrorInfo(ErrorKind.RATE_LIMIT, transient=True, maybe_executed=True, retry_after=5, status=429)
    assert not classify(lasting).transient


def test_register_classifier__is_asked_first_and_the_last_one_before() -> None:
    """A project knows its own errors better than any table."""
    register_classifier(lambda exc: ErrorInfo(ErrorKind.QUOTA) if isinstance(exc, TimeoutError) else None)
    before = classify(TimeoutError()).kind
    register_classifier(lambda exc: ErrorInfo(ErrorKind.CONFLICT) if isinstance(exc, TimeoutError) else None)

    assert (before, classify(TimeoutError()).kind) == (ErrorKind.QUOTA, ErrorKind.CONFLICT)
    assert classify(ConnectionError()).kind is ErrorKind.CONNECTION


def test_register_classifier__twice_is_once() -> None:
    """Registering again changes nothing."""

    def mine(exc: Exception) -> None:
        return None

    register_classifier(mine)
    register_classifier(mine)

    assert _registered.count(mine) == 1


def test_register_classifier__refuses_what_cannot_be_called() -> None:
    """The mistake shows where it is made."""
    with pytest.raises(TypeError, match=r"classifier must be a function of one exception, not 'x'\."):
        register_classifier("x")  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [RuntimeError("broken"), "transient", True])
def test_register_classifier__a_broken_one_is_passed_over(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    """A classifier that raises or answers nonsense is logged and changes nothing."""

    def broken(exc: Exception) -> ErrorInfo:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    register_classifier(broken)

    assert classify(TimeoutError()).kind is ErrorKind.TIMEOUT
    assert "passed over" in caplog.text


def settled(exc: Exception) -> ErrorInfo | None:
    return ErrorInfo(ErrorKind.CONFLICT, transient=True) if isinstance(exc, ValueError) else None


def test_classify__asks_the_classifiers_of_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    """Those named in the settings are asked, and one that cannot be imported is logged."""
    paths = ["tests.calls.no_such_module.function", "tests.calls.test_classify.settled"]

    with override_settings(RESILIENCE={"CLASSIFIERS": paths}):
        inside = classify(ValueError())

    assert inside.kind is ErrorKind.CONFLICT
    assert classify(ValueError()).kind is ErrorKind.UNKNOWN
    assert "no_such_module" in caplog.text


def test_rules__name_classes_that_exist() -> None:
    """A class path with a typing error would never match: each must be found in its library."""
    import importlib

    old = {"URLSchemeUnknown", "CertificateError", "WSMessageTypeError"}
    optional = ("google.", "psycopg2", "psycopg_pool", "MySQLdb", "resilience.")
    missing = []
    for path in {*RULES, *error_readers.READERS}:
        module, _, name = path.rpartition(".")
        if path.startswith(optional) or name in old:
            continue
        if getattr(importlib.import_module(module), name, None) is None:
            missing.append(path)

    assert missing == []


def google(name: str, *bases: type[Exception], **attributes: object) -> type[Exception]:
    """Make a class like google-api-core's, which is not installed here."""
    return type(name, bases or (Exception,), {"__module__": "google.api_core.exceptions", "__qualname__": name, **attributes})


def test_classify__google_api_core() -> None:
    """By the status of the class; an aborted transaction runs again, and what its own retries gave up is named by its cause."""
    error = google("GoogleAPIError")
    call_error = google("GoogleAPICallError", error)
    conflict = google("Conflict", call_error, code=409)
    unavailable = google("ServiceUnavailable", call_error, code=503)
    given_up = google("RetryError", error, cause=unavailable("busy"))

    assert judged(conflict("x")) == (ErrorKind.CONFLICT, PERMANENT)
    assert judged(google("Aborted", conflict)("x")) == (ErrorKind.CONFLICT, SAFE)
    assert judged(unavailable("x")) == (ErrorKind.SERVER_ERROR, SAFE)
    assert judged(given_up("Timeout of 60.0s exceeded")) == (ErrorKind.SERVER_ERROR, SAFE)


def test_classify__imports_no_library() -> None:
    """A project without Celery, requests and all the others pays nothing for the tables."""
    code = (
        "import sys; from resilience.calls.classify import classify; classify(TimeoutError());"
        "print([name for name in ('celery', 'requests', 'httpx', 'redis', 'grpc', 'django.db', 'openai') if name in sys.modules])"
    )

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert output.stdout.strip() == "[]"


def test_error_info__pickles() -> None:
    """What is known about an error can be sent to another process."""
    info = classify(TimeoutError())

    assert pickle.loads(pickle.dumps(info)) == info


@pytest.mark.parametrize("code", [*database_rules.POSTGRESQL, *database_rules.MYSQL], ids=str)
def test_classify__says_of_a_code_what_transactions_are_told(code: str | int) -> None:
    """Both readers of the tables agree, but for two rules: a call may repeat what a transaction must leave alone."""
    error = type("Error", (DriverError,), {"__module__": "psycopg" if isinstance(code, str) else "pymysql"})
    driver = error(sqlstate=code) if isinstance(code, str) else error(code, "read only")
    exc = caused(OperationalError("x"), driver)
    call, transaction = classify(exc), classify_db_error(exc)

    assert (call.kind, call.code) == (transaction.kind, transaction.code)
    assert call.transient == transaction.retry or (call.transient and call.maybe_executed)
    assert call.maybe_executed or not transaction.ambiguous


def test_classify__exceptions_that_were_never_initialised() -> None:
    """Unpickled or made by `__new__`, an exception lacks what its class promises; it is judged by what there is."""
    found = {}
    for path in {**error_readers.READERS, **RULES}:
        module, _, name = path.rpartition(".")
        cls = getattr(sys.modules.get(module), name, None)
        if isinstance(cls, type) and issubclass(cls, Exception):
            with contextlib.suppress(TypeError):
                found[path] = classify(cls.__new__(cls)).kind

    assert found["urllib.error.HTTPError"] is ErrorKind.UNKNOWN
    assert found["resilience.exceptions.TransientError"] is ErrorKind.UNKNOWN
    assert found["resilience.exceptions.CircuitOpenError"] is ErrorKind.OVERLOADED


@pytest.mark.parametrize("number", [["E1"], "a secret"], ids=repr)
def test_classify__an_os_error_whose_number_is_none(number: object) -> None:
    """OSError takes anything as its number; what is none is neither looked up nor passed on as a code."""
    info = classify(OSError(number, "connection refused"))

    assert (info.kind, info.code) == (ErrorKind.CONNECTION, "")


def test_classify__a_status_with_headers_that_cannot_be_read() -> None:
    """What is wrong with the headers does not hide the status."""

    class Headers:
        def get(self) -> None:
            """Take no name, as a queue's `get` does."""

    assert classify(StatusError(status=503, headers=Headers())).status == 503


def test_classify__a_time_limit_that_strikes_while_headers_are_read() -> None:
    """It is no fault of the headers."""

    class Headers:
        def get(self, name: str) -> str:
            raise billiard.exceptions.SoftTimeLimitExceeded

    with pytest.raises(billiard.exceptions.SoftTimeLimitExceeded):
        classify(StatusError(status=503, headers=Headers()))


@pytest.mark.parametrize(
    ("said", "obeyed"), [(math.nan, None), (-1.0, None), (math.inf, retry_after.LONGEST), (2, 2.0)], ids=repr
)
def test_register_classifier__its_wait_is_one_that_can_be_slept(said: float, obeyed: float | None) -> None:
    """What a project's own classifier says of the wait is read as strictly as a header."""
    register_classifier(lambda exc: ErrorInfo(ErrorKind.RATE_LIMIT, transient=True, retry_after=said))

    assert classify(ValueError()) == ErrorInfo(ErrorKind.RATE_LIMIT, transient=True, retry_after=obeyed)


def test_register_classifier__a_broken_one_need_not_be_hashable(caplog: pytest.LogCaptureFixture) -> None:
    """A dataclass with `__call__` has no hash; it is passed over like any other, and told of once."""

    @dataclasses.dataclass
    class Broken:
        def __call__(self, exc: Exception) -> ErrorInfo | None:
            raise RuntimeError

    register_classifier(Broken())

    assert [classify(TimeoutError()).kind, classify(TimeoutError()).kind] == [ErrorKind.TIMEOUT] * 2
    assert caplog.text.count("passed over") == 1


def test_register_classifier__a_time_limit_that_strikes_in_it_is_not_its_fault() -> None:
    """Control flow is never swallowed, wherever it happens to be raised."""

    def slow(exc: Exception) -> ErrorInfo | None:
        raise billiard.exceptions.SoftTimeLimitExceeded

    register_classifier(slow)

    with pytest.raises(billiard.exceptions.SoftTimeLimitExceeded):
        classify(TimeoutError())


def test_classify__a_time_limit_that_strikes_while_an_error_is_read() -> None:
    """Nor is it taken for an exception that cannot be read."""

    class Slow(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> tuple[Exception, ...]:
            raise billiard.exceptions.SoftTimeLimitExceeded

    with pytest.raises(billiard.exceptions.SoftTimeLimitExceeded):
        classify(Slow("both", [ValueError()]))


@pytest.mark.parametrize(
    ("names", "outcome"),
    [
        ("EHOSTUNREACH ENETUNREACH ENETDOWN EHOSTDOWN ECONNREFUSED EADDRNOTAVAIL", SAFE),
        ("ECONNRESET ECONNABORTED ENETRESET EPIPE ENOTCONN", UNSURE),
    ],
    ids=["never sent", "maybe sent"],
)
def test_classify__connections_by_number(names: str, outcome: tuple[bool, bool]) -> None:
    """A plain OSError tells by its number whether the request can have reached the other side."""
    assert {name: judged(OSError(getattr(errno, name), "x")) for name in names.split()} == dict.fromkeys(
        names.split(), (ErrorKind.CONNECTION, outcome)
    )
