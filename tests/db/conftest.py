from __future__ import annotations

from collections.abc import Iterator

import pytest
from asgiref.sync import SyncToAsync
from django.db import connections

from tests.real.db_aliases import sqlite_file

__all__ = ["sqlite_file"]


def _close_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:  # Django's own close() leaves a database in memory open
            connection.connection.close()


@pytest.fixture(scope="session", autouse=True)
def _no_connection_left_in_the_thread() -> Iterator[None]:
    """Close what the async forms opened in Django's thread for synchronous code, which lives as long as the process."""
    yield
    SyncToAsync.single_thread_executor.submit(_close_connections).result()
