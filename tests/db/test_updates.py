from __future__ import annotations

import asyncio
import datetime as dt
import math
import uuid
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.core.exceptions import FieldDoesNotExist
from django.db import connection, connections, models, transaction
from django.db.models import F

from resilience import clock, signals
from resilience.connections import is_in_transaction
from resilience.db import swaps
from resilience.db.swap_rows import CompiledRows, ModelRows
from resilience.db.updates import aatomic_update, atomic_update
from resilience.exceptions import ConcurrentUpdateError
from tests.testapp.models import Account, DatabaseSlot, Parent, Sheet, Versioned, VersionedChild

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, none of which is waited."""
    waits: list[float] = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    return waits


@pytest.fixture(params=[CompiledRows, ModelRows], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read and written by compiled SQL, or by querysets: every promise holds for both."""
    if request.param is ModelRows:
        monkeypatch.setattr(swaps, "rows_of", ModelRows)


@pytest.fixture
def account() -> Account:
    return Account.objects.create(name="a", balance=10)


class Meddler:
    """A function for `updates` that changes the row behind the caller's back, the first `times` times it runs."""

    def __init__(self, times: int, value: Any = lambda row: row.balance + 1, **changes: Any) -> None:
        self.times = times
        self.value = value
        self.changes = changes or {"balance": F("balance") + 100}
        self.calls = 0

    def __call__(self, row: models.Model) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            type(row)._base_manager.filter(pk=row.pk).update(**self.changes)
        return self.value(row)


def test_update__stores_plain_values_expressions_and_functions(account: Account) -> None:
    """All three forms of a value can stand side by side, and what comes back is the row."""
    row = atomic_update(Account, account.pk, {"name": "b", "balance": F("balance") + 5, "note": lambda row: row.name * 2})

    account.refresh_from_db()
    assert (row.name, row.balance, row.note) == (account.name, account.balance, account.note) == ("b", 15, "aa")


def test_update__computes_again_when_the_row_changed(account: Account, slept: list[float]) -> None:
    """The change of another is kept, and the function sees it."""
    meddler = Meddler(times=2)

    row = atomic_update(Account, account.pk, {"balance": meddler})

    assert row.balance == 211
    assert meddler.calls == 3
    assert len(slept) == 2


def test_update__gives_up_after_max_retries(account: Account) -> None:
    """When others are always faster, nothing of ours is stored and the error says how often it was tried."""
    with pytest.raises(ConcurrentUpdateError) as caught:
        atomic_update(Account, account.pk, {"balance": Meddler(times=99)}, max_retries=2)

    account.refresh_from_db()
    assert (caught.value.model, caught.value.pk, caught.value.attempts) == ("testapp.Account", account.pk, 3)
    assert account.balance == 310


def test_update__waits_longer_each_time_but_never_long(account: Account, slept: list[float]) -> None:
    """The waits are milliseconds, drawn below a bound that doubles."""
    with pytest.raises(ConcurrentUpdateError):
        atomic_update(Account, account.pk, {"balance": Meddler(times=99)}, max_retries=12)

    assert len(slept) == 12
    assert all(0 <= wait <= min(0.25, 0.004 * 2**number) for number, wait in enumerate(slept))
    assert len(set(slept)) == 12


def test_update__ignores_changes_of_fields_it_does_not_compare(account: Account) -> None:
    """A change of another column is no conflict."""
    meddler = Meddler(times=1, note="theirs")

    row = atomic_update(Account, account.pk, {"balance": meddler})

    account.refresh_from_db()
    assert meddler.calls == 1
    assert (account.balance, account.note) == (11, "theirs")
    assert row.balance == 11


def test_watch__makes_other_fields_count(account: Account) -> None:
    """A change of a watched field is a conflict; of an updated one that is not watched it is none."""
    watched = Meddler(times=1, note="theirs")
    unwatched = Meddler(times=1)

    atomic_update(Account, account.pk, {"balance": watched}, watch=["note"])
    atomic_update(Account, account.pk, {"balance": unwatched}, watch=["note"])

    assert (watched.calls, unwatched.calls) == (2, 1)


def test_expressions__need_no_comparison(account: Account, slept: list[float]) -> None:
    """The database adds on what is there: no conflict, one statement, and the stored value comes back."""
    atomic_update(Account, account.pk, {"balance": F("balance") + 1, "note": Meddler(times=0, value=lambda row: "x")})
    row = atomic_update(Account, account.pk, {"balance": F("balance") + 1})

    assert row.balance == 12
    assert not slept


