"""Asking caches that may never answer: with a limit of time, and with at most one thread left waiting for each.

Many clients of caches wait for ever unless they are told otherwise, and a server that froze accepts connections and
says nothing. What people and monitoring look at in such a night must answer all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Thread
from typing import Generic, TypeVar

from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import connections

from resilience import clock, conf

__all__ = ["NoAnswerError", "ask", "limit", "may_freeze", "unreachable", "within"]

Result = TypeVar("Result")

#: Questions that were given up and still wait: one thread each, however often they are asked again.
_stuck: dict[str, Thread] = {}


class NoAnswerError(Exception):
    """There was no answer in time; it may still come, to nobody."""


class _Question(Generic[Result]):
    """One question, asked in a thread of its own.

    Args:
        name: What is asked; while an earlier question of that name waits, no other is asked.
        act: The question.
    """

    def __init__(self, name: str, act: Callable[[], Result]) -> None:
        self.name = name
        self._act = act
        self._answers: list[Result] = []
        self._errors: list[Exception] = []
        stuck = _stuck.get(name)
        self._thread = None if stuck is not None and stuck.is_alive() else self._start()

    def _start(self) -> Thread:
        _stuck.pop(self.name, None)
        thread = Thread(target=self._ask, name=f"resilience-{self.name}", daemon=True)
        thread.start()
        return thread

    def _ask(self) -> None:
        try:
            self._answers.append(self._act())
        except Exception as error:  # noqa: BLE001  # handed to the thread that waits
            self._errors.append(error)
        finally:
            connections.close_all()

    def answer(self, seconds: float) -> Result:
        """Wait so many seconds for the answer.

        Raises:
            NoAnswerError: It did not come.
            Exception: What the question raised.
        """
        if self._thread is not None:
            self._thread.join(max(seconds, 0.0))
            if not self._answers and not self._errors:
                _stuck[self.name] = self._thread
        if self._errors:
            raise self._errors[0]
        if not self._answers:
            raise NoAnswerError
        return self._answers[0]


def limit() -> float:
    """Return `RESILIENCE["DASHBOARD"]["HEALTH_TIMEOUT"]`: seconds after which a cache is given up (2)."""
    return float(conf.current().dashboard.get("HEALTH_TIMEOUT", 2.0))


def within(seconds: float, name: str, act: Callable[[], Result]) -> Result:
    """Run a function in a thread of its own, and give it up after so many seconds.

    Args:
        seconds: How long to wait for it.
        name: What it is; while an earlier one of that name still waits, there is no answer at once.
        act: The function. It may end later, with nobody listening.

    Raises:
        NoAnswerError: There was no answer in time.
        Exception: What the function raised.

    Example:
        >>> within(5, "doc-sum", lambda: 1 + 1)
        2
    """
    return _Question(name, act).answer(seconds)


def ask(alias: str, name: str, act: Callable[[], Result]) -> Result:
    """Do something with a cache: as it is when the cache cannot freeze, and within `limit()` when it can.

    Args:
        alias: Alias in CACHES.
        name: What it is; see `within`.
        act: The function.

    Raises:
        NoAnswerError: There was no answer in time.
        Exception: What the function raised.
    """
    return within(limit(), name, act) if may_freeze(alias) else act()


def may_freeze(alias: str) -> bool:
    """May this cache wait for ever? Memory and files do not; a database has time limits of its own."""
    try:
        cache = caches[alias]
    except Exception:  # noqa: BLE001  # an alias that is not there fails at once
        return False
    return not isinstance(cache, LocMemCache | DummyCache | FileBasedCache | BaseDatabaseCache)


def unreachable(aliases: Iterable[str]) -> dict[str, str]:
    """Ask each cache for a key, all at the same time, and return those that do not answer in time.

    Returns:
        For each alias the class of its error, or "no answer".

    Example:
        >>> unreachable(["default", "missing"])
        {'missing': 'InvalidCacheBackendError'}
    """
    names = list(dict.fromkeys(aliases))
    far = {alias: _Question(f"cache-{alias}", _ping(alias)) for alias in names if may_freeze(alias)}
    end = clock.monotonic() + limit()
    found = {}
    for alias in names:
        try:
            _ping(alias)() if alias not in far else far[alias].answer(end - clock.monotonic())
        except NoAnswerError:
            found[alias] = "no answer"
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, it is not there
            found[alias] = type(error).__name__
    return found


def _ping(alias: str) -> Callable[[], object]:
    return lambda: caches[alias].get("resilience:ping")
