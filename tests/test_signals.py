"""Whoever listens, a call goes on as if nobody did."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.dispatch import Signal

from resilience import CircuitBreaker, fallback, retry, signals


@pytest.fixture
def listen() -> Iterator[Any]:
    """Connect receivers for the length of one test."""
    connected: list[tuple[Signal, Any]] = []

    def connect(signal: Signal, receiver: Any) -> None:
        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))

    signals._reported.clear()
    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver)


async def an_async_receiver(**arguments: Any) -> None:
    raise AssertionError("it is not called in an event loop")


async def test_async_receiver__costs_no_good_result(listen: Any) -> None:
    """In an event loop an async receiver is left out; the result comes back and plain receivers are called."""
    heard: list[str] = []
    listen(signals.circuit_called, an_async_receiver)
    listen(signals.circuit_called, lambda outcome, **arguments: heard.append(outcome))

    async def answer() -> int:
        return 42

    assert await CircuitBreaker("calm").acall(answer) == 42
    assert heard == ["success"]


async def test_async_receiver__stops_no_retry(listen: Any) -> None:
    """A retry is made although its signal has an async receiver."""
    listen(signals.retry_scheduled, an_async_receiver)
    attempts: list[int] = []

    @retry(max_attempts=3, delay=0)
    async def flaky() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("refused")
        return "done"

    assert await flaky() == "done"
    assert len(attempts) == 3


async def test_async_receiver__takes_no_fallbacks_answer(listen: Any) -> None:
    """The fallback's value comes back although its signal has an async receiver."""
    listen(signals.fallback_used, an_async_receiver)

    @fallback("instead")
    async def broken() -> str:
        raise ConnectionError("refused")

    assert await broken() == "instead"


async def test_async_receiver__is_told_once(listen: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the signal and what to do, once and not for each call."""
    listen(signals.fallback_used, an_async_receiver)

    @fallback("instead")
    async def broken() -> str:
        raise ConnectionError("refused")

    with caplog.at_level(logging.ERROR, "resilience.signals"):
        await broken()
        await broken()

    [record] = [record for record in caplog.records if record.name == "resilience.signals"]
    assert "fallback_used" in record.getMessage()
    assert "plain function" in record.getMessage()


def test_async_receiver__is_called_where_no_loop_runs(listen: Any) -> None:
    """Outside an event loop Django calls async receivers too."""
    heard: list[bool] = []

    async def receiver(failed: bool, **arguments: Any) -> None:
        heard.append(failed)

    listen(signals.fallback_used, receiver)

    @fallback("instead")
    def broken() -> str:
        raise ConnectionError("refused")

    assert broken() == "instead"
    assert heard == [False]
