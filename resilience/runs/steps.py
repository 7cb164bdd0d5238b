"""What `run.steps` goes over, and how to find the place again.

A step is known by its position, from 0. Querysets are read in order of their primary key, some rows at a time,
and remember the key of the last row: rows that appear or vanish before it move nothing.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, SupportsIndex

from django.db.models import Model, QuerySet
from django.db.models.query import ModelIterable

from resilience.values import is_whole

__all__ = ["Place", "Steps", "is_position"]

_ROWS_AT_ONCE = 100
#: A position must fit into a column of 64 bits, and Python's `len` into as many.
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a loop stands: the position of a step, and the primary key of its row if it has one."""

    position: int
    cursor: Any = None


class Steps:
    """The steps of a run, from any place on.

    Args:
        items: How many, or an iterable that gives the same items in the same order each time.

    Raises:
        TypeError: `items` has no order to come back to.
        ValueError: `items` is negative, or more than can be counted.

    Example:
        >>> [item for place, item in Steps(range(10, 40, 10)).after(Place(0))]
        [20, 30]
    """

    def __init__(self, items: int | Iterable[Any]) -> None:
        if isinstance(items, (bool, str, bytes)) or not isinstance(items, (SupportsIndex, Iterable)):
            raise TypeError(f"steps must be a number or an iterable, not {items!r:.80}. Write run.steps(100) or run.steps(rows).")
        if isinstance(items, (set, frozenset)):
            raise TypeError("steps must be in the same order each time, not a set. Use sorted(...).")
        if isinstance(items, SupportsIndex) and not isinstance(items, Iterable):
            # NumPy's whole numbers, too.
            count = operator.index(items)
            if count < 0:
                raise ValueError(f"steps must be 0 or more, not {count}. Check where the number comes from.")
            items = range(count)
        if isinstance(items, range) and items and items.index(items[-1]) >= _MOST:
            raise ValueError(f"steps must be fewer than {_MOST}, not {items!r:.80}. Check where the number comes from.")
        self.items: Any = items
        if isinstance(items, QuerySet):
            self.items = _ordered(items)

    def total(self, done: int, cursor: Any) -> int | None:
        """Return how many steps there are in all, when that can be told without going over them."""
        if isinstance(self.items, QuerySet):
            return done + _behind(self.items, cursor).count()
        return len(self.items) if isinstance(self.items, Sized) else None

    def after(self, place: Place | None) -> Iterator[tuple[Place, Any]]:
        """Yield the steps behind `place`, from the first on when it is None, each with its own place."""
        start = 0 if place is None else place.position + 1
        if isinstance(self.items, QuerySet):
            yield from self._rows(start, None if place is None else place.cursor)
        elif isinstance(self.items, Sequence):
            for position in range(start, len(self.items)):
                yield Place(position), self.items[position]
        else:
            for position, item in enumerate(itertools.islice(iter(self.items), start, None), start):
                yield Place(position), item

    def _rows(self, position: int, cursor: Any) -> Iterator[tuple[Place, Model]]:
        field = self.items.model._meta.pk  # Django documents _meta
        while rows := list(_behind(self.items, cursor)[:_ROWS_AT_ONCE]):
            for row in rows:
                cursor = row.pk if isinstance(row.pk, int) else field.value_to_string(row)
                yield Place(position, cursor), row
                position += 1


def is_position(value: object) -> bool:
    """Tell whether a value can be the position of a step: a whole number from 0 to 2**63 - 1.

    Example:
        >>> is_position(3), is_position(-1)
        (True, False)
    """
    return is_whole(value) and 0 <= value <= _MOST


def _ordered(queryset: QuerySet[Any]) -> QuerySet[Any]:
    pk = queryset.model._meta.pk  # Django documents _meta
    if queryset.query.is_sliced:
        raise TypeError("steps must be a queryset that is not sliced. Filter it instead: a slice moves when rows come and go.")
    if queryset._iterable_class is not ModelIterable or not pk.concrete or pk.column is None:  # noqa: SLF001  # no public way
        raise TypeError("steps must be a queryset of model instances with one primary key, not of values. Leave out values().")
    return queryset.order_by("pk")


def _behind(queryset: QuerySet[Any], cursor: Any) -> QuerySet[Any]:
    if cursor is None:
        return queryset
    return queryset.filter(pk__gt=queryset.model._meta.pk.to_python(cursor))  # Django documents _meta
