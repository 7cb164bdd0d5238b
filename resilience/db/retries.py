"""Run a database function again when the database says that this will help, and never when it may do harm."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Literal, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from asgiref.sync import sync_to_async

from resilience import clock
from resilience.db.attempts import DatabaseCall
from resilience.db.connections import require_plain_def
from resilience.db.options import TransactionOptions
from resilience.db.plans import RetryPlan

__all__ = ["adb_retry", "db_retry"]

P = ParamSpec("P")
R = TypeVar("R")


class RetryOptions(TypedDict, total=False):
    """The options of `db_retry` and `adb_retry`, for type checkers."""

    max_attempts: int | None
    using: str
    atomic: bool
    idempotent: bool
    verify: Callable[[], bool] | Literal["server"] | None
    idempotency_key: str | Callable[..., str] | None
    deadline: float | None
    on_retry: Callable[[BaseException, int], object] | None
    delay: float | None
    retry_codes: Collection[str]
    isolation: str | None
    read_only: bool
    lock_timeout: float | None
    statement_timeout: float | None


class _Decorator(Protocol):
    def __call__(self, func: Callable[P, R], /) -> Callable[P, R]: ...


class _AsyncDecorator(Protocol):
    def __call__(self, func: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def db_retry(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def db_retry(**options: Unpack[RetryOptions]) -> _Decorator: ...
def db_retry(
    func: Callable[..., Any] | None = None,
    /,
    *,
    max_attempts: int | None = 3,
    using: str = "default",
    atomic: bool = True,
    idempotent: bool = False,
    verify: Callable[[], bool] | Literal["server"] | None = None,
    idempotency_key: str | Callable[..., str] | None = None,
    deadline: float | None = None,
    on_retry: Callable[[BaseException, int], object] | None = None,
    delay: float | None = None,
    retry_codes: Collection[str] = (),
    isolation: str | None = None,
    read_only: bool = False,
    lock_timeout: float | None = None,
    statement_timeout: float | None = None,
) -> Any:
    """Run the whole function again, in a transaction of its own, when the database failed for a reason that may pass.

    Deadlocks, serialization failures and locks are retried after milliseconds, a server that is away after 0.1
    second and longer, on a new connection. Inside a transaction (a TestCase's does not count) it is a plain call:
    only the outermost one can run everything again. Nothing is ever run again after COMMIT.

    A COMMIT that was lost on the way is settled by `verify`, by `idempotency_key`, or by `idempotent`; when it is
    settled as committed the value of that attempt is returned and its on_commit hooks run. Otherwise it raises
    `CommitOutcomeUnknownError`.

    Model instances that were read outside the function keep the changes of a failed attempt: read inside.

    Args:
        func: The function, when used without parentheses.
        max_attempts: Most attempts, the first included; 1 or more, or None with a `deadline`.
        using: The alias of the one database whose errors are retried.
        atomic: Run each attempt in a transaction. False leaves transactions to the function; it is then run again
            only while it has committed nothing.
        idempotent: Doing the work twice does no harm: run it again after a lost COMMIT.
        verify: After a lost COMMIT, a function that returns True if the work was stored; or "server" to ask
            PostgreSQL about the transaction, which costs one round trip in each attempt.
        idempotency_key: A text, or a function of the call's arguments that returns one, that names the work. The
            first call that commits writes the key in its own transaction; later ones return its value without
            doing anything. The value has to be what JSON gives back unchanged.
        deadline: Most seconds for everything, waits included; no attempt begins after it.
        on_retry: `on_retry(exception, attempt)`, called before each wait; what it raises is logged and changes nothing.
        delay: Seconds of the first wait, doubled each time, with full jitter; replaces both curves.
        retry_codes: Codes (as in `DatabaseErrorInfo.code`) to retry in addition, such as "57014" (a PostgreSQL
            statement timeout) or "55P03" also where the statement said NOWAIT.
        isolation: The isolation of each attempt, as for `TransactionManager`; as the three that follow, it holds
            for the attempts' own transactions only, not inside another one.
        read_only: As for `TransactionManager`.
        lock_timeout: As for `TransactionManager`.
        statement_timeout: As for `TransactionManager`.

    Returns:
        The decorated function, or a decorator.

    Raises:
        TypeError: `func` is async or a generator, or an option is of the wrong type.
        ValueError: An option is out of range.
        CommitOutcomeUnknownError: When called: a COMMIT was lost and nothing settles it.
        NotSupportedError: When called: verify="server" on another database than PostgreSQL.

    Example:
        >>> from tests.testapp.models import Account
        >>> @db_retry
        ... def deposit(name, amount):
        ...     account, _ = Account.objects.select_for_update().get_or_create(name=name)
        ...     account.balance += amount
        ...     account.save()
        ...     return account.balance
        >>> deposit("savings", 5)
        5
    """

    def decorate(inner: Callable[..., Any]) -> Callable[..., Any]:
        require_plain_def(inner, "db_retry")

        @functools.wraps(inner)
        def retried(*args: Any, **kwargs: Any) -> Any:
            call = DatabaseCall(plan, inner, args, kwargs)
            while (delay := call.step()) is not None:
                clock.sleep(delay)
            return call.value

        return retried

    plan = RetryPlan(
        max_attempts=max_attempts,
        using=using,
        atomic=atomic,
        idempotent=idempotent,
        verify=verify,
        idempotency_key=idempotency_key,
        deadline=deadline,
        on_retry=on_retry,
        delay=delay,
        retry_codes=retry_codes,
        options=TransactionOptions(
            isolation=isolation, read_only=read_only, lock_timeout=lock_timeout, statement_timeout=statement_timeout
        )
        or None,
    )
    return decorate if func is None else decorate(func)


@overload
def adb_retry(func: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def adb_retry(**options: Unpack[RetryOptions]) -> _AsyncDecorator: ...
def adb_retry(
    func: Callable[..., Any] | None = None,
    /,
    *,
    max_attempts: int | None = 3,
    using: str = "default",
    atomic: bool = True,
    idempotent: bool = False,
    verify: Callable[[], bool] | Literal["server"] | None = None,
    idempotency_key: str | Callable[..., str] | None = None,
    deadline: float | None = None,
    on_retry: Callable[[BaseException, int], object] | None = None,
    delay: float | None = None,
    retry_codes: Collection[str] = (),
    isolation: str | None = None,
    read_only: bool = False,
    lock_timeout: float | None = None,
    statement_timeout: float | None = None,
) -> Any:
    """Do as `db_retry`, for a plain function that is awaited.

    Each attempt runs from BEGIN to COMMIT in one thread, Django's thread for synchronous code; between attempts the
    event loop waits and is not blocked. A call that is cancelled rolls back, unless COMMIT was already under way.

    Args:
        func: The function, a plain `def`, when used without parentheses.
        max_attempts: As for `db_retry`.
        using: As for `db_retry`.
        atomic: As for `db_retry`.
        idempotent: As for `db_retry`.
        verify: As for `db_retry`; called in the thread of the attempts.
        idempotency_key: As for `db_retry`.
        deadline: As for `db_retry`.
        on_retry: As for `db_retry`; called in the thread of the attempts.
        delay: As for `db_retry`.
        retry_codes: As for `db_retry`.
        isolation: As for `TransactionManager`.
        read_only: As for `TransactionManager`.
        lock_timeout: As for `TransactionManager`.
        statement_timeout: As for `TransactionManager`.

    Returns:
        A coroutine function, or a decorator.

    Raises:
        TypeError: As for `db_retry`; also for an `async def`, whose transaction would spread over threads.
        ValueError: As for `db_retry`.

    Example:
        >>> from tests.testapp.models import Account
        >>> @adb_retry(max_attempts=5)
        ... def rename(pk, name):
        ...     return Account.objects.filter(pk=pk).update(name=name)
        >>> import inspect
        >>> inspect.iscoroutinefunction(rename)
        True
    """

    def decorate(inner: Callable[..., Any]) -> Callable[..., Any]:
        require_plain_def(inner, "adb_retry")

        @functools.wraps(inner)
        async def retried(*args: Any, **kwargs: Any) -> Any:
            steps = _ThreadedSteps(plan, inner, args, kwargs)
            while (delay := await steps.step()) is not None:
                await clock.async_sleep(delay)
            return steps.value

        return retried

    plan = RetryPlan(
        max_attempts=max_attempts,
        using=using,
        atomic=atomic,
        idempotent=idempotent,
        verify=verify,
        idempotency_key=idempotency_key,
        deadline=deadline,
        on_retry=on_retry,
        delay=delay,
        retry_codes=retry_codes,
        options=TransactionOptions(
            isolation=isolation, read_only=read_only, lock_timeout=lock_timeout, statement_timeout=statement_timeout
        )
        or None,
    )
    return decorate if func is None else decorate(func)


class _ThreadedSteps:
    """The attempts of one call, each in the thread that owns the connection."""

    __slots__ = ("_arguments", "_call", "_is_abandoned")

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._call: DatabaseCall | None = None
        self._is_abandoned = False

    @property
    def value(self) -> Any:
        assert self._call is not None
        return self._call.value

    async def step(self) -> float | None:
        """Make one attempt; when cancelled, see to it that it is over before going on."""
        attempt = asyncio.ensure_future(sync_to_async(self._step, thread_sensitive=True)())
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            self._is_abandoned = True
            if self._call is not None:
                self._call.is_abandoned = True
            await asyncio.wait([attempt])
            if not attempt.cancelled():
                attempt.exception()  # taken note of: what is cancelled has nobody to tell
            raise

    def _step(self) -> float | None:
        # Created here, because a connection belongs to the thread that asks for it.
        if self._call is None:
            self._call = DatabaseCall(*self._arguments)
        if self._is_abandoned:  # while it waited for the thread
            return None
        return self._call.step()
