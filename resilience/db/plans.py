"""The rules of one `db_retry`: how often, how long, on which errors, and how a lost COMMIT is settled."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from resilience.calls.kinds import ErrorKind
from resilience.db.errors import DatabaseErrorInfo
from resilience.db.options import TransactionOptions
from resilience.values import is_number

__all__ = ["CONTENTION_CURVE", "OUTAGE_CURVE", "Curve", "RetryPlan"]


@dataclass(frozen=True, slots=True)
class Curve:
    """Waits between attempts that double up to a cap.

    Args:
        first: Nominal wait before the second attempt, in seconds.
        longest: Cap on the nominal wait, in seconds.
        floor: Part of the nominal wait below which none is drawn: 0 is full jitter.

    Source:
        Full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    first: float
    longest: float
    floor: float

    def wait(self, attempt: int, uniform: Callable[[float, float], float]) -> float:
        """Draw the wait after attempt number `attempt` (1 is the first), in seconds."""
        nominal = min(self.longest, self.first * 2 ** min(attempt - 1, 60))
        return uniform(nominal * self.floor, nominal * (1 + self.floor))


#: Somebody else holds the row and will be done in a moment; colliding again is what has to be avoided.
CONTENTION_CURVE = Curve(0.01, 1.0, 0.0)
#: The server is away. Coming back at once would only use up the attempts.
OUTAGE_CURVE = Curve(0.1, 5.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPlan:
    """What `db_retry` was told; its arguments, checked.

    Raises:
        TypeError: A field is of the wrong type.
        ValueError: A field is out of range.
    """

    max_attempts: int | None = 3
    using: str = "default"
    atomic: bool = True
    idempotent: bool = False
    verify: Callable[[], bool] | Literal["server"] | None = None
    idempotency_key: str | Callable[..., str] | None = None
    deadline: float | None = None
    delay: float | None = None
    on_retry: Callable[[BaseException, int], object] | None = None
    retry_codes: Collection[str] = ()
    options: TransactionOptions | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.using, str):
            raise TypeError(f"using must be the alias of one database, not {self.using!r}. Nest two functions for two databases.")
        self._check_limits()
        if not (self.verify is None or self.verify == "server" or callable(self.verify)):
            raise TypeError(f'verify must be a function or "server", not {self.verify!r}. Pass a function that returns a bool.')
        if not self.atomic and (self.verify == "server" or self.idempotency_key is not None):
            raise ValueError('atomic must be True with verify="server" or idempotency_key, not False. They need one transaction.')
        if self.options and not self.atomic:
            raise ValueError("atomic must be True with isolation, read_only or a timeout, not False. They need one transaction.")
        if not (self.on_retry is None or callable(self.on_retry)):
            raise TypeError(f"on_retry must be a function of (exception, attempt), not {self.on_retry!r}. Leave it out for none.")
        if isinstance(self.retry_codes, str):
            raise TypeError(
                f"retry_codes must be a collection of codes, not {self.retry_codes!r}. Write ({self.retry_codes!r},)."
            )

    def _check_limits(self) -> None:
        attempts = self.max_attempts
        if attempts is None and self.deadline is None:
            raise ValueError("max_attempts must be given where there is no deadline, not None. Set one of them.")
        if attempts is not None and not (type(attempts) is int and attempts >= 1):
            raise ValueError(f"max_attempts must be 1 or more, not {attempts!r}. It counts all attempts, the first included.")
        if self.deadline is not None and not _is_seconds(self.deadline, 0, exclusive=True):
            raise ValueError(f"deadline must be more than 0 seconds, not {self.deadline!r}. Use None for no limit.")
        if self.delay is not None and not _is_seconds(self.delay, 0):
            raise ValueError(f"delay must be 0 or more seconds, not {self.delay!r}. Use 0 to retry at once.")

    def wants_retry(self, info: DatabaseErrorInfo) -> bool:
        """Tell whether an error of this meaning is retried."""
        return info.retry or info.code in self.retry_codes

    def wait_after(
        self, attempt: int, info: DatabaseErrorInfo, uniform: Callable[[float, float], float] = random.uniform
    ) -> float:
        """Draw the wait after attempt number `attempt` (1 is the first), in seconds."""
        if self.delay is not None:
            return Curve(self.delay, max(self.delay, OUTAGE_CURVE.longest), 0.0).wait(attempt, uniform)
        is_contention = info.kind is ErrorKind.CONFLICT and not info.new_connection
        return (CONTENTION_CURVE if is_contention else OUTAGE_CURVE).wait(attempt, uniform)

    def key_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Return the idempotency key of one call."""
        key = self.idempotency_key
        return key(*args, **kwargs) if callable(key) else key


def _is_seconds(value: object, least: float, *, exclusive: bool = False) -> bool:
    return is_number(value) and (value > least if exclusive else value >= least)
