from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.runs.models import Run
from resilience.runs.steps import Place, Steps
from tests.factories import RunFactory
from tests.testapp.models import Stamp


@given(total=st.integers(0, 50), start=st.integers(-1, 60), kind=st.sampled_from([int, range, list, tuple, iter]))
def test_steps__resume_anywhere_in_anything(total: int, start: int, kind: Any) -> None:
    """From each place on, the same steps are left, whatever they are steps of."""
    items = kind(total) if kind in {int, range} else kind(range(total))

    left = [(place.position, item) for place, item in Steps(items).after(Place(start))]

    assert left == [(position, position) for position in range(start + 1, total)]


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (-1, ValueError, "steps must be 0 or more, not -1"),
        (True, TypeError, "steps must be a number or an iterable, not True"),
        (None, TypeError, "steps must be a number or an iterable, not None"),
        ({1, 2}, TypeError, "not a set. Use sorted"),
        ("abc", TypeError, "steps must be a number or an iterable, not 'abc'"),
        (b"abc", TypeError, "steps must be a number or an iterable"),
        (1.5, TypeError, "steps must be a number or an iterable, not 1.5"),
        (2**70, ValueError, "steps must be fewer than 9223372036854775807"),
        (range(0, 2**80, 3), ValueError, "steps must be fewer than"),
    ],
)
def test_steps__refuses_what_has_no_place_to_come_back_to(items: Any, error: type[Exception], message: str) -> None:
    """What cannot be resumed is refused before the work begins."""
    with pytest.raises(error, match=message):
        Steps(items)


def test_steps__takes_whole_numbers_of_numpy() -> None:
    """A count that was computed is a number too."""
    assert [item for _, item in Steps(np.int64(3)).after(None)] == [0, 1, 2]
    assert Steps(range(5, 2, -1)).total(0, None) == 3


@pytest.mark.django_db
def test_queryset__rows_that_come_and_go_move_nothing() -> None:
    """The place is the primary key of the last row: no row is skipped, none is done twice."""
    runs = [RunFactory(key=f"k{number}") for number in range(6)]
    steps = Steps(Run.objects.order_by("-key")).after(None)
    done = [next(steps) for _ in range(3)]
    place = done[-1][0]
    runs[0].delete()
    runs[2].delete()
    late = RunFactory(key="late")

    left = [(place.position, row.key) for place, row in Steps(Run.objects.all()).after(place)]

    assert [row.key for _, row in done] == ["k0", "k1", "k2"]
    assert left == [(3, "k3"), (4, "k4"), (5, "k5"), (6, late.key)]


@pytest.mark.django_db
def test_queryset__more_rows_than_one_page() -> None:
    """Rows are read some at a time, and all of them."""
    Run.objects.bulk_create(Run(key=f"k{number:03}") for number in range(250))

    keys = [row.key for _, row in Steps(Run.objects.all()).after(None)]

    assert keys == sorted(keys)
    assert len(keys) == 250


@pytest.mark.django_db
def test_queryset__primary_keys_that_are_no_numbers() -> None:
    """A UUID is remembered as JSON can hold it."""
    for number in range(4):
        Stamp.objects.create(number=number)
    ordered = list(Stamp.objects.order_by("pk"))
    place = next(iter(Steps(Stamp.objects.all()).after(None)))[0]

    left = [row for _, row in Steps(Stamp.objects.all()).after(place)]

    assert place.cursor == str(ordered[0].pk)
    assert uuid.UUID(place.cursor)
    assert left == ordered[1:]
    assert Steps(Stamp.objects.all()).total(1, place.cursor) == 4


@pytest.mark.django_db
@pytest.mark.parametrize("queryset", [lambda: Run.objects.all()[:3], lambda: Run.objects.values("key")])
def test_queryset__refuses_slices_and_values(queryset: Any) -> None:
    """What has no stable place is refused."""
    with pytest.raises(TypeError, match="steps must be a queryset"):
        Steps(queryset())
