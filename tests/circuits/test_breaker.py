from __future__ import annotations

import asyncio
import gc
import importlib
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.cache.backends.filebased import FileBasedCache

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    async_circuit_breaker,
    circuit_breaker,
    get_all_circuit_breaker_stats,
    get_circuit_breaker,
    get_circuit_breaker_stats,
    signals,
)
from resilience.circuits import registry
from resilience.circuits.registry import UnknownCircuitError
from tests.circuits.conftest import FakeClock, Fleet, ServiceError, fail, is_refused, succeed


def broken() -> None:
    raise ServiceError("no answer")


async def abroken() -> None:
    raise ServiceError("no answer")


def test_decorator__keeps_name_doc_and_arguments() -> None:
    """The guarded function looks and answers like the bare one."""

    @circuit_breaker("decorated")
    def add(one: int, *, two: int) -> int:
        """Add."""
        return one + two

    assert (add(1, two=2), add.__name__, add.__doc__) == (3, "add", "Add.")


def test_decorator__without_a_name_takes_the_functions() -> None:
    """With and without parentheses; two functions of one name in two modules do not share a circuit."""

    @circuit_breaker
    def one() -> None: ...

    @circuit_breaker(failure_threshold=2)
    def two() -> None: ...

    assert one.breaker.name == f"{__name__}.{one.__qualname__}"
    assert two.breaker.name.endswith("two")
    assert two.breaker.config.failure_threshold == 2


def test_decorator__tells_where_it_stands_unless_that_is_given() -> None:
    """People find the function; whoever wraps the decorator may name another place."""

    @CircuitBreaker("placed-itself")
    def one() -> None: ...

    @CircuitBreaker("placed-by-hand", declared_in="shop.payments")
    def two() -> None: ...

    stats = get_all_circuit_breaker_stats(["placed-itself", "placed-by-hand"])
    assert stats["placed-itself"]["declared_in"] == f"{__name__}.{one.__qualname__}"
    assert stats["placed-by-hand"]["declared_in"] == "shop.payments"
    assert two() is None


def test_decorator__works_on_methods() -> None:
    """`self` arrives."""

    class Client:
        @circuit_breaker("method")
        def get(self, path: str) -> tuple[type, str]:
            return type(self), path

    assert Client().get("/x") == (Client, "/x")


def test_decorator__refuses_generators() -> None:
    """Their work happens after the call returned, where no breaker sees it."""

    def generator() -> Iterator[int]:
        yield 1

    async def agenerator() -> AsyncIterator[int]:
        yield 1

    for func in (generator, agenerator):
        with pytest.raises(TypeError, match="generator"):
            circuit_breaker("generator")(func)


async def test_decorator__guards_coroutines() -> None:
    """The same object guards `async def`; refusals, errors and results are the same."""
    service = circuit_breaker("async", failure_threshold=2, sync_interval=0)(abroken)
    fine = circuit_breaker("async-fine")(asyncio.sleep)

    for _ in range(2):
        with pytest.raises(ServiceError):
            await service()
    with pytest.raises(CircuitOpenError):
        await service()

    assert await fine(0, "slept") == "slept"


async def test_async__forced_form_for_what_detection_cannot_see() -> None:
    """A bound method that returns an awaitable is awaited inside the circuit."""
    service = async_circuit_breaker("hidden-async", failure_threshold=1)(partial(abroken).__call__)

    with pytest.raises(ServiceError):
        await service()
    with pytest.raises(CircuitOpenError):
        await service()


async def test_async__forced_form_takes_values_without_a_name() -> None:
    """The name is the function's then, with parentheses as without."""
    service = async_circuit_breaker(failure_threshold=1)(abroken)
    bare = async_circuit_breaker(abroken)

    with pytest.raises(ServiceError):
        await service()
    with pytest.raises(CircuitOpenError) as refused:
        await service()

    assert refused.value.name == bare.breaker.name == f"{__name__}.abroken"


