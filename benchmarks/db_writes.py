"""Bulk inserts and optimistic updates against plain Django and the usual hand-written forms, on three databases.

`python -m benchmarks.db_writes [--json FILE] [--quick] [--check]`: ratios within one run, best of several rounds.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, ending, parser_of

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

ROWS = 20_000
BATCH = 1000


def databases(stack: ExitStack) -> Iterator[str]:
    """Start PostgreSQL and MariaDB, make a SQLite file, and give the aliases."""
    from django.core.management import call_command
    from django.db import connections

    from tests import servers

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(Path(folder) / "bench.sqlite3")}
    sqlite["OPTIONS"] = {"timeout": 30, "init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE"}
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "postgresql": lambda: stack.enter_context(servers.PostgreSQL()).settings,
        "mariadb": lambda: stack.enter_context(servers.MariaDB()).settings,
        "sqlite": lambda: sqlite,
    }
    for alias, make in makers.items():
        connections.databases[alias] = connections.configure_settings({"default": {}, alias: make()})[alias]
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
        yield alias
        connections[alias].close()


def empty(alias: str) -> None:
    """Start each round from the same table."""
    from django.db import connections

    from tests.testapp.models import Parent, Ware

    with connections[alias].cursor() as cursor:
        cursor.execute("DELETE FROM testapp_ware")
        if connections[alias].vendor == "postgresql":
            cursor.execute("VACUUM testapp_ware")
    Parent.objects.using(alias).get_or_create(id=1, defaults={"name": "parent"})
    Ware.objects.using(alias).bulk_create([Ware(code=f"taken{number}", name="taken") for number in range(10)])


def records(count: int, bad_every: int = 0, *, orphans: bool = True) -> list[dict[str, Any]]:
    """Make rows; each `bad_every`-th is bad, in one of six ways in turn (five without `orphans`)."""
    ways: list[dict[str, Any]] = [
        {"code": "taken1"},
        {"code": "c0"},
        {"name": None},
        {"quantity": -1},
        {"name": "x" * 51},
        {"parent_id": 999},
    ][: 6 if orphans else 5]
    rows = [{"code": f"c{number}", "name": "some name", "quantity": number, "parent_id": 1} for number in range(count)]
    if bad_every:
        for turn, number in enumerate(range(bad_every - 1, count, bad_every)):
            rows[number].update(ways[turn % len(ways)])
    return rows


def batch_then_rows(alias: str, rows: list[dict[str, Any]]) -> None:
    """Do what is usually written: a batch, and when it fails every row of it in a savepoint.

    It cannot isolate a missing parent where keys are checked at COMMIT, so it is given none.
    """
    from django.db import DataError, IntegrityError, transaction

    from tests.testapp.models import Ware

    for start in range(0, len(rows), BATCH):
        batch = [Ware(**row) for row in rows[start : start + BATCH]]
        try:
            with transaction.atomic(using=alias):
                Ware.objects.using(alias).bulk_create(batch)
        except (IntegrityError, DataError):
            with transaction.atomic(using=alias):
                for row in rows[start : start + BATCH]:
                    try:
                        with transaction.atomic(using=alias):
                            Ware.objects.using(alias).create(**row)
                    except (IntegrityError, DataError):
                        continue


def timed(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best(rounds: int, before: Callable[[], None], *works: Callable[[], object]) -> list[float]:
    """Time several pieces of work in turn, and give the best time of each."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for place, work in enumerate(works):
            before()
            times[place].append(timed(work))
    return [min(times_of_one) for times_of_one in times]


def bulk(alias: str, count: int, rounds: int) -> list[tuple[str, float, float]]:
    """Compare clean and dirty inserts; each line is a name, the ratio and its target."""
    from resilience.db.bulk import safe_bulk_insert
    from tests.testapp.models import Ware

    clean, dirty = records(count), records(count, bad_every=100)
    few = records(5 * BATCH, bad_every=100, orphans=False)

    def plain() -> None:
        Ware.objects.using(alias).bulk_create([Ware(**row) for row in clean], batch_size=BATCH)

    def safe(rows: list[dict[str, Any]], **options: Any) -> Callable[[], object]:
        return lambda: safe_bulk_insert(Ware, rows, using=alias, batch_size=BATCH, **options)

    times = best(
        rounds, lambda: empty(alias), plain, safe(clean), safe(clean, return_objects=False), safe(dirty),
    )  # fmt: skip
    ours, fallback = best(rounds, lambda: empty(alias), safe(few), lambda: batch_then_rows(alias, few))
    target = 1.5 if alias == "postgresql" else 1.0
    return [
        ("clean rows, times bulk_create", times[0] / times[1], target),
        ("clean rows counted, times bulk_create", times[0] / times[2], target),
        ("1 % bad rows, times clean bulk_create", times[0] / times[3], 0.5),
        ("1 % bad rows, times batch-then-rows", fallback / ours, 10.0),
    ]


