"""The time that work may take: durations as users write them, and the deadline that everything below draws on."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Self, overload

from resilience import clock

__all__ = ["deadline_scope", "is_deadline", "remaining", "time_allowed"]

#: Seconds beyond which a limit is none: a year, for timers count only so far.
_LONGEST = 365 * 86400.0
#: The innermost deadline: when it is due on `clock.monotonic`, and what will cut the call off then ("" for nothing).
_deadline: ContextVar[tuple[float, str] | None] = ContextVar("resilience_deadline", default=None)


@overload
def remaining() -> float | None: ...
@overload
def remaining(at_most: float) -> float: ...
def remaining(at_most: float | None = None) -> float | None:
    """Return the seconds left until the innermost deadline around this call, for a client's own timeout.

    Deadlines are set by `timeout`, by a policy's or a retry's `deadline`, and by their attempt timeouts; of
    nested ones the nearest counts. 0 once it is over, None where there is none.

    Args:
        at_most: Most seconds to return, 0 or more; also what is returned where there is no deadline.

    Example:
        >>> remaining() is None
        True
        >>> remaining(at_most=3)
        3
        >>> with deadline_scope(5):
        ...     4 < remaining() <= 5, remaining(at_most=3)
        (True, 3)
    """
    deadline = _deadline.get()
    if deadline is None:
        return at_most
    left = max(0.0, deadline[0] - clock.monotonic())
    return left if at_most is None else min(left, at_most)


class deadline_scope:  # noqa: N801  # reads as a with-statement's verb, like contextlib.suppress
    """Let `remaining()` count down inside a with-block. Nothing is interrupted when the time is over.

    It can only bring the deadline nearer: inside a scope that ends sooner, that one goes on counting.

    Args:
        seconds: Seconds from the start of the block; 0 or more.
        enforcer: What will cut the block off, for limits set inside it; "" for nothing.

    Example:
        >>> with deadline_scope(5), deadline_scope(60):
        ...     remaining() <= 5
        True
    """

    __slots__ = ("_enforcer", "_own", "_seconds", "_token")

    def __init__(self, seconds: float, enforcer: str = "") -> None:
        self._seconds = seconds
        self._enforcer = enforcer

    def __enter__(self) -> Self:
        due = clock.monotonic() + self._seconds
        outer = _deadline.get()
        self._token: Token[tuple[float, str] | None] | None
        if outer is None or due <= outer[0]:
            self._own = own = (due, self._enforcer)
            self._token = _deadline.set(own)
        else:
            self._token = None
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._token is None:
            return
        try:
            _deadline.reset(self._token)
        except ValueError:
            # Left in another context than it was entered in, as by a generator that somebody else finishes.
            if _deadline.get() is self._own:
                outer = self._token.old_value
                _deadline.set(None if outer is Token.MISSING else outer)


def time_allowed(seconds: float, enforcer: str) -> float:
    """Return the seconds that a limit set here may last: `seconds`, or less when a deadline around it comes first.

    A deadline that the same mechanism enforces is left to ring by itself, so that the error names the limit
    that was really exceeded.

    Args:
        seconds: The limit that was asked for.
        enforcer: What will cut the call off: "alarm", "task" or "thread".

    Returns:
        Seconds; 0 or less when the deadline is already over.
    """
    deadline = _deadline.get()
    if deadline is None or deadline[1] == enforcer:
        return min(seconds, _LONGEST)
    return min(seconds, _LONGEST, deadline[0] - clock.monotonic())


def is_deadline(variable: ContextVar[Any]) -> bool:
    """Tell whether `variable` is the deadline itself, which never travels from a worker thread to its caller."""
    return variable is _deadline
