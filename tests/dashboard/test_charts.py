from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.dashboard import charts
from resilience.dashboard.charts import Series

_NUMBERS = st.lists(st.floats(), max_size=40)


def _is_safe(svg: str) -> bool:
    """Well-formed, labelled, and without anything a strict policy forbids."""
    tree = ET.fromstring(svg)
    attributes = {name for element in tree.iter() for name in element.attrib}
    return (
        tree.get("role") == "img"
        and bool(tree.get("aria-label"))
        and not any(name == "style" or name.startswith("on") for name in attributes)
    )


@given(_NUMBERS)
def test_line_plot__draws_whatever_a_metric_was(values: list[float]) -> None:
    """Infinities, not-a-numbers and empty lists give a picture, not an error."""
    svg = charts.line_plot(values, label="loss")

    assert _is_safe(svg)
    assert "nan" not in svg
    assert "inf" not in svg


def test_line_plot__breaks_the_line_at_a_gap() -> None:
    """A value that is not finite is a gap, not a zero."""
    svg = charts.line_plot([1.0, 2.0, float("nan"), 3.0, 1.0], label="loss")

    path = ET.fromstring(svg)[1].get("d") or ""
    assert path.count("M") == 2


@pytest.mark.parametrize("share", [None, -1.0, 0.0, 0.4, 1.0, 7.0])
def test_meter__stays_inside_its_box(share: float | None) -> None:
    """A value beyond the threshold fills the bar and no more."""
    svg = charts.meter(share, 0.5)

    lengths = [int(number) for number in re.findall(r"h(\d+)v6", svg)]
    assert ET.fromstring(svg).get("aria-hidden") == "true"
    assert all(0 <= length <= 60 for length in lengths)


def test_meter__marks_reaching_the_threshold() -> None:
    """At the threshold the bar is drawn as bad, below it is not."""
    assert "rs-fill-bad" in charts.meter(0.5, 0.5)
    assert "rs-fill-bad" not in charts.meter(0.49, 0.5)


def test_timeline__shows_states_and_failures() -> None:
    """Open minutes are full bars, failures stand in their minute."""
    svg = charts.timeline(["closed", "open"], [2, 0], label="2 minutes")

    assert _is_safe(svg)
    assert "rs-fill-open" in svg
    assert "rs-fill-failures" in svg


def test_stacked_bars__fit_the_height() -> None:
    """The tallest bar fills the picture, and nothing leaves it."""
    series = [Series(label="good", css="good", values=[1, 5, 0]), Series(label="bad", css="bad", values=[0, 5, 1])]

    svg = charts.stacked_bars(series, label="calls")

    bars = [element for element in ET.fromstring(svg).iter() if element.tag.endswith("rect")]
    assert _is_safe(svg)
    assert min(float(bar.get("y") or 0) for bar in bars) == 0
    assert all(float(bar.get("y") or 0) + float(bar.get("height") or 0) <= 90.5 for bar in bars)


def test_charts__escape_their_labels() -> None:
    """A label cannot end the attribute it stands in."""
    svg = charts.line_plot([1.0], label='"><script>alert(1)</script>')

    assert "<script" not in svg
    assert _is_safe(svg)
