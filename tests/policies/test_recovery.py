from __future__ import annotations

import asyncio
import pickle
import time

import pytest
from celery.exceptions import Ignore, Retry

import resilience
from resilience.calls.kinds import ErrorKind
from resilience.calls.retries import RetryConfig
from resilience.circuits.config import CircuitBreakerConfig
from resilience.exceptions import CircuitOpenError, OperationTimeoutError, PermanentError, TransientError
from resilience.recovery import ADVICE, ErrorRecoveryManager, ResilientProvider

LONG = 30.0
AT_ONCE = RetryConfig(max_attempts=3, delay=0)
PROCESS = CircuitBreakerConfig(scope="process", failure_threshold=3)


class Supplier:
    """Raise the errors in turn, then answer; count the calls."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    async def asynchronous(self):
        await asyncio.sleep(0)
        return self()


def execute(manager, form, supplier, **options):
    """Call the manager's plain or its async form."""
    if form == "sync":
        return manager.execute_with_retry_sync(supplier, **options)
    return asyncio.run(manager.execute_with_retry(supplier.asynchronous, **options))


both = pytest.mark.parametrize("form", ["sync", "async"])


@both
def test_manager__gives_the_answer_after_transient_errors(form):
    """Errors that may pass are retried until the answer comes."""
    supplier = Supplier(TimeoutError(), ConnectionResetError())

    assert execute(ErrorRecoveryManager(retry=AT_ONCE), form, supplier) == "answer"
    assert supplier.calls == 3


def test_manager__shares_its_circuit_when_it_has_a_name():
    """Managers of one name share what is known about a dependency; one without a name keeps it to itself."""
    named, unnamed = ErrorRecoveryManager("shared-recovery"), ErrorRecoveryManager()

    assert named.describe()["circuit"]["scope"] == "fleet"
    assert unnamed.describe()["circuit"]["scope"] == "process"


@both
def test_manager__what_was_retried_as_asked_is_transient(form):
    """An error that nobody knows but this manager, which was told to retry it, may pass the next time too."""
    retry = RetryConfig(max_attempts=2, delay=0, exceptions=(LookupError,))

    with pytest.raises(TransientError, match="failed after 2 attempts"):
        execute(ErrorRecoveryManager(retry=retry), form, Supplier(LookupError(), LookupError()))


@both
def test_manager__transient_error_after_the_retries(form):
    """When all attempts fail for a reason that may pass, the story is told in a TransientError."""
    errors = [
        ConnectionRefusedError("postgres://bob:hunter2@db"),
        TimeoutError("one"),
        ConnectionRefusedError("postgres://bob:hunter2@db"),
    ]
    last = errors[-1]
    supplier = Supplier(*errors)

    with pytest.raises(TransientError) as caught:
        execute(ErrorRecoveryManager(retry=AT_ONCE), form, supplier, context="loading orders")

    error = caught.value
    assert (error.kind, error.attempts, supplier.calls) == ("connection", 3, 3)
    assert error.kind is ErrorKind.CONNECTION
    assert error.__cause__ is last
    assert error.message.splitlines() == [
        "What happened: loading orders failed after 3 attempts: ConnectionRefusedError: postgres://[redacted]@db",
        "Why: The other side could not be reached, or the connection was lost.",
        "How to fix: Check that the host name and port are right, that the service is running, and that no firewall is in between.",
    ]
    assert str(error) == error.message


@both
def test_manager__permanent_error_at_once(form):
    """A reason that will not pass ends it after one call, without secrets in the story."""

    class AuthenticationError(Exception):
        status_code = 401

    supplier = Supplier(AuthenticationError("Incorrect API key provided: Zq9abcXw7"))

    with pytest.raises(PermanentError) as caught:
        execute(ErrorRecoveryManager(retry=AT_ONCE), form, supplier, context="asking with token=Zq9abcXw7")

    error = caught.value
    assert (error.kind, error.attempts, supplier.calls) == ("auth", 1, 1)
    assert "Zq9abcXw7" not in error.message
    assert "Check that the API key or password is set" in error.message


