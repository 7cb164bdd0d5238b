"""What is measured, as one table: each row turns a signal into a number with labels.

Prometheus and OpenTelemetry read the same rows, so that both tell the same story under the names that each
one's conventions ask for. Labels hold declared names and kinds, never arguments, messages, users or run keys.
"""

from __future__ import annotations

from resilience import signals
from resilience.observability.instruments import Instrument
from resilience.observability.readings import amount, counter, fallback, fixed, histogram, one, part, transition

__all__ = ["INSTRUMENTS"]

_CALLS = (
    counter(
        "resilience.retry.attempts",
        "{attempt}",
        "Retries scheduled.",
        ("policy", "kind"),
        signals.retry_scheduled,
        one("name", "kind"),
    ),
    histogram(
        "resilience.retry.wait.duration",
        "s",
        "Waits before retries.",
        ("policy",),
        signals.retry_scheduled,
        amount("delay", "name"),
    ),
    counter(
        "resilience.retry.recoveries", "{call}", "Calls saved by a retry.", ("policy",), signals.retry_succeeded, one("name")
    ),
    counter(
        "resilience.retry.give.ups",
        "{call}",
        "Calls given up.",
        ("policy", "kind", "reason"),
        signals.retry_gave_up,
        one("name", "kind", "reason"),
    ),
    counter(
        "resilience.timeouts",
        "{call}",
        "Calls that took longer than they were given.",
        ("operation",),
        signals.timeout_expired,
        one("name"),
    ),
    counter(
        "resilience.fallbacks",
        "{call}",
        "Calls that a fallback answered.",
        ("operation", "result"),
        signals.fallback_used,
        fallback,
    ),
    counter(
        "resilience.bulkhead.rejections",
        "{call}",
        "Calls that found a bulkhead full.",
        ("bulkhead",),
        signals.bulkhead_rejected,
        one("name"),
    ),
    counter(
        "resilience.chaos.faults",
        "{fault}",
        "Faults injected on purpose.",
        ("policy", "fault"),
        signals.fault_injected,
        one("name", "fault"),
    ),
    counter(
        "resilience.batch.items",
        "{item}",
        "Items of batches.",
        ("batch", "outcome"),
        signals.batch_finished,
        part("successful", "successful", "name"),
    ),
    counter(
        "resilience.batch.items",
        "{item}",
        "Items of batches.",
        ("batch", "outcome"),
        signals.batch_finished,
        part("failed", "failed", "name"),
    ),
)
_CIRCUITS = (
    counter(
        "resilience.circuit.calls",
        "{call}",
        "Calls through circuits.",
        ("circuit", "outcome"),
        signals.circuit_called,
        one("name", "outcome"),
    ),
    histogram(
        "resilience.circuit.call.duration",
        "s",
        "Calls through circuits.",
        ("circuit", "outcome"),
        signals.circuit_called,
        amount("duration", "name", "outcome"),
    ),
    counter(
        "resilience.circuit.rejections",
        "{call}",
        "Calls that circuits refused.",
        ("circuit", "state"),
        signals.circuit_rejected,
        one("name", "state"),
    ),
    *(
        counter(
            "resilience.circuit.transitions",
            "{transition}",
            "Changes of state.",
            ("circuit", "from_state", "to_state", "trigger"),
            signal,
            transition,
        )
        for signal in (signals.circuit_opened, signals.circuit_half_opened, signals.circuit_closed)
    ),
    counter(
        "resilience.circuit.store.errors",
        "{error}",
        "Times the shared state could not be reached.",
        ("alias", "operation"),
        signals.circuit_store_failed,
        one("alias", "operation"),
    ),
)
_DATABASE = (
    counter(
        "resilience.transactions",
        "{transaction}",
        "Transactions.",
        ("alias", "outcome"),
        signals.transaction_finished,
        one("using", "outcome"),
    ),
    histogram(
        "resilience.transaction.duration",
        "s",
        "Transactions.",
        ("alias", "outcome"),
        signals.transaction_finished,
        amount("duration", "using", "outcome"),
    ),
    counter(
        "resilience.savepoint.rollbacks",
        "{rollback}",
        "Savepoints rolled back.",
        ("alias",),
        signals.savepoint_rolled_back,
        one("using"),
    ),
    counter(
        "resilience.db.retries",
        "{attempt}",
        "Retries of transactions: by what the database said (deadlocks among them) and when it said it.",
        ("alias", "kind", "phase"),
        signals.db_retry_scheduled,
        one("using", "kind", "phase"),
    ),
    counter(
        "resilience.db.recoveries",
        "{call}",
        "Transactions saved by a retry.",
        ("alias",),
        signals.db_retry_succeeded,
        one("using"),
    ),
    counter(
        "resilience.db.give.ups",
        "{call}",
        "Transactions given up.",
        ("alias", "kind", "phase"),
        signals.db_retry_gave_up,
        one("using", "kind", "phase"),
    ),
    counter(
        "resilience.db.ambiguous.commits",
        "{commit}",
        "COMMITs whose outcome was unknown at first.",
        ("alias", "resolution"),
        signals.commit_outcome_unknown,
        one("using", "resolution"),
    ),
    counter(
        "resilience.optimistic.conflicts",
        "{conflict}",
        "Lost races of optimistic updates.",
        ("model",),
        signals.update_conflicted,
        one("model"),
    ),
    counter(
        "resilience.bulk.rows",
        "{row}",
        "Rows of bulk inserts.",
        ("model", "outcome"),
        signals.bulk_inserted,
        part("inserted", "inserted", "model"),
    ),
    counter(
        "resilience.bulk.rows",
        "{row}",
        "Rows of bulk inserts.",
        ("model", "outcome"),
        signals.bulk_inserted,
        part("failed", "failed", "model"),
    ),
)
_RUNS = (
    counter(
        "resilience.run.starts", "{run}", "Attempts that began.", ("task", "outcome"), signals.run_started, fixed("fresh", "task")
    ),
    counter(
        "resilience.run.starts",
        "{run}",
        "Attempts that began.",
        ("task", "outcome"),
        signals.run_resumed,
        fixed("resumed", "task"),
    ),
    counter(
        "resilience.run.interruptions",
        "{run}",
        "Attempts that left early.",
        ("task", "reason"),
        signals.run_interrupted,
        one("task", "reason"),
    ),
    counter(
        "resilience.run.failures",
        "{run}",
        "Attempts that raised.",
        ("task", "error_type"),
        signals.run_failed,
        one("task", "error"),
    ),
    counter(
        "resilience.run.requeues",
        "{run}",
        "Runs put into the queue again.",
        ("task", "reason"),
        signals.run_requeued,
        one("task", "reason"),
    ),
    histogram(
        "resilience.run.duration",
        "s",
        "Runs from their start to their end.",
        ("task",),
        signals.run_finished,
        amount("elapsed", "task"),
    ),
    histogram(
        "resilience.checkpoint.save.duration",
        "s",
        "Saves of checkpoints.",
        ("task", "tier"),
        signals.checkpoint_saved,
        amount("elapsed", "task", "tier"),
    ),
    histogram(
        "resilience.checkpoint.size",
        "By",
        "Sizes of checkpoints.",
        ("task", "tier"),
        signals.checkpoint_saved,
        amount("size", "task", "tier"),
    ),
    counter(
        "resilience.checkpoint.failures",
        "{checkpoint}",
        "Checkpoints that could not be saved.",
        ("task", "error_type"),
        signals.checkpoint_failed,
        one("task", "error"),
    ),
    counter(
        "resilience.checkpoint.damaged",
        "{checkpoint}",
        "Checkpoints found damaged.",
        ("task",),  # the reason is a sentence, and sentences are no labels
        signals.checkpoint_damaged,
        one("task"),
    ),
    counter(
        "resilience.steps.redone",
        "{step}",
        "Steps done again after a kill.",
        ("task",),
        signals.steps_redone,
        amount("count", "task"),
    ),
)

INSTRUMENTS: tuple[Instrument, ...] = (*_CALLS, *_CIRCUITS, *_DATABASE, *_RUNS)
