from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
from django.db import connections

from tests import servers
from tests.isolation import _new_process
from tests.length import LONG

__all__ = ["_new_process"]

#: Where the files are that take longest: they come first, so that no worker is left alone with one at the end.
_LONGEST_FIRST = ("tests/project", "tests/real/test_runs", "tests/real", "tests/calls")


hypothesis.settings.register_profile("tests", max_examples=300 if LONG else 40)
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Keep what this process was started with from the processes that its tests start.

    A tracer would slow them down, and Python's development mode makes the libraries they load talk.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START", "PYTHONDEVMODE"):
            os.environ.pop(name, None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files in front; within each group the order stays random."""
    items.sort(key=lambda item: [not item.nodeid.startswith(start) for start in _LONGEST_FIRST])


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[servers.PostgreSQL]:
    """A private PostgreSQL; tests that stop it start it again."""
    server = servers.PostgreSQL()
    with server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[servers.MariaDB]:
    """A private MariaDB; tests that stop it start it again."""
    server = servers.MariaDB()
    with server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """A private Redis; tests that stop it start it again."""
    server = servers.Redis()
    with server:
        yield server


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[servers.Memcached]:
    """A private Memcached; tests that stop it start it again."""
    server = servers.Memcached()
    with server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[servers.RabbitMQ]:
    """A private RabbitMQ; tests that stop it start it again."""
    server = servers.RabbitMQ()
    with server:
        yield server


def _migrated_alias(alias: str, settings: dict[str, object]) -> None:
    """Make a database alias that exists for this test session only, and migrate it."""
    from django.core.management import call_command

    connections.databases[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
    call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    connections[alias].close()


@pytest.fixture(scope="session")
def _postgresql_alias(postgresql_server: servers.PostgreSQL, django_db_blocker: pytest.FixtureRequest) -> str:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        _migrated_alias("postgresql", postgresql_server.settings)
    return "postgresql"


@pytest.fixture(scope="session")
def _mariadb_alias(mariadb_server: servers.MariaDB, django_db_blocker: pytest.FixtureRequest) -> str:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        _migrated_alias("mariadb", mariadb_server.settings)
    return "mariadb"


def _flushed(alias: str) -> None:
    """Empty every table of this project's own apps, so that each test starts from nothing."""
    from django.apps import apps
    from django.db import transaction

    connection = connections[alias]
    tables = [
        model._meta.db_table
        for label in ("resilience", "testapp")
        for model in apps.get_app_config(label).get_models(include_auto_created=True)
        if model._meta.managed
    ]
    quoted = [connection.ops.quote_name(table) for table in tables]
    with transaction.atomic(using=alias), connection.constraint_checks_disabled(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"TRUNCATE {', '.join(quoted)} RESTART IDENTITY CASCADE")
        else:
            for table in quoted:
                cursor.execute(f"DELETE FROM {table}")


@pytest.fixture
def postgresql(_postgresql_alias: str, django_db_blocker: pytest.FixtureRequest) -> Iterator[str]:
    """The alias of a real PostgreSQL with empty tables; no transaction is open around the test."""
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        _flushed(_postgresql_alias)
        yield _postgresql_alias
        connections[_postgresql_alias].close()


@pytest.fixture
def mariadb(_mariadb_alias: str, django_db_blocker: pytest.FixtureRequest) -> Iterator[str]:
    """The alias of a real MariaDB with empty tables; no transaction is open around the test."""
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        _flushed(_mariadb_alias)
        yield _mariadb_alias
        connections[_mariadb_alias].close()
