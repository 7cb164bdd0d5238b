"""Circuits in a DatabaseCache whose database the guarded code uses too: a rollback takes no failure back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.db import connections, transaction

from resilience import CircuitBreaker
from resilience.circuits.circuit import Circuit
from resilience.circuits.store import CircuitStore
from tests.circuits.conftest import ServiceError, is_refused

_names = itertools.count()


class Router:
    """Sends the cache table to the database under test."""

    alias = "default"

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return self.alias if model._meta.app_label == "django_cache" else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == self.alias if app_label == "django_cache" else None


@pytest.fixture(params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, settings: Any) -> str:
    alias = request.getfixturevalue(request.param)
    settings.CACHES = {
        **settings.CACHES,
        "database": {
            "BACKEND": "django.core.cache.backends.db.DatabaseCache",
            "LOCATION": "circuit_cache",
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        },
    }
    Router.alias = alias
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    call_command("createcachetable", database=alias, verbosity=0)
    caches["database"].clear()
    return alias


def member(name: str, **fields: Any) -> CircuitBreaker:
    """Return a breaker that knows only what the cache tells it."""
    breaker = CircuitBreaker(name, cache="database", sync_interval=0, **fields)
    breaker._prepare()
    breaker._circuit = Circuit(name, CircuitStore("database"), breaker.config, "tests", CircuitBreaker)
    return breaker


def test_rollback__takes_no_failure_back(database: str) -> None:
    """Each failure rolls its own transaction back, and the third still opens the circuit for everybody."""
    name = f"rollback-{next(_names)}"
    first, second = member(name, failure_threshold=3), member(name, failure_threshold=3)

    for breaker in (first, second, first):
        with pytest.raises(ServiceError), transaction.atomic(using=database), breaker:  # the transaction is the subject
            connections[database].ensure_connection()
            raise ServiceError

    assert is_refused(second)
    assert second.get_stats()["failure_count"] == 3
    assert not connections[database].in_atomic_block


def test_broken_transaction__does_not_look_like_an_outage(database: str) -> None:
    """A transaction that PostgreSQL aborted refuses every statement, the circuit's own among them."""
    name = f"broken-{next(_names)}"
    breaker = member(name, failure_threshold=1)

    with pytest.raises(ServiceError), transaction.atomic(using=database), breaker, connections[database].cursor() as cursor:
        try:
            cursor.execute("SELECT * FROM no_such_table")
        except Exception as error:
            raise ServiceError from error

    assert not breaker.circuit.store.is_down
    assert is_refused(member(name, failure_threshold=1))


def test_connection__of_the_caller_is_left_as_it_was(database: str) -> None:
    """The caller's transaction goes on, and commits what it wrote."""
    breaker = member(f"left-{next(_names)}", failure_threshold=3)
    mine = connections[database]

    with transaction.atomic(using=database):
        breaker.call(lambda: None)
        assert connections[database] is mine
        assert mine.in_atomic_block

    assert breaker.state == "closed"


@pytest.mark.django_db(transaction=True)
def test_sqlite__puts_off_and_loses_nothing(settings: Any) -> None:
    """SQLite has one writer: inside a transaction the process counts by itself, and tells afterwards."""
    settings.CACHES = {
        **settings.CACHES,
        "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "circuit_cache"},
    }
    call_command("createcachetable", verbosity=0)
    name = f"sqlite-{next(_names)}"
    first, second = member(name, failure_threshold=3), member(name, failure_threshold=3)
    first.call(lambda: None)

    for _ in range(2):
        with pytest.raises(ServiceError), transaction.atomic(), first:
            raise ServiceError
    assert not first.circuit.store.is_down
    assert second.get_stats()["failure_count"] == 0

    first.get_stats()
    assert second.get_stats()["failure_count"] == 2