@both
def test_manager__permanent_error_after_a_transient_one(form):
    """A reason that will not pass is permanent also when the attempt before failed for one that does."""

    class AuthenticationError(Exception):
        status_code = 401

    supplier = Supplier(TimeoutError(), AuthenticationError())

    with pytest.raises(PermanentError) as caught:
        execute(ErrorRecoveryManager(retry=AT_ONCE), form, supplier)

    assert (caught.value.kind, caught.value.attempts, supplier.calls) == ("auth", 2, 2)


@both
def test_manager__open_circuit_is_a_permanent_error_without_a_call(form):
    """While the circuit is open nothing is called, and the CircuitOpenError is the cause."""
    manager = ErrorRecoveryManager(retry=AT_ONCE, circuit=PROCESS)
    with pytest.raises(TransientError):
        execute(manager, form, Supplier(*[TimeoutError()] * 3))
    supplier = Supplier()

    with pytest.raises(PermanentError) as caught:
        execute(manager, form, supplier)

    assert supplier.calls == 0
    assert isinstance(caught.value.__cause__, CircuitOpenError)
    assert caught.value.attempts == 0
    assert "was not tried" in caught.value.message
    assert "Circuit breaker is OPEN" in caught.value.message


@both
def test_manager__limits_each_attempt(form):
    """`timeout_seconds` wins over the manager's timeout; a timeout is an error that may pass."""
    manager = ErrorRecoveryManager(retry=RetryConfig(max_attempts=2, delay=0), timeout=LONG)

    class Slow(Supplier):
        def __call__(self):
            self.calls += 1
            time.sleep(0.6)

        async def asynchronous(self):
            self.calls += 1
            await asyncio.sleep(LONG)

    supplier = Slow()

    with pytest.raises(TransientError) as caught:
        execute(manager, form, supplier, context="the report", timeout_seconds=0.05)

    assert (caught.value.kind, caught.value.attempts, supplier.calls) == ("timeout", 2, 2)
    assert isinstance(caught.value.__cause__, OperationTimeoutError)
    assert "the report took longer than 0.05 s." in caught.value.message


