"""Part a: load the digits, with damaged rows mixed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from project.demo import digits
from project.demo.models import Digit, Source
from project.demo.parts.report import Report
from project.demo.processes import Family
from resilience import safe_bulk_insert

__all__ = ["load_digits_with_damage"]

#: After how many good rows which fields of the next row are damaged, and why it must be refused.
_DAMAGE: dict[int, tuple[str, dict[str, Any]]] = {
    100: ("duplicate number", {"number": 42}),
    400: ("label missing", {"number": 10_001, "label": None}),
    700: ("pixels too long", {"number": 10_002, "pixels": "00" * 200}),
    1000: ("no such source", {"number": 10_003, "source_id": 999_999}),
    1300: ("label is no digit", {"number": 10_004, "label": 11}),
    1600: ("number is no number", {"number": "forty-two"}),
}


def load_digits_with_damage(report: Report, family: Family) -> None:
    """Store every good row and list every bad one."""
    report.begin("a. Bulk insert", "1,797 digits go into the database in one call; six damaged rows are mixed in.")
    source, _ = Source.objects.get_or_create(name="scikit-learn")
    total = len(digits.load_arrays()[1]) + len(_DAMAGE)

    with report.progress() as progress:
        bar = progress.add_task("rows", total=total, note="")

        def show(done: int, _: int | None) -> None:
            family.heed()
            progress.update(bar, completed=done)

        stored, failed = safe_bulk_insert(Digit, _with_damage(source.pk), batch_size=500, progress=show)

    table = Table("row", "what was wrong", "kind", "what the report says")
    for failure in failed:
        table.add_row(str(failure.index), _wrong_with(failure.index), str(failure.kind), str(failure.error)[:70])
    report.console.print(table)
    report.figures["bulk insert"] = {"rows_stored": len(stored), "rows_refused": len(failed)}
    report.promise(
        f"all {total - len(_DAMAGE):,} good rows are stored", Digit.objects.count() == len(stored) == total - len(_DAMAGE)
    )
    report.promise("each damaged row is reported, and nothing else", [failure.index for failure in failed] == _damaged_indexes())


def _with_damage(source_id: int) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(digits.as_rows(source_id)):
        if number in _DAMAGE:
            yield {**row, **_DAMAGE[number][1]}
        yield row


def _damaged_indexes() -> list[int]:
    return [number + place for place, number in enumerate(_DAMAGE)]


def _wrong_with(index: int) -> str:
    reasons = dict(zip(_damaged_indexes(), _DAMAGE.values(), strict=True))
    return reasons[index][0] if index in reasons else "nothing?"
