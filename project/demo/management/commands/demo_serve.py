"""Keep the demo going behind a server, so that the dashboard has something to show."""

from __future__ import annotations

import itertools
import secrets
import socket
import time
from argparse import ArgumentParser
from contextlib import suppress
from typing import Any

import requests
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.urls import reverse

from project.demo import digits, labelling, tasks
from project.demo.models import Digit, Source
from project.demo.processes import Family, free_port
from resilience import Run, safe_bulk_insert

_CALLERS = 2
#: The service's moods and how long each lasts, in seconds, over and over.
_MOODS = (("healthy", 40.0), ("flaky", 40.0), ("outage", 25.0))


class Command(BaseCommand):
    """Serve the admin with live data until Ctrl-C."""

    help = "Serve the admin on the loopback interface with live circuits and runs, until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the port and an optional end."""
        parser.add_argument("--port", type=int, default=8000, help="port of the server (default 8000)")
        parser.add_argument("--seconds", type=float, default=None, help="end by itself after so many seconds")

    def handle(self, *args: Any, port: int, seconds: float | None, **options: Any) -> None:
        """Start everything, print where to look, wait."""
        try:
            with Family(settings.VAR_DIR / "demo.log") as family:
                call_command("migrate", verbosity=0)
                _load_digits()
                _start(family, port)
                self.stdout.write(f"The dashboard: http://127.0.0.1:{port}{reverse('admin:resilience_circuit_changelist')}")
                self.stdout.write(_account())
                self.stdout.write("Ctrl-C ends the server and everything it started.")
                _keep_busy(seconds, family)
        except KeyboardInterrupt:
            self.stdout.write("\nEverything has been ended.")


def _account() -> str:
    """Make the admin user at the first start; the password is shown this once."""
    users = get_user_model()
    if users.objects.filter(username="admin").exists():
        return "User admin, with the password that was printed at the first start (python manage.py changepassword admin sets a new one)."
    password = secrets.token_urlsafe(12)
    users.objects.create_superuser("admin", password=password)
    return f"User admin, password {password} (shown only now)."


def _load_digits() -> None:
    if not Digit.objects.exists():
        source, _ = Source.objects.get_or_create(name="scikit-learn")
        safe_bulk_insert(Digit, digits.as_rows(source.pk))


def _start(family: Family, port: int) -> None:
    """Start server, worker and scheduler; return when the server answers.

    Raises:
        CommandError: The port is taken, or the server ended by itself.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise CommandError(f'Port {port} is taken. Choose another: make demo-serve ARGS="--port {port + 1}"')
    server = family.start_quietly("manage.py", "runserver", "--noreload", "--insecure", f"127.0.0.1:{port}")
    while True:
        with suppress(requests.RequestException):
            labelling.session.get(f"http://127.0.0.1:{port}/", timeout=5)
            break
        if server.poll() is not None:
            raise CommandError(f"The server ended by itself. Read {settings.VAR_DIR / 'demo.log'}.")
        family.rest(0.1)
    family.start_worker("--beat", "--schedule", str(settings.VAR_DIR / "beat-schedule"))


def _keep_busy(seconds: float | None, family: Family) -> None:
    """Change the service's mood and start trainings, until told to end."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    family.start_part("serve", port)
    until = time.monotonic() + seconds if seconds is not None else float("inf")
    for _ in range(_CALLERS):
        family.start_quietly("manage.py", "demo_part", "call", url, "policy")
    family.start_quietly("manage.py", "demo_part", "providers")
    _show_other_ends(family)
    for number, (mood, length) in enumerate(itertools.cycle(_MOODS)):
        if number % len(_MOODS) == 0:
            tasks.train_digits.delay(f"live-{time.time():.0f}", epochs=200, pace=0.5)
        _change_mood(url, mood, family)
        family.rest(max(0.0, min(length, until - time.monotonic())))
        if time.monotonic() >= until:
            return


def _show_other_ends(family: Family) -> None:
    """Start a check that fails, and put a training on hold once it has begun: the pages show such runs too."""
    if Run.objects.filter(key="digits:on-hold").exists():
        return
    tasks.check_labels.delay("scikit-learn")
    tasks.train_digits.delay("on-hold", epochs=400, pace=0.2)
    for _ in range(300):
        held = Run.objects.filter(key="digits:on-hold", step__isnull=False).first()
        if held is not None:
            held.pause(actor="demo", reason="another training needs the machine")
            return
        family.rest(0.1)


def _change_mood(url: str, mood: str, family: Family) -> None:
    """Tell the service its mood; it may still be starting."""
    for _ in range(100):
        try:
            labelling.session.post(f"{url}/mood/{mood}", timeout=1)
        except requests.ConnectionError:
            family.rest(0.1)
        else:
            return
