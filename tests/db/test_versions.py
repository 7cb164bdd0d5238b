from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from django import forms
from django.core import serializers
from django.db import DatabaseError, migrations, models, transaction
from django.db.migrations.writer import MigrationWriter

from resilience import signals
from resilience.db.versions import VersionField
from resilience.exceptions import ConcurrentUpdateError
from tests.testapp.models import Versioned, VersionedChild

pytestmark = pytest.mark.django_db


@pytest.fixture
def pair() -> tuple[Versioned, Versioned]:
    """Two readings of one row."""
    created = Versioned.objects.create()
    return Versioned.objects.get(pk=created.pk), Versioned.objects.get(pk=created.pk)


def test_save__raises_the_version() -> None:
    """A new row has version 1, and each save adds one, in memory and in the table."""
    versioned = Versioned.objects.create()
    versioned.save()
    versioned.save()

    assert versioned.version == 3
    assert Versioned.objects.get().version == 3


def test_save__of_a_stale_reading_fails_and_changes_nothing(pair: tuple[Versioned, Versioned]) -> None:
    """The second of two savers is told, as are metrics; the first one's work stands, and the second's number in memory too."""
    heard: list[str] = []

    def receive(model: str, **arguments: object) -> None:
        heard.append(model)

    signals.update_conflicted.connect(receive)
    first, second = pair
    first.number = 1
    first.save()
    second.number = 2

    with pytest.raises(ConcurrentUpdateError) as caught, transaction.atomic():
        second.save()

    signals.update_conflicted.disconnect(receive)
    assert (caught.value.model, caught.value.pk) == ("testapp.Versioned", second.pk)
    assert heard == ["testapp.Versioned"]
    assert Versioned.objects.get().number == 1
    assert second.version == 1


@pytest.mark.parametrize("update_fields", [["note"], ["note", "version"], ["number"]])
def test_save__of_some_fields_is_checked_too(pair: tuple[Versioned, Versioned], update_fields: list[str]) -> None:
    """`update_fields` neither escapes the check nor the raise."""
    first, second = pair
    first.save(update_fields=update_fields)

    with pytest.raises(ConcurrentUpdateError), transaction.atomic():
        second.save(update_fields=update_fields)

    assert first.version == Versioned.objects.get().version == 2


def test_save__is_one_statement(django_assert_num_queries: Any) -> None:
    """The check costs no query."""
    versioned = Versioned.objects.create()

    with django_assert_num_queries(1):
        versioned.save()


def test_save__after_a_refresh_succeeds(pair: tuple[Versioned, Versioned]) -> None:
    """Reading again is the cure."""
    first, second = pair
    first.save()
    second.refresh_from_db()

    second.save()

    assert second.version == 3


def test_save__of_a_row_that_was_deleted_does_not_bring_it_back(pair: tuple[Versioned, Versioned]) -> None:
    """A deletion is a change of someone else's too."""
    first, second = pair
    first.delete()

    with pytest.raises(ConcurrentUpdateError), transaction.atomic():
        second.save()
    with pytest.raises(DatabaseError), transaction.atomic():
        second.save(force_update=True)

    assert not Versioned.objects.exists()


def test_save__of_a_new_instance_with_a_key_of_its_own_inserts() -> None:
    """A given key that nobody has is inserted; one that somebody has is checked like any other."""
    Versioned(pk=7, number=1).save()
    Versioned(pk=8, number=1).save(force_insert=True)
    Versioned.objects.get(pk=7).save()

    with pytest.raises(ConcurrentUpdateError), transaction.atomic():
        Versioned(pk=7, number=2).save()

    assert sorted(Versioned.objects.values_list("pk", "number", "version")) == [(7, 1, 2), (8, 1, 1)]


def test_save__of_a_clone(pair: tuple[Versioned, Versioned]) -> None:
    """A copy is made by taking the key away, or by a new key that is said to be new; else it counts as deleted."""
    first, second = pair
    first.save()
    first.pk = None
    first.save()
    second.pk = 1000
    with pytest.raises(ConcurrentUpdateError, match="changed or deleted"), transaction.atomic():
        second.save()
    second._state.adding = True
    second.save()

    assert sorted(Versioned.objects.values_list("version", flat=True)) == [1, 2, 2]
    assert Versioned.objects.filter(pk=1000, version=1).exists()


def test_rollback__takes_the_version_in_memory_back() -> None:
    """Right after a rollback, of a transaction or of a savepoint, the number is the row's again."""
    versioned = Versioned.objects.create()
    with pytest.raises(KeyError), transaction.atomic():
        versioned.save()
        with pytest.raises(ValueError, match="inner"), transaction.atomic():
            versioned.save()
            versioned.save()
            seen = versioned.version
            raise ValueError("inner")
        after_inner = versioned.version
        versioned.save()
        raise KeyError

    assert (seen, after_inner, versioned.version) == (4, 2, 1)
    versioned.save()
    assert Versioned.objects.get().version == 2


