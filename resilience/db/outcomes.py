"""Find out what became of a COMMIT that was not answered, and do keyed work once.

Source:
    PostgreSQL, "Transaction ID and Snapshot Information Functions" (pg_xact_status); the row that proves the
    work, written by the same transaction: P. Helland, "Life beyond Distributed Transactions", CIDR 2007.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from django.db import DataError, Error, IntegrityError, NotSupportedError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic

from resilience import clock
from resilience.db.connections import drop_connection
from resilience.db.errors import classify_db_error
from resilience.exceptions import CommitOutcomeUnknownError, ResilienceError

__all__ = ["KeyTakenError", "Ledger", "ServerWitness", "Verdict", "outcome_unknown", "settle"]

#: Seconds for which the question "was it committed?" is repeated when the call has no deadline.
PATIENCE = 30.0
#: Most characters of a key.
KEY_LENGTH = 200
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Verdict(StrEnum):
    """What became of a COMMIT."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


def settle(ask: Callable[[], bool | None], connection: BaseDatabaseWrapper, seconds: float = PATIENCE) -> Verdict:
    """Ask until there is an answer, on a new connection, while the database comes back.

    Args:
        ask: Returns True (committed), False (not), or None (not decided yet, ask again).
        connection: The connection; it is dropped before each question that failed.
        seconds: How long to go on asking; at least one question is asked.
    """
    due = clock.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            answer = ask()
        except Error as exc:
            if not classify_db_error(exc, connection.alias).retry:
                raise
            drop_connection(connection)
            answer = None
        if answer is not None:
            return Verdict.COMMITTED if answer else Verdict.ABORTED
        if clock.monotonic() + pause > due:
            return Verdict.UNKNOWN
        clock.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def outcome_unknown(using: str) -> CommitOutcomeUnknownError:
    """Return what is raised when a connection was lost where a function managed its own transactions."""
    return CommitOutcomeUnknownError(
        f"The connection to {using!r} was lost while a statement outside a transaction, or a COMMIT, was under way: the work "
        "may or may not be stored. Use atomic=True, or idempotent=True where doing it twice does no harm.",
        using,
    )


class ServerWitness:
    """PostgreSQL's own memory of one transaction.

    A server that crashed may have lost a transaction's number together with its work, and give it to another one:
    after a crash, which shows by the statistics having been reset, "committed" is no proof any more.

    Args:
        connection: The connection of the transaction.

    Raises:
        NotSupportedError: The database is not PostgreSQL.
    """

    __slots__ = ("_connection", "_life", "_number")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        if connection.vendor != "postgresql":
            raise NotSupportedError(
                f'verify must be a function on {connection.display_name}, not "server": only PostgreSQL can be asked what '
                "became of a transaction. Use idempotency_key= instead."
            )
        self._connection = connection
        self._number: str | None = None
        self._life: object = None

    def take_number(self) -> None:
        """Remember the transaction's number, at the end of its body; one that wrote nothing has none."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id_if_assigned()::text, stats_reset FROM pg_stat_bgwriter")
            self._number, self._life = cursor.fetchone()

    def ask(self) -> bool | None:
        """Tell whether the transaction was committed; None while it is in progress, or when the server cannot know."""
        if self._number is None:
            return True  # it wrote nothing, so that nothing can be missing
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT pg_xact_status(%s::xid8), stats_reset FROM pg_stat_bgwriter", [self._number])
                status, life = cursor.fetchone()
        except DataError:
            return False  # "in the future": the server lost the number in a crash, and the work with it
        if status == "committed" and life != self._life:
            return None
        return {"committed": True, "aborted": False}.get(status)


class KeyTakenError(ResilienceError):
    """Another call has committed the key meanwhile, and the snapshot of this transaction cannot show it: begin anew."""


class Ledger:
    """Keyed work that is done once, however often it is asked for.

    Args:
        key: What names the work; at most 200 characters.
        connection: The connection of the transaction that does it.

    Raises:
        ValueError: The key is empty or too long.
    """

    __slots__ = ("_connection", "_key", "_owner")

    def __init__(self, key: object, connection: BaseDatabaseWrapper) -> None:
        if not isinstance(key, str) or not 0 < len(key) <= KEY_LENGTH:
            raise ValueError(f"idempotency_key must be 1 to {KEY_LENGTH} characters, not {key!r}. Hash what is longer.")
        self._key = key
        self._connection = connection
        self._owner = uuid.uuid4().hex

    def perform(self, work: Callable[[], Any]) -> Any:
        """Return what the committed work returned, or do it now and write it down in the same transaction.

        Raises:
            KeyTakenError: Another call committed the key after this one had looked.
            TypeError: The work returned what JSON cannot give back unchanged.
        """
        from resilience.db.models import IdempotencyKey

        rows = IdempotencyKey.objects.using(self._connection.alias)
        for result in self._find(rows):
            return result
        try:
            with Atomic(self._connection.alias, True, False):
                rows.create(key=self._key, owner=self._owner)
        except IntegrityError as exc:
            for result in self._find(rows):
                return result
            raise KeyTakenError(
                f"idempotency_key {self._key!r} was used by another call while this one ran, and a transaction that had read "
                "before cannot see what that call returned. Run the transaction around this call again."
            ) from exc
        value = work()
        if value is not None:
            rows.filter(pk=self._key).update(result=_storable(value))
        return value

    def _find(self, rows: Any) -> list[Any]:
        """Return the result of the committed work in a list, an empty one when there is none."""
        found = list(rows.filter(pk=self._key).values_list("key", "result")[:1])
        for key, _ in found:
            if key != self._key:  # equal for the database only
                raise ValueError(
                    f"idempotency_key must differ from others by more than case, accents or blanks on {self._connection.display_name}, "
                    f"not be {self._key!r} beside {key!r}. Hash it."
                )
        return [result for _, result in found]

    def ask(self) -> bool:
        """Tell whether this very call's work was committed."""
        from resilience.db.models import IdempotencyKey

        return IdempotencyKey.objects.using(self._connection.alias).filter(pk=self._key, owner=self._owner).exists()


def _storable(value: object) -> object:
    try:
        is_exact = json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        is_exact = False
    if not is_exact:
        raise TypeError(
            "With idempotency_key the function must return what JSON gives back unchanged, "
            f"not a {type(value).__name__}. Return a primary key, a dict of plain values, or None."
        )
    return value
