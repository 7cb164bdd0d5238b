"""Many items, one function: every item gets its chance, and one that fails spoils no other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from resilience import clock, signals
from resilience.calls.callables import is_async, name_of, require_plain_callable
from resilience.calls.classification_rules import MISTAKES
from resilience.calls.classify import ErrorInfo, ErrorKind, classify
from resilience.calls.deadlines import remaining
from resilience.calls.nesting import gave_up, marks
from resilience.calls.progress import Progress, check_progress, report_progress
from resilience.calls.retry_config import RetryConfig, config_from_settings
from resilience.calls.threads import Crew, require_no_transaction
from resilience.values import checked_count

__all__ = ["BatchResult", "batch_with_retry"]

T = TypeVar("T")
R = TypeVar("R")


class BatchResult(NamedTuple, Generic[T, R]):
    """What became of the items, in input order.

    Args:
        successful: The results.
        failed: The items that failed in the end, each with its last exception.

    Example:
        >>> successful, failed = BatchResult(successful=[1, 2], failed=[])
        >>> successful
        [1, 2]
    """

    successful: list[R]
    failed: list[tuple[T, Exception]]


def batch_with_retry(
    items: Iterable[T],
    process_func: Callable[[T], R],
    batch_size: int = 100,
    max_retries: int = 3,
    *,
    max_workers: int = 1,
    progress: Progress = None,
) -> BatchResult[T, R]:
    """Call `process_func` with each item, and again with those that failed, batch by batch.

    The failed items of a batch wait together and are tried again together, so an outage costs one wait for
    each round and not one for each item. The waits grow as `RESILIENCE["RETRY"]` says, and the longest Retry-After
    of a round is obeyed. Errors that no retry can cure (`classify` knows them: refused credentials, invalid
    requests, violated constraints, a TypeError or KeyError of the function itself, ...) and errors that a retry
    inside has given up are not tried again.
    Control flow (cancellation, shutdown, Celery's Retry and Ignore) ends the whole call at once.

    Args:
        items: The items; any iterable. One batch of it is read at a time.
        process_func: A plain function of one item.
        batch_size: How many items are read and tried together; 1 or more.
        max_retries: How many more calls an item gets after its first; 0 or more.
        max_workers: In how many threads; 1 stays in the caller's. Threads keep the caller's context variables and
            close their database connections.
        progress: `(done, total)`, called in the caller's thread after each item is done for good, with a total of None
            for an iterable without length; or True for a bar on stderr (Rich's where it is installed).

    Returns:
        Two lists in input order: the results, and the pairs of failed item and exception.

    Raises:
        TypeError: An argument is of the wrong type; `process_func` is a coroutine function.
        ValueError: A number is out of range.
        OpenTransactionError: `max_workers` is above 1 and the caller is in a transaction, which threads would leave.

    Example:
        >>> successful, failed = batch_with_retry(["1", "2", "x"], int, max_retries=0)
        >>> successful, [item for item, exception in failed]
        ([1, 2], ['x'])
    """
    _check(process_func, progress, batch_size=batch_size, max_retries=max_retries, max_workers=max_workers)
    config = config_from_settings({"max_attempts": max_retries + 1}) or RetryConfig(max_attempts=1)
    started = clock.monotonic()
    result: BatchResult[T, R] = BatchResult([], [])
    total = len(items) if isinstance(items, Sized) else None
    name, stream = name_of(process_func), iter(items)
    with _workers(max_workers, name) as run, report_progress(progress, name, total) as report:
        done = 0
        while chunk := list(islice(stream, batch_size)):
            batch = _Batch(chunk, process_func, config)
            for wait in batch.rounds(run):
                if wait is not None:
                    clock.sleep(wait)
                    continue
                done += 1
                report(done)
            batch.collect(result)
    elapsed = clock.monotonic() - started
    signals.emit(
        signals.batch_finished,
        process_func,
        name=name,
        successful=len(result.successful),
        failed=len(result.failed),
        elapsed=elapsed,
    )
    return result


_WHY_NOT_ASYNC = (
    "process_func must be a plain function, not {!r}, which gives a coroutine. "
    "Run coroutines in an asyncio.TaskGroup, each under a retry and a Bulkhead."
)

#: Calls the function for numbered items; gives number, success, and result or exception, as each call ends.
Run = Callable[[Callable[[Any], Any], Sequence[tuple[int, Any]]], Iterator[tuple[int, bool, Any]]]


class _Batch(Generic[T, R]):
    """The items of one batch, and what is known about each: a result, an exception, or nothing yet."""

    def __init__(self, items: list[T], process_func: Callable[[T], R], config: RetryConfig) -> None:
        self._items = items
        self._process_func = process_func
        self._config = config
        self._outcomes: dict[int, tuple[bool, Any]] = {}

    def rounds(self, run: Run) -> Iterator[float | None]:
        """Call the function; yield None for each item that is done for good, and the seconds to wait before each new round."""
        delays = self._config.waits().delays()
        pending = list(enumerate(self._items))
        for attempt in range(1, self._config.max_attempts + 1):
            retryable: dict[int, tuple[Exception, ErrorInfo]] = {}
            since = marks.count
            for number, succeeded, value in run(self._process_func, pending):
                self._outcomes[number] = (succeeded, value)
                info = self._worth_retrying(succeeded, value, since)
                if info is None:
                    yield None
                else:
                    retryable[number] = (value, info)
            wait = max([next(delays), *(info.retry_after or 0.0 for _, info in retryable.values())])
            if not retryable or attempt == self._config.max_attempts or not _fits(wait):
                break
            self._tell(retryable, attempt, wait)
            yield wait
            pending = [(number, self._items[number]) for number in sorted(retryable)]
        yield from [None] * len(retryable)

    def collect(self, result: BatchResult[T, R]) -> None:
        """Add results and failures to `result` in input order."""
        for number, item in enumerate(self._items):
            succeeded, value = self._outcomes[number]
            if succeeded:
                result.successful.append(value)
            else:
                result.failed.append((item, value))

    def _worth_retrying(self, succeeded: bool, value: Any, since: int) -> ErrorInfo | None:
        """Return what is known about a failure that another try may cure; raise control flow."""
        if succeeded:
            if inspect.iscoroutine(value):
                value.close()
                raise TypeError(_WHY_NOT_ASYNC.format(name_of(self._process_func)))
            return None
        error: BaseException = value
        info = classify(error)
        if info.is_control_flow:
            raise error
        may_pass = info.transient or (info.kind is ErrorKind.UNKNOWN and not isinstance(error, MISTAKES))
        if gave_up(error, since) or not may_pass:
            return None
        longest = self._config.max_retry_after
        too_long = longest is not None and (info.retry_after or 0.0) > longest
        return None if too_long else info

    def _tell(self, waiting: dict[int, tuple[Exception, ErrorInfo]], attempt: int, wait: float) -> None:
        func, name = self._process_func, name_of(self._process_func)
        for error, info in waiting.values():
            signals.emit(signals.retry_scheduled, func, name=name, attempt=attempt, delay=wait, exception=error, kind=info.kind)


@contextmanager
def _workers(size: int, name: str) -> Iterator[Run]:
    if size == 1:
        yield _run_here
        return
    require_no_transaction("batch_with_retry with max_workers above 1")
    with Crew(size, f"resilience-batch-{name}") as crew:
        yield crew.run


def _run_here(func: Callable[[Any], Any], jobs: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, bool, Any]]:
    for number, item in jobs:
        try:
            outcome = True, func(item)
        except Exception as error:  # noqa: BLE001  # it is reported with its item
            outcome = False, error
        yield number, *outcome


def _fits(wait: float) -> bool:
    left = remaining()
    return left is None or wait < left


def _check(process_func: Callable[..., Any], progress: object, **numbers: int) -> None:
    require_plain_callable(process_func, "batch_with_retry")
    if is_async(process_func):
        raise TypeError(_WHY_NOT_ASYNC.format(name_of(process_func)))
    check_progress(progress)
    for name, value in numbers.items():
        checked_count(name, value, 0 if name == "max_retries" else 1, "Leave it out for the default.")