async def test_async__fallback_may_be_a_coroutine() -> None:
    """A refused call waits for the fallback's answer."""

    async def stand_in() -> str:
        return "stored"

    service = circuit_breaker("async-fallback", failure_threshold=1, fallback=stand_in)(abroken)
    with pytest.raises(ServiceError):
        await service()

    assert await service() == "stored"


async def test_async__cancelled_probe_gives_its_place_back(fake_clock: FakeClock) -> None:
    """A task cancelled in mid-call counts as nothing and frees its place at once."""
    breaker = CircuitBreaker("cancelled", failure_threshold=1, success_threshold=1, recovery_timeout=1)
    fail(breaker)
    fake_clock.advance(1)
    probe = asyncio.ensure_future(breaker.acall(asyncio.Event().wait))
    await asyncio.sleep(0)
    assert is_refused(breaker)

    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe

    succeed(breaker)
    assert breaker.state == "closed"


async def test_async__a_probe_can_be_closed(settings: Any, tmp_path: Path) -> None:
    """A coroutine that is closed, as at the end of a program, does not wait for the cache: its lease runs out."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)}}
    breaker, begun = CircuitBreaker("closed probe", half_open_timeout=60), asyncio.Event()
    await asyncio.to_thread(breaker.open)
    await asyncio.to_thread(breaker.half_open)

    async def body() -> None:
        begun.set()
        await asyncio.Event().wait()

    call = breaker.acall(body)
    task = asyncio.ensure_future(call)
    await begun.wait()
    call.close()
    task.cancel()
    with pytest.raises(RuntimeError, match="already awaited"):
        await task

    assert (await asyncio.to_thread(breaker.get_stats))["state"] == "half_open"


class SlowCache(FileBasedCache):
    """Answers no vote while `thawed` is not set."""

    thawed, asked, given_back = threading.Event(), threading.Event(), threading.Event()

    def add(self, *args: Any, **kwargs: Any) -> Any:
        SlowCache.asked.set()
        assert SlowCache.thawed.wait(10)
        return super().add(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        deleted = super().delete(*args, **kwargs)
        SlowCache.given_back.set()
        return deleted


async def test_async__cancelled_while_it_asks_the_cache_begins_nothing_and_holds_no_place(settings: Any, tmp_path: Path) -> None:
    """The answer that comes too late is given back, so that the next caller may probe at once."""
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.SlowCache", "LOCATION": str(tmp_path)}}
    breaker, calls = CircuitBreaker("asking", success_threshold=1, half_open_timeout=60), []
    SlowCache.thawed.set()
    await asyncio.to_thread(breaker.open)
    await asyncio.to_thread(breaker.half_open)
    for event in (SlowCache.thawed, SlowCache.asked, SlowCache.given_back):
        event.clear()

    async def service() -> None:
        calls.append("called")

    task = asyncio.ensure_future(breaker.acall(service))
    assert await asyncio.to_thread(SlowCache.asked.wait, 10)
    task.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        SlowCache.thawed.set()

    assert calls == []
    assert await asyncio.to_thread(SlowCache.given_back.wait, 5)
    await breaker.acall(service)
    assert calls == ["called"]


async def test_async__asks_the_cache_although_the_thread_for_synchronous_code_is_busy(settings: Any, tmp_path: Path) -> None:
    """Neither before nor after the call does it wait for what else runs there."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)}}
    breaker = CircuitBreaker("busy thread", failure_threshold=1, sync_interval=0)
    busy, go_on = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        go_on.wait(10)

    other = asyncio.ensure_future(sync_to_async(occupy)())
    await asyncio.to_thread(busy.wait, 10)
    try:
        async with asyncio.timeout(5):
            with pytest.raises(ServiceError):
                await breaker.acall(abroken)
            with pytest.raises(CircuitOpenError):
                await breaker.acall(abroken)
    finally:
        go_on.set()
        await other


async def test_block__both_forms_count_and_nest() -> None:
    """`with` and `async with` on one object, inside each other, each count once."""
    breaker = CircuitBreaker("block", failure_threshold=3)

    with breaker:
        async with breaker:
            with pytest.raises(ServiceError), breaker:
                broken()

    stats = breaker.get_stats()
    assert (stats["success_count"], stats["failure_count"]) == (2, 1)


