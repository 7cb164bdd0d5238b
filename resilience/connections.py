"""What several pillars ask of a database connection; loads without Django's ORM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["is_in_atomic", "is_in_transaction"]


def is_in_atomic(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether an `atomic()` block is open, but for those that Django's `TestCase` opens around a test.

    Args:
        connection: One of `django.db.connections`.

    Example:
        >>> from django.db import connection, transaction
        >>> with transaction.atomic():
        ...     is_in_atomic(connection)
        True
    """
    if not connection.in_atomic_block:
        return False
    blocks = connection.atomic_blocks
    return not blocks or any(not getattr(block, "_from_testcase", False) for block in blocks)


def is_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether a transaction is open that somebody else will commit or roll back; opens no connection.

    That is so inside `atomic()`, as `is_in_atomic` has it, and always while autocommit is off.

    Args:
        connection: One of `django.db.connections`.

    Example:
        >>> from django.db import connection
        >>> is_in_transaction(connection)
        False
    """
    if connection.in_atomic_block:
        return is_in_atomic(connection)
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    return not connection.autocommit
