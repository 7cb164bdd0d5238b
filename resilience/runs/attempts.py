"""One attempt at a run: from taking the lease to giving it back, whatever happens in between."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from resilience import clock, signals
from resilience.calls.classify import classify
from resilience.db.connections import aliases_in_blocks, free_connections
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.redaction import describe_exception
from resilience.runs import store
from resilience.runs.active import ActiveRun
from resilience.runs.leases import Lease, interruption_behind, outlast_outages
from resilience.runs.models import Run, RunStatus
from resilience.runs.operations import give_back, with_error
from resilience.runs.options import RunConfig
from resilience.runs.stored_values import as_json

__all__ = ["Attempt", "Outcome"]

logger = logging.getLogger("resilience.runs")

#: Why a body left whose run went where people wanted it.
_ASKED: dict[str, str] = {RunStatus.PAUSED: "paused", RunStatus.CANCELLED: "cancelled"}

#: Longest time, in seconds, to wait for the database when giving a run back.
_OUTAGE_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended.

    Args:
        status: The run's status now; "" when another worker has it.
        reason: "finished", "error", or why the body left ("shutdown", "slice", "paused", "cancelled", "lease_lost").
    """

    status: str
    reason: str


class Attempt:
    """A context manager around the body of a run; gives an `ActiveRun`, and the run back.

    `RunInterrupted` ends here; every other exception goes on after it was noted.

    Args:
        run: The row as it was taken.
        lease: The right to write it.
        config: The options.
        task: The Celery task, if one runs.
        is_stopping: Tells whether this process was asked to end.
        fails_at_once: Whether an error fails the run, because nobody will try again by itself.
        ends_of_slice: Exceptions that only mean that time is over, once the attempt got somewhere.
    """

    def __init__(
        self,
        run: Run,
        lease: Lease,
        config: RunConfig,
        *,
        task: Any = None,
        is_stopping: Callable[[], bool] = lambda: False,
        fails_at_once: bool = False,
        ends_of_slice: tuple[type[Exception], ...] = (),
    ) -> None:
        self.run = run
        self.lease = lease
        self.config = config
        self.active = ActiveRun(run, lease, config, task=task, is_stopping=is_stopping)
        self.outcome = Outcome("", "")
        self.result: Any = None
        self._fails_at_once = fails_at_once
        self._ends_of_slice = ends_of_slice
        self._began, self._handled = clock.monotonic(), sys.exception()
        # Blocks around the attempt are not ours to leave: Django's TestCase has some.
        self._around = aliases_in_blocks()

    def __enter__(self) -> ActiveRun:
        try:
            self.active._heartbeat.start()  # noqa: SLF001  # the attempt drives the run it made
            self._load()
        except BaseException as error:
            self._ends_with(error)
            raise
        return self.active

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            try:
                self.active._end()  # noqa: SLF001  # as above
            except BaseException as late:
                if self._ends_with(late):
                    return True
                raise
        return self._ends_with(error)

    def _ends_with(self, error: BaseException | None) -> bool:
        """Give the run back; True when the error ends here. What broke into a statement counts, not the driver's complaint."""
        struck = interruption_behind(error, self._handled)
        if struck is None or struck is error:
            return self._close(error)
        if self._close(struck):
            return True
        raise struck

    def _load(self) -> None:
        checkpoint, state = store.load_latest(self.run, schema=self.config.schema, migrate=self.config.migrate)
        self.active._begin(checkpoint, state)  # noqa: SLF001  # as above
        sent = {"key": self.run.key, "task": self.run.task, "attempt": self.run.attempts, "step": self.run.step}
        signals.emit(signals.run_started if checkpoint is None else signals.run_resumed, Run, **sent)
        committed = 0 if self.run.step is None else self.run.step + 1
        if (redone := (self.run.current or 0) - committed) > 0:
            signals.emit(signals.steps_redone, Run, key=self.run.key, task=self.run.task, count=redone)

    def _close(self, error: BaseException | None) -> bool:
        """Give the run back; True when the error ends here."""
        was_struck = error is not None and not isinstance(error, RunInterrupted) and classify(error).is_control_flow
        if isinstance(error, self._ends_of_slice) and self.active._schedule.has_progressed:  # noqa: SLF001  # as above
            # Raised in the middle of a step: only what is committed can be trusted.
            error = RunInterrupted("slice")
        if error is None or isinstance(error, (Exception, RunInterrupted)):
            self.active._schedule.close()  # noqa: SLF001  # as above
        self.active._heartbeat.stop()  # noqa: SLF001  # as above
        free_connections(self._around, was_struck=was_struck)
        try:
            if error is None:
                self._finished()
            elif isinstance(error, RunInterrupted):
                self._left(error.reason)
            elif isinstance(error, Exception):
                self._failed(error)
            else:
                self._left("shutdown")
        finally:
            self.lease.forget()
        return isinstance(error, RunInterrupted)

    def _release(self, status: str, reason: str, **values: Any) -> bool:
        actual = outlast_outages(lambda: give_back(self.lease, status, **values), self.lease.using, _OUTAGE_LIMIT)
        self.outcome = Outcome(actual, reason if actual else "lease_lost")
        return bool(actual)

    def _finished(self) -> None:
        try:
            result = as_json(self.result)
        except ValueError as error:
            logger.warning("result not kept", extra={"key": self.run.key, "error": describe_exception(error)})
            result = None
        if self._release(RunStatus.FINISHED, "finished", result=result, stalled_attempts=0):
            elapsed, steps = clock.monotonic() - self._began, 0 if self.run.step is None else self.run.step + 1
            signals.emit(signals.run_finished, Run, key=self.run.key, task=self.run.task, elapsed=elapsed, steps=steps)

    def _left(self, reason: str) -> None:
        if reason == "lease_lost":
            self.outcome = Outcome("", reason)
        elif self._release(RunStatus.QUEUED, reason, **self._uncounted()):
            # What was asked may be newer than what the body saw: a pause that was taken back only ends a slice.
            status = self.outcome.status
            why = _ASKED.get(status) or ("slice" if reason in _ASKED.values() else reason)
            self.outcome = Outcome(status, why)
        sent = {"key": self.run.key, "task": self.run.task, "reason": self.outcome.reason, "step": self.run.step}
        signals.emit(signals.run_interrupted, Run, **sent)

    def _failed(self, error: Exception) -> None:
        place = self.active._place if self.active._looping else None  # noqa: SLF001  # as above
        stalled = 0 if self.active._schedule.has_progressed else self.run.stalled_attempts  # noqa: SLF001  # as above
        limit = self.run.max_stalled_attempts
        final = self._fails_at_once or (limit is not None and stalled >= limit)
        # Checkpoints that cannot be read do not get better by trying; a storage that was away does.
        final = final or (isinstance(error, CheckpointError) and error.reason not in {"", "storage"})
        self.run.stalled_attempts = stalled
        errors = with_error(self.run, describe_exception(error), step=place.position if place else None)
        if self._release(RunStatus.FAILED if final else RunStatus.QUEUED, "error", errors=errors, stalled_attempts=stalled):
            name = type(error).__name__
            signals.emit(signals.run_failed, Run, key=self.run.key, task=self.run.task, error=name, final=final)

    def _uncounted(self) -> dict[str, Any]:
        """Columns that take this attempt out of the count of those without progress: a stop is nobody's fault."""
        before = max(0, self.run.stalled_attempts - 1)
        stalled = 0 if self.active._schedule.has_progressed else before  # noqa: SLF001  # as above
        return {"stalled_attempts": stalled, "interruptions": self.run.interruptions + 1}
