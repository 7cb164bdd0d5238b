"""Tell what went wrong: one answer for the exceptions of every library, from tables and not from guesses.

The order, first answer wins: control flow; classifiers of the project; the exception's class and its bases, from the
most specific to the most general, each with what the exception carries (status, code, headers); a status on any
other exception; the exception it was raised from; and the words of its message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

from django.utils.module_loading import import_string

from resilience import conf
from resilience.calls import retry_after
from resilience.calls.callables import name_of
from resilience.calls.classification_rules import CONTROL_FLOW, MESSAGES, RULES
from resilience.calls.error_readers import READERS, Reader
from resilience.calls.http_statuses import attribute, read_status
from resilience.calls.kinds import ErrorInfo, ErrorKind
from resilience.redaction import log_exception, text_of

__all__ = ["Classifier", "ErrorInfo", "ErrorKind", "classify", "has_own_classifiers", "register_classifier"]

Classifier: TypeAlias = Callable[[Exception], ErrorInfo | None]

logger = logging.getLogger("resilience.calls")

#: Classifiers that have raised, and have been told of.
_broken: list[Callable[[Exception], object]] = []
_CANCELLED = ErrorInfo(ErrorKind.CANCELLED)
_UNKNOWN = ErrorInfo(ErrorKind.UNKNOWN)
_MOST_CAUSES = 20
#: Characters of a message that are looked at: what is wrong stands at its beginning, a whole body may follow.
_LONGEST_MESSAGE = 2000

_registered: list[Classifier] = []


def classify(exc: BaseException) -> ErrorInfo:
    """Tell what an exception means for the call that raised it.

    Nothing is imported and nothing is read from the network. Control flow (celery's Retry, Ignore, Reject and
    SoftTimeLimitExceeded, CancelledError, KeyboardInterrupt, SystemExit and whatever else is no `Exception`) is
    CANCELLED, whatever any classifier says. What nobody knows is UNKNOWN and not transient.

    Args:
        exc: Any exception.

    Example:
        >>> classify(ConnectionRefusedError()).kind
        <ErrorKind.CONNECTION: 'connection'>
        >>> classify(TimeoutError()).maybe_executed
        True
        >>> classify(ValueError("no such thing")).transient
        False
    """
    return _classify(exc, _MOST_CAUSES)


def register_classifier(classifier: Classifier) -> Classifier:
    """Ask a function before the built-in rules; the one registered last is asked first.

    A classifier that raises, or returns anything but an ErrorInfo or None, is logged and passed over. Those named
    in `RESILIENCE["CLASSIFIERS"]` are asked after the registered ones, in their order. Registering a function
    again changes nothing.

    Args:
        classifier: `(exception) -> ErrorInfo`, or None to leave the exception to the next.

    Returns:
        The function itself, so that this can be used as a decorator.

    Raises:
        TypeError: `classifier` is not callable.

    Example:
        >>> class OutOfPaper(Exception): ...
        >>> @register_classifier
        ... def printer_errors(exc):
        ...     return ErrorInfo(ErrorKind.OVERLOADED, transient=True) if isinstance(exc, OutOfPaper) else None
        >>> classify(OutOfPaper()).kind.value
        'overloaded'
    """
    if not callable(classifier):
        raise TypeError(f"classifier must be a function of one exception, not {classifier!r}. Pass the function itself.")
    if classifier not in _registered:
        _registered.insert(0, classifier)
    return classifier


def has_own_classifiers() -> bool:
    """Tell whether the project has classifiers, so that the class of an exception alone does not settle what it is."""
    return bool(_registered or conf.current().classifiers)


def _classify(exc: BaseException, causes_left: int) -> ErrorInfo:
    rules = _rules_for(type(exc))  # type: ignore[arg-type]  # BaseException's __hash__ is object's, and typed so
    if rules is None:
        return _CANCELLED
    assert isinstance(exc, Exception)
    if has_own_classifiers():
        for classifier in (*_registered, *_configured(conf.current().classifiers)):
            if (info := _asked(classifier, exc)) is not None:
                return info
    return _with_own_wait(exc, _by_tables(exc, rules, causes_left))


def _by_tables(exc: Exception, rules: tuple[ErrorInfo | Reader, ...], causes_left: int) -> ErrorInfo:
    def ask(inner: BaseException) -> ErrorInfo:
        return _classify(inner, causes_left - 1) if causes_left else _UNKNOWN

    for rule in rules:
        info = rule if isinstance(rule, ErrorInfo) else _read(rule, exc, ask)
        if info is not None:
            return info
    if isinstance(exc.__cause__, Exception) and (info := ask(exc.__cause__)).kind is not ErrorKind.UNKNOWN:
        return info
    return _by_message(exc)


def _read(reader: Reader, exc: Exception, ask: Callable[[BaseException], ErrorInfo]) -> ErrorInfo | None:
    try:
        return reader(exc, ask)
    except Exception as error:
        if _is_control_flow(error):
            raise
        # An exception that was never initialised, or is not what its class promises: what it is must not be hidden by that.
        return None


def _by_message(exc: Exception) -> ErrorInfo:
    message = text_of(exc)[:_LONGEST_MESSAGE].lower()
    for parts, kind, (transient, maybe_executed) in MESSAGES:
        if any(part in message for part in parts):
            return ErrorInfo(kind, transient, maybe_executed)
    return _UNKNOWN


def _with_own_wait(exc: Exception, info: ErrorInfo) -> ErrorInfo:
    """Add the `retry_after` that many exceptions carry as an attribute, when no header told it."""
    if info.retry_after is not None or not info.transient:
        return info
    seconds = retry_after.parse_seconds(attribute(exc, "retry_after"))
    return info if seconds is None else replace(info, retry_after=seconds)


@lru_cache(maxsize=1024)
def _rules_for(cls: type[BaseException]) -> tuple[ErrorInfo | Reader, ...] | None:
    """Return what the tables say about a class and its bases, in order; None for control flow."""
    paths = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    if not issubclass(cls, Exception) or not CONTROL_FLOW.isdisjoint(paths):
        return None
    rules: list[ErrorInfo | Reader] = []
    for base, path in zip(cls.__mro__, paths, strict=True):
        if base.__module__ == "builtins" and cls is not base:
            # What a project's own class carries says more than the built-in class it happens to derive from.
            rules.append(read_status)
        rules += (table[path] for table in (READERS, RULES) if path in table)
    return tuple(rules)


def _asked(classifier: Callable[[Exception], object], exc: Exception) -> ErrorInfo | None:
    try:
        info = classifier(exc)
    except Exception as error:  # logged, and not worth the call's own error
        if _is_control_flow(error):
            raise
        # Once: it is asked for every failure, and an outage has many.
        if classifier not in _broken:
            _broken.append(classifier)
            log_exception(logger, "The classifier %s raised; it is passed over.", name_of(classifier), error=error)
        return None
    if info is not None and not isinstance(info, ErrorInfo):
        logger.error(
            "The classifier %s must return an ErrorInfo or None, not %s; it is passed over.",
            name_of(classifier),
            type(info).__name__,
        )
        return None
    if info is not None and info.retry_after is not None:
        return replace(info, retry_after=retry_after.parse_seconds(info.retry_after))
    return info


def _is_control_flow(error: Exception) -> bool:
    """Tell whether `error` did not come from what was asked but merely struck there, as a worker's time limit may."""
    return _rules_for(type(error)) is None  # type: ignore[arg-type]  # as above


@lru_cache(maxsize=8)
def _configured(paths: tuple[str, ...]) -> tuple[Classifier, ...]:
    found = []
    for path in paths:
        try:
            found.append(import_string(path))
        except ImportError as error:
            message = "RESILIENCE['CLASSIFIERS'] names %r, which cannot be imported; it is passed over."
            log_exception(logger, message, path, error=error)
    return tuple(found)
