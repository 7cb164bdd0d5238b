"""Retries in Celery tasks that do not keep a worker waiting: long waits become `self.retry(countdown=...)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, cast

from resilience import clock
from resilience.calls.attempts import Retrying
from resilience.calls.callables import is_async, name_of, require_plain_callable
from resilience.calls.nesting import marks
from resilience.calls.retry_config import RetryConfig, RetryFields, config_in_force, require_none
from resilience.values import checked_seconds

__all__ = ["retry_in_task"]

P = ParamSpec("P")
R = TypeVar("R")
#: A bound task. Celery's own class is no type argument at run time.
Task = Any


def retry_in_task(
    config: RetryConfig | None = None, /, *, longer_than: float = 5.0, **given: Unpack[RetryFields]
) -> Callable[[Callable[Concatenate[Task, P], R]], Callable[Concatenate[Task, P], R]]:
    """Retry a bound task's body; wait in the worker only for a moment, and through the broker for longer.

    `max_attempts` counts all calls over all deliveries of the task, and the waits go on growing from delivery to
    delivery. Called directly, without a worker, every wait is slept.

    Args:
        config: When to try again; None takes `RESILIENCE["RETRY"]`, read when the task runs.
        longer_than: Waits of more than so many seconds, 0 or more, become `self.retry(countdown=...)`.
        **given: Fields of `RetryConfig` that replace those of `config` or of the settings. `attempt_timeout` and
            `deadline` are not among them: they belong to a policy inside the task, and those of the settings are not
            looked at.

    Raises:
        TypeError: The decorated object is not a plain function, or an option is of the wrong type or has no sense here.
        ValueError: An option is out of range.

    Example:
        >>> from celery import Celery
        >>> app = Celery("doc", broker="memory://")
        >>> @app.task(bind=True)
        ... @retry_in_task(max_attempts=5, delay=2, longer_than=5)
        ... def charge(self, order):
        ...     return f"{order} paid"
        >>> charge("A-17")
        'A-17 paid'
    """
    longer_than = checked_seconds("longer_than", longer_than, "Use 0 to hand every wait to the broker.", zero=True)
    checked = RetryConfig(**given) if config is None else replace(config, **given)
    require_none(checked, ("attempt_timeout", "deadline"), "retry_in_task", "Put it into a policy inside the task.")
    own = None if config is None else checked

    def decorate(func: Callable[Concatenate[Task, P], R]) -> Callable[Concatenate[Task, P], R]:
        require_plain_callable(func, "retry_in_task")
        if is_async(func):
            raise TypeError(f"retry_in_task must decorate a plain function, not the coroutine function {name_of(func)!r}.")

        @functools.wraps(func)
        def body(task: Task, /, *args: P.args, **kwargs: P.kwargs) -> R:
            chosen = config_in_force(own, given)
            if chosen is None:
                return func(task, *args, **kwargs)
            return _run(task, functools.partial(func, task, *args, **kwargs), chosen, longer_than)

        return body

    return decorate


def _run(task: Task, call: functools.partial[R], config: RetryConfig, longer_than: float) -> R:
    made = task.request.retries
    if config.budget is not None and not made:
        config.budget.deposit()
    retrying = Retrying(config, call.func, name_of(call), clock.monotonic(), marks.count, made=made)
    while True:
        with retrying:
            retrying.accept(call())
        if not retrying.pending:
            break
        if retrying.delay > longer_than and not task.request.called_directly:
            # Celery sends the next message with one retry more: the number of calls made so far.
            task.request.retries = retrying.attempt - 1
            options = {"exc": retrying.failure, "countdown": retrying.delay, "max_retries": config.max_attempts}
            raise task.retry(**options, throw=False) from retrying.failure
        clock.sleep(retrying.delay)
        if retrying.is_late():
            break
    return cast("R", retrying.result)
