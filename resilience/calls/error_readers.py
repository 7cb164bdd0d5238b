"""What an exception carries besides its class: numbers, codes, the error inside; read without importing its library.

Each reader gets the exception and `ask`, which classifies another exception (the one inside), and returns None
when it finds nothing to go by.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, TypeAlias

from resilience.calls import retry_after
from resilience.calls.api_errors import read_aws, read_grpc, read_model_api, read_stream_error
from resilience.calls.database_codes import read_database_error
from resilience.calls.http_statuses import attribute, info_from_status, read_status
from resilience.calls.kinds import ErrorInfo, ErrorKind
from resilience.redaction import text_of

__all__ = ["READERS", "Reader"]

Ask: TypeAlias = Callable[[BaseException], ErrorInfo]
Reader: TypeAlias = Callable[[Any, Ask], ErrorInfo | None]

_NETWORK_ERRNOS = {
    errno.ETIMEDOUT: (ErrorKind.TIMEOUT, True),
    errno.EHOSTUNREACH: (ErrorKind.CONNECTION, False),
    errno.ENETUNREACH: (ErrorKind.CONNECTION, False),
    errno.ENETDOWN: (ErrorKind.CONNECTION, False),
    errno.EHOSTDOWN: (ErrorKind.CONNECTION, False),
    errno.ECONNREFUSED: (ErrorKind.CONNECTION, False),
    errno.EADDRNOTAVAIL: (ErrorKind.CONNECTION, False),
    errno.ECONNRESET: (ErrorKind.CONNECTION, True),
    errno.ECONNABORTED: (ErrorKind.CONNECTION, True),
    errno.ENETRESET: (ErrorKind.CONNECTION, True),
    errno.EPIPE: (ErrorKind.CONNECTION, True),
    errno.ENOTCONN: (ErrorKind.CONNECTION, True),
}


def _causes_of(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that `exc` was made from, the nearest first, each once even when the chain is a ring."""
    seen = {id(exc)}
    while True:
        # What was merely being handled at the time is no cause, unless a library hid it: httpcore raises `from None`.
        inner = exc.__cause__ or (exc.__context__ if exc.__suppress_context__ else None)
        if inner is None or id(inner) in seen:
            return
        seen.add(id(inner))
        yield inner
        exc = inner


def _read_inner(*names: str) -> Reader:
    """Make a reader for exceptions that wrap the real one, as an attribute or as their first argument."""

    def read(exc: Any, ask: Ask) -> ErrorInfo | None:
        found = [attribute(exc, name) for name in names] + list(exc.args[:1])
        for inner in found:
            if isinstance(inner, Exception) and inner is not exc and (info := ask(inner)).kind is not ErrorKind.UNKNOWN:
                return info
        return None

    return read


def _read_connecting(otherwise: ErrorInfo) -> Reader:
    """Make a reader for "no connection" errors that tell the reason (refused, TLS, reset) only by what is behind them."""

    def read(exc: Any, ask: Ask) -> ErrorInfo | None:
        for inner in _causes_of(exc):
            if isinstance(inner, Exception) and (info := ask(inner)).kind in {ErrorKind.CONNECTION, ErrorKind.TLS}:
                return info
        return otherwise

    return read


def _read_requests_connection(exc: Any, ask: Ask) -> ErrorInfo | None:
    return _read_inner()(exc, ask) or ErrorInfo(ErrorKind.CONNECTION, transient=True, maybe_executed=True)


def _read_redis_connection(exc: Any, ask: Ask) -> ErrorInfo | None:
    """Read redis-py's ConnectionError, which names the socket's error in its text and does not chain it."""
    inner = exc.__context__
    is_reason = isinstance(inner, OSError) and bool(inner.strerror) and str(inner.strerror) in text_of(exc)
    info = ask(inner) if is_reason else _CONNECTION_LOST
    return info if info.transient else _NOT_CONNECTED


def _read_os_error(exc: OSError, ask: Ask) -> ErrorInfo | None:
    if not isinstance(exc.errno, int):
        return None
    code = errno.errorcode.get(exc.errno, str(exc.errno))
    if exc.errno in _NETWORK_ERRNOS:
        kind, maybe_executed = _NETWORK_ERRNOS[exc.errno]
        return ErrorInfo(kind, transient=True, maybe_executed=maybe_executed, code=code)
    return ErrorInfo(ErrorKind.UNKNOWN, code=code)


