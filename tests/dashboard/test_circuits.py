from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.dashboard import charts, circuit_queries, circuits
from resilience.dashboard.circuit_queries import CircuitQuery


def _row(name: str, **stats: Any) -> circuits.CircuitRow:
    return circuits.row({"name": name, **stats})


def test_arrange__puts_the_worst_first() -> None:
    """What refuses calls comes first, then what was forced, what is failing, and the calm ones by name."""
    rows = [
        _row("calm-b"),
        _row("calm-a"),
        _row("failing", failure_count=4, failure_threshold=5),
        _row("forced", state="forced_open"),
        _row("off", state="disabled"),
        _row("half", state="half_open"),
        _row("open", state="open"),
    ]

    names = [row.name for row in circuit_queries.arrange(rows, CircuitQuery())]

    assert names == ["open", "half", "forced", "failing", "off", "calm-a", "calm-b"]


def test_arrange__filters_by_name_state_and_group() -> None:
    """Search ignores case; state and group must match."""
    rows = [_row("openai:chat"), _row("openai:embed", state="open"), _row("mail", state="open")]

    def found(**query: str) -> list[str]:
        return [row.name for row in circuit_queries.arrange(rows, CircuitQuery(**query))]

    assert found(search="OPENAI") == ["openai:embed", "openai:chat"]
    assert found(state="open") == ["mail", "openai:embed"]
    assert found(group="openai", state="closed") == ["openai:chat"]


@pytest.mark.parametrize("key", list(circuit_queries.SORTS))
def test_arrange__turns_around_with_a_minus(key: str) -> None:
    """A leading minus reverses the order of what differs."""
    rows = [
        _row("a", failure_count=1, failure_threshold=5, rejected_count=1, changed_at=1.0),
        _row("b", state="open", failure_count=5, failure_threshold=5, rejected_count=9, changed_at=9.0),
    ]

    names = [row.name for row in circuit_queries.arrange(rows, CircuitQuery(sort=key))]
    turned = [row.name for row in circuit_queries.arrange(rows, CircuitQuery(sort=f"-{key}"))]

    assert names == turned[::-1]


@given(st.dictionaries(st.sampled_from(["q", "state", "group", "sort"]), st.text()))
def test_query__takes_any_query_string(parameters: dict[str, str]) -> None:
    """Nonsense in the address counts as not given."""
    query = CircuitQuery.parse(parameters)

    assert query.state in {"", *circuits.STATES}
    assert query.sort.removeprefix("-") in circuit_queries.SORTS


def test_row__says_how_many_calls_are_missing_for_a_rate() -> None:
    """Below the minimum of calls the page says so instead of showing a rate."""
    row = _row("a", failure_count=2, success_count=1, config={"failure_rate_threshold": 0.5, "minimum_calls": 20})

    assert row.level is None
    assert row.level_text == "— (3 of 20 calls needed)"


def test_row__compares_a_rate_with_its_threshold() -> None:
    """With a rate threshold the rate decides, and both are shown."""
    row = _row("a", failure_count=15, success_count=25, failure_rate=0.375, config={"failure_rate_threshold": 0.5})

    assert row.level == pytest.approx(0.75)
    assert row.level_text == "37.5 % failed, opens at 50 %"


def test_row__tells_a_circuit_without_calls() -> None:
    """Declared and never called is not the same as healthy."""
    assert not _row("new", failure_threshold=5).used
    assert _row("old", failure_threshold=5, success_count=1).used


def test_timeline__knows_the_state_of_each_minute() -> None:
    """A minute shows the worst state that held in it, also before the first change that is remembered."""
    stats = {
        "name": "a",
        "state": "closed",
        "transitions": [{"old": "closed", "new": "open", "at": 90.0}, {"old": "open", "new": "closed", "at": 200.0}],
        "recent_failures": [{"at": 61.0}, {"at": 89.0}],
    }

    states, failures = circuits.timeline(stats, now=300.0, minutes=5)

    assert states == ["closed", "open", "open", "open", "closed"]
    assert failures == [0, 2, 0, 0, 0]


def test_timeline__does_not_guess_what_it_forgot() -> None:
    """A flapping circuit's history is short: the time before it is a gap, not one long half-open."""
    stats = {"name": "a", "state": "open", "transitions": [{"old": "half_open", "new": "open", "at": 590}]}

    states, _failures = circuits.timeline(stats, 600, 3)

    assert states == ["unknown", "unknown", "open"]
    assert "unknown" not in charts.timeline(states, [0, 0, 0], label="")


def test_summary__counts_each_state() -> None:
    """The strip always shows open and closed, and the others when somebody is in them."""
    rows = [_row("a"), _row("b"), _row("c", state="metrics_only")]

    counts = {item["state"]: item["count"] for item in circuit_queries.summary(rows)}

    assert counts == {"open": 0, "metrics_only": 1, "closed": 2}


def test_fingerprint__survives_any_name() -> None:
    """Lone surrogates and control characters do not break the comparison."""
    assert circuits.fingerprint("\ud800", "\x00") != circuits.fingerprint("", "\x00")
