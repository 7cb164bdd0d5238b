from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from django.test import override_settings

from resilience import CircuitBreakerConfig, OperationTimeoutError, Policy, RetryConfig, chaos, classify
from resilience.chaos import ChaosConfig, check_chaos
from resilience.testing import Events, FakeClock


def configured(**policies: Any) -> override_settings:
    return override_settings(RESILIENCE={"CHAOS": {"ALLOW_WITHOUT_DEBUG": True, "SEED": 1, **policies}})


def outcomes(policy: Policy, calls: int) -> list[str]:
    """Return what each call did: the name of the exception, or the result."""
    found = []
    for _ in range(calls):
        try:
            found.append(policy.call(str.upper, "ok"))
        except Exception as error:
            found.append(type(error).__name__)
    return found


def test_errors__come_at_their_rate_and_only_to_their_policy() -> None:
    """A fifth of the attempts fails, within the luck of the seeded dice; other policies are left alone."""
    with configured(openai={"error_rate": 0.2, "error": "builtins.ConnectionError"}):
        disturbed, calm = outcomes(Policy("openai", timeout=5), 500), outcomes(Policy("mail", timeout=5), 20)

    assert 70 <= disturbed.count("ConnectionError") <= 130
    assert set(disturbed) == {"ConnectionError", "OK"}
    assert calm == ["OK"] * 20


def test_seed__gives_the_same_faults_again() -> None:
    """Two runs with one seed are the same; another seed gives another run."""
    runs = []
    for seed in (1, 1, 2):
        with configured(seeded={"error_rate": 0.5}, SEED=seed):
            runs.append(outcomes(Policy("seeded", timeout=5), 40))

    assert runs[0] == runs[1] != runs[2]


def test_retries__see_the_faults() -> None:
    """Faults strike each attempt anew, inside the retry: half of the attempts fail, hardly any call does."""
    with configured(retried={"error_rate": 0.5}):
        found = outcomes(Policy("retried", retry=RetryConfig(max_attempts=10, delay=0)), 50)

    assert found.count("OK") >= 49


def test_circuit__opens_on_injected_faults() -> None:
    """A circuit counts them as it counts real ones, and then refuses."""
    with configured(broken={"error_rate": 1, "error": "overloaded"}):
        found = outcomes(Policy("broken", circuit=CircuitBreakerConfig(failure_threshold=3)), 5)

    assert found == ["InjectedFaultError"] * 3 + ["CircuitOpenError"] * 2


def test_latency__passes_on_the_apps_clock(fake_clock: FakeClock) -> None:
    """Late attempts are late by so many seconds, and made all the same."""
    with configured(slow={"latency": 0.5, "latency_rate": 1}):
        found = outcomes(Policy("slow", retry=RetryConfig()), 3)

    assert (found, fake_clock.sleeps) == (["OK"] * 3, [0.5] * 3)


async def test_latency__passes_for_coroutines_too(fake_clock: FakeClock) -> None:
    """The async form waits without blocking the loop."""
    with configured(slow={"latency": 0.5}):
        result = await Policy("slow", retry=RetryConfig()).acall(asyncio.sleep, 0, "slept")

    assert (result, fake_clock.sleeps) == ("slept", [0.5])


def test_hang__is_ended_by_the_timeout() -> None:
    """An attempt without an answer is cut off by the policy's own timeout, as a real one would be."""
    with configured(hung={"hang_rate": 1}), pytest.raises(OperationTimeoutError):
        Policy("hung", timeout=0.05).call(len, "abc")


async def test_hang__of_a_coroutine_is_ended_by_the_timeout() -> None:
    """The same for coroutines."""
    with configured(hung={"hang_rate": 1}), pytest.raises(OperationTimeoutError):
        await Policy("hung", timeout=0.05).acall(asyncio.sleep, 0)


def test_hang__without_a_timeout_ends_as_the_clients_own(fake_clock: FakeClock) -> None:
    """Nobody hangs for ever: after `hang` seconds comes what a client's socket would raise."""
    with configured(hung={"hang_rate": 1, "hang": 7}):
        found = outcomes(Policy("hung", retry=RetryConfig(max_attempts=1)), 1)

    assert (found, fake_clock.sleeps) == (["TimeoutError"], [7])


@pytest.mark.parametrize("kind", sorted({*chaos._STATUSES, *chaos._CLASSES}))
def test_kinds__are_classified_as_what_they_stand_for(kind: str) -> None:
    """An injected fault of a kind is of that kind for everybody who asks, also after a trip through a queue."""
    error = ChaosConfig(error_rate=1, error=kind).make_error()

    assert classify(error).kind == kind
    assert classify(pickle.loads(pickle.dumps(error))).kind == kind