def test_block__threads_do_not_mix_up_their_permits() -> None:
    """One object as a context manager in many threads."""
    breaker = CircuitBreaker("block-threads")
    gate = threading.Barrier(8)

    def caller() -> None:
        gate.wait()
        for _ in range(50):
            with breaker, breaker:
                pass

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert breaker.get_stats()["success_count"] == 800


def test_block__stack_unwinds_in_order() -> None:
    """Two circuits in one ExitStack each get their own outcome."""
    first, second = CircuitBreaker("stack-1"), CircuitBreaker("stack-2", exceptions=KeyError)

    with pytest.raises(ServiceError), ExitStack() as stack:  # the stack is the subject
        stack.enter_context(first)
        stack.enter_context(second)
        broken()

    assert first.get_stats()["failure_count"] == 1
    assert second.get_stats()["success_count"] == 1


def test_threads__lose_no_count() -> None:
    """8 threads, one breaker, 80,000 calls and not one missing."""
    breaker = CircuitBreaker("threads", failure_threshold=10_000_000)
    service = breaker(lambda: None)
    failing = breaker(broken)
    gate = threading.Barrier(8)

    def caller() -> None:
        gate.wait()
        for number in range(10_000):
            if number % 100:
                service()
            else:
                with pytest.raises(ServiceError):
                    failing()

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    stats = breaker.get_stats()
    assert (stats["success_count"], stats["failure_count"]) == (79_200, 800)


def test_fallback__does_not_serve_failures() -> None:
    """It stands in for refused calls only; a value serves as well as a function."""
    service = circuit_breaker("fallback", failure_threshold=1, fallback={"stored": True})(broken)

    with pytest.raises(ServiceError):
        service()

    assert service() == {"stored": True}


def test_fallback__does_not_serve_a_refusal_from_inside() -> None:
    """The `CircuitOpenError` of another circuit inside the function is the function's own error."""
    inner = CircuitBreaker("inner")
    inner.open()
    outer = circuit_breaker("outer", fallback="stand-in")(lambda: inner.call(broken))

    with pytest.raises(CircuitOpenError) as refused:
        outer()

    assert refused.value.name == "inner"


def test_callbacks__get_the_transition_if_they_require_one(fake_clock: FakeClock) -> None:
    """Both forms; a default is not a requirement."""
    plain: list[str] = []
    told: list[Any] = []
    breaker = CircuitBreaker(
        "callbacks",
        failure_threshold=1,
        success_threshold=1,
        recovery_timeout=5,
        on_open=told.append,
        on_half_open=lambda mark="default": plain.append(mark),
        on_close=lambda: plain.append("closed"),
    )

    fail(breaker)
    fake_clock.advance(5)
    succeed(breaker)

    assert plain == ["default", "closed"]
    assert (told[0].name, told[0].old, told[0].new) == ("callbacks", "closed", "open")
    assert told[0].reason == "1 failure in 60 s"


def test_callbacks__that_take_no_positional_argument_get_none(local_fleet: Fleet) -> None:
    """Any keyword would do for `**options`, so nothing is passed that it would not take."""
    told: list[dict[str, Any]] = []

    fail(local_fleet.member(failure_threshold=1, on_open=lambda **options: told.append(options)))

    assert told == [{}]


def test_callbacks__that_fail_do_not_break_the_call(caplog: pytest.LogCaptureFixture) -> None:
    """A broken callback and a broken receiver are logged; the caller gets the service's own error."""
    breaker = CircuitBreaker("broken-callback", failure_threshold=1, on_open=lambda: 1 / 0)

    def receiver(**kwargs: Any) -> None:
        raise RuntimeError

    signals.circuit_opened.connect(receiver)
    try:
        fail(breaker)
    finally:
        signals.circuit_opened.disconnect(receiver)

    assert breaker.state == "open"
    assert "A callback of circuit" in caplog.text


