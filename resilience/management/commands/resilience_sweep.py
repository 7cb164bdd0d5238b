"""`manage.py resilience_sweep`: the sweeper without Celery beat, once or for ever."""

from __future__ import annotations

import json
import traceback
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connections, router

from resilience import clock
from resilience.management.tables import tables_expected
from resilience.redaction import describe_exception
from resilience.runs.models import Run
from resilience.runs.sweeps import SweepResult, sweep


class Command(BaseCommand):
    """Re-enqueue runs whose worker is gone or whose message was lost."""

    help = "Re-enqueue runs whose lease ran out or whose message was lost, each exactly once."

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the options."""
        parser.add_argument("--database", default=None, help="Database alias; the router decides by default.")
        parser.add_argument("--limit", type=int, default=1000, help="Most runs of each kind to look at in one go.")
        parser.add_argument("--every", type=float, default=None, metavar="SECONDS", help="Go on for ever, at this interval.")
        parser.add_argument("--json", action="store_true", help="Print JSON, one object a sweep.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Sweep once, or for ever; what goes wrong then ends a single sweep only."""
        using = options["database"] or router.db_for_write(Run)
        if options["every"] is None:
            with tables_expected(using):
                self._report(sweep(using, limit=options["limit"]), as_json=options["json"])
            return
        if options["every"] <= 0:
            raise CommandError(f"--every must be more than 0 seconds, not {options['every']}. Use 30.")
        while True:
            try:
                result = sweep(using, limit=options["limit"])
            except Exception as error:  # noqa: BLE001  # whoever runs it as a service must be able to rely on it
                self._complain(error, using)
            else:
                self._report(result, as_json=options["json"])
            clock.sleep(options["every"])

    def _complain(self, error: Exception, using: str) -> None:
        self.stderr.write(f"sweep failed, the next one tries again: {describe_exception(error)}")
        if not isinstance(error, Error):
            # Where, but not the messages, which may hold secrets.
            self.stderr.write("".join(traceback.format_tb(error.__traceback__)))
        connection = connections[using]
        with suppress(Error):
            connection.close()

    def _report(self, result: SweepResult, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(asdict(result)))
            return
        counts = f"{len(result.reclaimed)} reclaimed, {len(result.woken)} woken, {len(result.failed)} failed"
        self.stdout.write(counts)
