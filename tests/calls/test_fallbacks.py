from __future__ import annotations

import asyncio
import dataclasses
import functools

import pytest
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from resilience import signals
from resilience.calls.bulkheads import Bulkhead
from resilience.calls.fallbacks import fallback, safe_execute
from resilience.calls.timeouts import async_timeout, timeout
from resilience.policies import Policy

LONG = 30.0

CONTROL_FLOW = [
    KeyboardInterrupt(),
    SystemExit(1),
    GeneratorExit(),
    asyncio.CancelledError(),
    Retry(),
    Ignore(),
    Reject("bad"),
    SoftTimeLimitExceeded(),
]


class SupplierError(Exception):
    pass


class CacheError(Exception):
    pass


def failing(error):
    """Make a function that raises `error` whatever it is given."""

    def supplier(*args, **kwargs):
        raise error

    return supplier


def failing_async(error):
    """Make a coroutine function that raises `error` whatever it is given."""

    async def supplier(*args, **kwargs):
        raise error

    return supplier


@pytest.fixture
def used():
    """Collect what `fallback_used` tells."""
    events = []

    def receive(sender, **arguments):
        events.append((arguments["name"], arguments["exception"], arguments["failed"]))

    signals.fallback_used.connect(receive)
    yield events
    signals.fallback_used.disconnect(receive)


def test_fallback__is_not_asked_when_the_call_succeeds(used):
    """A result is the function's own, also a falsy one, and nothing is told."""
    asked = []
    guarded = fallback(asked.append)(lambda: None)

    assert guarded() is None
    assert asked == []
    assert used == []


def test_fallback__answers_with_a_value():
    """What cannot be called is the answer itself."""
    assert fallback({"n": 0})(failing(SupplierError()))() == {"n": 0}


def test_fallback__target_gets_the_arguments_of_the_call():
    """Positional and keyword arguments reach the target as they were given."""
    guarded = fallback(lambda *args, **kwargs: (args, kwargs))(failing(SupplierError()))

    assert guarded(1, key="x") == ((1,), {"key": "x"})


@pytest.mark.parametrize(
    "target",
    [lambda a, exc: (a, exc), lambda a, *, exc: (a, exc), lambda a, exc=None: (a, exc)],
    ids=["positional", "keyword only", "default"],
)
def test_fallback__target_gets_the_exception_as_exc(target):
    """A parameter named exc receives the exception."""
    error = SupplierError()

    assert fallback(target)(failing(error))(1) == (1, error)


async def test_fallback__decorates_coroutine_functions(used):
    """On an async def, plain and coroutine targets and values all answer; exc arrives too."""
    error = SupplierError()

    async def target(a, exc):
        await asyncio.sleep(0)
        return a, exc

    guarded = fallback(target)(failing_async(error))

    assert await guarded(1) == (1, error)
    assert await fallback(lambda a: a + 1)(failing_async(error))(1) == 2
    assert await fallback("none")(failing_async(error))(1) == "none"
    assert [failed for _, _, failed in used] == [False, False, False]


async def test_fallback__awaits_what_a_plain_target_returns():
    """A lambda that gives a coroutine is awaited."""
    assert await fallback(lambda a: asyncio.sleep(0, a + 1))(failing_async(SupplierError()))(1) == 2


def test_fallback__other_exceptions_pass():
    """What is not listed is raised, and the target is not asked."""
    asked = []

    with pytest.raises(SupplierError):
        fallback(asked.append, exceptions=(CacheError, ConnectionError))(failing(SupplierError()))()
    assert asked == []


def test_fallback__chain_asks_the_nearest_first():
    """Decorations nest: the second answers for what the first raised."""
    first, second = SupplierError(), CacheError()
    asked = []

    def cache(exc):
        asked.append(("cache", exc))
        raise second

    def static(exc):
        asked.append(("static", exc))
        return "static"

    assert fallback(static)(fallback(cache)(failing(first)))() == "static"
    assert asked == [("cache", first), ("static", second)]
    assert second.__cause__ is first


