"""Which checkpoints of a run are kept, and what becomes of the files of the others.

Rows are deleted first, in the transaction that commits the new checkpoint, and files after it: a row never names a
file that was deleted before it, and a crash in between leaves an orphan, a file without a row, which
`cleanups.collect_orphans` deletes when it is old.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from django.db import transaction

from resilience.runs import store

if TYPE_CHECKING:
    from resilience.runs.models import Run

__all__ = ["Best", "Retention", "delete_checkpoints", "delete_files", "prune"]


class _Row(Protocol):
    """What of a checkpoint decides whether it is kept."""

    pk: Any
    sequence: int
    step: int | None
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Best:
    """Keep the best by a metric.

    Args:
        metric: Its name in the metrics given to `run.checkpoint`.
        mode: "max" if more is better, "min" if less is.
        count: How many to keep; 1 or more.

    Raises:
        ValueError: mode or count is out of range.

    Example:
        >>> Best("accuracy", "max", 2).count
        2
    """

    metric: str
    mode: str = "max"
    count: int = 1

    def __post_init__(self) -> None:
        if self.mode not in {"max", "min"}:
            raise ValueError(f'mode must be "max" or "min", not {self.mode!r}. Say whether more or less of the metric is better.')
        if not _is_count(self.count, 1):
            raise ValueError(f"count must be 1 or more, not {self.count!r}. Leave keep_best out to keep none for their metric.")

    def choose(self, rows: Iterable[_Row]) -> list[_Row]:
        """Return the best rows; of equal ones the newer, and never one without the metric or with NaN."""
        sign = 1 if self.mode == "max" else -1
        scored = [
            (sign * value, row.sequence, row) for row in rows if (value := _number(row.metrics.get(self.metric))) is not None
        ]
        scored.sort(key=lambda entry: entry[:2], reverse=True)
        return [row for _, _, row in scored[: self.count]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which of a run's sound checkpoints stay: the union of the rules. The newest and the best always do.

    Args:
        keep_last: How many of the newest; 1 or more.
        keep_best: A `Best`, or its fields as a tuple, as in `("accuracy", "max", 2)`; None for none.
        keep_every: Also those whose step is a multiple of this; 1 or more, None for none.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> Retention(keep_last=2, keep_best=("loss", "min", 1)).keep_best
        Best(metric='loss', mode='min', count=1)
    """

    keep_last: int = 3
    keep_best: Best | tuple[str, str, int] | None = None
    keep_every: int | None = None

    def __post_init__(self) -> None:
        if not _is_count(self.keep_last, 1):
            raise ValueError(f"keep_last must be 1 or more, not {self.keep_last!r}. The newest checkpoint is always kept.")
        if self.keep_every is not None and not _is_count(self.keep_every, 1):
            raise ValueError(
                f"keep_every must be 1 or more steps, not {self.keep_every!r}. Leave it out to keep none for their step."
            )
        if isinstance(self.keep_best, (tuple, list)):
            if len(self.keep_best) not in {1, 2, 3}:
                raise ValueError(
                    f'keep_best must be (metric, "max" or "min", count), not {self.keep_best!r}. Leave it out to keep none.'
                )
            object.__setattr__(self, "keep_best", Best(*self.keep_best))

    def surplus(self, rows: Iterable[_Row]) -> list[_Row]:
        """Return the rows that no rule keeps, oldest first.

        Args:
            rows: All sound checkpoints of one run.
        """
        ordered = sorted(rows, key=lambda row: row.sequence)
        kept = {row.pk for row in ordered[-self.keep_last :]}
        if isinstance(self.keep_best, Best):
            kept.update(row.pk for row in self.keep_best.choose(ordered))
        if self.keep_every is not None:
            kept.update(row.pk for row in ordered if row.step is not None and row.step % self.keep_every == 0)
        return [row for row in ordered if row.pk not in kept]


def prune(run: Run, retention: Retention) -> int:
    """Delete a run's surplus checkpoints; call it in the transaction that commits a new one, or after it.

    Quarantined ones are left for a look, and counted by no rule. What a crash leaves undone, the next call does.

    Args:
        run: The run, held by the caller.
        retention: What to keep.

    Returns:
        How many checkpoints were deleted.
    """
    rows = _rows(run).filter(status="good").only("pk", "run_id", "sequence", "step", "metrics", "storage", "name")
    return delete_checkpoints(run, retention.surplus(rows))


def delete_checkpoints(run: Run, rows: list[Any]) -> int:
    """Delete rows in one transaction, the caller's if one is open, and their files when it is committed."""
    if not rows:
        return 0
    using = run._state.db  # Django's documented attribute
    with transaction.atomic(using=using, savepoint=False):
        _rows(run).filter(pk__in=[row.pk for row in rows]).delete()
        files = [(row.storage, row.name) for row in rows if row.name]
        if files:
            transaction.on_commit(lambda: delete_files(files), using=using, robust=True)
    return len(rows)


def _rows(run: Run) -> Any:
    """The run's checkpoints where the run itself is: a router may send reads elsewhere, where they are not yet."""
    return run.checkpoints.using(run._state.db)  # Django's documented attribute


def delete_files(files: Iterable[tuple[str, str]]) -> None:
    """Delete files that no row names any more.

    Args:
        files: The alias of the storage and the name of each.
    """
    for alias, name in files:
        # A storage that is down for a moment leaves an orphan, which is collected later.
        with suppress(Exception):
            store.storage(alias).delete(name)


def _number(value: object) -> float | None:
    """Return a metric that can be compared, or None for NaN and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