def test_faults__are_told_by_a_signal(resilience_events: Events) -> None:
    """Whoever counts can tell the injected faults from the real ones."""
    with configured(counted={"error_rate": 1}):
        outcomes(Policy("counted", timeout=5), 2)

    assert [event.arguments for event in resilience_events.of("fault_injected")] == [{"name": "counted", "fault": "error"}] * 2


def test_log__tells_once_that_faults_are_injected(caplog: pytest.LogCaptureFixture) -> None:
    """One line for a policy, not one for each call."""
    with configured(noisy={"error_rate": 1}):
        outcomes(Policy("noisy", timeout=5), 10)
        outcomes(Policy("noisy", timeout=5), 10)

    assert [record.getMessage() for record in caplog.records if record.name == "resilience.chaos"] == [
        "RESILIENCE['CHAOS'] disturbs the calls of policy 'noisy'."
    ]


@pytest.mark.parametrize(("debug", "allowed", "injected"), [(False, False, False), (False, True, True), (True, False, True)])
def test_debug__is_needed_or_an_explicit_word(
    debug: bool, allowed: bool, injected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Chaos left in production settings injects nothing, is told once, and fails the system check."""
    setting = {"CHAOS": {"left": {"error_rate": 1}, "ALLOW_WITHOUT_DEBUG": allowed}}

    with override_settings(DEBUG=debug, RESILIENCE=setting):
        found = {*outcomes(Policy("left", timeout=5), 3), *outcomes(Policy("left", timeout=5), 3)}
        ids = [message.id for message in check_chaos()]

    assert found == ({"ConnectionError"} if injected else {"OK"})
    assert ids == ([] if injected else ["resilience.E007"])
    assert sum("is ignored" in record.getMessage() for record in caplog.records) == (0 if injected else 1)


def test_debug__is_asked_again_when_it_changes() -> None:
    """A policy that is in use already follows."""
    policy = Policy("followed", timeout=5)
    with override_settings(RESILIENCE={"CHAOS": {"followed": {"error_rate": 1}}}):
        before = outcomes(policy, 1)
        with override_settings(DEBUG=True):
            during = outcomes(policy, 1)

        assert (before, during, outcomes(policy, 1)) == (["OK"], ["ConnectionError"], ["OK"])


def test_enabled_false__switches_chaos_off_too() -> None:
    """Switched off, the app does nothing at all."""
    with override_settings(RESILIENCE={"ENABLED": False, "CHAOS": {"off": {"error_rate": 1}, "ALLOW_WITHOUT_DEBUG": True}}):
        assert outcomes(Policy("off", timeout=5), 1) == ["OK"]


def test_no_chaos__adds_no_layer() -> None:
    """A policy without faults calls the very functions that it calls without this module."""

    def call() -> None: ...

    async def acall() -> None: ...

    assert chaos.disturbed("calm", call, acall) == (call, acall)


BAD = [
    ({"error_rate": 2}, "error_rate must be 0 to 1, not 2. Use 0.2 for one attempt in five."),
    ({"latency_rate": "often"}, "latency_rate must be 0 to 1, not 'often'."),
    ({"latency": -1}, "latency must be 0 or more seconds, not -1. Use 0 for none."),
    ({"hang": 0}, "hang must be a number of seconds above 0, not 0."),
    ({"error": "weather"}, "error must be a kind or an exception class's dotted path, not 'weather'"),
    ({"error": "builtins.int"}, "error must be a kind or an exception class's dotted path, not 'builtins.int'"),
    ({"error": "builtins.SystemExit"}, "error must be a kind or an exception class's dotted path, not 'builtins.SystemExit'"),
    ({"speed": 3}, "unexpected keyword argument 'speed'"),
    (3, "must be a mapping"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_check__tells_what_is_wrong(fields: Any, message: str) -> None:
    """A wrong field is a system check error that names the policy and shows the way out."""
    with configured(openai=fields):
        (found,) = check_chaos()

    assert found.id == "resilience.E006"
    assert found.msg.startswith("RESILIENCE['CHAOS']['openai'] is wrong: ")
    assert message in found.msg
    assert found.hint


@pytest.mark.parametrize(("option", "value"), [("ALLOW_WITHOUT_DEBUG", "yes"), ("SEED", 1.5)])
def test_check__judges_the_options(option: str, value: object) -> None:
    """Options beside the policies have types too."""
    with override_settings(DEBUG=True, RESILIENCE={"CHAOS": {option: value}}):
        (found,) = check_chaos()

    assert found.id == "resilience.E006"
    assert found.msg.startswith(f"RESILIENCE['CHAOS'][{option!r}] must be")
