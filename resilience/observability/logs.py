"""Structured log lines: one for each rare event, none for a call that went well.

Every line has its facts in `extra=` under names that begin with `resilience_`, so that JSON formatters and
structlog pick them up. A circuit that rejects a thousand calls a second writes one line when it opens, not a
thousand; and a function that fails a thousand times a second writes ten lines a minute, and then how many were
left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.dispatch import Signal

from resilience import clock, signals
from resilience.redaction import describe_exception, redact

__all__ = ["connect", "disconnect", "forget"]


@dataclass(frozen=True, slots=True)
class _Line:
    signal: Signal
    logger: str
    level: int
    message: str
    fields: tuple[str, ...]
    #: Whether it tells of single calls, of which an outage has thousands.
    is_frequent: bool = False


_LINES = (
    _Line(
        signals.retry_scheduled,
        "calls",
        logging.INFO,
        "%s: attempt %s failed (%s); next in %.2f s: %s",
        ("name", "attempt", "kind", "delay", "exception"),
        is_frequent=True,
    ),
    _Line(
        signals.retry_succeeded,
        "calls",
        logging.INFO,
        "%s: succeeded after %s in %.2f s",
        ("name", "attempts", "elapsed"),
        is_frequent=True,
    ),
    _Line(
        signals.retry_gave_up,
        "calls",
        logging.WARNING,
        "%s: gave up after %s (%s, %s): %s",
        ("name", "attempts", "kind", "reason", "exception"),
        is_frequent=True,
    ),
    _Line(
        signals.timeout_expired, "calls", logging.WARNING, "%s: no answer within %.3f s", ("name", "seconds"), is_frequent=True
    ),
    _Line(
        signals.fallback_used,
        "calls",
        logging.INFO,
        "%s: the fallback %s, after %s",
        ("name", "failed", "exception"),
        is_frequent=True,
    ),
    _Line(signals.circuit_opened, "circuits", logging.ERROR, "circuit %s opened (%s)", ("name", "transition")),
    _Line(signals.circuit_half_opened, "circuits", logging.WARNING, "circuit %s half-opened (%s)", ("name", "transition")),
    _Line(signals.circuit_closed, "circuits", logging.INFO, "circuit %s closed (%s)", ("name", "transition")),
    _Line(
        signals.circuit_operated,
        "circuits",
        logging.WARNING,
        "circuit %s was operated (%s) by %s",
        ("name", "transition", "actor"),
    ),
    _Line(
        signals.circuit_store_failed,
        "circuits",
        logging.ERROR,
        "cache %s failed at %s (%s): circuits go on with local knowledge",
        ("alias", "operation", "error"),
    ),
    _Line(
        signals.circuit_store_recovered,
        "circuits",
        logging.INFO,
        "cache %s answers again (%s%s)",
        ("alias", "operation", "error"),
    ),
    _Line(
        signals.db_retry_scheduled,
        "db",
        logging.INFO,
        "%s on %s: attempt %s failed (%s, code %s, phase %s); next in %.3f s",
        ("name", "using", "attempt", "kind", "code", "phase", "delay"),
        is_frequent=True,
    ),
    _Line(
        signals.db_retry_gave_up,
        "db",
        logging.WARNING,
        "%s on %s: gave up after %s (%s, code %s, phase %s)",
        ("name", "using", "attempts", "kind", "code", "phase"),
        is_frequent=True,
    ),
    _Line(
        signals.commit_outcome_unknown,
        "db",
        logging.ERROR,
        "%s on %s: COMMIT was cut off; outcome %s",
        ("name", "using", "resolution"),
    ),
    _Line(signals.run_started, "runs", logging.INFO, "run %s started (%s, attempt %s)", ("key", "task", "attempt")),
    _Line(
        signals.run_resumed,
        "runs",
        logging.INFO,
        "run %s resumed after step %s (%s, attempt %s)",
        ("key", "step", "task", "attempt"),
    ),
    _Line(signals.run_interrupted, "runs", logging.INFO, "run %s left at step %s: %s", ("key", "step", "reason")),
    _Line(signals.run_finished, "runs", logging.INFO, "run %s finished in %.1f s", ("key", "elapsed")),
    _Line(signals.run_failed, "runs", logging.ERROR, "run %s failed (%s); %s", ("key", "error", "final")),
    _Line(signals.run_requeued, "runs", logging.INFO, "run %s queued again: %s", ("key", "reason")),
    _Line(signals.run_operated, "runs", logging.WARNING, "run %s: %s by %s", ("key", "action", "actor")),
    _Line(
        signals.checkpoint_failed,
        "runs",
        logging.ERROR,
        "run %s: checkpoint of step %s could not be saved (%s)",
        ("key", "step", "error"),
    ),
    _Line(
        signals.checkpoint_damaged,
        "runs",
        logging.ERROR,
        "run %s: checkpoint of step %s is damaged (%s)",
        ("key", "step", "reason"),
    ),
)


#: What a line says where the bare fact, which stands in `extra=`, would not read well.
_WORDS: dict[str, Callable[[Any], str]] = {
    "actor": lambda actor: actor or "an unnamed actor",
    "attempts": lambda attempts: f"{attempts} attempt{'s' * (attempts != 1)}",
    "failed": lambda failed: "failed too" if failed else "answered",
    "final": lambda final: "no further attempt follows by itself" if final else "another attempt follows",
    "task": lambda task: task or "no task",
}

#: Seconds that lines of one kind about one subject are counted for, and how many of them are written.
_MINUTE = 60.0
_LINES_A_MINUTE = 10
_SUBJECTS = 500


class _Throttle:
    """Lets so many lines a minute through for each subject, and counts the rest.

    Without a lock: a line more or less is no harm, and a lock held while another thread forks would be.
    """

    def __init__(self) -> None:
        self._minutes: dict[str, tuple[float, int, int]] = {}

    def admit(self, subject: str) -> int | None:
        """Return how many lines were left out since the last one, or None to leave this one out, too."""
        now = clock.monotonic()
        if subject not in self._minutes and len(self._minutes) >= _SUBJECTS:
            self._minutes = {name: row for name, row in list(self._minutes.items()) if 0 <= now - row[0] < _MINUTE}
            if len(self._minutes) >= _SUBJECTS:
                subject = ""
        began, written, left_out = self._minutes.get(subject, (now, 0, 0))
        if not 0 <= now - began < _MINUTE:
            began, written = now, 0
        if written >= _LINES_A_MINUTE:
            self._minutes[subject] = (began, written, left_out + 1)
            return None
        self._minutes[subject] = (began, written + 1, 0)
        return left_out

    def forget(self) -> None:
        self._minutes.clear()


_throttles = [_Throttle() for _ in _LINES]


def connect() -> None:
    """Write the lines from now on; calling it again changes nothing."""
    for number, (line, throttle) in enumerate(zip(_LINES, _throttles, strict=True)):
        receiver = _receiver(line, throttle)
        line.signal.connect(receiver, weak=False, dispatch_uid=f"resilience.logs.{number}")


def disconnect() -> None:
    """Write nothing more; nothing happens if nothing was written.

    Example:
        >>> disconnect()
        >>> connect()
    """
    for number, line in enumerate(_LINES):
        line.signal.disconnect(dispatch_uid=f"resilience.logs.{number}")


def forget() -> None:
    """Count lines from nothing, as each test should find them."""
    for throttle in _throttles:
        throttle.forget()


def _receiver(line: _Line, throttle: _Throttle) -> Callable[..., None]:
    logger = logging.getLogger(f"resilience.{line.logger}")

    def receive(sender: Any, **arguments: Any) -> None:
        if not logger.isEnabledFor(line.level):
            return
        left_out = throttle.admit(str(arguments[line.fields[0]])) if line.is_frequent else 0
        if left_out is None:
            return
        facts = {field: _plain(arguments[field]) for field in line.fields}
        extra = {f"resilience_{field}": value for field, value in facts.items()}
        message = line.message
        if left_out:
            message += f" ({left_out} more like it were not written)"
            extra["resilience_left_out"] = left_out
        words = [_WORDS[field](value) if field in _WORDS else value for field, value in facts.items()]
        logger.log(line.level, message, *words, extra=extra)

    return receive


def _plain(value: Any) -> Any:
    """Return what a log may hold: numbers as they are, redacted exceptions, the words of a transition, one line each."""
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, BaseException):
        text = describe_exception(value)
    elif hasattr(value, "old") and hasattr(value, "new"):
        reason = redact(getattr(value, "reason", ""))
        text = f"{value.old} -> {value.new}{f': {reason}' if reason else ''}"
    else:
        text = str(value)
    # Keys and reasons come from people: a newline in one must not forge a line of its own.
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
