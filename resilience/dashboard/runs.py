"""What the runs page shows of each run: progress, pace, lease, and what may be done.

Plain functions of `Run` rows and the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from resilience.dashboard import charts
from resilience.dashboard.formatting import compact, duration, visible
from resilience.values import is_number

if TYPE_CHECKING:
    from resilience.runs.models import Checkpoint, Run

__all__ = ["STATUSES", "RunRow", "error_rows", "metric_plots", "row"]

#: Statuses as the page shows them: their name, and a shape that tells them apart without colour.
STATUSES: dict[str, tuple[Any, str]] = {
    "lost": (gettext_lazy("Lost"), "✖"),
    "failed": (gettext_lazy("Failed"), "✖"),
    "running": (gettext_lazy("Running"), "▶"),
    "queued": (gettext_lazy("Queued"), "…"),
    "paused": (gettext_lazy("Paused"), "❚❚"),
    "cancelled": (gettext_lazy("Cancelled"), "○"),
    "finished": (gettext_lazy("Finished"), "✔"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run as the page shows it."""

    pk: int
    key: str
    label: str
    status: str
    shown_status: str
    request: str
    task: str
    current: int | None
    total: int | None
    percent: float | None
    eta: float | None
    rate: float | None
    message: str
    owner: str
    attempts: int
    stalled: int
    max_stalled: int | None
    heartbeat_at: datetime | None
    lease_expires_at: datetime | None
    changed_at: datetime | None
    error: str

    @property
    def status_label(self) -> str:
        """The status in the reader's language."""
        return str(STATUSES[self.shown_status][0]) if self.shown_status in STATUSES else self.shown_status

    @property
    def status_icon(self) -> str:
        """A shape that tells the status apart without colour."""
        return STATUSES[self.shown_status][1] if self.shown_status in STATUSES else "?"

    @property
    def request_label(self) -> str:
        """What the worker has been asked to do and has not done yet, or ""."""
        asked = {"pause": _("pausing at the end of the step"), "cancel": _("cancelling at the end of the step")}
        return asked.get(self.request, "")

    @property
    def progress_text(self) -> str:
        """The progress in words."""
        if self.current is None:
            return "—"
        if self.total is None:
            return compact(self.current)
        return _("%(current)s of %(total)s") % {"current": compact(self.current), "total": compact(self.total)}

    @property
    def pace_text(self) -> str:
        """Steps a second, and the time left while the run moves."""
        if self.shown_status != "running" or not self.rate:
            return "—"
        pace = _("%(number)s steps/s") % {"number": compact(self.rate)}
        if self.eta is None:
            return pace
        left = _("%(time)s left") % {"time": duration(self.eta)}
        return f"{pace}, {left}"

    @property
    def attempts_text(self) -> str:
        """Attempts in all, and how many of the last ones went nowhere."""
        if not self.stalled:
            return compact(self.attempts)
        limit = compact(self.max_stalled) if self.max_stalled is not None else "∞"
        text = _("%(attempts)s (%(stalled)s of %(limit)s without progress)")
        return text % {"attempts": compact(self.attempts), "stalled": compact(self.stalled), "limit": limit}


def row(run: Run, now: datetime) -> RunRow:
    """Turn a run into its row.

    Args:
        run: The run; only columns of its own table are read.
        now: The time, to tell whether its lease is over.
    """
    lost = run.status == "running" and run.lease_expires_at is not None and run.lease_expires_at < now
    times = (run.finished_at, run.progressed_at, run.heartbeat_at, run.queued_at, run.started_at, run.created_at)
    known = [at for at in times if at is not None]
    return RunRow(
        pk=run.pk,
        key=run.key,
        label=visible(run.key),
        status=run.status,
        shown_status="lost" if lost else run.status,
        request=run.request,
        task=run.task,
        current=run.current,
        total=run.total,
        percent=run.percent,
        eta=run.eta.total_seconds() if run.eta is not None else None,
        rate=run.rate,
        message=run.message,
        owner=run.owner,
        attempts=run.attempts,
        stalled=run.stalled_attempts,
        max_stalled=run.max_stalled_attempts,
        heartbeat_at=run.heartbeat_at,
        lease_expires_at=run.lease_expires_at,
        changed_at=max(known) if known else None,
        error=run.last_error,
    )


def error_rows(errors: object) -> list[dict[str, Any]]:
    """Return the errors that a run remembers, newest first, as time, step and text."""
    if not isinstance(errors, list):
        return []
    return [
        {"at": _moment(error.get("at")), "step": error.get("step"), "text": str(error.get("error", ""))}
        for error in reversed(errors)
        if isinstance(error, Mapping)
    ]


def _moment(at: object) -> datetime | float | None:
    if isinstance(at, str):
        return parse_datetime(at)
    return at if isinstance(at, int | float | datetime) else None


def metric_plots(checkpoints: Iterable[Checkpoint]) -> list[dict[str, Any]]:
    """Draw the metrics that checkpoints carry, one plot for each name, oldest first.

    Args:
        checkpoints: The checkpoints, newest first.
    """
    series: dict[str, list[float]] = {}
    for checkpoint in reversed(list(checkpoints)):
        for name, value in _numbers(checkpoint.metrics).items():
            series.setdefault(name, []).append(value)
    return [_plot(name, values) for name, values in sorted(series.items())[:12]]


def _plot(name: str, values: Sequence[float]) -> dict[str, Any]:
    low, high, last = min(values), max(values), values[-1]
    text = _("%(name)s: last %(last)s, lowest %(low)s, highest %(high)s")
    label = text % {"name": visible(name), "last": compact(last), "low": compact(low), "high": compact(high)}
    return {"name": visible(name), "label": label, "last": compact(last), "plot": charts.line_plot(values, label=label)}


def _numbers(metrics: object) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        return {}
    return {str(name)[:80]: float(value) for name, value in metrics.items() if is_number(value)}
