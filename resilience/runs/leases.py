"""Who may write a run: leases with fence numbers, on the database's clock.

A worker takes a run with one conditional UPDATE that raises the run's fence number. From then on everything it
writes carries that number in its WHERE clause, in the transaction that commits the write; a worker that was
frozen, cut off or declared dead finds a higher number there and writes nothing. Time is always the database's:
no host's clock decides anything.

Source:
    Fencing tokens: M. Kleppmann, "How to do distributed locking", 2016.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connections
from django.db.models import DateTimeField, F, Func
from django.db.models.functions import Coalesce

from resilience import clock
from resilience.calls.classify import classify
from resilience.connections import is_in_transaction
from resilience.db.errors import is_database_error
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.runs.locks import row_of, short_transaction
from resilience.runs.models import Run, RunStatus
from resilience.runs.statements import HeldRows

__all__ = ["DatabaseNow", "Lease", "interruption_behind", "notify", "outlast_outages", "owner_of", "take"]

Result = TypeVar("Result")

#: Columns that speak of a holder; cleared when a run is given back.
RELEASED: dict[str, Any] = {"lease_expires_at": None, "owner": "", "request": ""}


class DatabaseNow(Func):
    """The database's time in UTC, with fractions of a second, plus some seconds.

    Args:
        seconds: What to add.

    Example:
        >>> Run.objects.filter(lease_expires_at__lt=DatabaseNow()).exists()
        False
    """

    output_field = DateTimeField()

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds

    def as_sql(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, list[Any]]:  # type: ignore[override]  # no template
        """Refuse databases whose clock we do not know how to read."""
        raise NotImplementedError(f"Leases need PostgreSQL, MySQL, MariaDB or SQLite, not {connection.vendor}.")

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, list[Any]]:
        """Ask for the time of the statement."""
        # The statement's time and not now(): that is the beginning of the transaction, which may be long ago.
        return "(STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second')", [self.seconds]

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, list[Any]]:
        """Ask for UTC, whatever the zone of the session."""
        return "(UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND)", [round(self.seconds * 1_000_000)]

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, tuple[str | int, ...]]:
        """Ask for UTC with milliseconds."""
        return "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', %s)", (f"{self.seconds:+.3f} seconds",)


class Lease:
    """The right to write one run until `seconds` after the last sign of life.

    Args:
        run: The row as it was right after it was taken.
        using: The database alias.

    Attributes:
        rows: The run's row and those of its checkpoints, to be written.
        request: What people ask of the holder, as seen last: "", "pause" or "cancel".
        is_lost: Whether another worker has the run, or it was cancelled under us.
    """

    def __init__(self, run: Run, using: str) -> None:
        self.run_id = run.pk
        self.using = using
        self.fence = run.fence
        self.seconds = run.lease_seconds
        self.request = run.request
        self.is_lost = False
        self.renewed_at = self.looked_at = clock.monotonic()
        self.rows = HeldRows(run.pk, self._mine())
        self._fresh = {"lease_expires_at": DatabaseNow(self.seconds), "heartbeat_at": DatabaseNow()}
        _HELD[using, run.pk] = self

    @property
    def interval(self) -> float:
        """Seconds between two signs of life: a third of the lease, but at least 0.02 and at most 2."""
        return min(max(self.seconds / 3, 0.02), 2.0)

    def _mine(self) -> Any:
        return row_of(self.run_id, self.using, fence=self.fence, status=RunStatus.RUNNING)

    def write(self, **values: Any) -> None:
        """Store values and renew the lease, in one UPDATE that nobody but the holder can do.

        Raises:
            RunInterrupted: Another worker holds the run.
        """
        if not self.rows.update(self._fresh | values):
            self.is_lost = True
            raise RunInterrupted("lease_lost")
        self.renewed_at = clock.monotonic()

    def beat(self, has_moved: Callable[[], bool]) -> None:
        """Give a sign of life unless another write just did, and read what people ask for; a lost lease is remembered.

        Args:
            has_moved: Tells whether the loop moved since it was asked last.
        """
        self.looked_at = clock.monotonic()
        if self.looked_at - self.renewed_at >= self.interval / 2:
            try:
                self.write(**({"progressed_at": DatabaseNow()} if has_moved() else {}))
            except RunInterrupted:
                return
        requests = list(self._mine().values_list("request", flat=True))
        self.is_lost = not requests
        self.request = requests[0] if requests else self.request

    @contextmanager
    def transaction(self, **values: Any) -> Iterator[None]:
        """Open a transaction that commits only if the lease still holds; `values` are stored with it.

        A worker that falls silent in it for as long as its lease leaves no lock behind: see `short_transaction`.

        Raises:
            RunInterrupted: Another worker holds the run; nothing was stored.
        """
        connection = connections[self.using]
        try:
            with short_transaction(self.using, self.seconds):
                self.write(**values)
                yield
        except (KeyboardInterrupt, SystemExit):
            # The driver may have been cut in the middle of COMMIT: what it knows of the connection is worth nothing.
            if not connection.in_atomic_block:
                connection.close()
            raise

    def leave_if_lost(self) -> None:
        """Look whether the run is still ours, after an error that may have come from losing it.

        Raises:
            RunInterrupted: Another worker holds the run.
        """
        with suppress(DatabaseError, InterfaceError):
            if not self._mine().exists():
                self.is_lost = True
                raise RunInterrupted("lease_lost")

    def forget(self) -> None:
        """Take no more part in the run."""
        _HELD.pop((self.using, self.run_id), None)


#: Leases held by this process, so that an operation in it is seen at once.
_HELD: dict[tuple[str, int], Lease] = {}


def notify(run: Run, using: str, request: str) -> None:
    """Tell the holder of `run`, if it is in this process, what people ask for."""
    if lease := _HELD.get((using, run.pk)):
        lease.request = request


def owner_of(host: str, pid: int) -> str:
    """Return how the owner of every lease begins that a process holds."""
    return f"{host[:120]}:{pid}:"


def take(run: Run, using: str, *, statuses: tuple[str, ...], **values: Any) -> tuple[Run, Lease] | None:
    """Take a run that nobody holds.

    Args:
        run: The run; only its primary key matters.
        using: The database alias.
        statuses: Those it may be taken from.
        values: More columns to store.

    Returns:
        The row as it is now and the lease, or None when the run cannot be taken.
    """
    owner = owner_of(socket.gethostname(), os.getpid()) + uuid.uuid4().hex[:12]
    seconds = values.get("lease_seconds", run.lease_seconds)
    # Counted as stalled until it proves otherwise, so that an attempt killed at any instant is counted already.
    taken = row_of(run.pk, using, status__in=statuses).update(
        **RELEASED
        | {
            "status": RunStatus.RUNNING,
            "fence": F("fence") + 1,
            "owner": owner,
            "lease_expires_at": DatabaseNow(seconds),
            "heartbeat_at": DatabaseNow(),
            "attempts": F("attempts") + 1,
            "stalled_attempts": F("stalled_attempts") + 1,
            "wakeups": 0,
            "finished_at": None,
            "started_at": Coalesce("started_at", DatabaseNow()),
        }
        | values
    )
    row = Run.objects.using(using).filter(pk=run.pk, owner=owner).first() if taken else None
    return (row, Lease(row, using)) if row else None


def has_second_view(using: str) -> bool:
    """Tell whether a second connection would see what this one writes: not in memory, and not inside a transaction."""
    connection: Any = connections[using]
    in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()
    return not in_memory and not connection.in_atomic_block


def refuse_transaction(using: str, name: str) -> None:
    """Raise when the user's transaction is open, or autocommit is off: it could roll back what must be durable.

    Raises:
        CheckpointError: A transaction is open.
    """
    if is_in_transaction(connections[using]):
        raise CheckpointError(
            f"{name} must be called outside transactions. Leave the atomic() block first, or switch autocommit on: it could be rolled back."
        )


def interruption_behind(error: BaseException | None, handled: BaseException | None) -> BaseException | None:
    """Return the time limit or the exit that broke into a statement, when only the database's complaint about that has surfaced.

    Args:
        error: What surfaced.
        handled: What was being handled before any of it began, as what ended a body while its run is given back; the search ends there.
    """
    link = error
    while link is not None and link is not handled and is_database_error(link):
        link = link.__context__
    if link is None or link is handled or isinstance(link, GeneratorExit):
        return None  # a generator that is closed runs its own statements
    return link if classify(link).is_control_flow else None


def outlast_outages(operation: Callable[[], Result], using: str, limit: float) -> Result:
    """Repeat `operation` while the database cannot be reached, for at most `limit` seconds.

    Raises:
        BaseException: What interrupted it from outside, as a time limit does.
    """
    deadline, handled = clock.monotonic() + limit, sys.exception()
    wait = 0.1
    while True:
        try:
            return operation()
        except (OperationalError, InterfaceError) as error:
            if (interruption := interruption_behind(error, handled)) is not None:
                raise interruption from None
            connection = connections[using]
            if connection.in_atomic_block or clock.monotonic() + wait > deadline:
                raise
            connection.close()
            clock.sleep(wait)
            wait = min(wait * 2, 2.0)
