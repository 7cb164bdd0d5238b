"""The words for what went wrong: the kinds of errors, and what is known about one error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ErrorInfo", "ErrorKind"]


class ErrorKind(StrEnum):
    """What went wrong, in one word that is the same for every library.

    Example:
        >>> ErrorKind.RATE_LIMIT == "rate_limit"
        True
    """

    TIMEOUT = "timeout"
    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    CONNECTION = "connection"
    SERVER_ERROR = "server_error"
    OVERLOADED = "overloaded"
    CONFLICT = "conflict"
    AUTH = "auth"
    PERMISSION = "permission"
    INVALID_REQUEST = "invalid_request"
    NOT_FOUND = "not_found"
    TLS = "tls"
    INTEGRITY = "integrity"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What is known about one error, whichever library raised it.

    Args:
        kind: What went wrong.
        transient: The same call may succeed later.
        maybe_executed: The other side may have done the work although the call failed. Repeating a call
            that is not idempotent could do it twice.
        retry_after: Seconds the other side asked to wait, 0 or more, or None when it did not.
        status: HTTP status, or None.
        code: The most exact code the error carries (an API's error code, an SQLSTATE, a gRPC status), or "".

    Example:
        >>> ErrorInfo(ErrorKind.RATE_LIMIT, transient=True, retry_after=2.0).retry_after
        2.0
    """

    kind: ErrorKind
    transient: bool = False
    maybe_executed: bool = False
    retry_after: float | None = None
    status: int | None = None
    code: str = ""

    @property
    def is_control_flow(self) -> bool:
        """Whether the error steers the program instead of reporting a failure, so that no layer answers or repeats it.

        An answer that speaks of a cancellation (HTTP 499, gRPC's CANCELLED) is an answer: the call failed, for good.

        Example:
            >>> ErrorInfo(ErrorKind.CANCELLED).is_control_flow, ErrorInfo(ErrorKind.CANCELLED, status=499).is_control_flow
            (True, False)
        """
        return self.kind is ErrorKind.CANCELLED and self.status is None and not self.code
