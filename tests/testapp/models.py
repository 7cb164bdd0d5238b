from __future__ import annotations

import uuid

from django.db import models

from resilience.db.versions import VersionField


class Account(models.Model):
    """A balance to fight over."""

    name = models.CharField(max_length=100, unique=True)
    balance = models.IntegerField(default=0)
    note = models.CharField(max_length=100, default="", blank=True)


class Parent(models.Model):
    name = models.CharField(max_length=100)


class Child(models.Model):
    """A row whose foreign key is checked at COMMIT on PostgreSQL and SQLite."""

    parent = models.ForeignKey(Parent, on_delete=models.CASCADE)
    name = models.CharField(max_length=100, default="")


class Sheet(models.Model):
    """One column of each type whose equality is hard, for optimistic updates."""

    text = models.CharField(max_length=100, null=True)
    body = models.TextField(default="")
    number = models.IntegerField(default=0)
    price = models.DecimalField(max_digits=12, decimal_places=2, default=0)
    ratio = models.FloatField(null=True)
    moment = models.DateTimeField(null=True)
    data = models.JSONField(null=True)
    unique_code = models.UUIDField(null=True)
    flag = models.BooleanField(null=True)
    parent = models.ForeignKey(Parent, on_delete=models.CASCADE, null=True)
    touched = models.DateTimeField(auto_now=True)


class Versioned(models.Model):
    """A row that `save()` protects."""

    version = VersionField()
    number = models.IntegerField(default=0)
    note = models.CharField(max_length=100, default="", blank=True)


class VersionedChild(Versioned):
    """A row in two tables of which the first has the version."""

    extra = models.IntegerField(default=0)


class Ware(models.Model):
    """One constraint of each kind, for bulk inserts with bad rows in them."""

    code = models.CharField(max_length=20, unique=True)
    name = models.CharField(max_length=50)
    quantity = models.IntegerField(default=0)
    price = models.DecimalField(max_digits=8, decimal_places=2, default=0)
    parent = models.ForeignKey(Parent, on_delete=models.CASCADE, null=True)
    shelf = models.IntegerField(null=True)
    place = models.IntegerField(null=True)
    added = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(quantity__gte=0), name="ware_quantity_not_negative"),
            models.UniqueConstraint(fields=["shelf", "place"], name="ware_place_taken"),
        ]


class SpecialWare(Ware):
    """A ware in two tables."""

    grade = models.CharField(max_length=5)


class Stamp(models.Model):
    """A key made by Python, a default made by the database and a column computed by it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    number = models.IntegerField(unique=True)
    state = models.CharField(max_length=10, db_default="new")
    doubled = models.GeneratedField(expression=models.F("number") * 2, output_field=models.IntegerField(), db_persist=True)
    after = models.ForeignKey("self", on_delete=models.CASCADE, null=True)


class RunsLedger(models.Model):
    """One row per effect of a step, without any constraint: doubles would show."""

    number = models.IntegerField()
    step = models.IntegerField()


class DatabaseSlot(models.Model):
    """A row whose primary key is two columns."""

    pk = models.CompositePrimaryKey("shelf", "place")
    shelf = models.IntegerField()
    place = models.IntegerField()
    name = models.CharField(max_length=20, default="")
    number = models.IntegerField(default=0)
