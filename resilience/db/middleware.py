"""Run a request again whose ATOMIC_REQUESTS transaction met a deadlock, as long as nothing irreversible has happened.

Off unless it is listed in MIDDLEWARE; best as the last entry, so that nothing else sees the failed attempts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from django.core.handlers.base import BaseHandler
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from resilience import clock, conf, signals
from resilience.calls.callables import name_of
from resilience.calls.nesting import gave_up
from resilience.connections import is_in_transaction
from resilience.db.connections import drop_connection
from resilience.db.errors import DatabaseErrorInfo, classify_db_error, originating_alias
from resilience.db.plans import RetryPlan
from resilience.db.watches import FenceWatch

__all__ = ["RetryAtomicRequestsMiddleware", "forbid_replay"]

_FORBIDDEN = "_resilience_replay_forbidden"


def forbid_replay(request: HttpRequest) -> None:
    """Say that this request has done something that a rollback does not undo: it is then not run again.

    For what leaves the process at once: a mail, a task that is published, a payment. Better is to do such things
    in `transaction.on_commit`, where they happen only once anyhow.

    Example:
        >>> from django.test import RequestFactory
        >>> forbid_replay(RequestFactory().post("/orders/"))
    """
    setattr(request, _FORBIDDEN, True)


class RetryAtomicRequestsMiddleware:
    """Run the view again when its transaction failed for a reason that may pass.

    Only views that ATOMIC_REQUESTS makes atomic; only while nothing was committed on any database, nobody called
    `forbid_replay`, and the request's body can be read again. Everything the view left on the request object
    (session, messages) is as the failed attempt left it. Subclass to change `plan`.

    Example:
        >>> from django.http import HttpResponse
        >>> middleware = RetryAtomicRequestsMiddleware(lambda request: HttpResponse())
        >>> middleware.plan.max_attempts
        3
    """

    sync_capable = True
    async_capable = False
    #: How often, and how far apart; see `db_retry`.
    plan = RetryPlan(max_attempts=3, deadline=5.0)

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Let the request through; what fails inside arrives in `process_exception`."""
        with ExitStack() as watched:
            request._resilience_watched = watched  # type: ignore[attr-defined]  # noqa: SLF001  # this request's own state
            return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponseBase], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Begin to watch what the view commits."""
        aliases = _atomic_aliases(view)
        attempt = _Attempt(view, args, kwargs, aliases)
        attempt.watch(request._resilience_watched)  # type: ignore[attr-defined]  # noqa: SLF001  # set in __call__
        request._resilience_attempt = attempt  # type: ignore[attr-defined]  # noqa: SLF001  # this request's own state

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """Run the view again, or return None to let the exception take its course."""
        attempt: _Attempt | None = getattr(request, "_resilience_attempt", None)
        started, number = clock.monotonic(), 1
        while attempt is not None and attempt.aliases:
            delay = self._wait(request, exception, attempt, number, clock.monotonic() - started)
            if delay is None:
                return None
            clock.sleep(delay)
            number += 1
            try:
                with ExitStack() as watched:
                    attempt.watch(watched)
                    response = attempt.run(request)
            except Exception as exc:  # noqa: BLE001  # judged in the next round
                exception = exc
                continue
            elapsed = clock.monotonic() - started
            signals.emit(
                signals.db_retry_succeeded,
                attempt.view,
                name=name_of(attempt.view),
                using=attempt.aliases[0],
                attempts=number,
                elapsed=elapsed,
            )
            return response
        return None

    def _wait(self, request: HttpRequest, exc: Exception, attempt: _Attempt, number: int, elapsed: float) -> float | None:
        """Return the seconds to wait before running the view again, or None not to."""
        alias = originating_alias(exc) or attempt.aliases[0]
        info = classify_db_error(exc, alias)
        is_on = conf.current().enabled
        if not (is_on and self.plan.wants_retry(info) and alias in attempt.aliases) or gave_up(exc):
            return None
        if not _may_replay(request) or attempt.has_left_traces(info, alias):
            return None
        delay = self.plan.wait_after(number, info)
        limit, deadline = self.plan.max_attempts, self.plan.deadline
        if (limit is not None and number >= limit) or (deadline is not None and elapsed + delay >= deadline):
            return None
        if info.new_connection:
            drop_connection(connections[alias])
        signals.emit(
            signals.db_retry_scheduled,
            attempt.view,
            name=name_of(attempt.view),
            using=alias,
            attempt=number,
            delay=delay,
            kind=info.kind,
            code=info.code,
            phase="body",
        )
        return delay


class _Attempt:
    """The view of one request, and what it did to the databases."""

    def __init__(
        self, view: Callable[..., HttpResponseBase], args: tuple[Any, ...], kwargs: dict[str, Any], aliases: list[str]
    ) -> None:
        self.view = view
        self.aliases = aliases
        self._args = args
        self._kwargs = kwargs
        self._watches: dict[str, FenceWatch] = {}

    def watch(self, until: ExitStack) -> None:
        """Watch every connection that is open now, and those the view's transactions will use."""
        self._watches = {}
        opened = {connection.alias: connection for connection in connections.all(initialized_only=True)}
        for alias in {*opened, *self.aliases}:
            self._watches[alias] = FenceWatch()
            connections[alias].run_commit_hooks_on_set_autocommit_on = False
            until.enter_context(connections[alias].execute_wrapper(self._watches[alias]))

    def run(self, request: HttpRequest) -> HttpResponseBase:
        """Call the view as Django does, each of its databases in a transaction."""
        files = [file for _, group in request.FILES.lists() for file in group] if hasattr(request, "_files") else []
        for file in files:
            file.seek(0)
        return BaseHandler().make_view_atomic(self.view)(request, *self._args, **self._kwargs)

    def has_left_traces(self, info: DatabaseErrorInfo, alias: str) -> bool:
        """Whether anything was committed, or may have been, since `watch`."""
        for connection in connections.all(initialized_only=True):
            watch = self._watches.get(connection.alias)
            if watch is None and connection.connection is not None:
                return True  # opened by the view, and nobody saw what for
            if watch is not None and (watch.committed or _has_committed(connection)):
                return True
        is_lost = info.ambiguous and info.new_connection
        return is_lost and self._watches[alias].may_have_lost_commit(alias)


def _has_committed(connection: BaseDatabaseWrapper) -> bool:
    return connection.run_commit_hooks_on_set_autocommit_on or is_in_transaction(connection)


def _atomic_aliases(view: Callable[..., Any]) -> list[str]:
    """The databases in whose transactions Django runs this view."""
    exempt: set[str] = getattr(view, "_non_atomic_requests", set())
    return [alias for alias, settings in connections.settings.items() if settings["ATOMIC_REQUESTS"] and alias not in exempt]


def _may_replay(request: HttpRequest) -> bool:
    """Whether nobody forbade it, and the body, if it was read at all, was kept."""
    if getattr(request, _FORBIDDEN, False):
        return False
    was_read = getattr(request, "_read_started", False)
    return not was_read or hasattr(request, "_body") or hasattr(request, "_post")
