"""What the child processes of `manage.py demo` run; not meant to be called by hand."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from project.demo.parts import calling, providers, spending

_PARTS = {
    "spend": spending.spend,
    "serve": calling.serve_labels,
    "call": calling.call_service,
    "providers": providers.call_providers,
}


class Command(BaseCommand):
    """Run one part of the demo in this process."""

    help = "Run one part of the demo in this process."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the part's name and its arguments."""
        parser.add_argument("part", choices=sorted(_PARTS))
        parser.add_argument("arguments", nargs="*")

    def handle(self, *args: Any, part: str, arguments: list[str], **options: Any) -> None:
        """Run it; Ctrl-C ends it without a word, since the parent process has the say."""
        try:
            _PARTS[part](*arguments)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
