from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import billiard.exceptions
import pytest
from django.test import override_settings

from resilience import clock, signals
from resilience.calls.budgets import RetryBudget
from resilience.calls.retries import RetryConfig, RetryContext, retry
from resilience.calls.timeouts import remaining
from tests.calls.scripts import FakeTime, Script


@pytest.fixture(autouse=True)
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Retries wait on a fake clock."""
    fake = FakeTime()
    for name in ("monotonic", "sleep", "async_sleep"):
        monkeypatch.setattr(clock, name, getattr(fake, name))
    return fake


def looped(script: Script, *args: Any, **fields: Any) -> object:
    result = None
    for attempt in RetryContext(*args, **fields):
        with attempt:
            result = script()
    return result


def alooped(script: Script, *args: Any, **fields: Any) -> object:
    async def main() -> object:
        result = None
        async for attempt in RetryContext(*args, **fields):
            with attempt:
                result = await script.run()
        return result

    return asyncio.run(main())


loops = pytest.mark.parametrize("loop", [looped, alooped])


@loops
def test_retry_context__repeats_its_block(loop: Any, fake_time: FakeTime) -> None:
    """The block runs again until it raises nothing."""
    script = Script(TimeoutError(), TimeoutError(), "done")

    assert loop(script, RetryConfig(max_attempts=3, delay=1, jitter=False)) == "done"
    assert script.calls == 3
    assert fake_time.sleeps == [1, 2]


@loops
def test_retry_context__raises_the_original_exception_with_a_note(loop: Any) -> None:
    """The last exception comes out of the block, with the story of the loop."""
    error = TimeoutError()

    with pytest.raises(TimeoutError) as caught:
        loop(Script(error), max_attempts=2, delay=1, jitter=False)

    assert caught.value is error
    assert error.__notes__ == ["resilience: gave up after 2 attempts in 1.00 s: attempts exhausted"]


@loops
@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), billiard.exceptions.SoftTimeLimitExceeded()])
def test_retry_context__lets_pass_what_is_not_to_be_retried(loop: Any, error: BaseException) -> None:
    """Permanent errors and control flow leave at once."""
    script = Script(error)

    with pytest.raises(type(error)):
        loop(script)

    assert script.calls == 1


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), billiard.exceptions.SoftTimeLimitExceeded()])
def test_retry_context__makes_no_further_attempt_after_what_it_let_pass(error: BaseException) -> None:
    """Whoever answers such an exception inside the loop does not find it going on."""
    script = Script(error)

    for attempt in RetryContext(max_attempts=3, delay=1):
        assert attempt.number == 1
        with contextlib.suppress(type(error)), attempt:
            script()

    assert script.calls == 1


@loops
def test_retry_context__keeps_its_deadline(loop: Any, fake_time: FakeTime) -> None:
    """No wait ends past the deadline."""
    script = Script(TimeoutError(), takes=1, time=fake_time)

    with pytest.raises(TimeoutError):
        loop(script, max_attempts=10, delay=2, deadline=10, jitter=False)

    assert script.calls == 3


def test_retry_context__tells_the_block_what_is_left(fake_time: FakeTime) -> None:
    """`remaining()` counts down inside the block, and not outside."""
    left = []

    for attempt in RetryContext(max_attempts=3, delay=1, strategy="fixed", jitter=False, deadline=10):
        with attempt:
            left.append(remaining())
            if attempt.number < 3:
                raise TimeoutError

    assert left == [10, 9, 8]
    assert remaining() is None


def test_retry_context__looks_at_the_deadline_again_after_a_wait(fake_time: FakeTime) -> None:
    """A sleep that took too long is followed by the failure, not by an attempt."""
    fake_time.oversleeps = 5
    script = Script(TimeoutError())

    with pytest.raises(TimeoutError):
        looped(script, delay=1, deadline=3, jitter=False)

    assert script.calls == 1


def test_retry_context__can_be_used_by_many_at_once(fake_time: FakeTime) -> None:
    """Each loop counts for itself."""
    shared = RetryContext(max_attempts=3, delay=0)
    numbers: list[list[int]] = []

    def work() -> None:
        mine = []
        for attempt in shared:
            with attempt:
                mine.append(attempt.number)
                if attempt.number < 3:
                    raise TimeoutError
        numbers.append(mine)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert numbers == [[1, 2, 3]] * 3


def test_retry_context__inside_a_retry_does_not_multiply() -> None:
    """A block that gave up is not retried by the function around it."""
    script = Script(TimeoutError())

    with pytest.raises(TimeoutError):
        retry(delay=0)(lambda: looped(script, delay=0))()

    assert script.calls == 3


def test_retry_context__pays_from_its_budget() -> None:
    """Each loop is one call of the budget, each further attempt one retry."""
    budget = RetryBudget(ratio=0.5, min_per_second=0)
    scripts = [Script(TimeoutError()) for _ in range(4)]

    for script in scripts:
        with pytest.raises(TimeoutError):
            looped(script, delay=0, budget=budget)

    assert [script.calls for script in scripts] == [1, 2, 1, 2]


def test_retry_context__tells_its_name() -> None:
    """Signals name the block, for it has no function to take a name from."""
    told = []

    def receive(sender: object, **arguments: Any) -> None:
        told.append(arguments["name"])

    signals.retry_scheduled.connect(receive)
    looped(Script(TimeoutError(), "done"), delay=0, name="import of rates")
    signals.retry_scheduled.disconnect(receive)

    assert told == ["import of rates"]


@loops
@pytest.mark.parametrize("fields", [{}, {"max_attempts": 5}])
def test_retry_context__switched_off_runs_once(loop: Any, fields: dict[str, Any]) -> None:
    """Off means one attempt and the original exception."""
    for arguments in ((), (RetryConfig(),)):
        script = Script(TimeoutError())
        with override_settings(RESILIENCE={"ENABLED": False}), pytest.raises(TimeoutError):
            loop(script, *arguments, **fields)
        assert script.calls == 1


@loops
def test_retry_context__takes_its_rules_from_the_settings(loop: Any) -> None:
    """Without a config the settings of the moment count."""
    script = Script(TimeoutError())

    with override_settings(RESILIENCE={"RETRY": {"max_attempts": 5, "delay": 0}}), pytest.raises(TimeoutError):
        loop(script)

    assert script.calls == 5


def test_retry_context__insists_on_its_with_block() -> None:
    """A loop that forgets the block would run for ever: it is told so in the first round."""
    with pytest.raises(RuntimeError, match="must be entered"):
        for _ in RetryContext():
            pass


@pytest.mark.parametrize("fields", [{"retry_on_result": bool}, {"attempt_timeout": 1}])
def test_retry_context__refuses_what_a_block_cannot_have(fields: dict[str, Any]) -> None:
    """There is no result to look at and nothing to cut off."""
    with pytest.raises(TypeError, match="must be None in a RetryContext"):
        RetryContext(**fields)
    with pytest.raises(TypeError, match="must be None in a RetryContext"):
        RetryContext(RetryConfig(**fields))


def test_retry_context__refuses_what_is_no_config() -> None:
    """A number is no config."""
    with pytest.raises(TypeError, match=r"config must be a RetryConfig or None, not 3\."):
        RetryContext(3)  # type: ignore[arg-type]


@loops
def test_retry_context__is_off_when_retrying_is(loop: Any) -> None:
    """`RETRY: {"enabled": False}` holds for a whole configuration too."""
    script = Script(TimeoutError(), "done")

    with override_settings(RESILIENCE={"RETRY": {"enabled": False}}), pytest.raises(TimeoutError):
        loop(script, RetryConfig(max_attempts=3, delay=0))

    assert script.calls == 1
