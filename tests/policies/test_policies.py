from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.test import override_settings

from resilience import clock, signals
from resilience.calls.bulkheads import Bulkhead
from resilience.calls.retries import RetryConfig
from resilience.calls.timeouts import TimeoutConfig, remaining
from resilience.circuits.config import CircuitBreakerConfig
from resilience.circuits.registry import get_circuit_breaker_stats
from resilience.exceptions import BulkheadFullError, CircuitOpenError, OperationTimeoutError
from resilience.policies import Policy, resilient

LONG = 30.0
SHORT = 0.05
AT_ONCE = RetryConfig(max_attempts=3, delay=0)
CONTROL_FLOW = [
    Retry(),
    Ignore(),
    Reject("bad"),
    SoftTimeLimitExceeded(),
    SystemExit(1),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
]


@pytest.fixture
def slept(monkeypatch):
    """Do not wait, and tell how long one would have."""
    waits = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    return waits


def failing(error, calls):
    """Make a function that raises `error` and notes its calls."""

    def supplier(*args, **kwargs):
        calls.append(args)
        raise error

    return supplier


def failing_async(error, calls):
    """Make a coroutine function that raises `error` and notes its calls."""

    async def supplier(*args, **kwargs):
        calls.append(args)
        raise error

    return supplier


def full_policy(name, **changes):
    fields = {
        "retry": AT_ONCE,
        "circuit": CircuitBreakerConfig(scope="process", failure_threshold=100),
        "timeout": LONG,
        "deadline": LONG,
        "fallback": "sorry",
        "bulkhead": Bulkhead(name, 5),
    }
    return Policy(name, **{**fields, **changes})


async def test_policy__gives_the_result_through_all_layers():
    """Arguments and result pass unchanged, sync and async, called and decorated, and every layer is closed again."""
    bulkhead = Bulkhead("full", 5)
    policy = full_policy("full", bulkhead=bulkhead)

    @resilient(policy)
    def plain(a, *, b=1):
        """Add."""
        return a + b, bulkhead.running, remaining() is not None

    @policy
    async def coroutine(a, *, b=1):
        return a + b, bulkhead.running, remaining() is not None

    assert plain(1, b=2) == (3, 1, True)
    assert await coroutine(1, b=2) == (3, 1, True)
    assert policy.call(plain, 5) == (6, 2, True)
    assert await policy.acall(coroutine, 5) == (6, 2, True)
    assert (plain.__name__, plain.__doc__, inspect.iscoroutinefunction(coroutine)) == ("plain", "Add.", True)
    assert (bulkhead.running, remaining()) == (0, None)


def test_policy__order_is_that_of_the_documentation():
    """Each attempt is limited and counted by the circuit; the retry goes around; the fallback sees the last error."""
    bulkhead = Bulkhead("order", 1)
    policy = full_policy("order", bulkhead=bulkhead, timeout=SHORT, fallback=lambda n, exc: (n, type(exc)))
    running = []

    def slow(n):
        running.append(bulkhead.running)
        time.sleep(0.6)

    outcome = policy.call(slow, 7)

    assert outcome == (7, OperationTimeoutError)
    assert running == [1, 1, 1]
    assert get_circuit_breaker_stats("order")["failure_count"] == 3


async def test_policy__order_holds_for_coroutines():
    """The async form has the same layers."""
    bulkhead = Bulkhead("aorder", 1)
    policy = full_policy("aorder", bulkhead=bulkhead, timeout=0.01, fallback=lambda n, exc: (n, type(exc)))
    running = []

    async def slow(n):
        running.append(bulkhead.running)
        await asyncio.sleep(LONG)

    assert await policy.acall(slow, 7) == (7, OperationTimeoutError)
    assert running == [1, 1, 1]
    assert get_circuit_breaker_stats("aorder")["failure_count"] == 3


