"""Inserts a generator's rows in a process of its own and prints by how many megabytes its memory grew."""

from __future__ import annotations

import json
import os
import resource
import sys


def main() -> None:
    """Read the database's settings and the number of rows from the arguments."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.db import connections

    django.setup()
    connections.databases["subject"] = connections.configure_settings({"default": {}, "subject": json.loads(sys.argv[1])})[
        "subject"
    ]

    from resilience.db.bulk import safe_bulk_insert
    from tests.testapp.models import Ware

    count = int(sys.argv[2])
    safe_bulk_insert(Ware, [{"code": "warm", "name": "up"}], using="subject")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = ({"code": f"c{number}", "name": "some name", "quantity": -(number % 10_000 == 0)} for number in range(1, count + 1))
    stored, failed = safe_bulk_insert(Ware, rows, using="subject", return_objects=False)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    sys.stdout.write(json.dumps({"megabytes": grown, "stored": stored, "failed": len(failed)}))


if __name__ == "__main__":
    main()
