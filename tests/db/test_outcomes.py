from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import OperationalError, ProgrammingError, connection

from resilience import clock
from resilience.db.outcomes import Verdict, settle

pytestmark = pytest.mark.django_db(transaction=True)

Answer = bool | Exception | None


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still but for the sleeps, which it lists."""
    slept: list[float] = []
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0 + sum(slept))
    monkeypatch.setattr(clock, "sleep", slept.append)
    return slept


def asking(*answers: Answer) -> Callable[[], bool | None]:
    """Make a question that gets these answers in turn, and the last one from then on."""
    left = list(answers)

    def ask() -> bool | None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


@pytest.mark.parametrize(("answer", "verdict"), [(True, Verdict.COMMITTED), (False, Verdict.ABORTED)])
def test_settle__asks_again_while_the_answer_is_open_or_the_database_away(
    answer: bool, verdict: Verdict, pauses: list[float]
) -> None:
    """A COMMIT under way and a lost connection are no answer; the first answer is believed."""
    ask = asking(None, OperationalError("server closed the connection unexpectedly"), answer)

    assert settle(ask, connection) is verdict
    assert pauses == [0.05, 0.1]


@pytest.mark.parametrize("seconds", [0, 0.04, 3.0, 60.0])
def test_settle__gives_up_in_time_and_asks_at_least_once(seconds: float, pauses: list[float]) -> None:
    """It never waits longer than allowed, nor more than a second at once, nor gives up while another question fits."""
    asked: list[None] = []

    verdict = settle(lambda: asked.append(None), connection, seconds)

    assert verdict is Verdict.UNKNOWN
    assert len(asked) == len(pauses) + 1
    assert sum(pauses) <= seconds < sum(pauses) + 1
    assert max(pauses, default=0) <= 1


def test_settle__of_a_question_that_is_wrong_fails_at_once(pauses: list[float]) -> None:
    """Asking again does not mend a missing table."""
    with pytest.raises(ProgrammingError, match="no such table"):
        settle(asking(ProgrammingError("no such table: nothing"), True), connection)

    assert pauses == []
