"""Optimistic updates of one row: write only if what was read still holds, and read again if it does not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import models

from resilience import clock, signals
from resilience.db.swaps import Swap
from resilience.db.versions import VersionField
from resilience.values import is_whole

__all__ = ["VersionField", "aatomic_update", "atomic_update"]

Row = TypeVar("Row", bound=models.Model)
Merge = Callable[[Row, dict[str, Any]], Mapping[str, Any]]

#: Nominal wait before the first retry and the cap, in seconds: losing a race costs the winner's round trip.
_FIRST_WAIT = 0.004
_LONGEST_WAIT = 0.25


def atomic_update(
    model: type[Row],
    pk: Any,
    updates: Mapping[str, Any],
    *,
    using: str | None = None,
    max_retries: int = 5,
    version_field: str | None = None,
    watch: Iterable[str] | None = None,
    on_conflict: Merge[Row] | None = None,
) -> Row:
    """Change one row without losing anyone else's change, and without a lock while nobody else wants the row.

    Reads the row, computes the new values, and writes them with a condition: that the row's version, or without
    one the watched fields, are still what was read. If not, it waits some milliseconds (with full jitter), reads
    again and computes again. A lost connection or a deadlock on the way is retried too, outside transactions.

    After a lost race a function that was seen to take less than 0.1 ms runs while the row is locked, for a second:
    so counters never starve. A slower function never runs under a lock.

    What is compared, exactly (case, NULL, microseconds, scale): `version_field`, or the fields in `watch`, or the
    model's `VersionField`, or else the fields that get plain or computed values. Expressions such as
    `F("balance") - 10` are evaluated by the database on the row as it is then, so they need no comparison.
    A value that was changed and changed back compares equal; where that matters, use a version.
    A model's `VersionField` and its `auto_now` fields are written along. Signals of `save()` are not sent.

    Args:
        model: The model class.
        pk: The row's primary key (a tuple for a composite one).
        updates: Field names to new values: a plain value, an expression, or a function of the row as it was
            read; it may run several times. Name in `watch` what such a function reads besides its own field.
        using: Database alias; None asks the routers.
        max_retries: How often to try again after losing the race; 0 or more.
        version_field: An integer field to compare and to raise by one.
        watch: Names of the fields to compare.
        on_conflict: `on_conflict(row_as_it_is_now, updates)` returns the updates to try next; it may merge, or
            raise to give up.

    Returns:
        The row as stored.

    Raises:
        ConcurrentUpdateError: Others changed the row each time.
        model.DoesNotExist: There is no such row, or it was deleted meanwhile.
        FieldDoesNotExist, TypeError, ValueError: A name or value cannot be right; nothing was stored.

    Example:
        >>> from tests.testapp.models import Account
        >>> account = Account.objects.create(name="savings", balance=100)
        >>> atomic_update(Account, account.pk, {"balance": lambda account: account.balance - 10}).balance
        90
    """
    swap = Swap(model, pk, updates, using=using, version_field=version_field, watch=watch, on_conflict=on_conflict)
    for attempt in range(1, _attempts(max_retries) + 1):
        if attempt > 1 and not swap.is_queued:
            clock.sleep(_wait(attempt))
        if (stored := swap.attempt()) is not None:
            return stored
        signals.emit(signals.update_conflicted, model, model=model._meta.label, attempt=attempt)
    raise swap.give_up(max_retries + 1)


async def aatomic_update(
    model: type[Row],
    pk: Any,
    updates: Mapping[str, Any],
    *,
    using: str | None = None,
    max_retries: int = 5,
    version_field: str | None = None,
    watch: Iterable[str] | None = None,
    on_conflict: Merge[Row] | None = None,
) -> Row:
    """Do as `atomic_update` does, without blocking the event loop: each attempt runs in one thread, waits in none.

    Args:
        model: The model class.
        pk: The row's primary key.
        updates: As for `atomic_update`; functions are plain ones and run in the thread.
        using: Database alias; None asks the routers.
        max_retries: How often to try again after losing the race; 0 or more.
        version_field: An integer field to compare and to raise by one.
        watch: Names of the fields to compare.
        on_conflict: As for `atomic_update`; a plain function.

    Returns:
        The row as stored.

    Raises:
        ConcurrentUpdateError: Others changed the row each time.
        model.DoesNotExist: There is no such row, or it was deleted meanwhile.

    Example:
        >>> from tests.testapp.models import Account
        >>> async def withdraw(pk, amount):
        ...     return await aatomic_update(Account, pk, {"balance": lambda account: account.balance - amount})
    """
    swap = Swap(model, pk, updates, using=using, version_field=version_field, watch=watch, on_conflict=on_conflict)
    for attempt in range(1, _attempts(max_retries) + 1):
        if attempt > 1 and not swap.is_queued:
            await clock.async_sleep(_wait(attempt))
        if (stored := await sync_to_async(swap.attempt)()) is not None:
            return stored
        signals.emit(signals.update_conflicted, model, model=model._meta.label, attempt=attempt)
    raise await sync_to_async(swap.give_up)(max_retries + 1)


def _attempts(max_retries: int) -> int:
    given: object = max_retries
    if not is_whole(given) or given < 0:
        raise ValueError(f"max_retries must be a whole number from 0, not {max_retries!r}. Use 0 to try once.")
    return max_retries + 1


def _wait(attempt: int) -> float:
    """Draw the wait before an attempt, in seconds: full jitter below a doubling bound."""
    return random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 2)))  # noqa: S311  # not a secret
