"""Celery tasks whose work is owned by a row: `resumable_task`.

What is set for a resumable task and why; all of it may be overridden, for copies of a message are harmless:

| option | value | why |
|---|---|---|
| `acks_late` | False | The row owns the job. An unacknowledged message of a long task only provokes the broker: Redis sends it again after its visibility timeout, RabbitMQ closes the channel after its consumer timeout. |
| `reject_on_worker_lost` | False | Celery would send the message again without limit; the sweeper counts attempts. |
| `max_retries` | None | Attempts are counted in the row, and only those without progress. |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from typing import Any

from django.db import router, transaction
from django.utils import timezone

from resilience.lazy import extra_needed

# Before our own modules that import it, so that the error names what was asked for.
with extra_needed(__name__):
    from celery import shared_task
    from celery.contrib.django.task import DjangoTask
    from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
    from celery.utils import uuid
    from kombu.utils import json

from resilience import clock, conf
from resilience.celery_messages import RUN, as_json, delay_of, kept_options, seconds_until, send_first
from resilience.db.connections import aliases_in_blocks, free_connections
from resilience.exceptions import RunBusyError, RunConfigChangedError, RunStateError
from resilience.redaction import describe_exception
from resilience.runs.active import BareRun
from resilience.runs.attempts import Attempt
from resilience.runs.keys import KeyTemplate, hash_config
from resilience.runs.leases import DatabaseNow, interruption_behind, refuse_transaction
from resilience.runs.locks import row_of, short_transaction
from resilience.runs.models import Run, RunStatus
from resilience.runs.operations import with_error
from resilience.runs.options import RunConfig
from resilience.runs.runs import changes, enrol, forget_checkpoints, start
from resilience.runs.wakeups import wake
from resilience.shutdowns import is_stopping, is_worker_stopping

__all__ = ["ResumableTask", "resumable_task"]

_DEFAULTS = {"acks_late": False, "reject_on_worker_lost": False, "max_retries": None}
_FIELDS = frozenset(field.name for field in fields(RunConfig))

#: Seconds before the next attempt after an error: doubled with each attempt without progress, up to the limit.
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
#: Seconds that a worker about to end waits before it hands a message back, so that another one gets it.
_HAND_BACK = 0.5


class ResumableTask(DjangoTask):  # type: ignore[type-arg]  # generic in the stubs only
    """A Celery task whose calls are runs; `resumable_task` makes them from functions.

    As a class of your own: set `key` and `run_config`, and write `def run(self, run, ...)`.

    Example:
        >>> from celery import current_app
        >>> class Count(ResumableTask):
        ...     key, name = "docs-count:{number}", "docs.count"
        ...     def run(self, run, number):
        ...         for step in run.steps(number):
        ...             run.checkpoint(step)
        ...         return run.step
        >>> current_app.register_task(Count())(3)
        2
    """

    key: str = ""
    run_config: RunConfig = RunConfig()
    Request = "resilience.celery_requests:ResumableRequest"
    acks_late = False
    reject_on_worker_lost = False
    max_retries = None

    def apply_async(  # type: ignore[override]  # passes on what it does not know
        self, args: Any = None, kwargs: Any = None, task_id: Any = None, **options: Any
    ) -> Any:
        """Store the run and publish its first message, after the open transaction is committed.

        A run that exists is not started a second time; the result returned is that of its first call.

        Raises:
            RunConfigChangedError: It exists with other arguments outside the key.
            TypeError, ValueError: The arguments do not fit the function or the key, or the key is another task's.
        """
        if not conf.current().enabled:
            return super().apply_async(args, kwargs, task_id=task_id, **options)
        using = router.db_for_write(Run)
        run = self._submit(args or (), kwargs or {}, task_id or uuid(), {**_execution_options(self), **options})
        if self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, task_id=run.task_id, **options)
        if run.status == RunStatus.QUEUED:
            delay = delay_of(options)
            transaction.on_commit(partial(send_first, run, using, delay), using=using)
        return self.AsyncResult(run.task_id)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Work on the run: as the body of a message, or here and now when called directly."""
        request = self.request
        if not conf.current().enabled:
            return self._body(BareRun(self._template().resolve(args, kwargs)[0], self), args, kwargs)
        refuse_transaction(router.db_for_write(Run), self.name)
        if request.called_directly or request.is_eager:
            return self._work_here(self._submit(args, kwargs, request.id or uuid(), {}))
        around = aliases_in_blocks()
        try:
            return self._work(self._find(args, kwargs))
        except BaseException as error:
            # A time limit strikes before and after the attempt, too, and the child goes on with the next message.
            was_struck = not isinstance(error, (Ignore, Retry)) and interruption_behind(error, None) is not None
            free_connections(around, was_struck=was_struck)
            raise

    def _template(self) -> KeyTemplate:
        return KeyTemplate(self.key, _function(self))

    def _body(self, run: Any, args: Any, kwargs: Any) -> Any:
        return _function(self)(run, *args, **kwargs)

    def _submit(self, args: Any, kwargs: Any, task_id: str, options: dict[str, Any]) -> Run:
        """Return the run of a call, made or changed as its policy says."""
        using = router.db_for_write(Run)
        key, arguments = self._template().resolve(args, kwargs)
        values = {
            "task": self.name,
            "task_id": task_id,
            "arguments": as_json(self.name, [list(args), dict(kwargs)]),
            "options": as_json(self.name, kept_options(options)),
            "config": hash_config(arguments),
            "lease_seconds": self.run_config.lease,
            "max_stalled_attempts": self.run_config.max_stalled_attempts,
        }
        run = enrol(key, using, **values)
        changed = changes(run, arguments)
        if changed and self.run_config.on_config_change == "fail":
            raise RunConfigChangedError(key, changed)
        if changed or not run.task:
            _submit_again(run, using, values, restart=bool(changed) and self.run_config.on_config_change == "restart")
        return run

    def _find(self, args: Any, kwargs: Any) -> Run:
        """Return the run that a message wakes: the row's arguments count, not the message's."""
        key, _ = self._template().resolve(args, kwargs)
        rows = Run.objects.using(router.db_for_write(Run)).filter(task=self.name)
        if (number := self.request.get(RUN)) is not None:
            if (woken := rows.filter(pk=number).first()) is None:
                raise Ignore(str(RunStateError(key, "start", "deleted")))
            return woken
        # Sent by name, past `apply_async`. Some collations take "a" for "A".
        found = [run for run in rows.filter(key=key) if run.key == key]
        return found[0] if found else self._submit(args, kwargs, self.request.id or uuid(), {})

    def _begin(self, run: Run, stop: Callable[[], bool]) -> tuple[Attempt, Any, Any]:
        using = run._state.db or router.db_for_write(Run)  # Django's documented attribute
        args, kwargs = json.loads(run.arguments)
        _, arguments = self._template().resolve(args, kwargs)
        try:
            row, lease = start(run, using, self.run_config, arguments, statuses=(RunStatus.QUEUED,))
        except RunConfigChangedError as error:
            # New code with other defaults: trying again changes nothing, a person must decide.
            errors = with_error(run, describe_exception(error))
            queued = row_of(run.pk, using, fence=run.fence, status=RunStatus.QUEUED)
            queued.update(status=RunStatus.FAILED, errors=errors, finished_at=DatabaseNow())
            raise
        limits = (SoftTimeLimitExceeded,)
        return Attempt(row, lease, self.run_config, task=self, is_stopping=stop, ends_of_slice=limits), args, kwargs

    def _work_here(self, run: Run) -> Any:
        """Work in this process until the run is done or a person stopped it; errors are the caller's."""
        while run.status != RunStatus.FINISHED:
            attempt, args, kwargs = self._begin_here(run)
            with attempt as active:
                attempt.result = self._body(active, args, kwargs)
            if attempt.outcome.reason == "finished":
                return attempt.result
            if attempt.outcome.reason != "slice":
                raise Ignore(attempt.outcome.reason)
            run.refresh_from_db()
        return run.result

    def _begin_here(self, run: Run) -> tuple[Attempt, Any, Any]:
        try:
            return self._begin(run, is_worker_stopping)
        except RunStateError as error:
            if self.request.is_eager:
                raise Ignore(f"the run is {error.status}") from None
            raise

    def _work(self, run: Run) -> Any:
        """Do what a message asks for: one attempt, if nobody else has the run."""
        using = run._state.db or router.db_for_write(Run)  # Django's documented attribute
        if run.status == RunStatus.FINISHED:
            return run.result
        if is_stopping():
            clock.sleep(_HAND_BACK)
            wake(run, using, reason="shutdown")
            raise Ignore("the worker is about to end")
        try:
            attempt, args, kwargs = self._begin(run, is_stopping)
        except (RunBusyError, RunStateError) as error:
            raise Ignore(str(error)) from None
        try:
            with attempt as active:
                attempt.result = self._body(active, args, kwargs)
        except Exception as error:
            self._try_again(attempt, using, error)
            raise
        finally:
            if attempt.outcome.reason in {"shutdown", "slice"} and attempt.outcome.status == RunStatus.QUEUED:
                wake(attempt.run, using, reason=attempt.outcome.reason)
        if attempt.outcome.reason == "finished":
            return attempt.result
        raise Ignore(attempt.outcome.reason)

    def _try_again(self, attempt: Attempt, using: str, error: Exception) -> None:
        """Publish the next message after an error, unless it was one attempt too many."""
        if attempt.outcome.status != RunStatus.QUEUED:
            return
        asked = error.when if isinstance(error, Retry) else None
        doubled = _PAUSE * 2.0 ** max(0, attempt.run.stalled_attempts - 1)
        delay = min(doubled, _LONGEST_PAUSE) if asked is None else seconds_until(asked)
        wake(attempt.run, using, reason="error", delay=delay)
        if not isinstance(error, Retry):
            raise Retry(exc=error, when=timezone.now() + timedelta(seconds=delay)) from error


