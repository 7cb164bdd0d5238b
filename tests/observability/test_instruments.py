from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from resilience import signals
from resilience.circuits.memory import GeneratedName
from resilience.observability.catalogue import INSTRUMENTS
from resilience.observability.gauges import GAUGES
from resilience.observability.instruments import OTHER, LabelGuard
from tests.observability.tables import documented_arguments

DOCS = Path(__file__).parent.parent.parent / "docs"


def exported_names() -> set[str]:
    """Return every time series name that a scrape can show."""
    names = {"resilience_scrape_errors", *(gauge.prometheus_name for gauge in GAUGES)}
    for row in INSTRUMENTS:
        name = row.prometheus_name
        names |= {name} if row.kind == "counter" else {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return names


@pytest.mark.parametrize("row", INSTRUMENTS, ids=lambda row: f"{row.name}-{row.signal}"[:40])
def test_names__follow_the_conventions(row: object) -> None:
    """Prometheus: one prefix, base units, `_total` on counters. OpenTelemetry: dots, no unit, no `_total`."""
    assert re.fullmatch(r"resilience(\.[a-z]+)+", row.name)
    assert re.fullmatch(r"resilience_[a-z_]+", row.prometheus_name)
    assert row.prometheus_name.endswith("_total") == (row.kind == "counter")
    assert row.kind == "counter" or row.prometheus_name.endswith(("_seconds", "_bytes"))


def test_rows_of_one_name__agree() -> None:
    """Rows that feed one metric give it the same labels, unit and kind."""
    shapes: dict[str, set[tuple[object, ...]]] = {}
    for row in INSTRUMENTS:
        shapes.setdefault(row.name, set()).add((row.labels, row.unit, row.kind, row.description))

    assert {name for name, found in shapes.items() if len(found) > 1} == set()


def test_signals__are_documented_one_by_one() -> None:
    """The table of signals is complete."""
    assert set(documented_arguments()) == set(signals.__all__) - {"emit"}


@pytest.mark.parametrize("row", INSTRUMENTS, ids=lambda row: row.name)
def test_rows__read_only_what_signals_promise(row: object) -> None:
    """Each row works with the documented arguments of its signal, and with nothing else."""
    name = next(name for name in signals.__all__ if getattr(signals, name) is row.signal)

    class Move:
        old, new, actor = "closed", "open", ""

    values = dict.fromkeys(documented_arguments()[name], 1) | {"transition": Move(), "name": "x"}
    labels, amount = row.read({key: value for key, value in values.items() if key in documented_arguments()[name]})

    assert len(labels) == len(row.labels)
    assert all(isinstance(label, str) for label in labels)
    assert amount == 1


def test_label_guard__bounds_what_users_make_up() -> None:
    """The values past the limit are counted together instead of filling the memory."""
    guard = LabelGuard(limit=2)

    admitted = [guard(("name", "kind"), (name, "k")) for name in ("a", "b", "c", "a")]

    assert admitted == [("a", "k"), ("b", "k"), (OTHER, "k"), ("a", "k")]


@pytest.mark.parametrize("file", ["grafana-dashboard.json", "prometheus-alerts.yaml"])
def test_shipped_queries__ask_for_metrics_that_exist(file: str) -> None:
    """A renamed metric cannot leave an empty panel or a silent alert behind."""
    text = (DOCS / "monitoring" / file).read_text()

    used = set(re.findall(r"\bresilience_[a-z_]+", text))

    assert used
    assert used - exported_names() == set()


def test_dashboard__is_one_that_grafana_reads() -> None:
    """Panels have distinct ids, lie side by side and name their data source."""
    dashboard = json.loads((DOCS / "monitoring" / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in panels for target in panel["targets"])


def test_page__names_every_metric() -> None:
    """The table of metrics is complete and names nothing that is not exported, label by label."""
    rows = re.findall(r"^\| (`resilience_[^|]+) \| [^|]+ \| ([^|]+) \|$", (DOCS / "observability.md").read_text(), re.MULTILINE)
    documented = {name: re.findall(r"`(\w+)`", labels) for names, labels in rows for name in re.findall(r"`(\w+)`", names)}

    exported = {row.prometheus_name: list(row.labels) for row in (*INSTRUMENTS, *GAUGES)}
    assert documented == {**exported, "resilience_scrape_errors": ["source"]}


def test_labels__of_unnamed_circuits_are_one() -> None:
    """However many managers and circuits without a name there are, they take one label value each kind."""
    seen = {
        row.read({"name": GeneratedName.beginning(kind), "attempt": 1, "delay": 1, "exception": None, "kind": "timeout"})[0]
        for row in INSTRUMENTS
        if row.signal is signals.retry_scheduled
        for kind in ("recovery", "anonymous")
        for _ in range(20)
    }

    assert {labels[0] for labels in seen} == {"recovery", "anonymous"}