def test_policy__describes_itself_in_plain_types():
    """describe() survives JSON, names functions and never shows a fallback's value."""
    described = full_policy("described", fallback={"password": "hunter2"}).describe()

    assert json.loads(json.dumps(described)) == described
    assert described["order"] == ["fallback", "deadline", "retry", "circuit", "bulkhead", "timeout"]
    assert described["name"] == "described"
    assert described["retry"]["max_attempts"] == 3
    assert described["circuit"]["failure_threshold"] == 100
    assert described["bulkhead"] == {"max_concurrent": 5, "max_wait": 0.0}
    assert described["fallback"] == "a value of type dict"
    assert Policy("x", fallback=failing, timeout=1).describe()["fallback"] == "tests.policies.test_policies.failing"


def test_policy__open_circuit_ends_retrying_and_is_answered_by_the_fallback():
    """Once the circuit is open no attempt is made, and the fallback answers."""
    calls = []
    circuit = CircuitBreakerConfig(scope="process", failure_threshold=2)
    policy = Policy("open", retry=RetryConfig(max_attempts=5, delay=0), circuit=circuit, fallback=lambda exc: exc.name)

    first = policy.call(failing(ConnectionRefusedError(), calls))
    made = len(calls)
    second = policy.call(failing(ConnectionRefusedError(), calls))

    assert made == 2
    assert (first, second) == ("open", "open")
    assert len(calls) == 2


@pytest.mark.parametrize("error", [ValueError("bad"), PermissionError(), KeyError("x")], ids=repr)
def test_policy__permanent_errors_do_not_open_its_circuit(error):
    """Only errors that may pass count: a wrong request says nothing about the service."""
    policy = Policy("permanent", circuit=CircuitBreakerConfig(scope="process", failure_threshold=1))
    calls = []

    for _ in range(5):
        with pytest.raises(type(error)):
            policy.call(failing(error, calls))

    assert len(calls) == 5


@pytest.mark.parametrize("form", [dict, CircuitBreakerConfig])
@pytest.mark.parametrize("ignore", [(), (KeyError,)], ids=repr)
def test_policy__a_full_bulkhead_does_not_open_its_circuit(form, ignore):
    """That this process has no place left says nothing about the service, whatever else is to be ignored."""
    bulkhead, name = Bulkhead("local", 1), f"local {form.__name__} {ignore}"
    policy = Policy(name, circuit=form(scope="process", failure_threshold=1, ignore=ignore), bulkhead=bulkhead)

    with bulkhead:
        for _ in range(3):
            with pytest.raises(BulkheadFullError):
                policy.call(int)

    assert policy.call(int, "1") == 1
    assert get_circuit_breaker_stats(name)["failure_count"] == 0


def is_value_error(exc):
    """Judge by class, as settings may."""
    return isinstance(exc, ValueError)


@pytest.mark.parametrize("circuit", [True, {"failure_threshold": 1}], ids=repr)
def test_policy__its_circuit_takes_its_judgement_from_the_settings(circuit):
    """What RESILIENCE["CIRCUIT"] ignores and counts holds for policies too."""
    configured = {"scope": "process", "failure_threshold": 1, "ignore": (KeyError,), "failure_if": is_value_error}
    policy = Policy(f"judged by settings {circuit}", circuit=circuit)

    with override_settings(RESILIENCE={"CIRCUIT": configured}):
        with pytest.raises(KeyError):
            policy.call(failing(KeyError("x"), []))
        with pytest.raises(TimeoutError):
            policy.call(failing(TimeoutError(), []))
        before = get_circuit_breaker_stats(policy.name)
        with pytest.raises(ValueError, match="bad"):
            policy.call(failing(ValueError("bad"), []))
        after = get_circuit_breaker_stats(policy.name)

    assert (before["success_count"], before["failure_count"], before["state"], after["state"]) == (1, 0, "closed", "open")