def contended(alias: str, threads: int, each: int, update: Callable[[str, int], object]) -> float:
    """Run `update` in threads on one row; return the updates a second, and insist that none was lost."""
    from django.db import connections

    from tests.testapp.models import Account

    Account.objects.using(alias).all().delete()
    row = Account.objects.using(alias).create(name="hot")
    barrier = threading.Barrier(threads + 1)

    def run() -> None:
        update(alias, row.pk)  # connections are made, and queries compiled, once in a thread's life
        barrier.wait()
        for _ in range(each):
            update(alias, row.pk)
        connections[alias].close()

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - started
    row.refresh_from_db()
    if row.balance != threads * (each + 1):
        raise AssertionError(f"{alias}: {threads * (each + 1) - row.balance} updates were lost")
    return threads * each / elapsed


def updates(alias: str, each: int, rounds: int) -> list[tuple[str, float, float]]:
    """Compare atomic_update with select_for_update, contended and alone."""
    from django.db import transaction
    from django.db.models import F

    from resilience.db.updates import atomic_update
    from tests.testapp.models import Account

    def locked(alias: str, pk: int) -> None:
        with transaction.atomic(using=alias):
            row = Account.objects.using(alias).select_for_update().get(pk=pk)
            row.balance += 1
            row.save()

    def optimistic(alias: str, pk: int) -> None:
        atomic_update(Account, pk, {"balance": lambda row: row.balance + 1}, using=alias)

    def expression(alias: str, pk: int) -> None:
        atomic_update(Account, pk, {"balance": F("balance") + 1}, using=alias)

    lines = []
    for threads in (1, 8, 20):
        rates = dict.fromkeys((locked, optimistic, expression), 0.0)
        for _ in range(rounds):
            for work in rates:
                rates[work] = max(rates[work], contended(alias, threads, each, work))
        lines.append((f"{threads} threads on one row, times select_for_update", rates[optimistic] / rates[locked], 1.0))
        lines.append((f"{threads} threads on one row with F(), times select_for_update", rates[expression] / rates[locked], 1.0))
    return lines


def memory(alias: str, count: int) -> float:
    """Insert a generator's rows and return the peak above the baseline, in megabytes."""
    from resilience.db.bulk import safe_bulk_insert
    from tests.testapp.models import Ware

    empty(alias)
    rows = ({"code": f"c{number}", "name": "some name", "parent_id": 1} for number in range(count))
    tracemalloc.start()
    result = safe_bulk_insert(Ware, rows, using=alias, batch_size=BATCH, return_objects=False)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    if result.inserted != count:
        raise AssertionError(f"{alias}: {result.inserted} of {count} rows")
    return peak


def main() -> int:
    """Run everything and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="one of postgresql, mariadb, sqlite")
    arguments = parser.parse_args()
    import django

    django.setup()
    count, each, rounds = (5000, 50, 3) if arguments.quick else (ROWS, 100, 3)
    figures: list[Figure] = []

    def tell(figure: Figure) -> None:
        figures.append(figure)
        rule = ">=" if figure.at_least else "<="
        verdict = "" if figure.holds else "  MISSED"
        print(f"{figure.name:70} {figure.measured:8.2f} {figure.unit:3} (target {rule} {figure.target}){verdict}", flush=True)

    with ExitStack() as stack:
        for alias in databases(stack):
            if arguments.only not in {"", alias}:
                continue
            for name, ratio, target in (*bulk(alias, count, rounds), *updates(alias, each, max(1, rounds - 1))):
                tell(Figure(f"{alias}: {name}", ratio, target, "x", at_least=True))
        if not arguments.quick and arguments.only in {"", "sqlite"}:
            tell(Figure("sqlite: 1,000,000 rows from a generator, peak above baseline", memory("sqlite", 1_000_000), 200, "MB"))
    return ending(arguments, [asdict(figure) for figure in figures], figures)


if __name__ == "__main__":
    sys.exit(main())