@both
@pytest.mark.parametrize("error", [Retry(), Ignore(), SystemExit(1), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_manager__control_flow_passes_untouched(form, error):
    """Celery's exceptions and shutdown are no errors to explain."""
    supplier = Supplier(error)

    with pytest.raises(type(error)) as caught:
        execute(ErrorRecoveryManager(retry=AT_ONCE), form, supplier)

    assert caught.value is error
    assert supplier.calls == 1


def test_manager__without_a_name_has_a_circuit_of_its_own():
    """One object's open circuit stops no other; with one name they share it."""
    with pytest.raises(TransientError):
        ErrorRecoveryManager(retry=AT_ONCE, circuit=PROCESS).execute_with_retry_sync(Supplier(*[TimeoutError()] * 3))
    with pytest.raises(TransientError):
        ErrorRecoveryManager("llm", retry=AT_ONCE, circuit=PROCESS).execute_with_retry_sync(Supplier(*[TimeoutError()] * 3))

    assert ErrorRecoveryManager(retry=AT_ONCE, circuit=PROCESS).execute_with_retry_sync(Supplier()) == "answer"
    with pytest.raises(PermanentError):
        ErrorRecoveryManager("llm", retry=AT_ONCE, circuit=PROCESS).execute_with_retry_sync(Supplier())


def test_manager__without_name_and_context_speaks_of_the_call():
    """Nobody is shown the made-up name of a nameless manager's circuit."""
    with pytest.raises(TransientError) as caught:
        ErrorRecoveryManager(retry=AT_ONCE, timeout=0.01).execute_with_retry_sync(lambda: time.sleep(5))

    assert caught.value.message.startswith(
        "What happened: the call failed after 3 attempts: OperationTimeoutError: the call took longer than 0.01 s."
    )


def test_manager__explains_also_when_switched_off(settings):
    """ENABLED False makes one call without limits, and its error is still one of the two."""
    settings.RESILIENCE = {"ENABLED": False}
    supplier = Supplier(TimeoutError(), TimeoutError())

    with pytest.raises(TransientError):
        ErrorRecoveryManager(retry=AT_ONCE).execute_with_retry_sync(supplier)

    assert supplier.calls == 1


def test_manager__errors_survive_pickling():
    """Celery's result backends rebuild the story from its args."""
    with pytest.raises(PermanentError) as caught:
        ErrorRecoveryManager(retry=AT_ONCE).execute_with_retry_sync(Supplier(ValueError("bad")))

    again = pickle.loads(pickle.dumps(caught.value))

    assert (again.message, again.kind, again.attempts) == (caught.value.message, "unknown", 1)


def test_manager__advice_for_every_kind():
    """Every kind of error has a reason and a remedy, each a sentence."""
    kinds = set(ErrorKind) - {ErrorKind.CANCELLED}

    assert set(ADVICE) == kinds
    assert all(text.endswith(".") for advice in ADVICE.values() for text in advice)


def test_manager__defaults_are_those_of_the_documentation():
    """Three attempts from 0.1 s to 10 s, 30 s each, a circuit."""
    described = ErrorRecoveryManager().describe()

    assert (described["retry"]["max_attempts"], described["retry"]["delay"], described["retry"]["max_delay"]) == (3, 0.1, 10.0)
    assert (described["timeout"], described["circuit"]["failure_threshold"]) == (30.0, 5)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_manager__refuses_a_wrong_timeout(timeout):
    """A wrong limit fails when the manager is made, and so does that of one call."""
    with pytest.raises(ValueError, match="seconds must be a number of seconds above 0"):
        ErrorRecoveryManager(timeout=timeout)
    with pytest.raises(ValueError, match="seconds must be a number of seconds above 0"):
        ErrorRecoveryManager().execute_with_retry_sync(int, timeout_seconds=timeout)


def test_manager__refuses_an_empty_name():
    """An empty name is a slip, and not the wish for a circuit that nobody else can find."""
    with pytest.raises(ValueError, match=r"name must be a text of one character or more, not ''"):
        ErrorRecoveryManager("")


@both
def test_provider__one_name_shares_one_circuit(form):
    """All objects of one provider share its circuit; other providers are not affected."""

    def call(name, supplier):
        provider = ResilientProvider(name, retry=AT_ONCE, circuit=PROCESS)
        if form == "sync":
            return provider.execute(supplier)
        return asyncio.run(provider.aexecute(supplier.asynchronous))

    broken, untouched = Supplier(*[TimeoutError()] * 9), Supplier()
    with pytest.raises(TimeoutError):
        call(f"openai {form}", broken)

    with pytest.raises(CircuitOpenError):
        call(f"openai {form}", untouched)
    assert untouched.calls == 0
    assert call(f"anthropic {form}", untouched) == "answer"
    assert broken.calls == 3


def test_provider__takes_its_defaults_from_settings(settings):
    """Without configs of its own it follows RETRY and CIRCUIT."""
    settings.RESILIENCE = {"RETRY": {"max_attempts": 2, "delay": 0}, "CIRCUIT": {"failure_threshold": 2, "scope": "process"}}
    supplier = Supplier(*[TimeoutError()] * 9)
    provider = ResilientProvider("from settings")

    with pytest.raises(TimeoutError):
        provider.execute(supplier)
    with pytest.raises(CircuitOpenError):
        provider.execute(supplier)

    assert supplier.calls == 2


def test_provider__passes_arguments_on():
    """Positional and keyword arguments reach the function."""
    assert ResilientProvider("arguments", retry=AT_ONCE, circuit=PROCESS).execute(int, "z", base=36) == 35


def test_names__are_where_people_look_for_them():
    """Both are importable from the package and from resilience.policies."""
    from resilience import policies

    assert policies.ErrorRecoveryManager is resilience.ErrorRecoveryManager is ErrorRecoveryManager
    assert policies.ResilientProvider is resilience.ResilientProvider is ResilientProvider