def test_signals__tell_calls_refusals_and_operations() -> None:
    """Outcome and seconds of each call while somebody listens; who operated."""
    heard: list[tuple[str, ...]] = []
    breaker = CircuitBreaker("signals", failure_threshold=1)
    service = breaker(lambda: None)

    def on_call(outcome: str, duration: float, **kwargs: Any) -> None:
        heard.append(("called", outcome))
        assert duration >= 0

    def on_refusal(name: str, transition: Any, state: str, retry_after: float, **kwargs: Any) -> None:
        assert (name, transition.old, transition.new) == (breaker.name, "closed", "open")
        heard.append(("rejected", state))

    def on_operation(actor: str, transition: Any, **kwargs: Any) -> None:
        assert "hunter2" not in transition.reason
        heard.append(("operated", actor, transition.new))

    service()
    pairs = [(signals.circuit_called, on_call), (signals.circuit_rejected, on_refusal), (signals.circuit_operated, on_operation)]
    for signal, receiver in pairs:
        signal.connect(receiver)
    try:
        service()
        fail(breaker)
        assert is_refused(breaker)
        breaker.reset(reason="password=hunter2", actor="cli:anna")
    finally:
        for signal, receiver in pairs:
            signal.disconnect(receiver)

    assert heard == [
        ("called", "success"),
        ("called", "failure"),
        ("rejected", "open"),
        ("operated", "cli:anna", "closed"),
    ]


def test_signals__tell_each_change_of_state(local_fleet: Fleet) -> None:
    """The name and the transition, once each, by whom the breaker is."""
    heard: list[tuple[Any, ...]] = []
    breaker = local_fleet.member(failure_threshold=1, success_threshold=1)

    def on_change(sender: type, name: str, transition: Any, **kwargs: Any) -> None:
        heard.append((sender, name, str(transition.old), str(transition.new)))

    watched = (signals.circuit_opened, signals.circuit_half_opened, signals.circuit_closed)
    for signal in watched:
        signal.connect(on_change)
    try:
        fail(breaker)
        local_fleet.advance(10)
        succeed(breaker)
    finally:
        for signal in watched:
            signal.disconnect(on_change)

    assert heard == [
        (CircuitBreaker, breaker.name, "closed", "open"),
        (CircuitBreaker, breaker.name, "open", "half_open"),
        (CircuitBreaker, breaker.name, "half_open", "closed"),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"slow_call_duration": 2, "slow_call_rate_threshold": 0.5},
        {"failure_rate_threshold": 0.5, "failure_on_result": lambda value: value == "poor"},
        {"failure_threshold": 3, "failure_on_result": lambda value: value == "poor"},
    ],
)
def test_decorator__judges_time_and_results_however_warm_it_is(fake_clock: FakeClock, fields: dict[str, Any]) -> None:
    """The short way through a closed circuit is only for calls whose success is all that matters."""

    @circuit_breaker(f"warm-{len(fields)}-{min(fields)}", minimum_calls=4, **fields)
    def service(seconds: float = 0, value: str = "fine") -> str:
        fake_clock.advance(seconds)
        return value

    service()
    for _ in range(3):
        service(seconds=2.5, value="poor")

    with pytest.raises(CircuitOpenError):
        service()


def test_judges__that_fail_lose_no_result(caplog: pytest.LogCaptureFixture) -> None:
    """A broken `failure_on_result` counts a success, a broken `failure_if` a failure, and the caller sees neither."""
    breaker = CircuitBreaker("judges", failure_on_result=lambda value: 1 / 0, failure_if=lambda error: 1 / 0)

    assert succeed(breaker) == "fine"
    fail(breaker)

    stats = breaker.get_stats()
    assert (stats["success_count"], stats["failure_count"]) == (1, 1)
    assert "failure_on_result failed; the call counts as a success. ZeroDivisionError" in caplog.text
    assert "failure_if failed; the call counts as a failure. ZeroDivisionError" in caplog.text