@pytest.mark.parametrize("form", [dict, CircuitBreakerConfig])
def test_policy__own_failure_if_of_a_circuit_wins(form):
    """A circuit with a judgement of its own keeps it."""
    circuit = form(scope="process", failure_threshold=1, failure_if=lambda exc: isinstance(exc, ValueError))
    policy = Policy(f"judge {form.__name__}", circuit=circuit)

    with pytest.raises(ValueError, match="bad"):
        policy.call(failing(ValueError("bad"), []))
    with pytest.raises(CircuitOpenError):
        policy.call(int)


def test_policy__one_name_one_circuit():
    """Policies of one name share what is known; another name is not affected."""
    circuit = CircuitBreakerConfig(scope="process", failure_threshold=1)

    with pytest.raises(ConnectionRefusedError):
        Policy("shared", circuit=circuit).call(failing(ConnectionRefusedError(), []))

    with pytest.raises(CircuitOpenError):
        Policy("shared", circuit=circuit).call(int)
    assert Policy("other", circuit=circuit).call(int, "1") == 1


@pytest.mark.parametrize("error", CONTROL_FLOW, ids=lambda error: type(error).__name__)
def test_policy__control_flow_passes_untouched(error):
    """Celery's exceptions, shutdown and cancellation come out at once: not retried, counted, timed out or answered."""
    calls = []
    policy = full_policy("control", circuit=CircuitBreakerConfig(scope="process", failure_threshold=1))

    with pytest.raises(type(error)) as caught:
        policy.call(failing(error, calls))

    assert caught.value is error
    assert len(calls) == 1
    assert get_circuit_breaker_stats("control")["failure_count"] == 0


@pytest.mark.parametrize(
    "error", [Retry(), asyncio.CancelledError(), SoftTimeLimitExceeded()], ids=lambda error: type(error).__name__
)
async def test_policy__control_flow_passes_untouched_through_coroutines(error):
    """The async form leaves it alone too."""
    calls = []

    with pytest.raises(type(error)) as caught:
        await full_policy("acontrol").acall(failing_async(error, calls))

    assert caught.value is error
    assert len(calls) == 1


def test_policy__deadline_ends_waiting(slept):
    """A wait that does not fit into the deadline is not begun; the function's own error comes out."""
    calls = []
    policy = Policy("deadline", retry=RetryConfig(max_attempts=5, delay=20, jitter=False), deadline=10)

    with pytest.raises(ConnectionRefusedError):
        policy.call(failing(ConnectionRefusedError(), calls))

    assert (len(calls), slept) == (1, [])


def test_policy__deadline_cuts_the_attempt_in_progress():
    """An attempt gets what is left of the deadline, also without a timeout of its own."""
    policy = Policy("cut", deadline=SHORT)

    started = time.monotonic()
    with pytest.raises(OperationTimeoutError, match=r"cut took longer than 0\.0"):
        policy.call(time.sleep, 0.6)

    assert time.monotonic() - started < 0.5


@pytest.mark.django_db(transaction=True)
def test_policy__deadline_alone_never_leaves_the_thread():
    """Outside the main thread a deadline bounds attempts and waits without a worker thread, so it works inside a transaction too."""
    policy = Policy("request", deadline=0.2, retry=RetryConfig(max_attempts=100, delay=0.15, jitter=False))
    seen = []

    def ask():
        seen.append((threading.get_ident(), connection.in_atomic_block, remaining()))
        raise ConnectionRefusedError

    def request():
        try:
            with transaction.atomic(), pytest.raises(ConnectionRefusedError) as caught:
                policy.call(ask)
            return threading.get_ident(), caught.value.__notes__
        finally:
            connection.connection.close()  # Django never closes SQLite's in-memory databases

    with ThreadPoolExecutor(1) as pool:
        thread, notes = pool.submit(request).result(LONG)

    assert [place for *place, _ in seen] == [[thread, True], [thread, True]]
    assert all(left < 0.2 for *_, left in seen)
    assert "the deadline leaves no time" in notes[0]


