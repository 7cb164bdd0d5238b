from __future__ import annotations

import pytest
from django.db import connection, connections, transaction

from resilience.connections import is_in_atomic, is_in_transaction


@pytest.mark.django_db
def test_is_in_transaction__not_for_the_blocks_of_a_test_case() -> None:
    """A block of the user's counts, one that Django's TestCase opened does not."""
    around = is_in_transaction(connection), is_in_atomic(connection)
    with transaction.atomic():
        inside = is_in_transaction(connection), is_in_atomic(connection)

    assert (around, inside) == ((False, False), (True, True))


@pytest.mark.django_db(transaction=True)
def test_is_in_transaction__while_autocommit_is_off() -> None:
    """Without autocommit there is always one, and somebody else ends it."""
    connection.set_autocommit(False)
    try:
        without = is_in_transaction(connection), is_in_atomic(connection)
    finally:
        connection.set_autocommit(True)

    assert (without, is_in_transaction(connection)) == ((True, False), False)


@pytest.mark.django_db(transaction=True)
def test_is_in_transaction__asks_the_settings_before_there_is_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no connection to find out."""
    unused = connections["default"]
    monkeypatch.setitem(unused.settings_dict, "AUTOCOMMIT", False)
    monkeypatch.setattr(unused, "connection", None)

    assert is_in_transaction(unused)
    assert unused.connection is None
