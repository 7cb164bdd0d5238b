"""The signals this app sends: the one interface that logs, metrics, pages and your own code listen to.

Every signal goes through `emit`, which costs one check while nobody listens and uses `send_robust`, so that a
broken receiver never breaks a call. No signal carries arguments, headers or bodies. Receivers are plain functions:
an `async def` receiver is called where no event loop runs, and in a loop it is left out with an error in the log;
there a plain receiver starts a task of its own.

| signal | sender | arguments |
|---|---|---|
| `retry_scheduled` | the function | `name, attempt, delay, exception, kind` |
| `retry_succeeded` | the function | `name, attempts, elapsed` (only after at least one retry) |
| `retry_gave_up` | the function | `name, attempts, elapsed, exception, kind, reason` |
| `timeout_expired` | the function | `name, seconds` |
| `fallback_used` | the function | `name, exception, failed` (`failed`: the fallback raised too) |
| `bulkhead_rejected` | `Bulkhead` | `name, max_concurrent` |
| `fault_injected` | `ChaosConfig` | `name, fault` ("error", "latency", "hang"; see `resilience.chaos`) |
| `batch_finished` | the function | `name, successful, failed, elapsed` (counts) |
| `circuit_opened`, `circuit_half_opened`, `circuit_closed` | `CircuitBreaker` | `name, transition` |
| `circuit_operated` | `CircuitBreaker` | `name, transition, actor` |
| `circuit_rejected` | `CircuitBreaker` | `name, transition, state, retry_after` (`transition`: the change that began the state) |
| `circuit_called` | `CircuitBreaker` | `name, outcome, duration` ("success", "failure", "ignored"; seconds) |
| `circuit_store_failed`, `circuit_store_recovered` | `CircuitBreaker` | `alias, operation, error` (class name) |
| `transaction_finished` | `TransactionManager` | `using, outcome, duration, code` ("commit", "rollback"; seconds; the error's code or "") |
| `savepoint_rolled_back` | `TransactionManager` | `using` |
| `db_retry_scheduled` | the function | `name, using, attempt, delay, kind, code, phase` |
| `db_retry_succeeded` | the function | `name, using, attempts, elapsed` |
| `db_retry_gave_up` | the function | `name, using, attempts, elapsed, kind, code, phase` |
| `commit_outcome_unknown` | the function | `name, using, resolution` ("raised", "committed", "aborted") |
| `update_conflicted` | the model | `model, attempt` (label) |
| `bulk_inserted` | the model | `model, inserted, failed, elapsed` |
| `run_started`, `run_resumed` | `Run` | `key, task, attempt, step` |
| `run_progressed` | `Run` | `key, task, current, total` |
| `run_interrupted` | `Run` | `key, task, reason, step` |
| `run_finished` | `Run` | `key, task, elapsed, steps` |
| `run_failed` | `Run` | `key, task, error, final` (class name; `final`: no attempt is left) |
| `run_requeued` | `Run` | `key, task, reason` ("slice", "shutdown", "error", "lease_expired", "lost", "resumed", "retried", "skipped") |
| `run_operated` | `Run` | `key, action, actor, reason` |
| `checkpoint_saved` | `Checkpoint` | `key, task, step, size, elapsed, tier` ("row", "file") |
| `checkpoint_failed` | `Checkpoint` | `key, task, step, error` (class name) |
| `checkpoint_damaged` | `Checkpoint` | `key, task, step, reason` |
| `steps_redone` | `Run` | `key, task, count` |

`kind` is an `ErrorKind`, durations and delays are seconds, `exception` is the live exception object: receivers
redact it before they store or show it.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

__all__ = [
    "batch_finished",
    "bulk_inserted",
    "bulkhead_rejected",
    "checkpoint_damaged",
    "checkpoint_failed",
    "checkpoint_saved",
    "circuit_called",
    "circuit_closed",
    "circuit_half_opened",
    "circuit_opened",
    "circuit_operated",
    "circuit_rejected",
    "circuit_store_failed",
    "circuit_store_recovered",
    "commit_outcome_unknown",
    "db_retry_gave_up",
    "db_retry_scheduled",
    "db_retry_succeeded",
    "emit",
    "fallback_used",
    "fault_injected",
    "retry_gave_up",
    "retry_scheduled",
    "retry_succeeded",
    "run_failed",
    "run_finished",
    "run_interrupted",
    "run_operated",
    "run_progressed",
    "run_requeued",
    "run_resumed",
    "run_started",
    "savepoint_rolled_back",
    "steps_redone",
    "timeout_expired",
    "transaction_finished",
    "update_conflicted",
]

logger = logging.getLogger("resilience.signals")

#: The signals whose receivers could not be called, each logged once in a process.
_reported: set[str] = set()

retry_scheduled = Signal()
retry_succeeded = Signal()
retry_gave_up = Signal()
timeout_expired = Signal()
fallback_used = Signal()
bulkhead_rejected = Signal()
batch_finished = Signal()
fault_injected = Signal()

circuit_opened = Signal()
circuit_half_opened = Signal()
circuit_closed = Signal()
circuit_operated = Signal()
circuit_rejected = Signal()
circuit_called = Signal()
circuit_store_failed = Signal()
circuit_store_recovered = Signal()

transaction_finished = Signal()
savepoint_rolled_back = Signal()
db_retry_scheduled = Signal()
db_retry_succeeded = Signal()
db_retry_gave_up = Signal()
commit_outcome_unknown = Signal()
update_conflicted = Signal()
bulk_inserted = Signal()

run_started = Signal()
run_resumed = Signal()
run_progressed = Signal()
run_interrupted = Signal()
run_finished = Signal()
run_failed = Signal()
run_requeued = Signal()
run_operated = Signal()
checkpoint_saved = Signal()
checkpoint_failed = Signal()
checkpoint_damaged = Signal()
steps_redone = Signal()


def emit(signal: Signal, sender: Any, **arguments: Any) -> None:
    """Send `signal` to whoever listens; a receiver that raises is logged by Django and changes nothing."""
    if signal.receivers:
        try:
            signal.send_robust(sender, **arguments)
        except Exception as error:  # noqa: BLE001  # Django calls async receivers outside its own guard
            _report(signal, error)


def _report(signal: Signal, error: Exception) -> None:
    name = next((name for name in __all__ if globals()[name] is signal), "a signal")
    if name not in _reported:
        _reported.add(name)
        logger.error(
            "Not all receivers of %s could be called (%s). An `async def` receiver is never called in an event loop: "
            "use a plain function, which may start a task.",
            name,
            type(error).__name__,
            extra={"signal": name},
        )
