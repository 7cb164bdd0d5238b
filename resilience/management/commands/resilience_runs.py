"""`manage.py resilience_runs`: see and operate runs from a shell."""

from __future__ import annotations

import getpass
import json
from argparse import ArgumentParser
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import CommandError
from django.db import router
from django.utils import timezone

from resilience.dashboard import run_queries, runs
from resilience.dashboard.formatting import visible
from resilience.dashboard.operations import RUN_OPERATIONS, operate_run
from resilience.dashboard.run_queries import RunQuery
from resilience.dashboard.runs import RunRow
from resilience.db.cleanups import delete_keys
from resilience.exceptions import RunStateError
from resilience.management.parsing import MixedOrderCommand
from resilience.management.tables import tables_expected
from resilience.runs import cleanups
from resilience.runs.models import Checkpoint, Run, RunStatus

__all__ = ["Command"]


class Command(MixedOrderCommand):
    """List, show, operate and prune runs.

    Exit codes: 0 all is well; 1 the command could not be carried out (an unknown key, a status that does not
    allow it); 3 with `list --check`, when runs are lost or have failed.
    """

    help = "List, show, pause, resume, cancel, retry, skip or prune runs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("action", choices=["list", "show", "prune", *RUN_OPERATIONS])
        parser.add_argument("keys", nargs="*", help="keys of runs")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--check", action="store_true", help="with list: exit with 3 when runs are lost or have failed")
        parser.add_argument("--status", default="", choices=["", *runs.STATUSES], help="with list: only these")
        parser.add_argument("--limit", type=int, default=100, help="with list: at most so many, newest first")
        parser.add_argument("--days", type=int, default=30, help="with prune: how long ago a run must have ended")
        parser.add_argument("--failed-days", type=int, help="with prune: delete failed runs too, that ended so long ago")
        parser.add_argument("--idempotency-days", type=int, help="with prune: delete idempotency keys of db_retry too, so old")
        parser.add_argument("--database", default=None, help="with prune: alias of the database; the router decides by default")
        parser.add_argument("--reason", default="", help="why, for the history")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what was asked."""
        with tables_expected(options["database"]):
            self._do(options["action"], options["keys"], options)

    def _do(self, action: str, keys: list[str], options: dict[str, Any]) -> None:
        if action == "list":
            self._list(options)
        elif action == "prune":
            self._prune(options)
        elif not keys:
            raise CommandError(f"{action} needs at least one key of a run.")
        elif action == "show":
            self._print([_as_dict(run, detailed=True) for run in self._find(keys)], options)
        else:
            self._operate(self._find(keys), options)

    def _find(self, keys: list[str]) -> list[Run]:
        found = {run.key: run for run in Run.objects.filter(key__in=keys)}
        if unknown := [key for key in keys if key not in found]:
            raise CommandError(f"There is no run {unknown[0]!r}. `resilience_runs list` shows the newest ones.")
        return [found[key] for key in dict.fromkeys(keys)]

    def _list(self, options: dict[str, Any]) -> None:
        rows = run_queries.find(RunQuery(status=options["status"]), max(1, options["limit"])).rows
        self._print([_row_dict(row) for row in rows], options)
        if options["check"]:
            counts = {item["status"]: item["count"] for item in run_queries.status_counts()}
            if counts.get("lost") or counts.get("failed"):
                raise CommandError(f"{counts.get('lost', 0)} lost, {counts.get('failed', 0)} failed.", returncode=3)

    def _print(self, items: list[dict[str, Any]], options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(items, default=_plain, indent=2))
            return
        for item in items:
            error = f"  {item['error']}" if item["error"] else ""
            self.stdout.write(visible(f"{item['key']}  {item['status']}  {item['progress']}{error}"))
            for checkpoint in item.get("checkpoints", ()):
                self.stdout.write(f"  step {checkpoint['step']}: {checkpoint['status']}, {checkpoint['size']} bytes")

    def _operate(self, found: list[Run], options: dict[str, Any]) -> None:
        operation, actor = RUN_OPERATIONS[options["action"]], f"cli:{getpass.getuser()}"
        done: dict[str, str] = {}
        refused = []
        for run in found:
            try:
                done[run.key] = operate_run(run, operation, actor=actor, reason=options["reason"])
            except RunStateError as error:
                refused.append(visible(str(error)))
        if options["json"]:
            self.stdout.write(json.dumps(done, indent=2))
        else:
            self.stdout.writelines(visible(f"{key}: {text}") + "\n" for key, text in done.items())
        if refused:
            raise CommandError("\n".join(refused))

    def _prune(self, options: dict[str, Any]) -> None:
        """Delete what ended long ago, old quarantined checkpoints, and files that no row names."""
        for name in ("days", "failed_days", "idempotency_days"):
            if options[name] is not None and options[name] < 1:
                raise CommandError(f"{name} must be 1 or more, not {options[name]}. What ended today is kept.")
        age, using = timedelta(days=options["days"]), options["database"] or router.db_for_write(Run)
        removed = {"runs": cleanups.delete_ended(age, using=using)}
        if options["failed_days"]:
            failed = timedelta(days=options["failed_days"])
            removed["failed runs"] = cleanups.delete_ended(failed, statuses=[RunStatus.FAILED], using=using)
        removed["quarantined checkpoints"] = cleanups.purge_quarantined(age, using=using)
        removed["files"] = cleanups.collect_orphans(using=using)
        if options["idempotency_days"]:
            age = timedelta(days=options["idempotency_days"])
            removed["idempotency keys"] = delete_keys(age, using=options["database"])
        if options["json"]:
            self.stdout.write(json.dumps(removed))
            return
        self.stdout.write(", ".join(f"{count} {kind}" for kind, count in removed.items()) + " deleted.")


def _row_dict(row: RunRow) -> dict[str, Any]:
    return {
        "key": row.key,
        "status": row.shown_status,
        "request": row.request,
        "task": row.task,
        "current": row.current,
        "total": row.total,
        "progress": row.progress_text,
        "attempts": row.attempts,
        "owner": row.owner,
        "heartbeat_at": row.heartbeat_at,
        "error": row.error,
    }


def _as_dict(run: Run, *, detailed: bool) -> dict[str, Any]:
    item = _row_dict(runs.row(run, timezone.now()))
    if detailed:
        kept = Checkpoint.objects.filter(run=run).values("step", "status", "reason", "size", "format", "metrics", "created_at")
        item["checkpoints"] = list(kept[:20])
        item["errors"] = run.errors
    return item


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
