"""Show the main job on real data: break everything on purpose, and see that the work is done all the same."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from project.celery import app
from project.demo.models import Account, Digit, Source, TrainedModel
from project.demo.parts.calling import compare_calls
from project.demo.parts.loading import load_digits_with_damage
from project.demo.parts.report import Report
from project.demo.parts.spending import spend_together
from project.demo.parts.training import train_through_kills
from project.demo.processes import Family
from resilience import Run, get_circuit_breaker


class Command(BaseCommand):
    """Run the demo; the exit code is 1 if any promise was broken."""

    help = "Break everything on purpose and show that the work is done all the same. Exit code 1 if a promise is broken."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the file for the figures and the short form."""
        parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE as JSON")
        parser.add_argument("--quick", action="store_true", help="watch the flaky service for half the time")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run all parts, end all processes, print the closing table."""
        started, report = time.monotonic(), Report()
        try:
            with Family(settings.VAR_DIR / "demo.log") as family:
                _start_afresh()
                load_digits_with_damage(report, family)
                spend_together(report, family)
                compare_calls(report, family, pace=0.5 if options["quick"] else 1.0)
                train_through_kills(report, family)
        except KeyboardInterrupt:
            report.console.print("\nInterrupted; all processes of the demo have been ended.")
            raise SystemExit(130) from None
        report.close(time.monotonic() - started)
        if options["json"]:
            options["json"].write_text(json.dumps(report.as_dict(), indent=2) + "\n")
        if not report.all_kept:
            raise CommandError("A promise was broken; see above.")


def _start_afresh() -> None:
    """Forget what an earlier demo left behind."""
    call_command("migrate", verbosity=0)
    for model in (Digit, Source, Account, TrainedModel):
        model.objects.all().delete()
    Run.objects.filter(key__startswith="digits:").delete()
    with suppress(LookupError):
        get_circuit_breaker("labelling").reset()
    with app.connection_for_write() as connection:
        app.amqp.TaskConsumer(connection.default_channel).purge()
