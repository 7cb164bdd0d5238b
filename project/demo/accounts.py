"""Spending credits from one row that every process wants."""

from __future__ import annotations

from project.demo.models import Account
from resilience import atomic_update, db_retry

__all__ = ["spend_optimistically", "spend_under_lock"]


def spend_optimistically(pk: int) -> None:
    """Take one credit by compare-and-swap: whoever loses the race reads again and repeats."""
    atomic_update(
        Account,
        pk,
        {"credits": lambda account: account.credits - 1, "spent": lambda account: account.spent + 1},
        max_retries=100,
    )


@db_retry(max_attempts=10)
def spend_under_lock(pk: int) -> None:
    """Take one credit in a transaction that is repeated as a whole when the database refuses it."""
    account = Account.objects.select_for_update().get(pk=pk)
    account.credits -= 1
    account.spent += 1
    account.save(update_fields=["credits", "spent"])