def test_lock__is_not_held_while_a_slow_function_runs_twice(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was quick and then is slow under the lock goes back to running without one."""
    seconds, inside = [0.0], []
    monkeypatch.setattr(clock, "monotonic", lambda: seconds[0])
    others = iter([True, True, False, True])

    def add(row: Account) -> int:
        inside.append(is_in_transaction(connection))
        seconds[0] += 0.05 * (len(inside) > 1)
        if not inside[-1] and next(others):
            Account.objects.update(balance=F("balance") + 100)
        return row.balance + 1

    atomic_update(Account, account.pk, {"balance": partial(add)})
    atomic_update(Account, account.pk, {"balance": add})

    assert inside == [False, True, False, False]


def test_merge__decides_what_to_try_next(account: Account) -> None:
    """`on_conflict` gets the row as it is now and the updates, and what it returns is tried."""
    seen: list[tuple[int, dict[str, Any]]] = []

    def merge(row: Account, updates: dict[str, Any]) -> dict[str, Any]:
        seen.append((row.balance, updates))
        return {"note": f"was {row.balance}"}

    meddler = Meddler(times=1)

    row = atomic_update(Account, account.pk, {"balance": meddler}, on_conflict=merge)

    assert seen == [(110, {"balance": meddler})]
    assert (row.balance, row.note) == (110, "was 110")


def test_merge__may_give_up_by_raising(account: Account) -> None:
    """What the merge raises comes out, and nothing was stored."""

    def refuse(row: Account, updates: dict[str, Any]) -> dict[str, Any]:
        raise PermissionError

    with pytest.raises(PermissionError):
        atomic_update(Account, account.pk, {"balance": Meddler(times=1)}, on_conflict=refuse)

    account.refresh_from_db()
    assert account.balance == 110


def test_missing__is_does_not_exist_and_not_a_conflict(account: Account) -> None:
    """A row that never was, or that is deleted while the function runs, is the model's DoesNotExist."""

    def delete(row: Account) -> int:
        Account.objects.filter(pk=row.pk).delete()
        return 1

    with pytest.raises(Account.DoesNotExist):
        atomic_update(Account, account.pk + 1, {"balance": 1})
    with pytest.raises(Account.DoesNotExist):
        atomic_update(Account, account.pk, {"balance": delete})
    with pytest.raises(Account.DoesNotExist):
        atomic_update(Account, account.pk, {"balance": F("balance") + 1})


MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
CHANGES = [
    ("text", None, "a"),
    ("text", "a", None),
    ("text", "a", "A"),
    ("text", "a", "a "),
    ("body", "x", "X"),
    ("price", Decimal("0.10"), Decimal("0.11")),
    ("ratio", 0.1, 0.1 + 1e-16 * 10),
    ("ratio", 0.5, None),
    ("moment", MOMENT, MOMENT.replace(microsecond=678902)),
    ("data", {"a": 1}, {"a": True}),
    ("data", None, {"a": None}),
    ("data", {"a": [1, 2]}, {"a": [2, 1]}),
    ("unique_code", uuid.UUID(int=1), uuid.UUID(int=2)),
    ("flag", None, False),
    ("parent_id", None, 1),
]


@pytest.mark.parametrize(("name", "old", "new"), CHANGES)
def test_comparison__sees_every_change(name: str, old: Any, new: Any) -> None:
    """NULL, case, a trailing space, a microsecond, a type inside JSON: each is a change, and no change is none."""
    Parent.objects.create(id=1, name="parent")
    sheet = Sheet.objects.create(**{name: old})
    changed = Meddler(times=1, value=lambda row: row.number + 1, **{name: new})
    unchanged = Meddler(times=1, value=lambda row: row.number + 1, **{name: new})

    atomic_update(Sheet, sheet.pk, {"number": changed}, watch=[name])
    row = atomic_update(Sheet, sheet.pk, {"number": unchanged}, watch=[name], max_retries=0)

    assert (changed.calls, unchanged.calls) == (2, 1)
    assert row.number == 2


def test_comparison__of_a_decimal_that_the_database_keeps_as_a_float() -> None:
    """What SQLite stores as 0.30000000000000004 is read as 0.30 and must be found again."""
    sheet = Sheet.objects.create(price=Decimal("0.10"))
    Sheet.objects.update(price=F("price") + Decimal("0.20"))

    row = atomic_update(Sheet, sheet.pk, {"price": lambda row: row.price + 1}, max_retries=0)

    assert row.price == Decimal("1.30")


def test_result__is_what_the_database_made_of_it() -> None:
    """Values that the database stores in another form come back in that form."""
    sheet = Sheet.objects.create()

    row = atomic_update(Sheet, sheet.pk, {"number": "7", "price": Decimal("1.005"), "data": (1, 2), "ratio": 1})

    stored = Sheet.objects.get()
    assert (row.number, row.price, row.data, row.ratio) == (stored.number, stored.price, stored.data, stored.ratio)
    assert row.number == 7
    assert row.data == [1, 2]


def test_auto_now__is_kept_as_save_keeps_it() -> None:
    """A time of the last change is a promise to readers; going past save() does not break it."""
    sheet = Sheet.objects.create()

    row = atomic_update(Sheet, sheet.pk, {"number": 1})

    assert row.touched > sheet.touched
    assert Sheet.objects.get().touched == row.touched


def test_version__is_compared_and_raised() -> None:
    """With a VersionField any change of the row is a conflict, and savers notice ours."""
    versioned = Versioned.objects.create()
    meddler = Meddler(times=1, value=lambda row: row.number + 1, note="theirs", version=F("version") + 1)

    row = atomic_update(Versioned, versioned.pk, {"number": meddler})

    assert meddler.calls == 2
    assert (row.version, row.number, row.note) == (3, 1, "theirs")
    with pytest.raises(ConcurrentUpdateError), transaction.atomic():
        versioned.save()


def test_version__named_field_is_compared_and_raised(account: Account) -> None:
    """Any integer field can serve as the version."""
    meddler = Meddler(times=1, value=lambda row: "mine")

    row = atomic_update(Account, account.pk, {"note": meddler}, version_field="balance")

    assert (meddler.calls, row.balance, row.note) == (2, 111, "mine")


def test_version__of_an_expression_is_raised_without_a_comparison() -> None:
    """Commuting changes do not conflict with each other, but a stale save() still notices them."""
    versioned = Versioned.objects.create()

    row = atomic_update(Versioned, versioned.pk, {"number": F("number") + 1}, max_retries=0)

    assert (row.version, row.number) == (2, 1)


def test_version__in_memory_follows_a_rollback() -> None:
    """The returned row can be saved after the transaction around it was rolled back."""
    versioned = Versioned.objects.create()
    with pytest.raises(KeyError), transaction.atomic():
        row = atomic_update(Versioned, versioned.pk, {"number": 1})
        raise KeyError

    row.save()

    assert row.version == 2


def test_tables__of_an_inheriting_model_are_compared_together() -> None:
    """The version is in the parent's table, the value in the child's."""
    child = VersionedChild.objects.create()
    meddler = Meddler(times=1, value=lambda row: row.extra + 1, note="theirs", version=F("version") + 1)

    row = atomic_update(VersionedChild, child.pk, {"extra": meddler})

    assert meddler.calls == 2
    assert (row.extra, row.version, row.note) == (1, 3, "theirs")


def test_signal__is_sent_for_each_conflict(account: Account) -> None:
    """`update_conflicted` tells the model and the attempt; without a conflict nothing is sent."""
    received: list[tuple[str, int]] = []

    def receive(model: str, attempt: int, **kwargs: Any) -> None:
        received.append((model, attempt))

    signals.update_conflicted.connect(receive)
    try:
        atomic_update(Account, account.pk, {"balance": Meddler(times=2)})
        atomic_update(Account, account.pk, {"balance": 1})
    finally:
        signals.update_conflicted.disconnect(receive)

    assert received == [("testapp.Account", 1), ("testapp.Account", 2)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"updates": {"colour": 1}}, FieldDoesNotExist, "updates must name fields of testapp.Account, not 'colour'"),
        ({"updates": {}}, ValueError, "updates must name at least one field"),
        ({"updates": [("balance", 1)]}, TypeError, "updates must be a dict"),
        ({"updates": {"pk": 5}}, ValueError, "updates must leave the primary key alone"),
        ({"updates": {"id": 5}}, ValueError, "updates must leave the primary key alone"),
        ({"model": Parent, "updates": {"child": 5}}, ValueError, "updates must name columns of testapp.Parent"),
        ({"model": Versioned, "updates": {"version": 5}}, ValueError, "updates must leave the version field alone"),
        ({"model": "Account"}, TypeError, "model must be a concrete model class"),
        ({"pk": None}, ValueError, "pk must be the primary key of a stored row, not None"),
        ({"pk": Account()}, TypeError, "pk must be a primary key, not an instance"),
        ({"pk": [1]}, TypeError, "pk must be a primary key, not the list \\[1\\]. A key of several columns is a tuple"),
        ({"max_retries": -1}, ValueError, "max_retries must be a whole number from 0, not -1"),
        ({"max_retries": 1.5}, ValueError, "max_retries must be a whole number from 0, not 1.5"),
        ({"watch": []}, ValueError, "watch must name at least one field"),
        ({"watch": ["colour"]}, FieldDoesNotExist, "watch must name fields"),
        ({"version_field": "name"}, ValueError, "version_field must name an integer field, not 'name'"),
        ({"version_field": "colour"}, FieldDoesNotExist, "version_field must name fields"),
    ],
)
def test_update__refuses_what_cannot_be_right(
    account: Account, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A wrong argument says what to do, and nothing is stored."""
    arguments = {"model": Account, "pk": account.pk, "updates": {"balance": 1}, **change}

    with pytest.raises(error, match=message):
        atomic_update(**arguments)

    account.refresh_from_db()
    assert account.balance == 10


@pytest.mark.parametrize(
    "updates", [{"name": "x"}, {"name": "x", "number": F("number") + 1}, {"number": lambda row: row.number + 1}]
)
def test_keys__of_two_columns(updates: dict[str, Any]) -> None:
    """A composite primary key is given as a tuple, and only its row changes."""
    DatabaseSlot.objects.bulk_create([DatabaseSlot(shelf=1, place=place) for place in (1, 2)])

    row = atomic_update(DatabaseSlot, (1, 2), updates)

    stored = DatabaseSlot.objects.get(pk=(1, 2))
    assert (row.pk, row.name, row.number) == ((1, 2), stored.name, stored.number)
    assert (row.name, row.number) != ("", 0)
    other = DatabaseSlot.objects.get(pk=(1, 1))
    assert (other.name, other.number) == ("", 0)
    with pytest.raises(DatabaseSlot.DoesNotExist):
        atomic_update(DatabaseSlot, (2, 1), updates)


@pytest.mark.parametrize("updates", [{"balance": 1}, {"balance": F("balance") + 1}])
def test_missing__covers_keys_that_the_column_cannot_hold(updates: dict[str, Any]) -> None:
    """A number beyond the column's range is nobody's key."""
    with pytest.raises(Account.DoesNotExist):
        atomic_update(Account, 1 << 70, updates)


def test_update__refuses_an_unknown_alias(account: Account) -> None:
    """Django's own error names the alias."""
    with pytest.raises(Exception, match="nowhere"):
        atomic_update(Account, account.pk, {"balance": 1}, using="nowhere")


def test_update__goes_by_the_models_own_base_manager(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that the base manager leaves out is not there for `save()`, and neither for an update of its balance."""

    class OpenAccounts(models.Manager[Account]):
        def get_queryset(self) -> models.QuerySet[Account]:
            return super().get_queryset().exclude(note="closed")

    manager = OpenAccounts()
    manager.model = Account
    monkeypatch.setitem(Account._meta.__dict__, "base_manager", manager)
    monkeypatch.delitem(connections["default"].__dict__, "_resilience_rows", raising=False)

    atomic_update(Account, account.pk, {"note": "closed"}, watch=["balance"])
    with pytest.raises(Account.DoesNotExist):
        atomic_update(Account, account.pk, {"balance": lambda row: row.balance + 1})
    monkeypatch.delitem(connections["default"].__dict__, "_resilience_rows", raising=False)

    assert Account.objects.get().balance == 10


@pytest.mark.django_db(transaction=True)
async def test_async__does_the_same_without_blocking() -> None:
    """The event loop goes on while an update waits for its next attempt."""
    account = await Account.objects.acreate(name="a", balance=10)
    meddler = Meddler(times=2)

    row = await aatomic_update(Account, account.pk, {"balance": meddler})

    assert (row.balance, meddler.calls) == (211, 3)


@pytest.mark.django_db(transaction=True)
async def test_async__gives_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of the async form are the event loop's."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(clock, "async_sleep", sleep)
    account = await Account.objects.acreate(name="a")

    with pytest.raises(ConcurrentUpdateError):
        await aatomic_update(Account, account.pk, {"balance": Meddler(times=99)}, max_retries=3)

    assert len(waits) == 3
    assert all(math.isfinite(wait) for wait in waits)