async def test_policy__deadline_cuts_the_coroutine_in_progress():
    """The async form does so too, retries included."""
    policy = Policy("acut", deadline=SHORT, timeout=LONG, retry=RetryConfig(max_attempts=100, delay=0))

    started = time.monotonic()
    with pytest.raises(OperationTimeoutError):
        await policy.acall(asyncio.sleep, LONG)

    assert time.monotonic() - started < LONG / 2


def test_policy__works_in_other_threads():
    """Timeouts in a thread go through a worker thread; the rest is the same."""
    policy = full_policy("threads", timeout=SHORT, retry=None)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(policy.call, threading.Event().wait, 0.4).result(LONG) == "sorry"


def test_policy__from_settings_by_name(settings, slept):
    """A name in POLICIES is all it takes: fields, dotted fallback, bulkhead; True takes RETRY and CIRCUIT."""
    settings.RESILIENCE = {
        "RETRY": {"max_attempts": 2, "delay": 0},
        "POLICIES": {
            "rates": {
                "retry": True,
                "circuit": {"scope": "process", "failure_threshold": 10},
                "timeout": 20,
                "deadline": 60,
                "fallback": "tests.policies.fallback_targets.from_cache",
                "bulkhead": {"max_concurrent": 3},
            }
        },
    }
    calls = []

    guarded = resilient("rates")(failing(ConnectionRefusedError(), calls))

    assert guarded(1, b=2) == ("cached", (1,), {"b": 2}, "ConnectionRefusedError")
    assert len(calls) == 2
    assert Policy("rates").describe()["order"] == ["fallback", "deadline", "retry", "circuit", "bulkhead", "timeout"]
    assert Policy("rates").describe()["bulkhead"]["max_concurrent"] == 3


def test_policy__fields_in_code_win_over_settings(settings):
    """What is given in code replaces the field of the settings, and only that."""
    settings.RESILIENCE = {"POLICIES": {"rates": {"timeout": 20, "deadline": 60}}}

    described = Policy("rates", timeout=5).describe()

    assert (described["timeout"], described["deadline"]) == (5.0, 60.0)


@pytest.mark.parametrize("field", ["retry", "circuit", "timeout", "deadline", "bulkhead"])
def test_policy__false_takes_away_a_layer_of_the_settings(settings, field):
    """What code switches off stays off, whatever the settings say."""
    fields = {"retry": True, "circuit": True, "timeout": 20, "deadline": 60, "bulkhead": {"max_concurrent": 2}}
    settings.RESILIENCE = {"POLICIES": {"rates": fields}}

    assert sorted(Policy("rates", **{field: False}).describe()["order"]) == sorted(fields.keys() - {field})


@pytest.mark.parametrize("nothing", [None, False])
def test_policy__none_and_false_in_settings_are_no_layer(settings, nothing):
    """What settings switch off for one environment is off: above all, no fallback answers None for the call."""
    fields = dict.fromkeys(("fallback", "deadline", "retry", "circuit", "bulkhead", "timeout"), nothing)
    settings.RESILIENCE = {"POLICIES": {"rates": fields}}

    assert Policy("rates").describe()["order"] == []
    with pytest.raises(TimeoutError):
        Policy("rates").call(failing(TimeoutError(), []))


def test_policy__a_change_of_settings_frees_no_place(settings):
    """Calls that run while the settings change still hold their places in a bulkhead that code describes."""
    policy = Policy("reports", bulkhead={"max_concurrent": 1})

    def change_and_call():
        settings.RESILIENCE = {"POLICIES": {"reports": {"timeout": 5}}}
        policy.call(int)

    with pytest.raises(BulkheadFullError):
        policy.call(change_and_call)


def test_describe__tells_a_class_of_data_by_its_name():
    """An exception that is a dataclass is a class like any other."""

    @dataclass
    class RefusedError(Exception):
        code: int

    described = Policy("typed", retry=RetryConfig(exceptions=(RefusedError,))).describe()

    assert [name.rpartition(".")[2] for name in described["retry"]["exceptions"]] == ["RefusedError"]


