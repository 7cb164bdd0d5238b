"""A run in the hands of a worker: what the body of a resumable task gets as its first argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from resilience import clock
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.runs import effects
from resilience.runs.heartbeats import Heartbeat, Progress
from resilience.runs.leases import Lease, refuse_transaction
from resilience.runs.models import Checkpoint, Run, RunRequest
from resilience.runs.options import RunConfig
from resilience.runs.saves import Saver
from resilience.runs.schedules import SaveSchedule, unwrap
from resilience.runs.steps import Place, Steps

__all__ = ["ActiveRun", "BareRun"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_REASONS = {RunRequest.PAUSE: "paused", RunRequest.CANCEL: "cancelled"}


class ActiveRun:
    """The run a worker holds; made by `resumable_task` and `open_run`, not by users.

    Attributes:
        key: The run's key.
        state: The last state: of the last good checkpoint at the beginning, then the one given to `checkpoint`.
        resuming: Whether there is a checkpoint to go on from.
        step: Position, from 0, of the last committed step, or None.
        task: The Celery task that runs, or None.
        metrics: The metrics of the checkpoint resumed from.
    """

    def __init__(
        self, run: Run, lease: Lease, config: RunConfig, *, task: Any = None, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.key = run.key
        self.task = task
        self.state: Any = None
        self.resuming = False
        self.metrics: dict[str, Any] = {}
        self._run = run
        self._lease = lease
        self._config = config
        self._is_stopping = is_stopping
        self._heartbeat = Heartbeat(lease, self._has_moved)
        self._progress = Progress(run, lease)
        self._schedule = SaveSchedule(Saver(run, lease, config, also=self._progress.join), config, None)
        self._place: Place | None = None
        self._began = clock.monotonic()
        self._looping = self._exhausted = self._was_told = False
        self._moved = self._counts_itself = True
        self._left_for = ""

    @property
    def step(self) -> int | None:
        """Position, from 0, of the last committed step, or None."""
        return self._run.step

    @property
    def attempt(self) -> int:
        """How many workers have begun this run, this one included."""
        return self._run.attempts

    def steps(self, items: int | Iterable[Item]) -> Iterator[Any]:
        """Go over what is left of the work: from the step after the last committed one to the end.

        At the end of a step it leaves, when it must, by raising `RunInterrupted`; the state given last to
        `checkpoint` is committed first. One loop a run: two loops would not know their places apart.

        Args:
            items: How many steps, or a range, a sequence, a queryset (read in order of its primary key), or any
                iterable that gives the same items in the same order each time.

        Raises:
            RuntimeError: It was called before.
            TypeError: `items` has no order to come back to.
            RunInterrupted: It is time to leave.
        """
        if self._looping:
            raise RuntimeError("run.steps must be called once in a run. Put both loops into one, or into two runs.")
        self._looping = True
        return self._loop(Steps(items))

    def checkpoint(self, state: object = None, metrics: Mapping[str, Any] | None = None) -> None:
        """Give the state as of now; it is stored when `every` and `every_seconds` say so, and before leaving.

        Call it as the last thing in a step: when it is stored, the step counts as done.

        Args:
            state: Plain values, NumPy arrays, tensors, in nested dicts and lists.
            metrics: Figures such as `{"accuracy": 0.93}`, for `keep_best` and for people.

        Raises:
            CheckpointError: The state cannot be stored, or a transaction is open.
            RunInterrupted: Another worker holds the run, or the body goes on although it was told to leave.
        """
        refuse_transaction(self._lease.using, "run.checkpoint")
        self._stay_away()
        self.state = state
        if self._schedule.offer(state, self._current_place(), metrics, is_step=self._looping):
            self._moved = True

    def progress(self, current: int, total: int | None = None, message: str = "") -> None:
        """Tell people how far it is; written at most once a second, however often it is called.

        Args:
            current: Units done; 0 or more.
            total: Units in all, if known.
            message: A short text; 200 characters are kept.
        """
        self._counts_itself = False
        self._moved = True
        self._progress.note(current, total, message)

    @property
    def should_stop(self) -> bool:
        """Whether it is time to leave; for long steps. Save, and return or go on to the end of the step.

        A body that returns after it was told to stop, before its steps are through, is resumed later and not
        taken for finished.
        """
        self._heartbeat.beat_if_due()
        told = self._reason_to_leave() is not None
        self._was_told = self._was_told or told
        return told

    def once(self, key: str, func: Callable[[], Result]) -> Result | Any:
        """Run a database effect exactly once in the life of the run, however often the step is repeated.

        Args:
            key: Name of the effect within the run, as `f"invoice:{step}"`; up to 255 characters.
            func: Writes to the database of the runs; it runs in a transaction with the note that it ran, so
                everything else it does (mails, calls) may happen more than once.

        Returns:
            What `func` returned, the first time; later what JSON kept of it: tuples as lists, dates as texts, and None of
            what is no JSON. Return what JSON gives back unchanged, and both are the same.

        Raises:
            RunInterrupted: Another worker holds the run; the effect was rolled back.
            ValueError: Its value is longer than 1 MiB as JSON; the effect was rolled back.
        """
        return effects.once(self._lease, key, func)

    def leave(self, reason: str) -> None:
        """Commit what can be committed and end this attempt.

        Raises:
            RunInterrupted: Always.
        """
        if reason != "lease_lost":
            self._schedule.settle(self._current_place())
        self._left_for = reason
        raise RunInterrupted(reason)

    def _loop(self, steps: Steps) -> Iterator[Any]:
        start = self._place
        done = 0 if start is None else start.position + 1
        total = steps.total(done, None if start is None else start.cursor)
        self._leave_if_needed()
        for place, item in steps.after(start):
            self._place = place
            if place.position not in self._run.skipped:
                yield item
            self._moved = True
            if self._counts_itself:
                self._progress.note(place.position + 1, total, "")
            self._heartbeat.beat_if_due()
            self._leave_if_needed()
        # Before the body goes on: what follows the loop may change the state in place.
        if self._has_fresh_state():
            self._schedule.store()
        self._exhausted = True

    def _current_place(self) -> Place:
        if self._looping:
            return self._place or Place(-1)
        return Place(0 if self._run.step is None else self._run.step + 1)

    def _has_fresh_state(self) -> bool:
        return self._schedule.has_fresh(self._current_place())

    def _reason_to_leave(self) -> str | None:
        if self._lease.is_lost:
            return "lease_lost"
        if self._lease.request:
            return _REASONS[RunRequest(self._lease.request)]
        if self._is_stopping():
            return "shutdown"
        limit = self._config.max_slice
        if limit is not None and clock.monotonic() - self._began >= limit:
            # A slice that got nowhere goes on: ending it would begin the same work again, for ever.
            return "slice" if self._schedule.has_progressed or self._has_fresh_state() else None
        return None

    def _leave_if_needed(self) -> None:
        if (reason := self._reason_to_leave()) is not None:
            self.leave(reason)

    def _stay_away(self) -> None:
        """Repeat to a body that caught `RunInterrupted`, as a bare `except` does, that it has left."""
        if self._left_for:
            raise RunInterrupted(self._left_for)

    def _has_moved(self) -> bool:
        moved, self._moved = self._moved, False
        return moved

    def _begin(self, checkpoint: Checkpoint | None, state: Any) -> None:
        """Take over what the last good checkpoint says."""
        if checkpoint is None:
            return
        self.state, self.resuming, self.metrics = unwrap(state, restore=self._config.rng), True, checkpoint.metrics
        position = -1 if checkpoint.step is None else checkpoint.step
        self._place = Place(position, checkpoint.cursor)
        self._run.step = checkpoint.step
        saver = Saver(self._run, self._lease, self._config, checkpoint.sha256, also=self._progress.join)
        self._schedule = SaveSchedule(saver, self._config, self._place)

    def _end(self) -> None:
        """Store what is left to store after the body returned.

        Raises:
            RunInterrupted: The body left because it was told to, before it was through.
        """
        self._stay_away()
        if self._was_told and not self._exhausted:
            self.leave(self._reason_to_leave() or "shutdown")
        if not self._schedule.settle(self._current_place()):
            raise CheckpointError(
                f"The last state of run {self.key!r} could not be stored. Repair the storage or the database: the run resumes "
                "from the last good checkpoint.",
                "storage",
            )
        self._progress.flush()


class BareRun:
    """Looks like an `ActiveRun`, stores nothing and goes straight through: for `RESILIENCE["ENABLED"] = False`.

    Args:
        key: The run's key.
        task: The Celery task, if one runs.

    Example:
        >>> list(BareRun("docs").steps(2))
        [0, 1]
    """

    resuming = False
    should_stop = False
    step = None
    attempt = 1

    def __init__(self, key: str, task: Any = None) -> None:
        self.key = key
        self.task = task
        self.state: Any = None
        self.metrics: dict[str, Any] = {}

    def steps(self, items: int | Iterable[Item]) -> Iterator[Any]:
        """Go over all of the work."""
        return (item for _, item in Steps(items).after(None))

    def checkpoint(self, state: object = None, metrics: dict[str, Any] | None = None) -> None:
        """Remember the state until the body returns."""
        self.state = state

    def progress(self, current: int, total: int | None = None, message: str = "") -> None:
        """Tell nobody."""

    def once(self, key: str, func: Callable[[], Result]) -> Result:
        """Call `func`."""
        return func()
