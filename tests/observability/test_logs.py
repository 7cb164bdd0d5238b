from __future__ import annotations

import logging
from typing import NamedTuple

import pytest

from resilience import signals
from resilience.observability import logs
from resilience.testing import FakeClock
from tests.observability.tables import documented_arguments


class Transition(NamedTuple):
    """What a circuit's signals carry, as far as logs care."""

    old: str
    new: str
    reason: str


def send(name: str, /, **arguments: object) -> None:
    signals.emit(getattr(signals, name), None, **arguments)


def test_log__tells_a_retry_with_its_facts(caplog: pytest.LogCaptureFixture) -> None:
    """One line with the facts in `extra`, and the secret of the message taken out."""
    caplog.set_level(logging.INFO, "resilience")

    send(
        "retry_scheduled",
        name="openai",
        attempt=1,
        delay=0.5,
        kind="timeout",
        exception=OSError("https://me:hunter2@host/?key=abc"),
    )

    record = caplog.records[-1]
    assert (record.name, record.levelname) == ("resilience.calls", "INFO")
    assert (record.resilience_name, record.resilience_attempt, record.resilience_delay) == ("openai", 1, 0.5)
    assert record.getMessage().startswith("openai: attempt 1 failed (timeout); next in 0.50 s: OSError: https://")
    assert "hunter2" not in record.getMessage()
    assert "abc" not in str(record.__dict__)


def test_log__tells_an_open_circuit_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Opening is what somebody must see; the reason stands in the line."""
    send("circuit_opened", name="payments", transition=Transition("closed", "open", "5 failures"))

    record = caplog.records[-1]
    assert (record.levelname, record.getMessage()) == ("ERROR", "circuit payments opened (closed -> open: 5 failures)")


@pytest.mark.parametrize(
    ("signal", "arguments", "text"),
    [
        (
            "retry_gave_up",
            {"name": "rates", "attempts": 1, "elapsed": 0.1, "kind": "auth", "reason": "not transient", "exception": OSError()},
            "rates: gave up after 1 attempt (auth, not transient): OSError",
        ),
        ("timeout_expired", {"name": "report", "seconds": 0.8365343549999125}, "report: no answer within 0.837 s"),
        (
            "fallback_used",
            {"name": "rates", "failed": False, "exception": OSError()},
            "rates: the fallback answered, after OSError",
        ),
        (
            "fallback_used",
            {"name": "rates", "failed": True, "exception": OSError()},
            "rates: the fallback failed too, after OSError",
        ),
        ("run_started", {"key": "import", "task": "", "attempt": 1}, "run import started (no task, attempt 1)"),
        (
            "run_failed",
            {"key": "import", "task": "", "error": "OSError", "final": True},
            "run import failed (OSError); no further attempt follows by itself",
        ),
        (
            "run_failed",
            {"key": "import", "task": "", "error": "OSError", "final": False},
            "run import failed (OSError); another attempt follows",
        ),
        ("run_operated", {"key": "import", "action": "pause", "actor": ""}, "run import: pause by an unnamed actor"),
    ],
)
def test_log__reads_as_a_sentence(caplog: pytest.LogCaptureFixture, signal: str, arguments: dict[str, object], text: str) -> None:
    """No line shows a bare bool, an empty name or fifteen digits; `extra=` keeps the facts as they are."""
    caplog.set_level(logging.INFO, "resilience")

    send(signal, **arguments)

    record = caplog.records[-1]
    assert record.getMessage() == text
    shown = {name: getattr(record, f"resilience_{name}", arguments[name]) for name in arguments if name != "exception"}
    assert shown == {name: value for name, value in arguments.items() if name != "exception"}


@pytest.mark.parametrize("name", ["circuit_called", "circuit_rejected", "transaction_finished", "run_progressed"])
def test_log__is_silent_about_what_happens_all_the_time(name: str) -> None:
    """Signals sent for every call have no log receiver, and so cost nothing."""
    receivers = getattr(signals, name).receivers

    assert [key for (key, *_), *_ in receivers if isinstance(key, str) and key.startswith("resilience.logs")] == []


def test_log__costs_nothing_below_its_level(caplog: pytest.LogCaptureFixture) -> None:
    """A line that nobody reads is not put together."""

    class ExplosiveError(Exception):
        def __str__(self) -> str:
            raise AssertionError("the message was asked for")

    caplog.set_level(logging.ERROR, "resilience")

    send("retry_scheduled", name="x", attempt=1, delay=0.1, kind="timeout", exception=ExplosiveError())

    assert caplog.records == []


def gave_up(name: str) -> None:
    send("retry_gave_up", name=name, attempts=3, elapsed=1.0, exception=OSError("no"), kind="connection", reason="attempts")


def test_outage__does_not_flood_the_log(caplog: pytest.LogCaptureFixture, fake_clock: FakeClock) -> None:
    """A thousand failures of one function write ten lines; another function still gets its own."""
    for _ in range(1000):
        gave_up("openai")
    gave_up("mail")

    names = [record.resilience_name for record in caplog.records]
    assert (names.count("openai"), names.count("mail")) == (10, 1)


def test_outage__tells_how_much_was_left_out(caplog: pytest.LogCaptureFixture, fake_clock: FakeClock) -> None:
    """Nothing is hidden: the next minute's first line has the number of those before it."""
    for _ in range(25):
        gave_up("openai")
    fake_clock.advance(61)
    gave_up("openai")

    record = caplog.records[-1]
    assert record.getMessage().endswith("(15 more like it were not written)")
    assert (record.resilience_left_out, len(caplog.records)) == (15, 11)