def resumable_task(key: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a Celery task that survives `kill -9`, deploys and redelivery, and resumes from its last checkpoint.

    The function's first argument is the run (`ActiveRun`); it is called with the others only. Works like
    `shared_task`: no Celery app is needed yet.

    Args:
        key: The run's key, as "train:{model_run_id}"; a name in braces stands for the argument of that name. One
            key is one run, however often it is called. The other arguments are its configuration.
        options: Fields of `RunConfig` (`every`, `keep_last`, `lease`, `max_slice`, ...) and options of Celery's
            tasks (`name`, `serializer`, `time_limit`, ...). Arguments of calls must be JSON, and are stored in the row.

    Raises:
        ValueError: The key names no argument, or an option is out of range.
        TypeError: The key is missing, an option is misspelt, or `autoretry_for` was given: the run counts its own attempts.

    Example:
        >>> @resumable_task(key="docs-train:{model_id}", every=10)
        ... def train(run, model_id, rate=0.1):
        ...     weights = run.state or 0.0
        ...     for step in run.steps(100):
        ...         weights += rate
        ...         run.checkpoint(weights)
        ...     return round(weights, 6)
        >>> train(7)
        10.0
    """
    if not isinstance(key, str):
        raise TypeError(f"key must be a text, not {key!r}. Write @resumable_task(key='train:{{model_id}}').")
    if options.get("autoretry_for") or options.get("bind"):
        raise TypeError(
            "resumable_task must be used without autoretry_for and bind. The run counts attempts; run.task is the task."
        )
    _refuse_misspelt(options)
    config = RunConfig(**{name: value for name, value in options.items() if name in _FIELDS})
    celery_options = {name: value for name, value in options.items() if name not in _FIELDS}

    def decorate(function: Callable[..., Any]) -> Any:
        KeyTemplate(key, function)
        own = {"base": ResumableTask, "bind": True, "key": key, "run_config": config}
        return shared_task(**{**_DEFAULTS, **celery_options, **own})(function)

    return decorate


def _refuse_misspelt(options: Mapping[str, Any]) -> None:
    """Refuse what looks like a field of `RunConfig`: Celery takes any option for an attribute of the task."""
    for name in options:
        if name in _FIELDS or hasattr(ResumableTask, name):
            continue
        if near := get_close_matches(name, _FIELDS, n=1, cutoff=0.75):
            raise TypeError(f"resumable_task must be given options that exist, not {name!r}. Write {near[0]!r}.")


def _submit_again(run: Run, using: str, values: dict[str, Any], *, restart: bool) -> None:
    """Queue a run that exists with another configuration, or that was opened by hand before."""
    with short_transaction(using, values["lease_seconds"]):
        rows = Run.objects.using(using).filter(pk=run.pk, fence=run.fence).exclude(status=RunStatus.RUNNING)
        fresh = {"status": RunStatus.QUEUED, "queued_at": DatabaseNow(), "woken_at": None, "wakeups": 0, "finished_at": None}
        if not rows.update(**values, **fresh, stalled_attempts=0, result=None):
            raise RunBusyError(run.key)
        if restart:
            forget_checkpoints(run, using)
    run.refresh_from_db(using=using)


def _function(task: Any) -> Callable[..., Any]:
    """The function with the run as its first argument: Celery binds decorated ones to the task."""
    return type(task).run if getattr(task, "_decorated", False) else task.run  # type: ignore[no-any-return]  # Celery's untyped


def _execution_options(task: Any) -> dict[str, Any]:
    return dict(task._get_exec_options())  # noqa: SLF001  # what Task.apply_async itself starts from
