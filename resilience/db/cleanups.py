"""What piles up in the ledger of idempotency keys, and is deleted when somebody asks for it."""

from __future__ import annotations

import datetime as dt

from django.db import router
from django.utils import timezone

__all__ = ["delete_keys"]

_BATCH = 1000


def delete_keys(older_than: dt.timedelta, *, using: str | None = None) -> int:
    """Delete idempotency keys that are older than `older_than`, a thousand in a transaction.

    Work that is asked for again with a deleted key is done again: keep them for longer than anybody repeats anything.

    Args:
        older_than: How long ago the work must have been done.
        using: The database alias, which is that of the work; None asks the router.

    Returns:
        How many keys were deleted.

    Example:
        >>> delete_keys(dt.timedelta(days=90))
        0
    """
    from resilience.db.models import IdempotencyKey

    rows = IdempotencyKey.objects.using(using or router.db_for_write(IdempotencyKey))
    old = rows.filter(created_at__lt=timezone.now() - older_than).order_by("created_at").values_list("pk", flat=True)
    deleted = 0
    while keys := list(old[:_BATCH]):
        deleted += rows.filter(pk__in=keys).delete()[0]
    return deleted