def test_fallback__failing_target_raises_its_own_error_from_the_first(used):
    """When the fallback fails too, its error is raised and the first is its cause."""
    first, second = SupplierError("supplier"), CacheError("cache")

    with pytest.raises(CacheError) as caught:
        fallback(failing(second))(failing(first))()

    assert caught.value is second
    assert caught.value.__cause__ is first
    assert caught.value.__context__ is first
    assert [(exception, failed) for _, exception, failed in used] == [(first, True)]


async def test_fallback__failing_coroutine_target_raises_from_the_first():
    """The async form chains like the plain one."""
    first, second = SupplierError("supplier"), CacheError("cache")

    with pytest.raises(CacheError) as caught:
        await fallback(failing_async(second))(failing_async(first))()

    assert caught.value.__cause__ is first


def test_fallback__target_may_raise_the_exception_again():
    """A target that decides to pass the error on does not make it its own cause."""
    error = SupplierError()

    def pass_on(exc):
        raise exc

    with pytest.raises(SupplierError) as caught:
        fallback(pass_on)(failing(error))()

    assert caught.value is error
    assert caught.value.__cause__ is None


def test_fallback__keeps_a_cause_the_target_chose():
    """A target's own `raise ... from` stands."""
    reason = ValueError()

    def target():
        raise CacheError from reason

    with pytest.raises(CacheError) as caught:
        fallback(target)(failing(SupplierError()))()

    assert caught.value.__cause__ is reason