@pytest.mark.django_db(transaction=True)
def test_commit__settles_the_version_in_memory() -> None:
    """After COMMIT the number stays, whatever is rolled back later."""
    with transaction.atomic():
        versioned = Versioned.objects.create()
        versioned.save()
    with pytest.raises(KeyError), transaction.atomic():
        versioned.save()
        raise KeyError

    assert versioned.version == Versioned.objects.get().version == 2


def test_many_saves__in_one_transaction_leave_one_hook() -> None:
    """Thousands of rows saved together do not queue thousands of hooks."""
    from django.db import connection

    rows = [Versioned.objects.create() for _ in range(20)]
    with transaction.atomic():
        before = len(connection.run_on_commit)
        for row in rows:
            row.save()
        added = len(connection.run_on_commit) - before

    assert added == 1
    assert {row.version for row in rows} == {2}


def test_copies__carry_the_version() -> None:
    """Copies and pickles made inside a transaction keep the number they had."""
    versioned = Versioned.objects.create()
    with transaction.atomic():
        versioned.save()
        copies = [copy.copy(versioned), copy.deepcopy(versioned), pickle.loads(pickle.dumps(versioned))]

    assert [duplicate.version for duplicate in copies] == [2, 2, 2]


def test_fixture__is_stored_as_it_is() -> None:
    """Loading a fixture sets the number that is in it, over whatever is there."""
    versioned = Versioned.objects.create(number=1)
    text = serializers.serialize("json", [versioned])
    versioned.save()
    versioned.save()

    for loaded in serializers.deserialize("json", text):
        loaded.save()

    assert Versioned.objects.get().version == 1


def test_deferred__version_is_refused() -> None:
    """A version that is read at the time of saving would let every stale save pass."""
    Versioned.objects.create()
    versioned = Versioned.objects.only("number").get()

    with pytest.raises(ValueError, match="version must be loaded before testapp"), transaction.atomic():
        versioned.save()


def test_inheritance__checks_the_parents_table() -> None:
    """A model of two tables has one version, raised also when only the child's table is written."""
    created = VersionedChild.objects.create()
    first, second = VersionedChild.objects.get(pk=created.pk), VersionedChild.objects.get(pk=created.pk)
    first.extra = 1
    first.save(update_fields=["extra"])

    with pytest.raises(ConcurrentUpdateError), transaction.atomic():
        second.save()

    assert first.version == VersionedChild.objects.get().version == 2


def test_update_or_create__raises_the_version() -> None:
    """Django's own saves are saves too."""
    versioned = Versioned.objects.create(note="a")

    Versioned.objects.update_or_create(note="a", defaults={"number": 5})

    versioned.refresh_from_db()
    assert (versioned.number, versioned.version) == (5, 2)


class VersionedForm(forms.ModelForm):
    class Meta:
        model = Versioned
        fields = ["number", "version"]


def test_form__carries_the_version_and_refuses_a_stale_one() -> None:
    """The form posts back what it was filled in from, and says so when someone else was faster."""
    versioned = Versioned.objects.create()
    shown = VersionedForm(instance=versioned)
    fresh = VersionedForm({"number": 1, "version": 1}, instance=Versioned.objects.get())
    fresh.save()

    stale = VersionedForm({"number": 2, "version": 1}, instance=Versioned.objects.get())

    assert shown["version"].is_hidden
    assert not stale.is_valid()
    assert "Someone else changed this record" in str(stale.errors)
    assert Versioned.objects.get().number == 1


def test_form__of_a_new_record_is_valid() -> None:
    """Adding needs no version to compare with."""
    form = VersionedForm({"number": 1, "version": 1})

    assert form.is_valid(), form.errors
    assert form.save().version == 1


def test_clean__without_an_instance_checks_the_number_only() -> None:
    """Serializers and commands clean values that belong to no row yet."""
    field = Versioned._meta.get_field("version")

    assert field.clean("3", None) == 3


def test_migration__names_the_public_path() -> None:
    """Migrations import the field from where it will always be."""
    text = MigrationWriter(
        type(
            "Migration",
            (migrations.Migration,),
            {
                "operations": [migrations.AddField("thing", "version", VersionField())],
                "dependencies": [],
            },
        )("0001", "app")
    ).as_string()

    assert "resilience.VersionField(default=1)" in text
    assert isinstance(VersionField().clone(), VersionField)


def test_field__is_a_number_for_queries() -> None:
    """The column is an ordinary one."""
    Versioned.objects.create()

    Versioned.objects.update(version=models.F("version") + 1)

    assert Versioned.objects.filter(version__gte=2).exists()