def test_outage__of_made_up_names_is_bounded(caplog: pytest.LogCaptureFixture, fake_clock: FakeClock) -> None:
    """Names without end share one allowance, and no memory is filled with them."""
    for number in range(2000):
        gave_up(f"tenant-{number}")

    assert len(caplog.records) == 500 + 10


def test_outage__of_made_up_names_is_forgotten(caplog: pytest.LogCaptureFixture, fake_clock: FakeClock) -> None:
    """Names of a minute ago take no room from those of now."""
    for number in range(2000):
        gave_up(f"tenant-{number}")
    caplog.clear()

    fake_clock.advance(61)
    for number in range(400):
        gave_up(f"job-{number}")

    assert len(caplog.records) == 400


def test_circuits__write_every_transition(caplog: pytest.LogCaptureFixture) -> None:
    """Changes of state are what one reads afterwards; none is left out."""
    for _ in range(30):
        send("circuit_opened", name="flapping", transition=Transition("closed", "open", "5 failures"))

    assert len(caplog.records) == 30


def test_log__cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    """A newline or an escape sequence in a key or a reason stays inside its line; secrets in a reason go."""
    caplog.set_level(logging.INFO, "resilience")

    send("run_started", key="train:1\nERROR root: all is lost\x1b[2J", task="t", attempt=1, step=None)
    send("circuit_opened", name="a\rb", transition=Transition("closed", "forced_open", "see https://me:hunter2@wiki"))

    text = "".join(record.getMessage() for record in caplog.records)
    assert text.isprintable()
    assert "hunter2" not in text


def test_every_line__fits_its_signal(caplog: pytest.LogCaptureFixture) -> None:
    """Each line reads only documented arguments and can be formatted."""
    caplog.set_level(logging.INFO, "resilience")
    table = documented_arguments()

    for line in logs._LINES:
        name = next(name for name in signals.__all__ if getattr(signals, name) is line.signal)
        values = dict.fromkeys(table[name], 1) | {"transition": Transition("closed", "open", "")}
        send(name, **{key: values[key] for key in table[name]})

    written = [record for record in caplog.records if record.module == "logs"]  # other receivers may have more to say
    assert len(written) == len(logs._LINES)
    assert all(record.getMessage() for record in written)


def test_disconnect__ends_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Projects that write their own lines can switch these off."""
    logs.disconnect()
    try:
        gave_up("openai")
    finally:
        logs.connect()

    assert caplog.records == []
