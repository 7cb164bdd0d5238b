"""Open a run and work on it without a task queue, and store or load a state by its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import router

from resilience.exceptions import RunBusyError, RunConfigChangedError, RunStateError
from resilience.runs import store
from resilience.runs.active import ActiveRun
from resilience.runs.attempts import Attempt
from resilience.runs.keys import changed_names, check_key, hash_config
from resilience.runs.leases import DatabaseNow, Lease, refuse_transaction, take
from resilience.runs.locks import short_transaction
from resilience.runs.models import Run, RunStatus
from resilience.runs.operations import give_back, reclaim
from resilience.runs.options import RunConfig
from resilience.runs.saves import Saver
from resilience.runs.schedules import unwrap
from resilience.runs.steps import Place, is_position

__all__ = ["enrol", "load_checkpoint", "open_run", "save_checkpoint", "start"]

#: Whoever opens a run by hand decides to go on with it, whatever became of it.
_ANY_BUT_RUNNING = tuple(status for status in RunStatus.values if status != RunStatus.RUNNING)


def enrol(key: str, using: str, **defaults: Any) -> Run:
    """Return the run with this key, made from `defaults` if there is none.

    Raises:
        ValueError: The key cannot be stored, is that of another task, or the database takes it for another one.
    """
    check_key(key)
    run, _ = Run.objects.using(using).get_or_create(key=key, defaults={"queued_at": DatabaseNow()} | defaults)
    if run.key != key:
        raise ValueError(f"key must differ from others by more than case, not {key!r}. The database takes it for {run.key!r}.")
    if run.task and run.task != defaults.get("task", run.task):
        raise ValueError(
            f"key must be that of one task, not {key!r}: it is taken by {run.task!r}. "
            "Put the task's name into the key, or after a rename into `task` of the run."
        )
    return run


def changes(run: Run, config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the names of the arguments that differ from those the run began with; none before it began."""
    return changed_names(run.config, hash_config(config)) if run.config and config is not None else ()


def start(
    run: Run, using: str, config: RunConfig, arguments: Mapping[str, Any] | None, *, statuses: tuple[str, ...]
) -> tuple[Run, Lease]:
    """Take the lease of a run, and see to its configuration.

    Args:
        run: The run.
        using: The database alias.
        config: Its options.
        arguments: The configuration whose change matters; None leaves it as it is.
        statuses: Those from which it may be started.

    Raises:
        RunBusyError: Another worker holds it.
        RunStateError: Its status is none of `statuses`, or it was deleted.
        RunConfigChangedError: The configuration differs and the policy is "fail".
    """
    reclaim(run, using)
    changed = changes(run, arguments)
    if changed and config.on_config_change == "fail":
        raise RunConfigChangedError(run.key, changed)
    values: dict[str, Any] = {"lease_seconds": config.lease, "max_stalled_attempts": config.max_stalled_attempts}
    if arguments is not None:
        values["config"] = hash_config(arguments)
    # In one transaction: a checkpoint of the old configuration never meets the new one, not even after a kill in between.
    with short_transaction(using, config.lease):
        taken = take(run, using, statuses=statuses, **values)
        if taken is not None and changed and config.on_config_change == "restart":
            forget_checkpoints(taken[0], using)
    if taken is None:
        status = Run.objects.using(using).filter(pk=run.pk).values_list("status", flat=True).first()
        # One that may be started now was held a moment ago.
        if status == RunStatus.RUNNING or status in statuses:
            raise RunBusyError(run.key)
        raise RunStateError(run.key, "start", status or "deleted")
    return taken


def forget_checkpoints(run: Run, using: str) -> None:
    """Let the run begin again from nothing; its files are collected later, effects of `once` stay done."""
    run.checkpoints.using(using).all().delete()
    nothing: dict[str, Any] = {"step": None, "current": None, "total": None, "rate": None, "skipped": []}
    Run.objects.using(using).filter(pk=run.pk).update(**nothing)
    for name, value in nothing.items():
        setattr(run, name, value)


