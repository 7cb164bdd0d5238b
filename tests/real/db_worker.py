"""A process of its own that works on the database in TEST_DATABASE_URL; started by the chaos tests.

`python -m tests.real.db_worker increment NAME COUNT` adds to one row; `... insert NAME 0` stores rows until its
standard input ends. Prints one JSON object: what was done, what is unknown, what failed, how many retries there were.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")


def main(what: str, name: str, amount: str) -> None:
    import django

    django.setup()
    from resilience import signals

    report: dict[str, Any] = {"done": [], "unknown": [], "failed": [], "retries": 0, "recovered": 0}

    def scheduled(**kwargs: object) -> None:
        report["retries"] += 1

    def succeeded(**kwargs: object) -> None:
        report["recovered"] += 1

    signals.db_retry_scheduled.connect(scheduled)
    signals.db_retry_succeeded.connect(succeeded)
    if what == "increment":
        increment(name, int(amount), report)
    else:
        insert(name, report)
    sys.stdout.write(json.dumps(report) + "\n")


def increment(name: str, count: int, report: dict[str, Any]) -> None:
    """Add one to the shared row `count` times; the key makes each time count once, whatever happens to COMMIT."""
    from django.db import Error

    from resilience import ResilienceError, db_retry
    from tests.testapp.models import Account

    @db_retry(max_attempts=None, deadline=90, idempotency_key=lambda number: f"{name} {number}")
    def add(number: int) -> None:
        account = Account.objects.select_for_update().get(name="shared")
        account.balance += 1
        account.save()

    for number in range(count):
        try:
            add(number)
        except (Error, ResilienceError) as exc:
            report["failed"].append(repr(exc))
        else:
            report["done"].append(number)


def insert(name: str, report: dict[str, Any]) -> None:
    """Store one row after the other until standard input ends; what became of each is told."""
    from django.db import Error

    from resilience import CommitOutcomeUnknownError, db_retry
    from tests.testapp.models import Parent

    @db_retry(max_attempts=None, deadline=90)
    def store(entry: str) -> None:
        Parent.objects.create(name=entry)

    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        entry = f"{name} {number}"
        try:
            store(entry)
        except CommitOutcomeUnknownError:
            report["unknown"].append(entry)
        except Error:
            report["failed"].append(entry)
        else:
            report["done"].append(entry)


if __name__ == "__main__":
    main(*sys.argv[1:])
