"""What db_retry and TransactionManager cost while nothing fails: against transaction.atomic, on three databases.

Run `python -m benchmarks.db [--json FILE] [--quick] [--check] [--only ALIAS]`. The forms take turns call by call, in
random order, so that a busy machine slows all of them alike; the 10th percentile of each form's calls counts. A
with-block is compared with a with-block, a decorated function with a decorated one.
Bulk inserts and updates are measured by `python -m benchmarks.db_writes`.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from benchmarks.common import ending, parser_of

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

LIMIT = 1.05


@dataclass
class Figure:
    """One form beside transaction.atomic."""

    database: str
    work: str
    form: str
    seconds: float
    ratio: float
    limit: float | None = None

    @property
    def holds(self) -> bool:
        return self.limit is None or self.ratio <= self.limit


def forms(alias: str, body: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The same body in a transaction, in different ways."""
    from django.db import connections, transaction

    from resilience import TransactionManager, db_retry

    def in_atomic() -> None:
        with transaction.atomic(using=alias):
            body()

    def managed() -> None:
        with TransactionManager(alias):
            body()

    found: dict[str, Callable[[], object]] = {
        "transaction.atomic": transaction.atomic(using=alias)(body),
        "with transaction.atomic": in_atomic,
        "db_retry": db_retry(using=alias)(body),
        "@TransactionManager": TransactionManager(alias)(body),
        "with TransactionManager": managed,
    }
    if connections[alias].vendor == "postgresql":
        import pgtransaction

        found["pgtransaction.atomic(retry=3)"] = pgtransaction.atomic(using=alias, retry=3)(body)
    return found


def bodies(alias: str) -> dict[str, Callable[[], object]]:
    """What is done inside: one row changed, and the usual read, change and save."""
    from django.db.models import F

    from tests.testapp.models import Account

    rows = Account.objects.using(alias)
    rows.get_or_create(name="bench")

    def update() -> None:
        rows.filter(name="bench").update(balance=F("balance") + 1)

    def read_and_save() -> None:
        account = rows.select_for_update().get(name="bench")
        account.balance += 1
        account.save(using=alias)

    return {"update one row": update, "read, change, save": read_and_save}


def measure(alias: str, rounds: int) -> list[Figure]:
    """Time all forms of all bodies in turns, in a project with this one database, as most have."""
    from unittest.mock import patch

    from django.db import connections

    with patch.dict(connections.settings, {alias: connections.settings[alias]}, clear=True):
        return in_turns(alias, rounds)


def in_turns(alias: str, rounds: int) -> list[Figure]:
    """Time all forms of all bodies in turns."""
    figures = []
    for work, body in bodies(alias).items():
        candidates = forms(alias, body)
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, form in random.sample(list(candidates.items()), len(candidates)):
                started = time.perf_counter()
                form()
                times[name].append(time.perf_counter() - started)
        typical = {name: sorted(taken)[rounds // 10] for name, taken in times.items()}
        for name, seconds in typical.items():
            reference = typical["with transaction.atomic" if name.startswith("with") else "transaction.atomic"]
            limit = LIMIT if name in {"db_retry", "@TransactionManager", "with TransactionManager"} else None
            figures.append(Figure(alias, work, name, seconds, seconds / reference, limit))
    return figures


def show(figures: list[Figure]) -> None:
    print(f"{'database':<12}{'work':<22}{'form':<32}{'each':>10}{'ratio':>8}  target")
    for figure in figures:
        target = f"<= {figure.limit} {'ok' if figure.holds else 'MISSED'}" if figure.limit else ""
        print(
            f"{figure.database:<12}{figure.work:<22}{figure.form:<32}{figure.seconds * 1e6:>7.1f} us{figure.ratio:>8.3f}  {target}"
        )


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="one of postgresql, mariadb, sqlite")
    options = parser.parse_args()

    import django

    django.setup()
    from benchmarks.db_writes import databases

    figures: list[Figure] = []
    rounds = 500 if options.quick else 3000
    with ExitStack() as stack:
        for alias in databases(stack):
            if not options.only or alias == options.only:
                figures += measure(alias, rounds)
    show(figures)
    return ending(options, [{**asdict(figure), "holds": figure.holds} for figure in figures], figures)


if __name__ == "__main__":
    sys.exit(main())