def test_policy__false_is_a_fallback_like_any_other():
    """A flag that cannot be read is off."""
    assert Policy("flags", fallback=False).call(failing(TimeoutError(), [])) is False


def test_policy__follows_override_settings(slept):
    """A function decorated long ago follows the settings in force now, and goes back."""
    calls = []
    guarded = resilient("rates")(failing(ConnectionRefusedError(), calls))

    def made():
        calls.clear()
        with pytest.raises(ConnectionRefusedError):
            guarded()
        return len(calls)

    with override_settings(RESILIENCE={"POLICIES": {"rates": {"retry": {"max_attempts": 2, "delay": 0}}}}):
        two = made()
        with override_settings(RESILIENCE={"POLICIES": {"rates": {"retry": {"max_attempts": 4, "delay": 0}}}}):
            four = made()
        again = made()
        with override_settings(RESILIENCE={"ENABLED": False}):
            off = made()

    assert (two, four, again, off) == (2, 4, 2, 1)


def test_policy__users_of_a_settings_bulkhead_share_it(settings):
    """Two policies of one name let as many calls run together as the settings say."""
    settings.RESILIENCE = {"POLICIES": {"rates": {"bulkhead": {"max_concurrent": 1}}}}
    inner, outer = Policy("rates"), Policy("rates")

    with pytest.raises(BulkheadFullError):
        outer.call(inner.call, int)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retries": 3}, r"has the unknown field 'retries'\. Use fallback, deadline, retry"),
        ({"timeout": -1}, r"is wrong: timeout must be a number of seconds above 0, not -1"),
        ({"retry": {"max_attempts": 0}}, r"is wrong: max_attempts must be"),
        ({"retry": 3}, r"is wrong: retry must be a RetryConfig, a dict of its fields or True, not 3"),
        ({"fallback": "nowhere.at_all"}, r"is wrong: fallback must be the dotted path of .* not 'nowhere\.at_all' \(No module"),
        ({"fallback": "Sorry"}, r"is wrong: fallback must be the dotted path of a function or value, not 'Sorry' \("),
        ({"circuit": {"failure_threshold": 0}}, r"is wrong: failure_threshold must be"),
        ({"bulkhead": {"max_concurrent": 0}}, r"is wrong: max_concurrent must be"),
    ],
)
def test_policy__wrong_settings_are_explained(settings, fields, message):
    """A wrong field of POLICIES names the policy and says what is wrong."""
    settings.RESILIENCE = {"POLICIES": {"rates": fields}}

    with pytest.raises(ImproperlyConfigured, match=r"^RESILIENCE\['POLICIES'\]\['rates'\] " + message):
        Policy("rates").call(int)


def test_policy__an_unknown_name_is_an_error(settings):
    """A misspelled name protects nothing, so the first call says so and names those there are."""
    settings.RESILIENCE = {"POLICIES": {"rates": {"timeout": 1}}}

    with pytest.raises(ImproperlyConfigured, match=r"^Policy 'rtaes' must have fields or stand in RESILIENCE.*which has: rates"):
        resilient("rtaes")(int)("1")


def test_policy__is_off_when_resilience_is_disabled(settings):
    """ENABLED False calls straight through, fallback included, whatever the policy says."""
    settings.RESILIENCE = {"ENABLED": False}
    calls = []

    with pytest.raises(ConnectionRefusedError):
        full_policy("off", timeout=0.001, deadline=0.001).call(failing(ConnectionRefusedError(), calls))

    assert len(calls) == 1
    assert resilient("unknown")(int)("1") == 1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"retry": 3}, TypeError, "retry must be a RetryConfig"),
        ({"circuit": 3}, TypeError, "circuit must be a CircuitBreakerConfig"),
        ({"bulkhead": 3}, TypeError, "bulkhead must be a Bulkhead"),
        ({"timeout": 0}, ValueError, "timeout must be a number of seconds above 0"),
        ({"timeout": "5"}, TypeError, "timeout must be a number of seconds above 0"),
        ({"deadline": float("nan")}, ValueError, "deadline must be a number of seconds above 0"),
        ({"circuit": CircuitBreakerConfig(fallback=1)}, ValueError, "fallback must be given to the policy"),
    ],
)
def test_policy__refuses_wrong_fields_where_they_are_written(fields, error, message):
    """A wrong field fails when the policy is made, not when the service is down."""
    with pytest.raises(error, match=f"^{message}"):
        Policy("wrong", **fields)


