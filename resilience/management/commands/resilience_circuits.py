"""`manage.py resilience_circuits`: see and operate circuits from a shell."""

from __future__ import annotations

import getpass
import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from resilience.dashboard import circuits, fleet
from resilience.dashboard.circuit_queries import CircuitQuery, arrange
from resilience.dashboard.formatting import ago, duration, visible
from resilience.dashboard.operations import CIRCUIT_OPERATIONS, operate_circuit, parse_expiry
from resilience.management.parsing import MixedOrderCommand

__all__ = ["Command"]

_ACTIONS = {
    "open": "open",
    "close": "reset",
    "reset": "reset",
    "probe": "half_open",
    "disable": "disable",
    "metrics-only": "metrics_only",
}
_REFUSING = frozenset({"open", "forced_open"})


class Command(MixedOrderCommand):
    """List, show and operate circuits.

    Exit codes: 0 all is well; 1 the command could not be carried out (an unknown circuit, a missing name);
    3 with `list --check` or `show --check`, when a circuit that was looked at refuses calls.
    """

    help = "List, show, open, close, probe, disable or reset circuits of the whole fleet."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("action", choices=["list", "show", *_ACTIONS])
        parser.add_argument("names", nargs="*", help="names of circuits; list takes none or several, the others at least one")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--check", action="store_true", help="with list and show: exit with 3 when a circuit refuses calls")
        parser.add_argument("--reason", default="", help="why, for the history")
        parser.add_argument("--seconds", default="", help="with open: for how long; for ever if left out")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what was asked."""
        survey, names = fleet.look(), options["names"]
        stats = survey.tell()
        for alias, error in survey.down.items():
            self.stderr.write(f"The cache {alias!r} does not answer ({error}): its circuits are not known here.")
        if unknown := [name for name in names if name not in stats]:
            raise CommandError(f"There is no circuit {unknown[0]!r}. `resilience_circuits list` shows the known ones.")
        if not names and options["action"] != "list":
            raise CommandError(f"{options['action']} needs at least one name of a circuit.")
        if options["action"] in {"list", "show"}:
            self._look({name: stats[name] for name in names or stats}, options)
        else:
            self._operate(names, options)

    def _look(self, stats: dict[str, Any], options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(list(stats.values()), default=str, indent=2))
        elif options["action"] == "list":
            self._print_list(stats)
        else:
            for item in stats.values():
                self._print_one(item)
        if options["check"] and any(str(item.get("state")) in _REFUSING for item in stats.values()):
            raise CommandError("A circuit refuses calls.", returncode=3)

    def _print_list(self, stats: dict[str, Any]) -> None:
        rows = arrange([circuits.row(item) for item in stats.values()], CircuitQuery())
        if not rows:
            self.stdout.write("No circuit has been used yet.")
        width = max((len(row.label) for row in rows), default=0)
        for row in rows:
            probe = f", next probe in {duration(row.retry_after)}" if row.retry_after is not None else ""
            self.stdout.write(f"{row.label:<{width}}  {row.state:<12}  {row.level_text}, {row.rejected} rejected{probe}")

    def _print_one(self, stats: dict[str, Any]) -> None:
        from resilience import clock

        row, now = circuits.row(stats), clock.time()
        self._print_list({row.name: stats})
        for change in fleet.transition_rows(stats):
            who = f" by {visible(str(change['actor']))}" if change.get("actor") else ""
            why = visible(str(change.get("reason") or ""))
            self.stdout.write(f"  {ago(now - change['at'])}: {change['old']} -> {change['new']}{who}: {why}")
        for failure in fleet.failure_rows(stats):
            self.stdout.write(f"  {ago(now - (failure['at'] or now))}: {visible(failure['error'])}")

    def _operate(self, names: list[str], options: dict[str, Any]) -> None:
        operation = CIRCUIT_OPERATIONS[_ACTIONS[options["action"]]]
        try:
            seconds = parse_expiry(options["seconds"])
        except ValueError as error:
            raise CommandError(str(error)) from None
        actor = f"cli:{getpass.getuser()}"
        done, refused = {}, []
        for name in dict.fromkeys(names):
            try:
                done[name] = operate_circuit(name, operation, actor=actor, reason=options["reason"], seconds=seconds)
            except ValueError as error:
                refused.append(f"{visible(name)}: {error}")
        if options["json"]:
            self.stdout.write(json.dumps(done, indent=2))
        else:
            self.stdout.writelines(f"{visible(name)}: {text}\n" for name, text in done.items())
        if refused:
            raise CommandError("\n".join(refused))
