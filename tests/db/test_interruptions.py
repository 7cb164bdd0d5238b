"""A time limit, Ctrl-C or a worker's shutdown may strike between any two steps of a transaction."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from django.db import connections

from resilience import TransactionBrokenError, TransactionManager, db_retry, with_savepoint
from tests.real.db_peers import sqlite_file
from tests.testapp.models import Account

#: Where the interpreter lets a signal handler in: when a Python function begins and when one written in C returns.
_GATES = ("call", "c_return")
#: The steps between which it strikes: ours, and those of Django that ours are made of.
_STEPS = ("resilience/db/", "django/db/transaction.py", "backends/base/base.py", "backends/sqlite3/base.py")


class StruckError(Exception):
    """What a signal handler raises."""


class Strike:
    """Raises at the given gate; `place` tells where that was, "" while it has not come to it."""

    def __init__(self, gate: int) -> None:
        self.place = ""
        self._left = gate

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event not in _GATES or not any(part in code.co_filename for part in _STEPS):
            return
        # No code can defend the instant in which its own clean-up is called and has not begun.
        if event == "call" and code.co_name == "__exit__" and "resilience/db/" in code.co_filename:
            return
        self._left -= 1
        if self._left == 0:
            sys.setprofile(None)
            self.place = f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}"
            raise StruckError


@pytest.fixture
def alias(tmp_path: Path, django_db_blocker: Any) -> Iterator[str]:
    with django_db_blocker.unblock(), sqlite_file(tmp_path, init_command="PRAGMA synchronous=OFF") as alias:
        yield alias


def managed(alias: str) -> None:
    with TransactionManager(alias, lock_timeout=3):
        Account.objects.using(alias).create(name="outer")


def nested(alias: str) -> None:
    with TransactionManager(alias) as tx:
        Account.objects.using(alias).create(name="outer")
        with tx.savepoint():
            Account.objects.using(alias).create(name="inner")


def committed_on_the_way(alias: str) -> None:
    with TransactionManager(alias) as tx:
        Account.objects.using(alias).create(name="outer")
        tx.commit()


def retried(alias: str) -> None:
    db_retry(using=alias)(lambda: Account.objects.using(alias).create(name="outer"))()


def in_savepoint(alias: str) -> None:
    with_savepoint(using=alias)(lambda: Account.objects.using(alias).create(name="outer"))()


def struck(form: Callable[[str], None], alias: str, gate: int) -> tuple[str, bool]:
    """Run `form` and strike at the gate; return the place, and whether the form came to its end all the same."""
    strike = Strike(gate)
    sys.setprofile(strike)
    try:
        form(alias)
    except StruckError:
        return strike.place, False
    finally:
        sys.setprofile(None)
    return strike.place, True


@pytest.mark.parametrize("form", [managed, nested, committed_on_the_way, retried, in_savepoint])
def test_interruption__anywhere_leaves_no_transaction_open_and_no_success_untrue(
    form: Callable[[str], None], alias: str, tmp_path: Path
) -> None:
    """Struck at each step in turn: no open block, savepoint or wrapper stays; what returned is stored; the next write is too."""
    connection = connections[alias]
    form(alias)

    for gate in range(1, 10_000):
        Account.objects.using(alias).all().delete()
        place, has_returned = struck(form, alias, gate)
        if not place:
            break
        left = (connection.in_atomic_block, connection.atomic_blocks, connection.savepoint_ids, connection.execute_wrappers)
        assert left == (False, [], [], []), place
        assert connection.connection is None or connection.autocommit, place
        Account.objects.using(alias).create(name="next")
        stored = stored_names(tmp_path)
        assert stored >= ({"outer", "next"} if has_returned else {"next"}), place
        assert "inner" not in stored or "outer" in stored, place
    assert gate > 30, "it was struck too seldom to mean anything"


def test_interruption__in_a_savepoint_that_is_swallowed_around_it_stores_no_half(alias: str, tmp_path: Path) -> None:
    """Who goes on after it has all of the savepoint or nothing, and is told when the transaction cannot be kept."""

    def form(alias: str) -> None:
        with TransactionManager(alias) as tx:
            Account.objects.using(alias).create(name="outer")
            with contextlib.suppress(StruckError), tx.savepoint():
                Account.objects.using(alias).create(name="first")
                Account.objects.using(alias).create(name="second")

    broken = 0
    for gate in range(1, 10_000):
        Account.objects.using(alias).all().delete()
        told: TransactionBrokenError | None = None
        try:
            place, has_returned = struck(form, alias, gate)
        except TransactionBrokenError as exc:
            told = exc
        if told is not None:
            broken += 1
            assert isinstance(told.__cause__, StruckError)
            assert stored_names(tmp_path) == set()
            continue
        if not place:
            break
        if has_returned:
            assert stored_names(tmp_path) in ({"outer"}, {"outer", "first", "second"}), place
    assert broken > 3


def stored_names(folder: Path) -> set[str]:
    """What another connection sees."""
    peer = sqlite3.connect(folder / "test.sqlite3", timeout=0)
    try:
        return {name for (name,) in peer.execute("SELECT name FROM testapp_account")}
    finally:
        peer.close()
