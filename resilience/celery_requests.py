"""What the main process of a worker does about a run whose child it is about to kill."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

from celery.worker.request import Request
from django.db import DatabaseError, InterfaceError, connections, router

from resilience.redaction import describe_exception
from resilience.runs.leases import owner_of
from resilience.runs.models import Run, RunStatus
from resilience.runs.operations import reclaim
from resilience.runs.wakeups import wake

__all__ = ["ResumableRequest"]

logger = logging.getLogger("resilience.runs")

#: Seconds that the worker's main loop waits for the database: while it waits, nobody else's work begins or ends.
_PATIENCE = 3.0
#: Seconds before the next attempt, so that the child is gone by then.
_PAUSE = 1.0


class ResumableRequest(Request):
    """A message for a resumable task: when its hard time limit is over, the run is taken from the child before that is killed.

    The child is sent SIGTERM first, as in a shutdown. Without this it could give the run back as one that was
    politely interrupted, and a step that hangs would be tried for ever.
    """

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Take the run away and write down why, then do what Celery does."""
        if not soft and self.worker_pid:
            _take_away_in_time(str(self.type), int(self.worker_pid), f"hard time limit of {timeout:g} s is over for")
        super().on_timeout(soft, timeout)


def _take_away_in_time(task: str, pid: int, cause: str) -> None:
    """Take the run away in a thread of its own, so that a database that does not answer holds up no worker."""
    thread = threading.Thread(target=_take_away, args=(task, pid, cause), name="resilience-time-limit", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        logger.warning("time limit not noted", extra={"task": task, "error": describe_exception(error)})
        return
    thread.join(_PATIENCE)
    if thread.is_alive():
        # It goes on by itself; should the database never answer, the lease runs out.
        logger.warning("time limit not noted yet", extra={"task": task, "error": "the database does not answer"})


def _take_away(task: str, pid: int, cause: str) -> None:
    using = router.db_for_write(Run)
    owner = owner_of(socket.gethostname(), pid)
    try:
        rows: Any = Run.objects.using(using).filter(task=task, status=RunStatus.RUNNING, owner__startswith=owner)
        for run in rows:
            if reclaim(run, using, owner=owner, cause=cause) and run.status == RunStatus.QUEUED:
                wake(run, using, reason="error", delay=_PAUSE)
    except (DatabaseError, InterfaceError) as error:
        # The lease runs out, and the sweeper does the same later.
        logger.warning("time limit not noted", extra={"task": task, "error": describe_exception(error)})
    finally:
        # The main process forks: it keeps no connection. Nor does a thread that ends.
        connections[using].close()
