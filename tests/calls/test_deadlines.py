from __future__ import annotations

import contextlib
import contextvars
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from resilience import clock
from resilience.calls.deadlines import deadline_scope, remaining
from resilience.calls.retry_contexts import RetryContext
from resilience.calls.timeouts import timeout
from tests.calls.scripts import FakeTime


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Time stands still."""
    fake = FakeTime()
    monkeypatch.setattr(clock, "monotonic", fake.monotonic)
    return fake


def fixture_like() -> Iterator[int]:
    """Hand out something from inside a block with a deadline, as a fixture does."""
    for attempt in RetryContext(deadline=5):
        with attempt:
            yield attempt.number


def test_deadline_scope__may_be_left_in_another_context() -> None:
    """A generator that somebody else finishes ends as it should, and the deadline of the one does not reach the other."""
    generator = fixture_like()
    contextvars.Context().run(next, generator)

    assert list(generator) == []
    assert remaining() is None


def test_deadline_scope__left_in_another_context_does_not_hide_the_bodys_error() -> None:
    """What the body raises comes out, not what went wrong while the deadline was put away."""

    def body() -> Iterator[None]:
        with deadline_scope(5):
            yield
            raise KeyError("from the body")

    generator = body()
    contextvars.Context().run(next, generator)

    with pytest.raises(KeyError, match="from the body"):
        next(generator)


def test_deadline_scope__left_in_a_copy_of_its_context_ends_there() -> None:
    """Where the deadline came along with a copied context, it is put away all the same."""
    with deadline_scope(60):
        scope = deadline_scope(5)
        scope.__enter__()

        def leave() -> float | None:
            scope.__exit__(None, None, None)
            return remaining()

        left = contextvars.copy_context().run(leave)
        scope.__exit__(None, None, None)

    assert left is not None
    assert left > 5


@pytest.mark.parametrize(("deadline", "expected"), [(None, 3), (60, 3), (2, 2), (0, 0)])
def test_remaining__at_most_is_always_a_number(fake_time: FakeTime, deadline: float | None, expected: float) -> None:
    """What a client's timeout needs: also without a deadline, and not the most of it when nothing is left."""
    with contextlib.nullcontext() if deadline is None else deadline_scope(deadline):
        assert remaining(at_most=3) == expected


@pytest.mark.parametrize("seconds", [1e10, timedelta(days=200_000), 1e300], ids=repr)
def test_timeout__of_more_than_timers_count_is_no_limit(seconds: float | timedelta) -> None:
    """However long, in the main thread and in others."""
    limited = timeout(seconds)(lambda: "done")
    # A timer that the test runner may have set would come first.
    seconds_left, interval = signal.setitimer(signal.ITIMER_REAL, 0)

    try:
        with ThreadPoolExecutor(1) as pool:
            results = limited(), pool.submit(limited).result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, seconds_left, interval)

    assert results == ("done", "done")
