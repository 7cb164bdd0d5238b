"""One batch of rows into the table: all at once if they are good, and else without the bad ones.

The database alone judges a row. What it says about a failed write (the line, the key) and what it answers when it
is asked (which keys exist, which parents do not) only tell where to cut: rows are always written in input order,
so that of two equal keys the first one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.db import connections, models, transaction

from resilience.connections import is_in_transaction
from resilience.db.bulk_columns import Columns
from resilience.db.bulk_diagnosis import broken_rule, is_copy_refused, is_row_error, position
from resilience.db.bulk_postgresql import CopyWriter
from resilience.db.bulk_rows import Row, RowFaultError
from resilience.db.bulk_suspects import Suspects
from resilience.db.bulk_writers import ModelWriter, Writer, has_expressions
from resilience.db.retries import db_retry

__all__ = ["MOST_SAVEPOINTS", "Batches"]

#: PostgreSQL keeps 64 subtransactions of a transaction at hand; beyond that every backend pays.
MOST_SAVEPOINTS = 40
#: In how many parts a segment is cut when nobody says which row is bad: few rows are then sent often.
_PARTS = 8
_SHORTEST_REACH = 32

Faults = dict[int, RowFaultError]


class Batches:
    """Stores batches, each in a transaction of its own, or in a savepoint of the caller's transaction.

    Args:
        columns: The model's columns.
        alias: The database alias.
        writer: The usual way into the table.
        is_idempotent: Whether storing a batch twice does no harm.
        is_upsert: Whether a row whose key is taken overwrites the one that is there.
    """

    def __init__(
        self, columns: Columns, alias: str, writer: Writer, *, is_idempotent: bool = False, is_upsert: bool = False
    ) -> None:
        self.columns = columns
        self.alias = alias
        self.connection: Any = connections[alias]
        self.writer = writer
        self.model_writer = writer if isinstance(writer, ModelWriter) else ModelWriter(columns, alias)
        self.is_idempotent = is_idempotent
        self.is_upsert = is_upsert
        self.suspects = Suspects(columns, alias)
        #: Whether the caller has a transaction open; a TestCase's does not count.
        self.is_inside = is_in_transaction(self.connection)
        #: Whether bad rows are to be expected, as the last batch had some: then the next one is looked through beforehand.
        self.expects_faults = False
        self._witness: Any = None
        self._has_written = False

    def store(self, rows: Sequence[Row]) -> Faults:
        """Store what can be stored and return what is wrong with the others, by index.

        Raises:
            django.db.Error: The database failed, and retrying did not help; nothing of the batch was stored.
            CommitOutcomeUnknownError: COMMIT was lost on the way and nothing tells whether it arrived.
        """
        writer = self.model_writer if has_expressions(rows) else self.writer
        # A TestCase never commits, and a caller's COMMIT is too late: deferred constraints are then checked here.
        check = bool(self.connection.in_atomic_block)
        self.is_inside = is_in_transaction(self.connection)
        try:
            # SQLite checks constraints table by table, however large: it is asked for the parents instead.
            if writer.needs_savepoint and not (check and self.connection.vendor == "sqlite"):
                return self._unit(writer, lambda: self._write_all(writer, rows, check=check))
            return self._unit(writer, lambda: Sifting(self, writer, rows, is_thorough=check).run())
        except Exception as error:
            if isinstance(writer, CopyWriter) and is_copy_refused(error):
                self.writer = self.model_writer
                return self.store(rows)
            if not is_row_error(error):
                raise
        return self._unit(writer, lambda: Sifting(self, writer, rows, is_thorough=True, is_second=True).run())

    def _unit(self, writer: Writer, work: Callable[[], Faults]) -> Faults:
        if not self.is_inside:
            return db_retry(using=self.alias, idempotent=self.is_idempotent, verify=self._verify())(work)()
        if not writer.needs_savepoint:
            return work()
        with transaction.atomic(using=self.alias):
            return work()

    def _write_all(self, writer: Writer, rows: Sequence[Row], *, check: bool) -> Faults:
        writer.write(rows)
        if check:
            self.connection.check_constraints([self.columns.model._meta.db_table])
        self.saw(rows)
        return {}

    def saw(self, rows: Sequence[Row]) -> None:
        """Remember a row of the transaction by which a lost COMMIT can be settled."""
        self._has_written = bool(rows)
        self._witness = next((key for row in rows if _is_known(key := row.instance.pk if row.key is None else row.key)), None)

    def _verify(self) -> Any:
        if self.is_idempotent:
            return None
        return "server" if self.connection.vendor == "postgresql" else self._was_stored

    def _was_stored(self) -> bool | None:
        if self._witness is None:
            return None if self._has_written else False
        rows: models.QuerySet[Any] = models.QuerySet(model=self.columns.model, using=self.alias)
        # A lost COMMIT may still be under way: a locking read waits for it.
        with transaction.atomic(using=self.alias):
            return bool(rows.select_for_update().filter(pk=self._witness).values_list("pk"))


def _is_known(key: Any) -> bool:
    """Tell whether a primary key is known, and not one that the database computes."""
    return key is not None and not hasattr(key, "resolve_expression") and not (isinstance(key, tuple) and None in key)


class _TooManySavepoints(Exception):  # noqa: N818  # not an error: it leaves a block to begin it anew
    """Raised to roll back to the beginning, from where all proven rows are written at once."""


class Sifting:
    """Writes the good rows of a batch within one transaction, and finds the others.

    Args:
        batches: Where the rows go.
        writer: How they get there.
        rows: The rows, in input order.
        is_thorough: Whether to find here also what would only fail at COMMIT.
        is_second: Whether the rows failed as a whole before, so that some are bad for sure.
    """

    def __init__(
        self, batches: Batches, writer: Writer, rows: Sequence[Row], *, is_thorough: bool, is_second: bool = False
    ) -> None:
        self.batches = batches
        self.writer = writer
        self.rows = rows
        self.is_thorough = is_thorough
        self.is_second = is_second
        self.vendor: str = batches.connection.vendor
        #: A row may wait for a row of its own batch: then only the whole can be checked.
        self.checks_each = self.vendor not in {"mysql", "sqlite"} and not batches.columns.is_self_referencing
        self.condemned: Faults = {}
        self.faults: Faults = {}
        self.proven: list[Row] = []
        self.stack: list[Sequence[Row]] = []
        self.savepoints = 0
        self.was_asked = False
        #: Rows that are written alone, as they are probably bad.
        self.suspected: set[int] = set()

    def run(self) -> Faults:
        """Write the good rows; return what is wrong with the others, by index."""
        if self.is_second or (self.batches.expects_faults and not self.writer.needs_savepoint):
            self._ask()
        self._restart()
        while True:
            try:
                self._round()
            except _TooManySavepoints:
                continue
            except _OrphansFound:
                self._restart()
                continue
            break
        self.batches.saw(self.proven)
        faults = {**self.condemned, **self.faults}
        self.batches.expects_faults = bool(faults)
        return faults

    def _restart(self) -> None:
        """Begin with the rows that nothing is known against; an earlier row may have stood in the way of a later."""
        self.faults, self.proven = {}, []
        rows = [row for row in self.rows if row.index not in self.condemned]
        self.stack = []
        self._push(*self._cut(rows))

    def _round(self) -> None:
        """Write proven rows at once and go on from there, under one savepoint where one may be needed."""
        if not (self.is_thorough or self.writer.needs_savepoint):
            self._isolate()
            return
        with transaction.atomic(using=self.batches.alias):
            self.savepoints = 0
            self._write_proven()
            self._isolate()
            if self.savepoints > 1 and self.batches.is_inside:
                raise _TooManySavepoints
            if self.is_thorough and self.vendor != "mysql" and not self.checks_each:
                self._look_for_orphans()

    def _write_proven(self) -> None:
        """Write again what was good already; an upsert may hold a key twice, which one statement must not."""
        size = 1 if self.batches.is_upsert else max(1, len(self.proven))
        for start in range(0, len(self.proven), size):
            self.writer.write(self.proven[start : start + size])

    def _isolate(self) -> None:
        while self.stack:
            segment = self.stack.pop()
            try:
                self._write(segment)
            except Exception as error:  # judged on the next line
                if not is_row_error(error):
                    raise
                self._split(segment, error)
                continue
            self.proven.extend(segment)
            if self.savepoints >= MOST_SAVEPOINTS:
                raise _TooManySavepoints

    def _write(self, segment: Sequence[Row]) -> None:
        if not self.writer.needs_savepoint:
            self.writer.write(segment)
            return
        with transaction.atomic(using=self.batches.alias):
            self.writer.write(segment)
            if self.checks_each:
                self.batches.connection.check_constraints([self.batches.columns.model._meta.db_table])
        self.savepoints += 1

    def _split(self, segment: Sequence[Row], error: Exception) -> None:
        """Put back what is left of a segment that failed, cut where the bad row is or may be."""
        model = self.batches.columns.model
        if len(segment) == 1:
            self.faults[segment[0].index] = RowFaultError(error, *broken_rule(error, model))
        elif not (self.was_asked or self.writer.needs_savepoint):
            self._ask()
            self._push(*self._cut([row for row in segment if row.index not in self.condemned]))
        elif (place := position(error, segment, self.batches.columns)) is not None:
            self.faults[segment[place].index] = RowFaultError(error, *broken_rule(error, model))
            # Where one row is bad another may soon be: what lies beyond it is not sent again and again.
            reach = place + 1 + max(_SHORTEST_REACH, 2 * place)
            self._push(segment[:place], segment[place + 1 : reach], segment[reach:])
        else:
            size = -(-len(segment) // _PARTS)
            self._push(*(segment[start : start + size] for start in range(0, len(segment), size)))

    def _cut(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Cut rows, in their order, where a suspect is and where a statement is full."""
        start, most = 0, self.writer.most_rows(rows)
        for place, row in enumerate(rows):
            if row.index in self.suspected:
                yield rows[start:place]
                yield [row]
                start = place + 1
            elif place - start == most:
                yield rows[start:place]
                start = place
        yield rows[start:]

    def _push(self, *segments: Sequence[Row]) -> None:
        self.stack.extend(segment for segment in reversed(segments) if segment)

    def _ask(self) -> None:
        """Ask which rows cannot be stored, one question a constraint."""
        self.was_asked = True
        self.condemned.update(self.batches.suspects.orphans(self.rows, known=self.rows))
        if self.batches.is_upsert:
            return
        suspects = self.batches.suspects
        self.condemned.update(suspects.duplicates(self.rows))
        if not self.writer.needs_savepoint:
            left = [row for row in self.rows if row.index not in self.condemned]
            self.suspected = suspects.repeats(left) | suspects.breakers(left)

    def _look_for_orphans(self) -> None:
        if orphans := self.batches.suspects.orphans(self.proven):
            self.condemned.update(orphans)
            raise _OrphansFound


class _OrphansFound(Exception):  # noqa: N818  # not an error: it leaves a block to begin it anew
    """Raised to roll back rows that wait for a parent that is not there."""
