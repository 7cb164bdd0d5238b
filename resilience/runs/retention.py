"""Which checkpoints of a run are kept, and what becomes of the files of the others.

Rows are deleted first, in the transaction that commits the new checkpoint, and files after it: a row never names a
file that was deleted before it, and a crash in between leaves an orphan, a file without a row, which
`cleanups.collect_orphans` deletes when it is old.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from django.db import transaction

from resilience import clock
from resilience.runs import store
from resilience.runs.models import Checkpoint
from resilience.values import is_whole

if TYPE_CHECKING:
    from resilience.runs.statements import HeldRows

__all__ = ["Best", "Pruner", "Retention", "delete_files"]

#: Seconds after which the holder of a run looks again which of its checkpoints are sound.
_READ_AGAIN = 60.0


class _Row(Protocol):
    """What of a checkpoint decides whether it is kept."""

    @property
    def sequence(self) -> int: ...
    @property
    def step(self) -> int | None: ...
    @property
    def metrics(self) -> dict[str, Any]: ...


Row = TypeVar("Row", bound=_Row)


class _Known(NamedTuple):
    """What the holder of a run remembers of a checkpoint."""

    sequence: int
    step: int | None
    metrics: dict[str, Any]
    storage: str
    name: str


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

    def choose(self, rows: Iterable[Row]) -> list[Row]:
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

    def surplus(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows that no rule keeps, oldest first.

        Args:
            rows: All sound checkpoints of one run.
        """
        ordered = sorted(rows, key=lambda row: row.sequence)
        kept = {row.sequence for row in ordered[-self.keep_last :]}
        if isinstance(self.keep_best, Best):
            kept.update(row.sequence for row in self.keep_best.choose(ordered))
        if self.keep_every is not None:
            kept.update(row.sequence for row in ordered if row.step is not None and row.step % self.keep_every == 0)
        return [row for row in ordered if row.sequence not in kept]


class Pruner:
    """Deletes a run's surplus checkpoints as new ones are committed.

    Only the holder of a run adds checkpoints to it, so what is there is read once, and again after a commit that failed;
    and now and then, since whoever loads a damaged one from outside quarantines it.

    Args:
        held: The run's rows, held by the caller.
        rules: What to keep.
    """

    def __init__(self, held: HeldRows, rules: Retention) -> None:
        self._held = held
        self._rules = rules
        self._known: list[_Known] | None = None
        self._read_at = 0.0

    def prune(self, newest: Checkpoint | None = None) -> int:
        """Delete what is surplus, in the transaction that commits `newest`; files go when it is committed.

        Quarantined ones are left for a look, and counted by no rule. What a crash leaves undone, the next attempt does.

        Args:
            newest: The checkpoint that was just inserted.

        Returns:
            How many checkpoints were deleted.
        """
        rows = self._sound_rows(newest)
        surplus = self._rules.surplus(rows)
        gone = {row.sequence for row in surplus}
        if gone:
            self._held.delete(gone)

        def committed() -> None:
            self._known = [row for row in rows if row.sequence not in gone]
            delete_files((row.storage, row.name) for row in surplus if row.name)

        transaction.on_commit(committed, using=self._held.using)
        return len(gone)

    def _sound_rows(self, newest: Checkpoint | None) -> list[_Known]:
        """Return the run's sound checkpoints; they are unknown again until the transaction is committed."""
        known, self._known = self._known, None
        now = clock.monotonic()
        if newest is not None and known is not None and now - self._read_at < _READ_AGAIN:
            return [*known, _Known(*(getattr(newest, name) for name in _Known._fields))]
        self._read_at = now
        rows = Checkpoint.objects.using(self._held.using).filter(run=self._held.run_id, status="good")
        return [_Known(*row) for row in rows.values_list(*_Known._fields)]


def delete_files(files: Iterable[tuple[str, str]]) -> None:
    """Delete files that no row names any more.

    Args:
        files: The alias of the storage and the name of each.
    """
    for alias, name in files:
        store.delete(alias, name)


def _number(value: object) -> float | None:
    """Return a metric that can be compared, or None for NaN and for what is no number."""
    return value if (is_whole(value) or isinstance(value, float)) and value == value else None  # noqa: PLR0124  # NaN is not


def _is_count(value: object, least: int) -> bool:
    return is_whole(value) and value >= least