@pytest.mark.parametrize("error", CONTROL_FLOW, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("exceptions", [(Exception,), BaseException], ids=["Exception", "BaseException"])
def test_fallback__never_answers_for_control_flow(error, exceptions):
    """Shutdown, cancellation and Celery's own exceptions pass, whatever is listed."""
    asked = []

    with pytest.raises(type(error)) as caught:
        fallback(asked.append, exceptions=exceptions)(failing(error))()
    with pytest.raises(type(error)):
        safe_execute(failing(error), exceptions=exceptions)

    assert caught.value is error
    assert asked == []


@pytest.mark.parametrize(
    "error", [Retry(), SoftTimeLimitExceeded(), asyncio.CancelledError()], ids=lambda error: type(error).__name__
)
async def test_fallback__never_answers_for_control_flow_in_coroutines(error):
    """The async form lets control flow pass too."""
    with pytest.raises(type(error)):
        await fallback("none", exceptions=BaseException)(failing_async(error))()
    with pytest.raises(type(error)):
        await safe_execute(failing_async(error), exceptions=BaseException)


def test_fallback__is_off_when_resilience_is_disabled(settings):
    """ENABLED False calls straight through, fallbacks included."""
    settings.RESILIENCE = {"ENABLED": False}

    with pytest.raises(SupplierError):
        fallback("none")(failing(SupplierError()))()
    with pytest.raises(SupplierError):
        safe_execute(failing(SupplierError()))


def test_fallback__plain_function_refuses_a_coroutine_target():
    """A plain function cannot wait, so a coroutine target fails at decoration."""

    async def later():
        return 1

    for target in (later, functools.partial(later)):
        with pytest.raises(
            TypeError, match=r"^fallback must be a plain function or a value for the plain function 'report', not the coroutine"
        ):

            @fallback(target)
            def report():
                return 1


@pytest.mark.parametrize("exceptions", [(ValueError, "boom"), 5, (ValueError(),), int], ids=repr)
def test_fallback__refuses_what_is_no_exception_class(exceptions):
    """A wrong exception list fails at decoration."""
    with pytest.raises(TypeError, match=r"^exceptions must be exception classes, not "):
        fallback(None, exceptions=exceptions)


def test_fallback__refuses_an_empty_tuple_generators_and_non_functions():
    """An empty exception list, a generator and a non-callable fail at decoration."""

    def numbers():
        yield 1

    with pytest.raises(ValueError, match=r"^exceptions must be at least one exception class, not \(\)\."):
        fallback(None, exceptions=())
    with pytest.raises(TypeError, match="not the generator"):
        fallback(None)(numbers)
    with pytest.raises(TypeError, match=r"^fallback must decorate a function, not 5\."):
        fallback(None)(5)


def test_fallback__works_on_methods_and_keeps_the_name():
    """A decorated method gets its instance, so does its fallback."""

    class Shop:
        stock = 3

        def cached(self, sku):
            return self.stock

        @fallback(cached)
        def count(self, sku):
            raise SupplierError

    assert Shop().count("x") == 3
    assert Shop.count.__name__ == "count"


def test_fallback__builtin_targets_get_the_arguments_only():
    """A target whose signature cannot be read is called with the arguments alone."""
    assert fallback(max)(failing(SupplierError()))(3, 5) == 5


def test_safe_execute__returns_the_result_or_the_default():
    """A result passes; a failure gives the default, which is None unless said otherwise."""
    assert safe_execute(int, "12", default=0) == 12
    assert safe_execute(int, "z", default=0) == 0
    assert safe_execute(int, "z") is None
    assert safe_execute(int, "z", base=36) == 35


def test_safe_execute__never_calls_the_default():
    """A default that happens to be a function is returned, not called."""
    assert safe_execute(failing(SupplierError()), default=print) is print


def test_safe_execute__other_exceptions_pass():
    """What is not listed is raised."""
    with pytest.raises(SupplierError):
        safe_execute(failing(SupplierError()), exceptions=(ValueError,))


async def test_safe_execute__gives_an_awaitable_for_a_coroutine_function(used):
    """For async functions, and lambdas that give an awaitable, the failure is caught when awaited."""
    assert await safe_execute(asyncio.sleep, 0, "slept") == "slept"
    assert await safe_execute(failing_async(SupplierError()), default=7) == 7
    assert await safe_execute(lambda: asyncio.wait_for(failing_async(SupplierError())(), LONG), default=7) == 7
    assert len(used) == 2


def test_safe_execute__tells_of_each_default(used):
    """A swallowed failure is not invisible: the signal carries it."""
    error = SupplierError()

    safe_execute(failing(error), default=0)

    assert [(exception, failed) for _, exception, failed in used] == [(error, False)]


def test_safe_execute__refuses_a_non_callable():
    """Calling the function by mistake fails with a clear error, not with the default."""
    with pytest.raises(TypeError, match=r"^safe_execute must"):
        safe_execute(5, default=0)


class ClientGoneError(Exception):
    """What a client library raises for HTTP 499."""

    status_code = 499


def test_fallback__answers_for_an_answer_that_speaks_of_a_cancellation():
    """HTTP 499 came from the other side: nobody here was cancelled, and whoever wants an answer gets one."""
    assert fallback("none")(failing(ClientGoneError()))() == "none"
    assert safe_execute(failing(ClientGoneError()), default="none") == "none"


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int = 7


def test_fallback__chains_an_error_that_takes_no_attribute():
    """A frozen dataclass refuses every assignment; it comes out all the same, and tells the first error."""
    first, second = SupplierError(), FrozenError()

    with pytest.raises(FrozenError) as caught:
        fallback(failing(second))(failing(first))()

    assert caught.value is second
    assert second.__cause__ is first


def test_fallback__raising_what_is_behind_the_error_makes_no_ring():
    """A target that unwraps the error would become the cause of its own cause."""
    inner = CacheError()

    def supplier():
        raise SupplierError from inner

    def unwrap(exc):
        raise exc.__cause__

    with pytest.raises(CacheError) as caught:
        fallback(unwrap)(supplier)()

    assert caught.value is inner
    assert inner.__cause__ is None


@pytest.mark.parametrize(
    "decorator",
    [fallback(0), timeout(5), async_timeout(5), Bulkhead("static", 1), Policy("static", timeout=5)],
    ids=["fallback", "timeout", "async_timeout", "Bulkhead", "Policy"],
)
def test_decorators__stand_below_staticmethod(decorator):
    """Above it they could not see a coroutine function, and would guard the making of a coroutine instead of its run."""

    async def fetch():
        raise SupplierError

    with pytest.raises(TypeError, match="must stand below @staticmethod, not above"):
        decorator(staticmethod(fetch))
