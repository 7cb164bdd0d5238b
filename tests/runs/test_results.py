from __future__ import annotations

import logging

import pytest

from resilience import open_run
from resilience.runs.attempts import Attempt
from resilience.runs.leases import take
from resilience.runs.models import Run, RunEffect
from resilience.runs.options import RunConfig
from resilience.runs.stored_values import LONGEST

#: What JSON adds to a text.
QUOTES = 2


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.django_db(transaction=True)), "postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    if request.param != "default":
        request.getfixturevalue(request.param)
    return str(request.param)


def finish(alias: str, result: object) -> Run:
    """A run whose body returned `result`."""
    found = take(Run.objects.using(alias).create(key="a"), alias, statuses=("queued",))
    assert found is not None
    attempt = Attempt(*found, RunConfig())
    with attempt:
        attempt.result = result
    return Run.objects.using(alias).get()


def test_result__up_to_the_limit_is_kept(alias: str) -> None:
    """A result of a megabyte is in the row, for copies of the message and for people."""
    text = "é" * ((LONGEST - QUOTES) // 2)

    run = finish(alias, text)

    assert (run.status, run.result) == ("finished", text)


@pytest.mark.parametrize("length", [LONGEST - QUOTES + 1, 20 * LONGEST])
def test_result__beyond_the_limit_is_left_out_and_the_run_is_finished(
    alias: str, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Hours of work are not lost because the body returned what no database takes in one statement; the log tells."""
    with caplog.at_level(logging.WARNING, "resilience.runs"):
        run = finish(alias, "s3cret".ljust(length, "x"))

    assert (run.status, run.result) == ("finished", None)
    assert [(record.message, vars(record)["key"], vars(record)["error"]) for record in caplog.records] == [
        ("result not kept", "a", f"ValueError: result must be at most {LONGEST} bytes as JSON, not {length + QUOTES}. {ADVICE}")
    ]
    assert "s3cret" not in str([vars(record) for record in caplog.records])


ADVICE = "Return an id, and store the data elsewhere."


def test_once__result_beyond_the_limit_is_refused_and_the_effect_rolled_back(alias: str) -> None:
    """A step that is repeated would get None instead of it: the first time tells."""
    with open_run("a", using=alias) as run:
        with pytest.raises(ValueError, match=f"result must be at most {LONGEST} bytes as JSON, not {LONGEST + 1}"):
            run.once("large", lambda: "x" * (LONGEST - 1))
        kept = [run.once("small", lambda: "x" * (LONGEST - QUOTES)) for _ in range(2)]

    assert len(kept[0]) == len(kept[1]) == LONGEST - QUOTES
    assert list(RunEffect.objects.using(alias).values_list("key", flat=True)) == ["small"]
