"""How the commands read what is typed."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

__all__ = ["MixedOrderCommand"]


class MixedOrderCommand(BaseCommand):
    """A command that takes its options before, between and behind its names.

    By itself argparse refuses `open --seconds 900 payments`, which is no answer in the middle of an outage.
    """

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Return Django's parser, reading names and options in any order."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]  # the one place to choose it
        return parser
