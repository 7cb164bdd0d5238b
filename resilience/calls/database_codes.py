"""Database errors seen as failures of a call: by the code of the driver, or by its class where it gives none.

Enough to tell whether a call that happens to touch a database is worth another try. What a transaction may do
about it is the business of `resilience.db`, which knows whether COMMIT was under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resilience.calls import database_rules as tables
from resilience.calls.database_rules import Rule
from resilience.calls.kinds import ErrorInfo, ErrorKind

__all__ = ["read_database_error"]

_CONNECTION_LOST = ErrorInfo(ErrorKind.CONNECTION, transient=True, maybe_executed=True)
_INTEGRITY = ErrorInfo(ErrorKind.INTEGRITY)
_INVALID = ErrorInfo(ErrorKind.INVALID_REQUEST)

#: What a transaction leaves alone and a call may repeat: who calls says with `idempotent=False` that it must not.
_WORTH_ANOTHER_CALL = frozenset({tables.CANCELLED, tables.UNKNOWABLE})


def read_database_error(exc: Any, ask: Callable[[BaseException], ErrorInfo]) -> ErrorInfo | None:
    """Classify an error of Django's database layer, or of a driver, by the driver's own code."""
    driver = exc.__cause__ if isinstance(exc.__cause__, Exception) else exc
    rule, code = tables.find_rule(driver) or (None, "")
    return _by_class(exc, driver) if rule is None else _by_rule(rule, getattr(driver, "sqlite_errorname", code))


def _by_rule(rule: Rule, code: str) -> ErrorInfo:
    again = rule in _WORTH_ANOTHER_CALL
    return ErrorInfo(rule.kind, transient=rule.retry or again, maybe_executed=rule.ambiguous or again, code=code)


def _by_class(exc: Any, driver: Any) -> ErrorInfo | None:
    """Tell a lost connection, for which psycopg has a class but no code."""
    name = type(driver).__name__
    library = type(driver).__module__.partition(".")[0]
    if name == "InterfaceError" or (library in {"psycopg", "psycopg2"} and name in {"OperationalError", "ConnectionTimeout"}):
        return _CONNECTION_LOST
    named = {"IntegrityError": _INTEGRITY, "DataError": _INVALID, "ProgrammingError": _INVALID, "NotSupportedError": _INVALID}
    return next((named[base.__name__] for base in type(driver).__mro__ if base.__name__ in named), None)
