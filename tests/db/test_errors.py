from __future__ import annotations

import binascii
import sqlite3
from types import SimpleNamespace
from typing import Any

import psycopg
import psycopg.errors
import pymysql
import pytest
from django.db import DatabaseError, DataError, InterfaceError, InternalError, OperationalError, ProgrammingError
from django.db.utils import IntegrityError

from resilience import CommitOutcomeUnknownError, ErrorKind, OperationTimeoutError, TransactionBrokenError, classify_db_error
from resilience.calls import database_rules
from resilience.db.errors import DatabaseErrorInfo, interrupt_behind, is_database_error, masked_error, register_db_classifier


def caused(outer: BaseException, cause: BaseException) -> BaseException:
    """Chain as Django's wrapper does."""
    outer.__cause__ = cause
    outer.__context__ = cause
    return outer


class PoolTimeout(psycopg.OperationalError):
    """As psycopg_pool names it."""


def postgresql(code: str) -> BaseException:
    """The error that Django raises for an SQLSTATE."""
    error = type("SomeError", (psycopg.OperationalError,), {"sqlstate": code})("text")
    return caused(OperationalError("text"), error)


def sqlite(code: int) -> BaseException:
    error = sqlite3.OperationalError("text")
    error.sqlite_errorcode = code
    return caused(OperationalError("text"), error)


@pytest.mark.parametrize(
    ("error", "kind", "retry", "new_connection", "ambiguous", "code"),
    [
        (postgresql("40001"), "conflict", True, False, False, "40001"),
        (postgresql("40P01"), "conflict", True, False, False, "40P01"),
        (postgresql("40003"), "connection", False, True, True, "40003"),
        (postgresql("40002"), "integrity", False, False, False, "40002"),
        (postgresql("08007"), "connection", False, True, True, "08007"),
        (postgresql("08006"), "connection", True, True, True, "08006"),
        (postgresql("08P01"), "connection", True, True, True, "08P01"),
        (postgresql("55P03"), "conflict", True, False, False, "55P03"),
        (postgresql("57014"), "timeout", False, False, False, "57014"),
        (postgresql("57P01"), "connection", True, True, True, "57P01"),
        (postgresql("57P03"), "connection", True, True, False, "57P03"),
        (postgresql("53300"), "overloaded", True, True, False, "53300"),
        (postgresql("53100"), "overloaded", False, False, False, "53100"),
        (postgresql("25006"), "server_error", True, True, False, "25006"),
        (postgresql("25P03"), "connection", True, True, True, "25P03"),
        (postgresql("23505"), "integrity", False, False, False, "23505"),
        (postgresql("22001"), "invalid_request", False, False, False, "22001"),
        (postgresql("42P01"), "invalid_request", False, False, False, "42P01"),
        (postgresql("42501"), "permission", False, False, False, "42501"),
        (postgresql("28P01"), "auth", False, True, False, "28P01"),
        (postgresql("OC001"), "conflict", True, False, False, "OC001"),
        (postgresql("ZZ999"), "server_error", False, False, False, "ZZ999"),
        (OperationalError(1213, "Deadlock"), "conflict", True, False, False, "1213"),
        (OperationalError(1020, "Record has changed"), "conflict", True, False, False, "1020"),
        (OperationalError(1205, "Lock wait timeout"), "conflict", True, False, False, "1205"),
        (OperationalError(2006, "gone away"), "connection", True, True, True, "2006"),
        (ProgrammingError(2014, "out of sync"), "connection", True, True, True, "2014"),
        (OperationalError(2003, "can't connect"), "connection", True, True, False, "2003"),
        (OperationalError(2999, "new"), "connection", False, True, True, "2999"),
        (OperationalError(1040, "Too many"), "overloaded", True, True, False, "1040"),
        (InternalError(1180, "Got error 149 during COMMIT"), "conflict", True, False, False, "1180"),
        (InternalError(1180, "Got error 5 during COMMIT"), "server_error", False, False, True, "1180"),
        (OperationalError(1290, "running with the --read-only option"), "server_error", True, True, False, "1290"),
        (OperationalError(1290, "running with the --skip-grant-tables option"), "invalid_request", False, False, False, "1290"),
        (IntegrityError(1062, "Duplicate"), "integrity", False, False, False, "1062"),
        (OperationalError(3572, "NOWAIT"), "conflict", False, False, False, "3572"),
        (OperationalError(1969, "max_statement_time"), "timeout", False, False, False, "1969"),
        (InterfaceError(0, ""), "connection", True, True, True, "0"),
        (sqlite(5), "conflict", True, False, False, "5"),
        (sqlite(517), "conflict", True, False, False, "517"),
        (sqlite(262), "conflict", True, False, False, "262"),
        (sqlite(2067), "integrity", False, False, False, "2067"),
        (sqlite(3850), "server_error", False, False, False, "3850"),
        (sqlite(13), "overloaded", False, False, False, "13"),
    ],
)
def test_codes__mean_what_the_tables_say(
    error: BaseException, kind: str, retry: bool, new_connection: bool, ambiguous: bool, code: str
) -> None:
    """Each vendor's code decides, whatever the class and the text."""
    assert classify_db_error(error) == DatabaseErrorInfo(ErrorKind(kind), retry, new_connection, ambiguous, code)


