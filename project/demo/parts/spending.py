"""Part b: several processes spend credits from one row."""

from __future__ import annotations

import json
from typing import Any

from project.demo import accounts
from project.demo.models import Account
from project.demo.parts.report import Report
from project.demo.processes import Family

__all__ = ["spend", "spend_together"]

_PROCESSES, _EACH, _START = 4, 100, 1_000


def spend_together(report: Report, family: Family) -> None:
    """Let all processes spend at once and count what is left."""
    report.begin(
        "b. One row, many writers",
        f"{_PROCESSES} processes take {_EACH} credits each from one row, half by compare-and-swap, half under a lock.",
    )
    account = Account.objects.create(name="demo", credits=_START)
    total = _PROCESSES * _EACH

    with report.progress() as progress:
        bar = progress.add_task("credits", total=total, note="")
        children = [family.start_part("spend", account.pk, _EACH) for _ in range(_PROCESSES)]
        family.gather(children, lambda line: progress.update(bar, advance=line["spent"]))

    account.refresh_from_db()
    report.figures["spending"] = {"processes": _PROCESSES, "credits_spent": account.spent, "credits_left": account.credits}
    report.promise(
        "the sum is exact: no credit was lost or spent twice", (account.credits, account.spent) == (_START - total, total)
    )


def spend(pk: Any, count: Any) -> None:
    """Spend credits one by one, by both ways in turn: the body of a child process."""
    ways = (accounts.spend_optimistically, accounts.spend_under_lock)
    for number in range(int(count)):
        ways[number % 2](int(pk))
        print(json.dumps({"spent": 1}))
