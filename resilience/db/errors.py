"""What a database error means: run the transaction again, on which connection, and is it known what happened?

The answer comes from the code that the database gave (SQLSTATE, error number, result code), looked up in
`resilience.calls.database_rules`; the text is read only where the driver gives no code at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from django.db import DataError, Error, IntegrityError, InterfaceError, NotSupportedError, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.utils import DatabaseErrorWrapper

from resilience.calls import database_rules as tables
from resilience.calls.database_rules import Rule
from resilience.calls.kinds import ErrorKind
from resilience.exceptions import CommitOutcomeUnknownError, ResilienceError
from resilience.redaction import text_of

__all__ = [
    "DatabaseErrorInfo",
    "classify_db_error",
    "interrupt_behind",
    "is_database_error",
    "masked_error",
    "originating_alias",
    "register_db_classifier",
]


@dataclass(frozen=True, slots=True)
class DatabaseErrorInfo:
    """What an error means for the transaction it came from.

    Args:
        kind: The sort of failure; CONFLICT is contention (deadlock, serialization, lock), which milliseconds cure.
        retry: Whether running the whole transaction again is right, provided that COMMIT had not been sent.
        new_connection: Whether the connection is of no more use.
        ambiguous: Whether the same error during COMMIT leaves open if the work was stored.
        code: What the database gave: SQLSTATE, error number or SQLite result code, as text; "" when none.

    Example:
        >>> DatabaseErrorInfo(ErrorKind.CONFLICT, True, False, False, "40001").retry
        True
    """

    kind: ErrorKind
    retry: bool
    new_connection: bool
    ambiguous: bool
    code: str = ""


Classifier: TypeAlias = Callable[[BaseException], DatabaseErrorInfo | None]
_classifiers: dict[str, list[Classifier]] = {}

_DRIVERS = frozenset({"MySQLdb", "cx_Oracle", "mysql", "oracledb", "psycopg", "psycopg2", "psycopg_pool", "pymysql", "sqlite3"})
#: Errors that only say that an earlier one was ignored.
_SYMPTOMS = frozenset({"25P02", "1305"})
_UNKNOWN = Rule(ErrorKind.UNKNOWN, ambiguous=True)
_NOTHING = DatabaseErrorInfo(ErrorKind.UNKNOWN, False, False, False)


def classify_db_error(exc: BaseException, using: str = "default") -> DatabaseErrorInfo:
    """Tell what a database error means for the transaction it came from.

    The code is looked for in the exception, then along `__cause__`, then along `__context__`: when a connection
    dies Django reconnects on the way out, and what surfaces is then the failure to connect, which hides the
    error that mattered.

    Args:
        exc: What was raised; a `django.db` error, a driver's own, or anything that has one as its `__cause__`.
        using: The database alias, for classifiers registered with `register_db_classifier`.

    Returns:
        The meaning; nothing to retry and kind UNKNOWN for an exception that is no database error.

    Example:
        >>> from django.db import OperationalError
        >>> info = classify_db_error(OperationalError(1213, "Deadlock found when trying to get lock"))
        >>> (info.code, info.retry, info.new_connection, info.ambiguous)
        ('1213', True, False, False)
    """
    for classifier in (*_classifiers.get(using, ()), *_classifiers.get("*", ())):
        info: DatabaseErrorInfo | None = classifier(exc)
        if info is not None:
            return info
    if isinstance(exc, CommitOutcomeUnknownError):
        return DatabaseErrorInfo(ErrorKind.CONNECTION, False, True, True)
    found: tuple[Rule, str] | None = None
    for error in _related(exc):
        candidate = _rule_of(error)
        if candidate is None or (found and candidate[0] is _UNKNOWN):
            continue
        found = candidate
        if candidate[1] not in _SYMPTOMS and candidate[0] not in {tables.UNREACHABLE, _UNKNOWN}:
            break
    if found is None:
        return _NOTHING
    rule, code = found
    return DatabaseErrorInfo(rule.kind, rule.retry, rule.new_connection, rule.ambiguous, code)


def register_db_classifier(using: str, classifier: Classifier) -> Callable[[], None]:
    """Ask `classifier` before the tables, for the errors of one database.

    Args:
        using: The database alias, or "*" for all.
        classifier: `classifier(exception)`, which returns a `DatabaseErrorInfo`, or None to leave it to the tables.

    Returns:
        A function that takes the registration back.

    Example:
        >>> def statement_timeouts(exc):
        ...     if getattr(exc.__cause__, "sqlstate", None) == "57014":
        ...         return DatabaseErrorInfo(ErrorKind.TIMEOUT, True, False, False, "57014")
        >>> forget = register_db_classifier("reports", statement_timeouts)
        >>> forget()
    """
    registered = _classifiers.setdefault(using, [])
    registered.append(classifier)
    return lambda: registered.remove(classifier)


def is_database_error(exc: BaseException | None) -> bool:
    """Tell whether an exception is one of Django's or of a driver's database errors."""
    if isinstance(exc, Error):
        return True
    return any(cls.__name__ == "Error" and cls.__module__.partition(".")[0] in _DRIVERS for cls in type(exc).__mro__)


def masked_error(exc: BaseException, handled: BaseException | None) -> BaseException:
    """Return the database error that came first among those which were raised while another was on its way out.

    Args:
        exc: What surfaced.
        handled: What was being handled before any of it began; the search ends there.
    """
    first, link = exc, exc.__context__
    while link is not None and link is not handled:
        if isinstance(link, Error):
            first = link
        link = link.__context__
    return first


def interrupt_behind(exc: BaseException, handled: BaseException | None) -> BaseException | None:
    """Return what broke into a statement from outside (a time limit, Ctrl-C), or None when only the database failed.

    Django and the drivers then complain about the half-done statement, and only the context tells why.

    Args:
        exc: What surfaced.
        handled: What was being handled before any of it began; the search ends there.
    """
    found: BaseException | None = None
    link: BaseException | None = exc
    while link is not None and link is not handled:
        if not is_database_error(link) and (not isinstance(link, OSError) or isinstance(link, ResilienceError)):
            found = link
        link = link.__context__
    return found


def originating_alias(exc: BaseException) -> str | None:
    """Return the alias of the connection that raised a database error, or None when the traceback does not show it."""
    for error in _related(exc):
        alias, frame = None, error.__traceback__
        while frame is not None:
            alias = _alias_of(frame.tb_frame.f_locals.get("self")) or alias
            frame = frame.tb_next
        if alias is not None:
            return alias
    return None


def _alias_of(owner: object) -> str | None:
    if isinstance(owner, CursorWrapper):
        owner = owner.db
    elif isinstance(owner, DatabaseErrorWrapper):
        owner = owner.wrapper  # type: ignore[attr-defined]  # not in the stubs
    return owner.alias if isinstance(owner, BaseDatabaseWrapper) else None


def _related(exc: BaseException) -> Iterator[BaseException]:
    """Yield the database errors behind `exc`, itself first: along `__cause__`, and from a database error also `__context__`."""
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        is_error = is_database_error(link)
        if is_error:
            yield link
        hidden = link.__context__ if is_error and not link.__suppress_context__ else None
        link = link.__cause__ or hidden


def _rule_of(error: BaseException) -> tuple[Rule, str] | None:
    """Find the rule and the code of one error; None when its cause, which is the driver's error, will tell."""
    found = tables.find_rule(error)
    if found is not None:
        rule, code = found
        return rule or tables.SERVER, code
    return None if is_database_error(error.__cause__) else (_rule_without_code(error), "")


def _rule_without_code(error: BaseException) -> Rule:
    for cls in type(error).__mro__:
        if rule := tables.CODELESS.get(cls.__name__):
            return rule
    if isinstance(error, IntegrityError):
        return tables.INTEGRITY
    text = text_of(error).lower()
    for part, rule in tables.MESSAGES:
        if part in text:
            return rule
    if isinstance(error, (DataError, NotSupportedError, ProgrammingError)):
        return tables.MISTAKE
    return tables.LOST if isinstance(error, InterfaceError) and not text else _UNKNOWN
