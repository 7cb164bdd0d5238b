"""Faults on purpose: `RESILIENCE["CHAOS"]` makes the calls of named policies slow, hang or fail at given rates.

A fault strikes at the very inside, where the dependency would be called: timeouts, circuits, retries and fallbacks see
it as they would see the real one. Nothing happens while `DEBUG` is off, unless the setting says that it may.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from random import Random
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from resilience import clock, conf, signals
from resilience.calls.kinds import ErrorKind
from resilience.layers import AsyncInvoke, Invoke
from resilience.values import checked_seconds, is_number

__all__ = ["ChaosConfig", "InjectedFaultError", "check_chaos", "disturbed"]

logger = logging.getLogger("resilience.chaos")

_STATUSES = {
    ErrorKind.INVALID_REQUEST: 400,
    ErrorKind.AUTH: 401,
    ErrorKind.QUOTA: 402,
    ErrorKind.PERMISSION: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.RATE_LIMIT: 429,
    ErrorKind.SERVER_ERROR: 500,
    ErrorKind.TLS: 526,
    ErrorKind.OVERLOADED: 529,
}
_CLASSES = {ErrorKind.TIMEOUT: TimeoutError, ErrorKind.CONNECTION: ConnectionError}
_MESSAGE = "injected by RESILIENCE['CHAOS']"

#: Keys of RESILIENCE["CHAOS"] that are no policies.
_OPTIONS = {"ALLOW_WITHOUT_DEBUG", "SEED"}
#: What has been logged in this process: each thing once, however many policies and calls there are.
_told: set[str] = set()


class InjectedFaultError(Exception):
    """Stands for the answer of a service with an HTTP status, and is classified by it.

    Args:
        message: What to show.
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return f"{self.args[0]}: status {self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosConfig:
    """How often and how the calls of a policy are disturbed; each attempt throws the dice anew.

    Args:
        error_rate: Share of attempts that fail instead of being made, 0 to 1.
        error: What they fail with: a kind ("rate_limit", "connection"...), or the dotted path of an exception class.
        latency: Seconds by which attempts are late, 0 or more.
        latency_rate: Share of attempts that are late, 0 to 1.
        hang_rate: Share of attempts that get no answer, 0 to 1.
        hang: Seconds until an attempt without an answer fails with TimeoutError, above 0.

    Raises:
        ValueError: A rate or a duration is out of range, or there is no such error.
        TypeError: A value is of the wrong type.

    Example:
        >>> ChaosConfig(error_rate=0.2, error="rate_limit").make_error()
        InjectedFaultError("injected by RESILIENCE['CHAOS']", 429)
    """

    error_rate: float = 0.0
    error: str = "builtins.ConnectionError"
    latency: float = 0.0
    latency_rate: float = 1.0
    hang_rate: float = 0.0
    hang: float = 60.0

    def __post_init__(self) -> None:
        for name in ("error_rate", "latency_rate", "hang_rate"):
            rate = getattr(self, name)
            if not is_number(rate) or not 0 <= rate <= 1:
                raise ValueError(f"{name} must be 0 to 1, not {rate!r}. Use 0.2 for one attempt in five.")
        checked_seconds("latency", self.latency, "Use 0 for none.", zero=True)
        checked_seconds("hang", self.hang, "Use hang_rate=0 for none.")
        self.make_error()

    def make_error(self) -> Exception:
        """Return a fresh exception of the configured kind or class."""
        if self.error in _STATUSES:
            return InjectedFaultError(_MESSAGE, _STATUSES[ErrorKind(self.error)])
        if self.error in _CLASSES:
            return _CLASSES[ErrorKind(self.error)](_MESSAGE)
        advice = f"Use one of {', '.join(sorted({*_STATUSES, *_CLASSES}))}, or a class that takes a message."
        try:
            error = import_string(self.error)(_MESSAGE)
        except Exception as reason:
            raise ValueError(
                f"error must be a kind or an exception class's dotted path, not {self.error!r} ({reason}). {advice}"
            ) from reason
        if not isinstance(error, Exception):
            raise ValueError(f"error must be a kind or an exception class's dotted path, not {self.error!r}. {advice}")  # noqa: TRY004  # as above
        return error


