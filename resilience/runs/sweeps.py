"""Find the runs that nobody works on though somebody should, and wake them up.

Two kinds are found: running ones whose lease is over, because their worker was killed or cut off, and queued ones
whose message was lost. Any number of sweepers may run at once: each run is claimed by a conditional UPDATE. One whose
row is locked is left to the next sweep, so that a worker frozen in a transaction holds up no other run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from django.db import InterfaceError, OperationalError
from django.db.models import F, Q, QuerySet

from resilience import conf
from resilience.redaction import describe_exception
from resilience.runs.leases import DatabaseNow
from resilience.runs.locks import row_of, unless_locked
from resilience.runs.models import Run, RunStatus
from resilience.runs.operations import reclaim
from resilience.runs.wakeups import wake

__all__ = ["SweepResult", "sweep"]

logger = logging.getLogger("resilience.runs")

#: Seconds after which a message that did not start its run is taken for lost, unless `RUNS["WAKE_AFTER"]` says else.
_WAKE_AFTER = 60.0
#: Seconds that whoever queued a run has to send the first message.
_GRACE = 5.0
#: A queue may be longer than patience: each further message for the same run waits twice as long, up to 64 times.
_DOUBLINGS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What one sweep did.

    Args:
        reclaimed: Keys of runs taken from workers whose lease was over.
        woken: Keys of runs that a message was sent for.
        failed: Keys of runs that ended, or whose message could not be sent.
    """

    reclaimed: tuple[str, ...] = ()
    woken: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def sweep(using: str, *, limit: int = 1000) -> SweepResult:
    """Re-enqueue what was lost, each run once; one that cannot be changed is logged and holds up no other.

    Args:
        using: The database alias.
        limit: Most runs of each kind to look at; the next sweep takes the others.

    Raises:
        OperationalError, InterfaceError: The database is away; what was done so far is done.
    """
    reclaimed = _changed(_expired(using)[:limit], using, reclaim)
    lost = [run for run in reclaimed if run.status == RunStatus.QUEUED and run.task]
    unheard = _changed(_unheard(using)[:limit], using, _claim)
    sent = {run.key: wake(run, using, reason="lease_expired") for run in lost}
    sent |= {run.key: wake(run, using, reason="lost") for run in unheard}
    ended = [run.key for run in reclaimed if run.status == RunStatus.FAILED]
    return SweepResult(
        reclaimed=tuple(run.key for run in reclaimed),
        woken=tuple(key for key, ok in sent.items() if ok),
        failed=(*ended, *(key for key, ok in sent.items() if not ok)),
    )


def _changed(runs: Iterable[Run], using: str, change: Callable[[Run, str], bool]) -> list[Run]:
    """Return the runs that `change` changed."""
    changed = []
    for run in runs:
        try:
            if unless_locked(run, using, change):
                changed.append(run)
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:  # noqa: BLE001  # one odd row must not stop the others
            logger.warning("run not swept", extra={"key": run.key, "error": describe_exception(error)})
    return changed


def _expired(using: str) -> QuerySet[Run]:
    rows = Run.objects.using(using).defer("result")
    return rows.filter(status=RunStatus.RUNNING, lease_expires_at__lt=DatabaseNow()).order_by("lease_expires_at")


def _unheard(using: str) -> QuerySet[Run]:
    """Queued runs with a task whose message is overdue, those first that never got one."""
    never = Q(woken_at=None) & (Q(queued_at=None) | Q(queued_at__lt=DatabaseNow(-_GRACE)))
    # Asked of the database for each run's own patience: those that must wait longer would else fill the limit.
    overdue = Q(woken_at__lt=DatabaseNow(-_patience(_DOUBLINGS)))
    for number in range(_DOUBLINGS):
        overdue |= Q(wakeups__lte=number + 1, woken_at__lt=DatabaseNow(-_patience(number)))
    rows = Run.objects.using(using).defer("result").filter(status=RunStatus.QUEUED).exclude(task="")
    return rows.filter(never | overdue).order_by(F("woken_at").asc(nulls_first=True))


def _claim(run: Run, using: str) -> bool:
    """Win the right to send one message for a queued run."""
    seen = {"status": RunStatus.QUEUED, "fence": run.fence, "wakeups": run.wakeups}
    # Not compared for equality: databases keep times in different precision.
    overdue = {"woken_at": None} if run.woken_at is None else {"woken_at__lt": DatabaseNow(-_patience(run.wakeups - 1))}
    return bool(row_of(run.pk, using, **seen, **overdue).update(woken_at=DatabaseNow()))


def _patience(wakeups: int) -> float:
    base = float(conf.current().runs.get("WAKE_AFTER", _WAKE_AFTER))
    return base * 2.0 ** min(max(wakeups, 0), _DOUBLINGS)
