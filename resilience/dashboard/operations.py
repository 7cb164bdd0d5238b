"""What can be done to a circuit or a run by hand, when it is allowed, and what it says.

The admin pages and the management commands share this table, so that a button and a command mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _

from resilience.redaction import redact

if TYPE_CHECKING:
    from resilience.runs.models import Run

__all__ = [
    "CIRCUIT_OPERATIONS",
    "EXPIRIES",
    "RUN_OPERATIONS",
    "Operation",
    "is_legal_for_run",
    "operate_circuit",
    "operate_run",
    "parse_expiry",
]

_REASON_LIMIT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something an operator can do.

    Args:
        key: Its name in forms and commands.
        label: What the button says.
        effect: What happens then, in a sentence.
        done: What the audit log says, in English.
        legal: States (or statuses) in which it can be done.
        target: The state it leads to, or "" when it depends.
        needs_reason: Must a reason be given?
        takes_expiry: Can it end by itself?
        grave: Does it stop or throw away work?
    """

    key: str
    label: Any
    effect: Any
    done: str
    legal: frozenset[str]
    target: str = ""
    needs_reason: bool = False
    takes_expiry: bool = False
    grave: bool = False


_EVERY_STATE = frozenset({"closed", "open", "half_open", "forced_open", "disabled", "metrics_only"})

CIRCUIT_OPERATIONS: Mapping[str, Operation] = {
    operation.key: operation
    for operation in (
        Operation(
            key="open",
            label=_("Force open"),
            effect=_("Every call is refused in the whole fleet, until the time is over or somebody resets the circuit."),
            done="Forced open",
            legal=_EVERY_STATE,
            target="forced_open",
            needs_reason=True,
            takes_expiry=True,
            grave=True,
        ),
        Operation(
            key="reset",
            label=_("Close and reset"),
            effect=_("Calls go through again, and all counts start from zero."),
            done="Closed and reset",
            legal=_EVERY_STATE,
            target="closed",
        ),
        Operation(
            key="half_open",
            label=_("Probe now"),
            effect=_("The next call is let through as a probe. If it succeeds often enough, the circuit closes."),
            done="Probe allowed",
            legal=frozenset({"open", "forced_open"}),
            target="half_open",
        ),
        Operation(
            key="disable",
            label=_("Disable"),
            effect=_("Every call goes through and nothing is counted, until somebody resets the circuit."),
            done="Disabled",
            legal=_EVERY_STATE - {"disabled"},
            target="disabled",
            needs_reason=True,
            grave=True,
        ),
        Operation(
            key="metrics_only",
            label=_("Metrics only"),
            effect=_("Every call goes through and is counted, but the circuit never opens, until somebody resets it."),
            done="Set to metrics only",
            legal=_EVERY_STATE - {"metrics_only"},
            target="metrics_only",
            needs_reason=True,
            grave=True,
        ),
    )
}

#: How long a circuit can be forced open: seconds ("" for ever) and what the menu says.
EXPIRIES: tuple[tuple[str, Any], ...] = (
    ("300", _("5 minutes")),
    ("900", _("15 minutes")),
    ("3600", _("1 hour")),
    ("28800", _("8 hours")),
    ("86400", _("24 hours")),
    ("", _("Until somebody resets it")),
)


def parse_expiry(text: str) -> float | None:
    """Return the seconds that a circuit stays forced open, or None for ever.

    Args:
        text: A number of seconds above 0 and at most 31 days, or "".

    Raises:
        ValueError: The text is neither.

    Example:
        >>> parse_expiry("900"), parse_expiry("")
        (900.0, None)
    """
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 31 * 86_400:
        raise ValueError(f"seconds must be above 0 and at most 31 days, not {text!r}. Leave it out to stay open until reset.")
    return seconds


def operate_circuit(name: str, operation: Operation, *, actor: str, reason: str = "", seconds: float | None = None) -> str:
    """Do it to the circuit of that name, which must be known to exist.

    Args:
        name: The circuit's name; the caller has looked it up.
        operation: One of `CIRCUIT_OPERATIONS`.
        actor: Who does it, as in "admin:anna" or "cli:anna".
        reason: Why; redacted before it is kept.
        seconds: How long to stay forced open; None for ever.

    Returns:
        What was done, in English, for the audit log.
    """
    from resilience.circuits.registry import get_circuit_breaker

    breaker = get_circuit_breaker(name)
    clean = " ".join(redact(reason, _REASON_LIMIT).split())
    if operation.key == "open":
        breaker.open(seconds, clean, actor=actor)
    else:
        getattr(breaker, operation.key)(reason=clean, actor=actor)
    until = f" for {seconds:.0f} s" if operation.key == "open" and seconds else ""
    return f"{operation.done}{until}.{f' Reason: {clean}' if clean else ''}"


RUN_OPERATIONS: Mapping[str, Operation] = {
    operation.key: operation
    for operation in (
        Operation(
            key="pause",
            label=_("Pause"),
            effect=_("The run stops at the end of its step, keeps its last checkpoint and waits until somebody resumes it."),
            done="Paused",
            legal=frozenset({"queued", "running"}),
        ),
        Operation(
            key="resume",
            label=_("Resume"),
            effect=_("The run goes on from its last checkpoint."),
            done="Resumed",
            legal=frozenset({"paused", "running"}),
        ),
        Operation(
            key="cancel",
            label=_("Cancel run"),
            effect=_("The run ends at the end of its step and is not started again. Its checkpoints stay for a while."),
            done="Cancelled",
            legal=frozenset({"queued", "running", "paused", "failed"}),
            needs_reason=True,
            grave=True,
        ),
        Operation(
            key="retry",
            label=_("Retry"),
            effect=_("The run gets new attempts and goes on from its last checkpoint."),
            done="Retried",
            legal=frozenset({"failed", "cancelled"}),
        ),
        Operation(
            key="skip",
            label=_("Skip the failed step"),
            effect=_("The step that failed last is left out for good, and the run goes on behind it."),
            done="Failed step skipped",
            legal=frozenset({"failed", "paused"}),
            needs_reason=True,
            grave=True,
        ),
    )
}


def is_legal_for_run(run: Run, operation: Operation) -> bool:
    """Can it be done to the run as it is now? What was asked for already cannot be asked again."""
    if run.request == operation.key:
        return False
    if run.status == "running" and operation.key == "resume":
        return bool(run.request)
    return run.status in operation.legal


def operate_run(run: Run, operation: Operation, *, actor: str, reason: str = "") -> str:
    """Do it to a run.

    Args:
        run: The run.
        operation: One of `RUN_OPERATIONS`.
        actor: Who does it, as in "admin:anna" or "cli:anna".
        reason: Why; redacted before it is kept.

    Returns:
        What was done, in English, for the audit log.

    Raises:
        RunStateError: The run's status does not allow it any more.
    """
    clean = " ".join(redact(reason, _REASON_LIMIT).split())
    getattr(run, operation.key)(actor=actor, reason=clean)
    later = ", at the end of the step" if run.status == "running" and run.request else ""
    return f"{operation.done}{later}.{f' Reason: {clean}' if clean else ''}"