def _read_name_error(exc: socket.gaierror, ask: Ask) -> ErrorInfo | None:
    names = {socket.EAI_AGAIN: "EAI_AGAIN", socket.EAI_NONAME: "EAI_NONAME"}
    number = exc.errno or 0
    return ErrorInfo(ErrorKind.CONNECTION, transient=number == socket.EAI_AGAIN, code=names.get(number, str(number)))


def _read_urllib_status(exc: Any, ask: Ask) -> ErrorInfo | None:
    return info_from_status(exc.code, attribute(exc, "headers"))


def _read_group(exc: Any, ask: Ask) -> ErrorInfo | None:
    """Judge a group by its worst member: all of it runs again, so all of it must be worth running again."""
    infos = [ask(member) for member in exc.exceptions]
    worst = next((info for info in infos if info.kind is ErrorKind.CANCELLED), None)
    worst = worst or next((info for info in infos if not info.transient), None)
    if worst is not None:
        return worst
    waits = [info.retry_after for info in infos if info.retry_after is not None]
    return replace(infos[0], maybe_executed=any(info.maybe_executed for info in infos), retry_after=max(waits, default=None))


def _read_given_up(exc: Any, ask: Ask) -> ErrorInfo | None:
    """Read this app's TransientError and PermanentError, which name the kind of what they stand for."""
    kind = ErrorKind(exc.kind) if exc.kind in set(ErrorKind) else ErrorKind.UNKNOWN
    return ErrorInfo(kind, transient=type(exc).__name__ == "TransientError")


def _read_refusal(exc: Any, ask: Ask) -> ErrorInfo | None:
    return ErrorInfo(ErrorKind.OVERLOADED, transient=True, retry_after=retry_after.parse_seconds(exc.retry_after))


_CONNECTION_LOST: Final = ErrorInfo(ErrorKind.CONNECTION, transient=True, maybe_executed=True)
_NOT_CONNECTED: Final = ErrorInfo(ErrorKind.CONNECTION, transient=True)

#: Class path to the function that reads such an exception; asked before the rule of the same path.
READERS: Final[dict[str, Reader]] = {
    "builtins.ExceptionGroup": _read_group,
    "builtins.OSError": _read_os_error,
    "socket.gaierror": _read_name_error,
    "urllib.error.HTTPError": _read_urllib_status,
    "urllib.error.URLError": _read_inner("reason"),
    "urllib3.exceptions.MaxRetryError": _read_inner("reason"),
    "requests.exceptions.ConnectionError": _read_requests_connection,
    "requests.exceptions.RetryError": _read_requests_connection,
    "requests.exceptions.HTTPError": read_status,
    "httpx.ConnectError": _read_connecting(_NOT_CONNECTED),
    "httpx2.ConnectError": _read_connecting(_NOT_CONNECTED),
    "httpx.HTTPStatusError": read_status,
    "httpx2.HTTPStatusError": read_status,
    "aiohttp.client_exceptions.ClientResponseError": read_status,
    "openai.APIStatusError": read_model_api,
    "openai.APIConnectionError": _read_connecting(_CONNECTION_LOST),
    "openai.APIError": read_stream_error,
    "anthropic.APIStatusError": read_model_api,
    "anthropic.APIConnectionError": _read_connecting(_CONNECTION_LOST),
    "anthropic.APIError": read_stream_error,
    "botocore.exceptions.ClientError": read_aws,
    "google.api_core.exceptions.GoogleAPICallError": _read_urllib_status,
    "google.api_core.exceptions.RetryError": _read_inner("cause"),
    "grpc.RpcError": read_grpc,
    "redis.exceptions.ConnectionError": _read_redis_connection,
    "django.db.utils.Error": read_database_error,
    "psycopg.Error": read_database_error,
    "psycopg2.Error": read_database_error,
    "pymysql.err.Error": read_database_error,
    "MySQLdb.Error": read_database_error,
    "sqlite3.Error": read_database_error,
    "resilience.exceptions.TransientError": _read_given_up,
    "resilience.exceptions.PermanentError": _read_given_up,
    "resilience.exceptions.CircuitOpenError": _read_refusal,
}
