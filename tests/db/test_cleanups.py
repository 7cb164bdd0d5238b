from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from resilience.db import cleanups
from resilience.db.models import IdempotencyKey


@pytest.mark.django_db
def test_delete_keys__takes_old_ones_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys older than the age go, however many; younger ones keep their work from being done twice."""
    monkeypatch.setattr(cleanups, "_BATCH", 2)
    for number in range(7):
        IdempotencyKey.objects.create(key=f"order {number}", owner="a")
    old = IdempotencyKey.objects.exclude(key__in=["order 2", "order 5"])
    old.update(created_at=timezone.now() - dt.timedelta(days=91))

    count = cleanups.delete_keys(dt.timedelta(days=90))

    assert count == 5
    assert set(IdempotencyKey.objects.values_list("key", flat=True)) == {"order 2", "order 5"}