def disturbed(name: str, call: Invoke, acall: AsyncInvoke) -> tuple[Invoke, AsyncInvoke]:
    """Return the calls of a policy, with its faults put in; the very same ones when it has none.

    Raises:
        ImproperlyConfigured: The faults are described wrongly.
    """
    chaos = conf.current().chaos
    if not chaos.get(name) or not conf.current().enabled or not _is_allowed(chaos):
        return call, acall
    try:
        config = ChaosConfig(**chaos[name])
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"RESILIENCE['CHAOS'][{name!r}] is wrong: {error}") from error
    _tell(name, "RESILIENCE['CHAOS'] disturbs the calls of policy %r.", name)
    seed = chaos.get("SEED")
    faults = _Faults(name, config, Random() if seed is None else Random(f"{seed}:{name}"))  # noqa: S311  # dice, not keys

    def disturbed_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call(faults.around(func), args, kwargs)

    async def disturbed_acall(func: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await acall(faults.around_async(func), args, kwargs)

    return disturbed_call, disturbed_acall


class _Faults:
    """Throws the dice for each attempt: one decision, a plain and an async way to carry it out."""

    def __init__(self, name: str, config: ChaosConfig, random: Random) -> None:
        self._name = name
        self._config = config
        self._random = random

    def around(self, func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def attempt(*args: Any, **kwargs: Any) -> Any:
            wait, error = self._decide()
            if wait:
                clock.sleep(wait)
            if error is not None:
                raise error
            return func(*args, **kwargs)

        return attempt

    def around_async(self, func: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(func)
        async def attempt(*args: Any, **kwargs: Any) -> Any:
            wait, error = self._decide()
            if wait:
                await clock.async_sleep(wait)
            if error is not None:
                raise error
            return await func(*args, **kwargs)

        return attempt

    def _decide(self) -> tuple[float, Exception | None]:
        """Return the seconds to wait and the error to raise then; all dice are thrown, so that a seed gives one sequence."""
        config = self._config
        is_late, hangs, fails = (
            self._random.random() < rate for rate in (config.latency_rate, config.hang_rate, config.error_rate)
        )
        if hangs:
            self._count("hang")
            return config.hang, TimeoutError(_MESSAGE)
        wait = config.latency if is_late else 0.0
        if wait:
            self._count("latency")
        if fails:
            self._count("error")
        return wait, config.make_error() if fails else None

    def _count(self, fault: str) -> None:
        signals.emit(signals.fault_injected, ChaosConfig, name=self._name, fault=fault)


def _is_allowed(chaos: Mapping[str, Any]) -> bool:
    if settings.DEBUG or chaos.get("ALLOW_WITHOUT_DEBUG") is True:
        return True
    _tell("", "RESILIENCE['CHAOS'] is ignored: DEBUG is off. No fault is injected; see check resilience.E007.")
    return False


def _tell(subject: str, message: str, *args: object) -> None:
    if subject not in _told:
        _told.add(subject)
        logger.warning(message, *args)


@register("resilience")
def check_chaos(**kwargs: Any) -> list[CheckMessage]:
    """Judge the faults of RESILIENCE["CHAOS"] (E006), and refuse them where DEBUG is off (E007)."""
    raw = getattr(settings, "RESILIENCE", {})
    if conf.problems(raw) or not raw.get("CHAOS"):
        return []
    chaos = raw["CHAOS"]
    known = ", ".join(definition.name for definition in fields(ChaosConfig))
    hint = f"The fields of a policy are {known}; beside policies stand ALLOW_WITHOUT_DEBUG and SEED. See docs/testing.md."
    found: list[CheckMessage] = [Error(message, hint=hint, id="resilience.E006") for message in _problems(chaos)]
    if not (settings.DEBUG or chaos.get("ALLOW_WITHOUT_DEBUG") is True) and chaos.keys() - _OPTIONS:
        message = "RESILIENCE['CHAOS'] must be empty while DEBUG is off. No fault is injected."
        hint = "Remove CHAOS from these settings. For a fire drill on purpose add 'ALLOW_WITHOUT_DEBUG': True to it."
        found.append(Error(message, hint=hint, id="resilience.E007"))
    return found


def _problems(chaos: Mapping[str, Any]) -> list[str]:
    found = []
    if not isinstance(allowed := chaos.get("ALLOW_WITHOUT_DEBUG", False), bool):
        found.append(f"RESILIENCE['CHAOS']['ALLOW_WITHOUT_DEBUG'] must be True or False, not {allowed!r}.")
    if not isinstance(seed := chaos.get("SEED"), (int, str, type(None))):
        found.append(f"RESILIENCE['CHAOS']['SEED'] must be a whole number, a text or None, not {seed!r}.")
    for name in sorted(chaos.keys() - _OPTIONS, key=str):
        try:
            ChaosConfig(**chaos[name])
        except (TypeError, ValueError) as error:
            found.append(f"RESILIENCE['CHAOS'][{name!r}] is wrong: {error}")
    return found
