"""Keep what a circuit learns out of its caller's transaction.

Django's DatabaseCache uses the calling thread's connection, so inside `atomic()` a rollback would take back the
very failure that caused it. While such a block is open, the cache gets a second connection to the same database
for one operation. SQLite has one writer: there the operation is put off, and the process goes on by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.cache.backends.db import BaseDatabaseCache
from django.db import connections, router

from resilience.connections import is_in_atomic

__all__ = ["PutOffError", "outside_transaction"]


class PutOffError(Exception):
    """The operation has to wait until the caller's transaction is over."""


@contextmanager
def outside_transaction(cache: BaseDatabaseCache) -> Iterator[None]:
    """Run cache operations of the calling thread outside the transaction that may be open there.

    Raises:
        PutOffError: The database has room for one writer only.
    """
    alias = router.db_for_write(cache.cache_model_class)
    shared = connections[alias]
    if not is_in_atomic(shared):
        yield
        return
    if shared.vendor == "sqlite":
        raise PutOffError
    # `connections` is local to the thread, so nobody else meets the second one.
    own = shared.copy()
    connections[alias] = own
    try:
        yield
    finally:
        connections[alias] = shared
        own.close()