@contextmanager
def open_run(
    key: str, *, config: Mapping[str, Any] | None = None, using: str | None = None, **options: Any
) -> Iterator[ActiveRun]:
    """Hold a run for the time of a `with` block: resume from its last checkpoint, save, finish.

    A block that ends finishes the run; opened again, it is there with its state and its steps done. A block that
    raises leaves it failed, a block that is interrupted (paused, cancelled, slice over) ends without an error.

    Args:
        key: The run's key; 1 to 255 characters.
        config: What must be the same when it resumes, as `{"rate": 0.1}`; see `on_config_change`. None: anything.
        using: The database alias; None asks the router.
        options: Fields of `RunConfig`: `every`, `keep_last`, `lease`, ....

    Yields:
        The run: `state`, `steps`, `checkpoint`, `once`, `progress`, `should_stop`.

    Raises:
        RunBusyError: Someone else holds it.
        RunConfigChangedError: `config` differs from the one it began with.
        CheckpointError: Its checkpoints are damaged, or a transaction is open.

    Example:
        >>> with open_run("docs:sum") as run:
        ...     total = run.state or 0
        ...     for step in run.steps(4):
        ...         total += step
        ...         run.checkpoint(total)
        >>> load_checkpoint("docs:sum")
        6
    """
    alias = using or router.db_for_write(Run)
    refuse_transaction(alias, "open_run")
    fields = RunConfig(**{"max_stalled_attempts": None} | options)
    run = enrol(key, alias)
    row, lease = start(run, alias, fields, config, statuses=_ANY_BUT_RUNNING)
    with Attempt(row, lease, fields, fails_at_once=True) as active:
        yield active


def save_checkpoint(
    key: str,
    state: object,
    *,
    step: int | None = None,
    metrics: dict[str, Any] | None = None,
    using: str | None = None,
    keep_last: int = 3,
) -> None:
    """Store a state under a key, for `load_checkpoint`.

    Args:
        key: The run's key; 1 to 255 characters.
        state: Plain values, NumPy arrays, tensors, in nested dicts and lists.
        step: Position of the last step whose work the state contains; None counts up.
        metrics: Figures to store with it.
        using: The database alias; None asks the router.
        keep_last: How many of the newest states to keep; 1 or more.

    Raises:
        ValueError: key, step or keep_last is out of range.
        TypeError: metrics is no dict.
        RunBusyError: A worker holds the run with this key.
        CheckpointError: The state cannot be stored, or a transaction is open.

    Example:
        >>> save_checkpoint("docs:plain", {"epoch": 3})
        >>> load_checkpoint("docs:plain")
        {'epoch': 3}
    """
    alias = using or router.db_for_write(Run)
    refuse_transaction(alias, "save_checkpoint")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f'metrics must be a dict of figures, not {metrics!r:.80}. Write {{"loss": 0.25}}.')
    config = RunConfig(keep_last=keep_last, max_failed_saves=1)
    if step is not None and not is_position(step):
        raise ValueError(f"step must be a whole number from 0 to 2**63 - 1, not {step!r:.80}. Leave it out to count up.")
    run = enrol(key, alias, status=RunStatus.FINISHED, finished_at=DatabaseNow())
    reclaim(run, alias)
    taken = take(run, alias, statuses=_ANY_BUT_RUNNING)
    if taken is None:
        raise RunBusyError(key)
    row, lease = taken
    following = 0 if row.step is None else row.step + 1
    try:
        saver = Saver(row, lease, config)
        saver.save(state, Place(following if step is None else step), metrics or {}, is_step=False)
    finally:
        as_before = {
            name: getattr(run, name) for name in ("attempts", "stalled_attempts", "finished_at", "queued_at", "woken_at")
        }
        give_back(lease, run.status, **as_before)
        lease.forget()


def load_checkpoint(key: str, default: Any = None, *, using: str | None = None) -> Any:
    """Return the newest sound state stored under a key, by a run or by `save_checkpoint`.

    Args:
        key: The run's key.
        default: What to return when nothing was ever stored.
        using: The database alias; None asks the router.

    Raises:
        ValueError: No run can have this key.
        CheckpointError: All states are damaged, or the storage does not answer.

    Example:
        >>> load_checkpoint("docs:nothing", default={})
        {}
    """
    alias = using or router.db_for_write(Run)
    rows = Run.objects.using(alias).filter(key=check_key(key))
    # Some collations take "a" for "A", and would give one's state for the other's.
    run = next((row for row in rows if row.key == key), None)
    checkpoint, state = (None, None) if run is None else store.load_latest(run)
    return default if checkpoint is None else unwrap(state, restore=False)
