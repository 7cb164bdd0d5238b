"""What the tests of the db pillar do behind Django's back: other sessions, killers, threads, accounts."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pymysql
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models import F

from tests import servers
from tests.testapp.models import Account


@contextmanager
def postgresql_peer(server: servers.PostgreSQL) -> Iterator[psycopg.Connection[Any]]:
    """Another session, in autocommit mode."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield connection


@contextmanager
def mariadb_peer(server: servers.MariaDB) -> Iterator[Any]:
    """A cursor of another session, in autocommit mode."""
    connection = pymysql.connect(host="127.0.0.1", port=server.port, user="root", database="test", autocommit=True)
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def session_id(alias: str) -> int:
    """The number by which the server knows the session of this thread."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()" if connections[alias].vendor == "postgresql" else "SELECT connection_id()")
        return int(cursor.fetchone()[0])


def terminate(server: servers.PostgreSQL | servers.MariaDB, number: int) -> None:
    """End a session from outside and wait until the server has forgotten it."""
    if isinstance(server, servers.PostgreSQL):
        with postgresql_peer(server) as peer:
            peer.execute("SELECT pg_terminate_backend(%s)", [number])
            gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
            servers.wait_until(lambda: peer.execute(gone, [number]).fetchone()[0])  # type: ignore[index]
        return
    with mariadb_peer(server) as peer:
        peer.execute(f"KILL {number}")

        def is_gone() -> bool:
            return peer.execute("SELECT 1 FROM information_schema.processlist WHERE id = %s", [number]) == 0

        servers.wait_until(is_gone)


def waits_for_lock(server: servers.PostgreSQL | servers.MariaDB) -> bool:
    """Whether a session of this server waits for a lock that another one holds."""
    if isinstance(server, servers.PostgreSQL):
        with postgresql_peer(server) as peer:
            return bool(peer.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchall())
    with mariadb_peer(server) as peer:
        # InnoDB's own tables and counters may show an answer of the past; a statement that goes on and on is seen at once.
        running = (
            "SELECT 1 FROM information_schema.processlist WHERE command = 'Query' AND time_ms > 50 AND id <> connection_id()"
        )
        return bool(peer.execute(running))


class Background:
    """A function in a thread of its own, with connections of its own that it closes."""

    def __init__(self, func: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._func = func
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._func()
        except BaseException as exc:
            self.error = exc
        finally:
            connections.close_all()

    def join(self, limit: float = 60) -> Any:
        """Wait for the end, and return or raise what the function did."""
        self._thread.join(limit)
        assert not self._thread.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error
        return self.result


def add(alias: str, name: str, amount: int = 1) -> None:
    """Change a balance in one statement."""
    Account.objects.using(alias).filter(name=name).update(balance=F("balance") + amount)


def balance(alias: str, name: str = "a") -> int:
    """Read a balance."""
    return Account.objects.using(alias).get(name=name).balance


def open_accounts(alias: str, *names: str) -> None:
    """Make accounts with nothing in them."""
    Account.objects.using(alias).bulk_create(Account(name=name) for name in names)


def names(alias: str) -> list[str]:
    """The names of all accounts, oldest first."""
    return list(Account.objects.using(alias).order_by("pk").values_list("name", flat=True))


@contextmanager
def sqlite_file(folder: Path, *, journal: str = "wal", **options: Any) -> Iterator[str]:
    """The alias of a migrated SQLite file."""
    alias = f"sqlite_{journal}"
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "test.sqlite3"), "OPTIONS": options}
    connections.databases[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"PRAGMA journal_mode={journal}")
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
        yield alias
    finally:
        connections[alias].close()
        del connections.databases[alias]
        delattr(connections._connections, alias)  # type: ignore[attr-defined]


def hook(alias: str, into: list[Any], value: Any) -> None:
    """Put `value` into a list when the transaction is committed."""
    transaction.on_commit(lambda: into.append(value), using=alias)


class CommitCutter:
    """A TCP proxy to a database that, when armed, cuts the connection at the next COMMIT: before it or before its answer."""

    def __init__(self, port: int) -> None:
        self.armed = ""
        self.cuts = 0
        self._target = port
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

    def close(self) -> None:
        """Stop listening and wait for all connections to end."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._relay, client, socket.create_connection(("127.0.0.1", self._target)))

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Carry bytes both ways until one side ends or COMMIT comes by."""
        with client, server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if (
                        source is client
                        and self.armed
                        and data.rstrip(b"\0").endswith((b"\x03COMMIT", b"\nCOMMIT", b"\x0bCOMMIT"))
                    ):
                        self._cut(server, data)
                        return
                    (server if source is client else client).sendall(data)

    def _cut(self, server: socket.socket, data: bytes) -> None:
        when, self.armed = self.armed, ""
        self.cuts += 1
        if when == "after":
            server.sendall(data)
            server.recv(65536)


@contextmanager
def through(cutter: CommitCutter, settings: dict[str, object]) -> Iterator[str]:
    """An alias whose connections go through the proxy."""
    alias = "cut"
    settings = {**settings, "PORT": str(cutter.port)}
    connections.databases[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
    try:
        yield alias
    finally:
        connections[alias].close()
        cutter.close()
        del connections.databases[alias]
        delattr(connections._connections, alias)  # type: ignore[attr-defined]