@pytest.mark.parametrize(
    ("number", "full_code", "retry"),
    [
        (60, "ORA-00060", True),
        (54, "ORA-00054", False),
        (3113, "ORA-03113", True),
        (0, "DPY-4011", True),
        (1, "ORA-00001", False),
    ],
)
def test_oracle__is_told_by_the_error_object_in_args(number: int, full_code: str, retry: bool) -> None:
    """python-oracledb puts an object with code and full_code first."""
    info = classify_db_error(OperationalError(SimpleNamespace(code=number, full_code=full_code)))

    assert (info.retry, info.code) == (retry, full_code)


@pytest.mark.parametrize(
    ("error", "retry", "new_connection"),
    [
        (caused(OperationalError("x"), psycopg.OperationalError("consuming input failed: server closed")), True, True),
        (caused(OperationalError("x"), psycopg.OperationalError("the connection is closed")), True, True),
        (caused(OperationalError("x"), psycopg.OperationalError("connection socket closed")), True, True),
        (caused(OperationalError("x"), psycopg.errors.ConnectionTimeout("connection timeout expired")), True, True),
        (caused(OperationalError("x"), PoolTimeout("couldn't get a connection after 30 s")), True, True),
        (OperationalError('connection failed: FATAL: password authentication failed for user "x"'), False, True),
        (OperationalError("connection failed: Connection refused"), True, True),
        (OperationalError("database is locked"), True, False),
        (OperationalError("deadlock detected"), True, False),
        (ProgrammingError("Cannot operate on a closed database."), True, True),
        (OperationalError("no such table: x"), False, False),
        (InterfaceError("cursor already closed"), False, False),
        (IntegrityError("UNIQUE constraint failed: deadlock.x"), False, False),
        (DataError("too long"), False, False),
    ],
)
def test_text__is_read_only_where_there_is_no_code(error: BaseException, retry: bool, new_connection: bool) -> None:
    """Client-side failures carry no code; their well-known texts tell."""
    info = classify_db_error(error)

    assert (info.retry, info.new_connection, info.code) == (retry, new_connection, "")


def test_text__does_not_overrule_a_code() -> None:
    """A constraint named after a deadlock is a constraint."""
    error = caused(IntegrityError("x"), type("E", (psycopg.IntegrityError,), {"sqlstate": "23505"})("deadlock detected"))

    assert not classify_db_error(error).retry


def test_nowait__is_told_by_where_the_server_says_it() -> None:
    """55P03 from lock_timeout is retried, from NOWAIT it is not."""

    def lock_error(source: str) -> BaseException:
        inner = type("E", (psycopg.OperationalError,), {"sqlstate": "55P03", "diag": SimpleNamespace(source_function=source)})(
            "x"
        )
        return caused(OperationalError("x"), inner)

    assert classify_db_error(lock_error("ProcessInterrupts")).retry
    assert not classify_db_error(lock_error("heap_lock_tuple")).retry


def test_masked_error__is_found_behind_the_failure_to_reconnect() -> None:
    """Django reconnects on the way out; the lost connection behind that failure is what counts."""
    surfaced = caused(OperationalError("connection refused"), psycopg.OperationalError("connection failed: refused"))
    surfaced.__cause__.__context__ = real = postgresql("57P01")  # type: ignore[union-attr]

    assert classify_db_error(surfaced).code == "57P01"
    assert classify_db_error(surfaced).ambiguous
    assert masked_error(surfaced, None) is real
    assert masked_error(surfaced, real) is surfaced


def test_symptom__gives_way_to_its_cause() -> None:
    """25P02 and 1305 say only that an earlier error was ignored."""
    symptom = postgresql("25P02")
    symptom.__cause__.__context__ = postgresql("40P01")  # type: ignore[union-attr]

    assert classify_db_error(symptom).code == "40P01"
    assert classify_db_error(postgresql("25P02")).retry is False


