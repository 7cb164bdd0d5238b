"""What the demo stores: handwritten digits, an account to spend from, and what was learnt."""

from __future__ import annotations

from django.db import models

__all__ = ["Account", "Digit", "Source", "TrainedModel"]


class Source(models.Model):
    """Where digits come from."""

    name = models.CharField(max_length=100, unique=True)

    def __str__(self) -> str:
        return self.name


class Digit(models.Model):
    """One scanned digit of 8 x 8 pixels."""

    number = models.IntegerField(unique=True)
    source = models.ForeignKey(Source, on_delete=models.CASCADE)
    label = models.PositiveSmallIntegerField()
    pixels = models.CharField(max_length=128, help_text="64 brightness values from 00 to 10, hexadecimal.")

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(label__lte=9), name="demo_digit_label_is_a_digit")]

    def __str__(self) -> str:
        return f"#{self.number}: {self.label}"


class Account(models.Model):
    """Credits that several processes spend at once."""

    name = models.CharField(max_length=100, unique=True)
    credits = models.IntegerField(default=0)
    spent = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.name


class TrainedModel(models.Model):
    """The outcome of one training: a fingerprint of its weights and how good they are."""

    name = models.CharField(max_length=100, unique=True)
    sha256 = models.CharField(max_length=64)
    accuracy = models.FloatField()

    def __str__(self) -> str:
        return f"{self.name}: {self.accuracy:.3f}"
