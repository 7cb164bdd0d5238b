"""`manage.py resilience_check`: can this cache and this database keep our promises?"""

from __future__ import annotations

import json
import threading
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.management.base import BaseCommand, CommandError
from django.db import connections, transaction

from resilience import conf
from resilience.redaction import describe_exception, redact

__all__ = ["Command"]

_RACERS = 4
_ROUNDS = 25
_LIMIT_SECONDS = 0.1


class Command(BaseCommand):
    """Try on the real cache and the real database what this app relies on.

    Exit codes: 0 all is well, 2 something works with limits (warnings), 1 something does not work.
    """

    help = "Test the cache and the database against what django-resilience needs of them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--database", default="default", help="alias of the database to test")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run every test and say how it went."""
        alias = options["database"]
        tests: list[tuple[str, Callable[[], str]]] = [
            ("cache: keeps values", _cache_keeps),
            ("cache: is shared", _cache_is_shared),
            ("cache: add is won once", _cache_add_is_won_once),
            ("cache: incr keeps the time to live", _cache_incr_keeps_ttl),
            ("cache: answers quickly", _cache_is_quick),
            ("database: rolls back", lambda: _database_rolls_back(alias)),
            ("database: clock agrees", lambda: _database_clock(alias)),
            ("database: is migrated", lambda: _database_is_migrated(alias)),
        ]
        results = [{"test": name, **_judge(test)} for name, test in tests]
        if options["json"]:
            self.stdout.write(json.dumps(results, indent=2))
        else:
            for result in results:
                self.stdout.write(f"{result['result']:<8} {result['test']}: {result['detail']}")
        found = {result["result"] for result in results}
        if "failed" in found:
            raise CommandError("Something does not work.", returncode=1)
        if "warning" in found:
            raise CommandError("It works, with limits.", returncode=2)


class _LimitedError(Exception):
    """It works, but not as well as it should."""


class _FailedError(Exception):
    """It does not work; the message is for people as it stands."""


def _judge(test: Callable[[], str]) -> dict[str, str]:
    try:
        return {"result": "ok", "detail": test()}
    except _LimitedError as error:
        return {"result": "warning", "detail": str(error)}
    except _FailedError as error:
        return {"result": "failed", "detail": redact(str(error))}
    except Exception as error:  # noqa: BLE001  # whatever is wrong is the answer
        return {"result": "failed", "detail": describe_exception(error)}


def _cache() -> Any:
    return caches[conf.current().cache]


def _key() -> str:
    return f"resilience:check:{uuid.uuid4().hex}"


def _cache_keeps() -> str:
    cache, key = _cache(), _key()
    cache.set(key, {"text": "ä€😀", "number": 1}, 60)
    found = cache.get(key)
    cache.delete(key)
    if found != {"text": "ä€😀", "number": 1}:
        raise _FailedError(f"It returned {found!r}. Check the backend in CACHES.")
    return "yes"


def _cache_is_shared() -> str:
    if isinstance(_cache(), LocMemCache | DummyCache):
        raise _LimitedError("no: each process has its own circuits. Use Redis or Memcached.")
    return "yes"


def _cache_add_is_won_once() -> str:
    """Let threads race for the same key: the vote on a change of state relies on one winner."""
    winners: list[int] = []
    for _ in range(_ROUNDS):
        key, barrier = _key(), threading.Barrier(_RACERS)
        won: list[int] = []

        def race(key: str = key, won: list[int] = won, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(10)
            if _cache().add(key, 1, 60):
                won.append(1)
            _close_in_thread()

        threads = [threading.Thread(target=race) for _ in range(_RACERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        winners.append(len(won))
        _cache().delete(key)
    if any(count != 1 for count in winners):
        raise _LimitedError(f"no: {sum(count != 1 for count in winners)} of {_ROUNDS} races had another number of winners.")
    return "yes"


def _close_in_thread() -> None:
    """A cache in the database opened a connection for the thread."""
    connections.close_all()


def _cache_incr_keeps_ttl() -> str:
    cache, key = _cache(), _key()
    cache.add(key, 1, 1)
    cache.incr(key)
    time.sleep(2.2)
    lives = cache.get(key) is not None
    cache.delete(key)
    if lives:
        raise _LimitedError("no: counts live longer than their window on this backend. Use Redis or Memcached.")
    return "yes"


def _cache_is_quick() -> str:
    cache, key = _cache(), _key()
    begin = time.perf_counter()
    for _ in range(10):
        cache.get(key)
    seconds = (time.perf_counter() - begin) / 10
    if seconds > _LIMIT_SECONDS:
        raise _LimitedError(f"{seconds * 1000:.0f} ms a read, which every process pays once per SYNC_INTERVAL and circuit.")
    return f"{seconds * 1000:.2f} ms a read"


def _database_rolls_back(alias: str) -> str:
    connection = connections[alias]
    if not connection.features.supports_transactions:
        raise _FailedError("The tables do not support transactions. Use InnoDB, PostgreSQL or SQLite.")
    with transaction.atomic(using=alias), transaction.atomic(using=alias), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return f"yes ({connection.display_name}, savepoints work)"


def _database_clock(alias: str) -> str:
    """Leases run on the database's clock; pages show times by this machine's."""
    from django.db.models import Value
    from django.db.models.functions import Now
    from django.utils import timezone

    from resilience.runs.models import Run

    Run.objects.using(alias).exists()
    with transaction.atomic(using=alias):
        probe = Run.objects.using(alias).create(key=f"resilience:check:{uuid.uuid4().hex}", status="finished")
        there = Run.objects.using(alias).annotate(now=Now(), one=Value(1)).values_list("now", flat=True).get(pk=probe.pk)
        here = timezone.now()
        probe.delete()
    seconds = abs((here - there).total_seconds())
    if seconds > 10:  # noqa: PLR2004  # seconds
        raise _LimitedError(f"they differ by {seconds:.0f} s. Synchronise the machines' clocks.")
    return f"within {max(seconds, 0.1):.1f} s"


def _database_is_migrated(alias: str) -> str:
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connections[alias])
    targets = [node for node in executor.loader.graph.leaf_nodes() if node[0] == "resilience"]
    if plan := executor.migration_plan(targets):
        raise _FailedError(f"{len(plan)} migrations are missing. Run manage.py migrate.")
    return "yes"