def test_names__of_any_length_and_alphabet(fleet: Fleet) -> None:
    """Spaces, control characters, emoji and a thousand letters make valid keys on every backend."""
    for name in ("a b\n\x00c", "ключ/🔑", "x" * 1000, "a:b/c?d=e"):
        fleet.name = name
        breaker = fleet.member(failure_threshold=1)
        fail(breaker)
        assert is_refused(fleet.member(failure_threshold=1))
        assert breaker.get_stats()["name"] == name
        breaker.reset()


def test_names__same_name_shares_the_circuit() -> None:
    """Within one process too, at once."""
    first, second = CircuitBreaker("same", failure_threshold=1), CircuitBreaker("same", failure_threshold=1)

    fail(first)

    assert is_refused(second)


def test_declaration__the_latest_explicit_values_hold(caplog: pytest.LogCaptureFixture) -> None:
    """A second declaration with other values says so in the log."""
    first = CircuitBreaker("twice", failure_threshold=5)
    succeed(first)
    second = CircuitBreaker("twice", failure_threshold=1)

    fail(second)

    assert is_refused(first)
    assert "declared twice" in caplog.text


def test_declaration__without_values_takes_those_that_are_there(caplog: pytest.LogCaptureFixture) -> None:
    """Naming a circuit once more says nothing against what it was told, by fields or by a configuration."""
    config = CircuitBreakerConfig(failure_threshold=1)
    first = CircuitBreaker("told-once", config)
    succeed(first)
    second = CircuitBreaker("told-once")

    fail(second)

    assert is_refused(first)
    assert "declared twice" not in caplog.text