def test_policy__refuses_what_it_cannot_decorate():
    """Generators, non-functions, plain functions with a coroutine fallback, and an empty name."""

    def numbers():
        yield 1

    async def later():
        return 1

    policy = Policy("x", timeout=1)
    with pytest.raises(TypeError, match="not the generator"):
        policy(numbers)
    with pytest.raises(TypeError, match="must decorate a function, not 5"):
        policy(5)
    with pytest.raises(TypeError, match="fallback must be a plain function or a value"):
        Policy("x", fallback=later)(int)
    with pytest.raises(TypeError, match="fallback must be a plain function or a value"):
        Policy("x", fallback=later).call(int)
    for name in ("", 5, None):
        with pytest.raises(ValueError, match="name must be a text"):
            Policy(name)


def test_resilient__takes_fields_alone():
    """Without a name the policy is the function's own."""
    calls = []

    guarded = resilient(retry=AT_ONCE, fallback="sorry")(failing(ConnectionRefusedError(), calls))

    assert guarded() == "sorry"
    assert len(calls) == 3


def test_resilient__refuses_to_guess():
    """A bare @resilient, nothing at all, and a Policy together with fields are refused."""
    with pytest.raises(TypeError, match="resilient must be given a policy's name, a Policy or fields"):
        resilient(int)
    with pytest.raises(TypeError, match="resilient must be given a policy's name, a Policy or fields"):
        resilient()
    with pytest.raises(TypeError, match="resilient must be given a policy's name, a Policy or fields, not 5"):
        resilient(5, timeout=1)
    with pytest.raises(TypeError, match="resilient must be given a Policy or fields, not both: timeout"):
        resilient(Policy("x", timeout=1), timeout=2)


def test_policy__signals_speak_of_the_policy(slept):
    """Signals and messages carry the policy's name, whichever function is called."""
    names = []

    def receive(sender, **arguments):
        names.append(arguments["name"])

    signals.retry_scheduled.connect(receive)
    with pytest.raises(ConnectionRefusedError):
        Policy("named", retry=AT_ONCE).call(failing(ConnectionRefusedError(), []))
    signals.retry_scheduled.disconnect(receive)

    assert names == ["named", "named"]


def test_policy__timeout_config_keeps_its_exception():
    """A TimeoutConfig says what is raised."""
    policy = Policy("mine", timeout=TimeoutConfig(SHORT, exception=LookupError))

    with pytest.raises(LookupError, match="mine took longer"):
        policy.call(time.sleep, 0.6)


async def test_policy__nested_policies_do_not_multiply():
    """Three policies of three attempts around each other make three calls."""
    calls = []
    func = failing(ConnectionRefusedError(), calls)
    for number in range(3):
        func = Policy(f"nested {number}", retry=AT_ONCE)(func)

    with pytest.raises(ConnectionRefusedError):
        func()

    assert len(calls) == 3


@pytest.mark.parametrize(
    ("fields", "found"), [({"timeout": 5}, []), ({"timeout": 0}, ["resilience.E005"]), ({"retries": 3}, ["resilience.E005"])]
)
def test_check_policies__tells_before_the_first_call(settings, fields, found):
    """`manage.py check` names a policy with a wrong or unknown field."""
    settings.RESILIENCE = {"POLICIES": {"rates": fields}}

    messages = run_checks(tags=["resilience"])

    assert [message.id for message in messages if message.id == "resilience.E005"] == found
    assert all("['rates']" in message.msg and message.hint for message in messages if message.id == "resilience.E005")