def test_wrapped_error__is_classified_by_its_explicit_cause() -> None:
    """`raise X from deadlock` is a deadlock; an error that is merely around is not."""
    explicit, around = ValueError("mine"), ValueError("mine")
    explicit.__cause__ = postgresql("40P01")
    around.__context__ = postgresql("40P01")

    assert classify_db_error(explicit).retry
    assert classify_db_error(around) == DatabaseErrorInfo(ErrorKind.UNKNOWN, False, False, False, "")


def test_own_errors__have_their_meaning() -> None:
    """A lost COMMIT is ambiguous and never retried; a broken transaction means what broke it."""
    lost = caused(CommitOutcomeUnknownError("x"), postgresql("57P01"))
    broken = caused(TransactionBrokenError("x"), OperationalError(1213, "Deadlock"))

    assert (classify_db_error(lost).retry, classify_db_error(lost).ambiguous) == (False, True)
    assert classify_db_error(broken).code == "1213"


def test_drivers_own_errors__need_no_django_around_them() -> None:
    """Code that uses a driver directly is served too."""
    assert classify_db_error(pymysql.err.OperationalError(1213, "Deadlock")).code == "1213"
    assert classify_db_error(psycopg.errors.DeadlockDetected("x")).code == "40P01"
    assert is_database_error(sqlite3.OperationalError("x"))
    assert not is_database_error(OSError(5, "input/output error"))
    assert not is_database_error(binascii.Error("a class of the same name"))
    assert not classify_db_error(OSError(1213, "no deadlock")).retry


def test_unknown_error__behind_a_failure_to_connect_does_not_hide_it() -> None:
    """What has a meaning counts: the server is away, and it is tried again."""
    error = OperationalError("connection failed: Connection refused")
    error.__context__ = DatabaseError("something else")

    assert classify_db_error(error) == classify_db_error(OperationalError("connection failed: Connection refused"))


def test_error__raised_while_another_was_handled_keeps_its_own_meaning() -> None:
    """A duplicate key met while dealing with a deadlock is a duplicate key, and is not tried again."""
    driver = psycopg.errors.UniqueViolation("duplicate key")
    driver.__context__ = postgresql("40P01")

    assert classify_db_error(caused(IntegrityError("duplicate key"), driver)).code == "23505"


def test_interrupt__is_what_broke_in_and_not_what_the_network_did() -> None:
    """A time limit behind a database error counts, although it is an OSError to Python; a reset connection does not."""
    limit = OperationTimeoutError("work", 1.0)
    struck, reset = OperationalError("half done"), OperationalError("lost")
    struck.__context__, reset.__context__ = limit, ConnectionResetError("reset by peer")

    assert isinstance(limit, OSError)
    assert interrupt_behind(struck, None) is limit
    assert interrupt_behind(reset, None) is None
    assert interrupt_behind(struck, limit) is None


def test_circular_chain__ends() -> None:
    """A chain that leads back to itself is walked once."""
    first, second = OperationalError("x"), OperationalError("y")
    first.__context__, second.__context__ = second, first

    assert not classify_db_error(first).retry


def test_register_db_classifier__overrules_for_one_alias_until_taken_back() -> None:
    """A team that wants its statement timeouts retried on one database says so."""
    info = DatabaseErrorInfo(ErrorKind.TIMEOUT, True, False, False, "57014")

    def timeouts(exc: BaseException) -> DatabaseErrorInfo | None:
        return info if getattr(exc.__cause__, "sqlstate", "") == "57014" else None

    forget = register_db_classifier("reports", timeouts)
    try:
        assert classify_db_error(postgresql("57014"), "reports") is info
        assert not classify_db_error(postgresql("57014")).retry
        assert classify_db_error(postgresql("40P01"), "reports").code == "40P01"
    finally:
        forget()
    assert not classify_db_error(postgresql("57014"), "reports").retry


@pytest.mark.parametrize("table", ["POSTGRESQL", "MYSQL", "SQLITE", "ORACLE"])
def test_tables__never_retry_what_is_unknowable_and_never_wait_for_a_constraint(table: str) -> None:
    """No rule both retries and lacks a kind, and no integrity error is retried."""
    rules: Any = getattr(database_rules, table).values()

    assert all(rule.kind is not ErrorKind.INTEGRITY or not rule.retry for rule in rules)
    assert all(rule.kind is not ErrorKind.UNKNOWN for rule in rules)