def test_declaration__by_a_whole_configuration_holds_too() -> None:
    """The latest explicit values may come in one object."""
    first = CircuitBreaker("told-again", failure_threshold=5)
    succeed(first)

    fail(CircuitBreaker("told-again", CircuitBreakerConfig(failure_threshold=1)))

    assert is_refused(first)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"failure_threshold": 0}, ValueError, r"failure_threshold must be a whole number of 1 or more, not 0\."),
        ({"failure_rate_threshold": 50}, ValueError, r"must be above 0 and at most 1, not 50\. Write 50 % as 0\.5\."),
        ({"recovery_timeout": 0}, ValueError, r"recovery_timeout must be more than 0 seconds, not 0\."),
        ({"recovery_timeout": float("nan")}, ValueError, r"not nan\."),
        ({"recovery_backoff": 0.5}, ValueError, r"recovery_backoff must be 1 or more, not 0\.5\."),
        ({"sync_interval": -1}, ValueError, r"sync_interval must be 0 or more seconds, not -1\."),
        ({"scope": "host"}, ValueError, r'scope must be "fleet" or "process", not \'host\'\.'),
        ({"exceptions": (1,)}, ValueError, r"exceptions must be exception classes, not 1\."),
        ({"exceptions": "requests.Timeout"}, ValueError, r"exceptions must be exception classes, not 'requests\.Timeout'\."),
        ({"on_open": abroken}, ValueError, r"on_open must be a plain function"),
        ({"failure_limit": 3}, TypeError, "failure_limit"),
    ],
)
def test_config__wrong_values_are_refused_where_they_are_written(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    """At declaration, with what to do, and not on the worst night."""
    with pytest.raises(error, match=message):
        CircuitBreaker("wrong", **fields)


@pytest.mark.parametrize("name", ["", 5, b"orders"])
def test_name__that_is_no_text_is_refused(name: Any) -> None:
    """An empty one too: it would be shown as nothing."""
    with pytest.raises(ValueError, match="name must be a text of one character or more, not"):
        CircuitBreaker(name)


def test_config__that_is_no_configuration_is_refused() -> None:
    """A dict of fields is told how to be written."""
    with pytest.raises(TypeError, match=r"config must be a CircuitBreakerConfig, not {'failure_threshold': 3}\."):
        CircuitBreaker("wrong", {"failure_threshold": 3})  # type: ignore[arg-type]  # the subject


def test_config__fields_beat_name_beats_general_settings(settings: Any) -> None:
    """Explicit values, then CIRCUITS[name], then CIRCUIT, then defaults; read when used."""
    breaker = CircuitBreaker("layers", success_threshold=9)
    settings.RESILIENCE = {
        "CIRCUIT": {"failure_threshold": 7, "success_threshold": 7, "minimum_calls": 7},
        "CIRCUITS": {"layers": {"minimum_calls": 8, "success_threshold": 8}},
    }

    config = breaker.circuit.config

    assert (config.failure_threshold, config.minimum_calls, config.success_threshold) == (7, 8, 9)
    assert config.failure_window == 60
    settings.RESILIENCE = {"CIRCUIT": {"failure_threshold": 6}}
    assert breaker.circuit.config.failure_threshold == 6


def test_config__a_whole_configuration_beats_settings(settings: Any) -> None:
    """Only the interval and the cache are still asked of the settings."""
    settings.RESILIENCE = {"CIRCUIT": {"failure_threshold": 7}, "SYNC_INTERVAL": 0.25}
    breaker = CircuitBreaker("whole", CircuitBreakerConfig(minimum_calls=3))
    assert breaker.config.minimum_calls == 3

    config = breaker.circuit.config

    assert (config.failure_threshold, config.minimum_calls, config.sync_interval) == (5, 3, 0.25)


@pytest.mark.parametrize(
    "off", [{"ENABLED": False}, {"CIRCUIT": {"enabled": False}}, {"CIRCUITS": {"switched": {"enabled": False}}}]
)
def test_settings__switched_off_calls_go_straight_through(settings: Any, off: dict[str, Any]) -> None:
    """Also through a circuit that was open and warm when the setting changed; and back."""
    service = circuit_breaker("switched", failure_threshold=1)(lambda error=False: broken() if error else "fine")
    with pytest.raises(ServiceError):
        service(error=True)
    with pytest.raises(CircuitOpenError):
        service()

    settings.RESILIENCE = off

    assert service() == "fine"
    settings.RESILIENCE = {}
    with pytest.raises(CircuitOpenError):
        service()


def test_scope__process_keeps_a_circuit_out_of_the_cache(settings: Any) -> None:
    """Nothing reaches the shared cache, and all else works."""
    settings.RESILIENCE = {"CACHE": "no-such-alias"}
    breaker = CircuitBreaker("private", failure_threshold=1, scope="process", cache="default")

    fail(breaker)

    assert is_refused(breaker)
    assert breaker.get_stats()["scope"] == "process"


def test_registry__finds_declared_circuits_before_their_first_call() -> None:
    """Closed, with no calls; looking creates nothing."""
    breaker = CircuitBreaker("declared-only")

    stats = get_all_circuit_breaker_stats()["declared-only"]

    assert (stats["state"], stats["failure_count"], stats["transitions"]) == ("closed", 0, [])
    assert get_circuit_breaker("declared-only") is breaker


def test_registry__unknown_names_are_an_error() -> None:
    """Reading a name nobody used does not create it."""
    for read in (get_circuit_breaker, get_circuit_breaker_stats):
        with pytest.raises(UnknownCircuitError, match="There is no circuit 'nobody'"):
            read("nobody")

    assert "nobody" not in get_all_circuit_breaker_stats()


def test_registry__settings_make_a_name_known(settings: Any) -> None:
    """A circuit in RESILIENCE["CIRCUITS"] can be looked up before any code declares it."""
    settings.RESILIENCE = {"CIRCUITS": {"configured": {"failure_threshold": 2}}}

    assert get_circuit_breaker_stats("configured")["failure_threshold"] == 2


def test_registry__circuits_of_other_processes_are_seen_and_operated(local_fleet: Fleet) -> None:
    """Through the index in the cache, with their configuration and place."""
    other = local_fleet.member(cache=None, failure_threshold=1)
    fail(other)
    name = other.name
    del other
    gc.collect()

    stats = get_all_circuit_breaker_stats()[name]
    get_circuit_breaker(name).reset(reason="looked after", actor="admin:anna")

    assert (stats["state"], stats["failure_threshold"], stats["declared_in"]) == ("open", 1, "tests")
    assert [entry["error"] for entry in stats["recent_failures"]] == ["ServiceError"]
    after = get_circuit_breaker_stats(name)
    assert (after["state"], after["actor"]) == ("closed", "admin:anna")
    assert [entry["new"] for entry in after["transitions"]] == ["open", "closed"]


def test_registry__garbage_lets_go_of_circuits() -> None:
    """A breaker made for one request does not stay for ever."""
    from resilience.circuits import registry

    def use() -> None:
        succeed(CircuitBreaker("short-lived"))

    use()
    gc.collect()

    assert "short-lived" not in registry._circuits


def test_history__is_bounded_and_redacted(local_fleet: Fleet) -> None:
    """Twenty transitions and twenty failures, without secrets, whatever happens."""
    breaker = local_fleet.member(failure_threshold=1, success_threshold=1)

    for _ in range(15):
        with pytest.raises(ServiceError):
            breaker.call(_leak)
        local_fleet.advance(10)
        succeed(breaker)
        local_fleet.advance(1)

    stats = breaker.get_stats()
    assert len(stats["transitions"]) == 20
    assert len(stats["recent_failures"]) == 15
    assert "hunter2" not in str(stats)
    assert [entry["new"] for entry in stats["transitions"][-3:]] == ["open", "half_open", "closed"]


def _leak() -> None:
    raise ServiceError("GET https://bob:hunter2@example.org/?token=hunter2")


def test_registry__second_declaration_keeps_what_was_counted(settings: Any) -> None:
    """Other values hold from then on for failures already made, and everybody reads the same number."""
    first = CircuitBreaker("declared-again", scope="process", failure_threshold=10)
    fail(first, 3)

    second = CircuitBreaker("declared-again", scope="process", failure_threshold=4)

    assert second.get_stats()["failure_count"] == first.get_stats()["failure_count"] == 3
    assert get_circuit_breaker_stats("declared-again")["failure_count"] == 3
    fail(second)
    assert is_refused(first)


@pytest.mark.parametrize("scope", ["fleet", "process"])
def test_registry__earlier_breaker_is_found_when_the_latest_is_gone(settings: Any, scope: str) -> None:
    """The circuit is known as long as anybody holds a breaker of it."""
    first = CircuitBreaker(f"outlives-{scope}", scope=scope, failure_threshold=1, declared_in="shop.first")
    fail(first)
    second = CircuitBreaker(f"outlives-{scope}", scope=scope, failure_threshold=1, declared_in="shop.second")
    assert second.state == "open"
    del second
    gc.collect()

    found = get_circuit_breaker(f"outlives-{scope}")
    assert found.state == "open"
    assert get_all_circuit_breaker_stats()[f"outlives-{scope}"]["state"] == "open"
    settings.RESILIENCE = {"CIRCUIT": {"minimum_calls": 30}}
    assert (found.state, found.get_stats()["declared_in"]) == ("open", "shop.first")


def test_classifier__of_the_project_makes_an_error_neutral(local_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """CANCELLED is neither success nor failure, whoever says so."""
    from resilience.calls.kinds import ErrorInfo, ErrorKind

    class StandbyError(ServiceError): ...

    module = importlib.import_module("resilience.calls.classify")
    monkeypatch.setattr(module, "_registered", [])
    module.register_classifier(lambda exc: ErrorInfo(ErrorKind.CANCELLED) if isinstance(exc, StandbyError) else None)
    breaker = local_fleet.member(failure_threshold=1)

    fail(breaker, 3, StandbyError)

    assert breaker.state == "closed"
    assert (breaker.get_stats()["failure_count"], breaker.get_stats()["success_count"]) == (0, 0)
    fail(breaker)
    assert breaker.state == "open"


@pytest.mark.parametrize("reason", ["", "maintenance, token=hunter2"])
@pytest.mark.parametrize(
    ("order", "state", "default"),
    [
        ("open", "forced_open", "forced open"),
        ("half_open", "half_open", "probe now"),
        ("disable", "disabled", "disabled"),
        ("metrics_only", "metrics_only", "metrics only"),
        ("reset", "closed", "reset"),
    ],
)
def test_order__says_why_and_who(local_fleet: Fleet, order: str, state: str, default: str, reason: str) -> None:
    """Each order shows its reason, redacted, or what it is, and who gave it."""
    breaker = local_fleet.member()
    breaker.open()

    getattr(breaker, order)(reason=reason, actor="cli:anna")

    stats = breaker.get_stats()
    assert (stats["state"], stats["actor"]) == (state, "cli:anna")
    assert stats["reason"].startswith("maintenance") if reason else stats["reason"] == default
    assert "hunter2" not in stats["reason"]


@pytest.mark.parametrize("order", ["disable", "metrics_only"])
def test_callbacks__of_closing_are_not_for_an_order_over_an_open_circuit(local_fleet: Fleet, order: str) -> None:
    """Calls go through, but the circuit did not close: `on_close` waits until it does."""
    breaker = local_fleet.member(failure_threshold=1)
    fail(breaker)

    getattr(breaker, order)()
    assert local_fleet.events == ["open"]
    breaker.reset()

    assert local_fleet.events == ["open", "close"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_open__for_an_impossible_time_is_refused(local_fleet: Fleet, seconds: float) -> None:
    """An order that could not be shown or kept is not given."""
    with pytest.raises(ValueError, match="seconds must be more than 0 and finite"):
        local_fleet.member().open(seconds=seconds)


@pytest.mark.parametrize("scope", ["fleet", "process"])
def test_reset_circuits__leaves_nothing_that_comes_back(settings: Any, scope: str) -> None:
    """A test that empties the cache after it meets closed circuits, whatever the test before it did."""
    from django.core.cache import caches

    from resilience.testing import reset_circuits

    breaker = CircuitBreaker(f"cleaned-{scope}", scope=scope, failure_threshold=1, sync_interval=0)
    fail(breaker)

    reset_circuits()
    caches["default"].clear()

    assert succeed(breaker) == "fine"
    assert breaker.get_stats()["transitions"] == []


def test_reset_circuits__brings_nothing_back_into_another_tests_cache(fake_clock: FakeClock) -> None:
    """A live breaker knows nothing any more, so it cannot put an old state into an empty cache."""
    from django.core.cache import caches

    from resilience.testing import reset_circuits

    breaker = CircuitBreaker("cleaned-and-metrics", sync_interval=0)
    breaker.metrics_only()

    reset_circuits()
    generation = breaker.get_stats()["generation"]
    caches["default"].clear()
    reset_circuits()
    caches["default"].clear()
    fake_clock.advance(1)  # a circuit begins to count its generations at the time of its birth

    assert breaker.get_stats()["state"] == "closed"
    assert breaker.get_stats()["generation"] != generation


def test_unnamed__leaves_nothing_behind() -> None:
    """What a circuit without a name kept, counts, failures and history, goes with it; so thousands cost nothing."""

    def used() -> weakref.ref[Any]:
        breaker = CircuitBreaker(failure_threshold=2)
        fail(breaker, 2)
        assert is_refused(breaker)
        assert breaker.get_stats()["recent_failures"]
        return weakref.ref(breaker.circuit.store)

    stores = [used() for _ in range(50)]
    gc.collect()

    assert [store for store in stores if store() is not None] == []
    assert all(not name.startswith("anonymous-") for name in registry._circuits)


def test_unnamed__keeps_its_state_over_changed_settings(settings: Any) -> None:
    """Settings that change do not close it."""
    breaker = CircuitBreaker(failure_threshold=2)
    fail(breaker, 2)

    settings.RESILIENCE = {"CIRCUIT": {"success_threshold": 7}}

    assert is_refused(breaker)
    assert breaker.config.success_threshold == 7
