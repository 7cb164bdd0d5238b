"""Rows for tests, with what a test does not care about filled in."""

from __future__ import annotations

import factory
from django.contrib.auth.models import User

from resilience.runs.models import Run

__all__ = ["RunFactory", "StaffFactory"]


class RunFactory(factory.django.DjangoModelFactory[Run]):
    """A queued run with a key of its own."""

    class Meta:
        model = Run

    key = factory.Sequence(lambda number: f"train:{number}")
    task = "tests.train"


class StaffFactory(factory.django.DjangoModelFactory[User]):
    """Somebody who may enter the admin and has no permission there."""

    class Meta:
        model = User

    username = factory.Sequence(lambda number: f"staff-{number}")
    is_staff = True
