"""Small pictures as inline SVG: timelines, meters, line plots and stacked bars.

Everything is drawn with presentation attributes and classes, never with inline styles, so that it shows under
a Content-Security-Policy that forbids them. Colours come from the style sheet. Each picture carries its
meaning as text too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

__all__ = ["Series", "line_plot", "meter", "stacked_bars", "timeline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One named row of numbers of a chart.

    Args:
        label: What the numbers are, in the reader's language.
        css: Class that gives the colour, as in "bad".
        values: The numbers, oldest first; 0 or more.
    """

    label: str
    css: str
    values: Sequence[float]

    @property
    def total(self) -> float:
        """The sum of all values."""
        return sum(self.values)


def timeline(states: Sequence[str], failures: Sequence[int], *, label: str) -> SafeString:
    """Draw which state each minute was in, and how many failures fell into it, oldest first.

    Args:
        states: The state of each minute; it gives the colour and, for the open states, a full bar; "unknown" is a gap.
        failures: Failures seen in each minute; as many as `states`.
        label: What a screen reader says instead.

    Example:
        >>> "rs-fill-open" in timeline(["closed", "open"], [3, 0], label="2 minutes")
        True
    """
    step, height = 4, 20
    top = max(failures, default=0) or 1
    paths: dict[str, list[str]] = {}
    start = 0
    for state, run in groupby(states):
        length = len(list(run))
        tall = height if state in {"open", "forced_open", "half_open"} else 2
        if state != "unknown":
            paths.setdefault(state, []).append(f"M{start * step} {height}h{length * step}v{-tall}h{-length * step}z")
        start += length
    for index, failed in enumerate(failures):
        if failed:
            tall = max(4, round(failed / top * height))
            paths.setdefault("failures", []).append(f"M{index * step + 1} {height}h2v{-tall}h-2z")
    drawn = format_html_join("", '<path class="rs-fill-{}" d="{}"/>', ((css, "".join(path)) for css, path in paths.items()))
    width = max(1, len(states)) * step
    return format_html(
        '<svg class="rs-spark" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>', label, width, height, drawn
    )


def meter(share: float | None, threshold: float | None) -> SafeString:
    """Draw how far a value is along its scale, with a mark at the threshold; the words stand beside it.

    Args:
        share: The value between 0 and 1, or None when it is not known yet.
        threshold: Where the mark stands, between 0 and 1, or None for no mark.

    Example:
        >>> "rs-fill-bad" in meter(0.6, 0.5)
        True
    """
    width = 60
    filled = round(min(1.0, max(0.0, share or 0.0)) * width)
    over = share is not None and threshold is not None and share >= threshold
    mark: SafeString | str = ""
    if threshold is not None:
        mark = format_html('<path class="rs-mark" d="M{} 0h2v12h-2z"/>', round(min(1.0, max(0.0, threshold)) * (width - 2)))
    return format_html(
        '<svg class="rs-meter" aria-hidden="true" viewBox="0 0 60 12"><path class="rs-fill-{}" d="M0 3h{}v6H0z"/>{}</svg>',
        "bad" if over else "plain", filled, mark,
    )  # fmt: skip


def line_plot(values: Sequence[float], *, label: str) -> SafeString:
    """Draw a line through values, oldest first; values that are not finite leave a gap.

    Args:
        values: The numbers; with fewer than two finite ones only the axis is drawn.
        label: What a screen reader says instead.
    """
    width, height = 240, 48
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    # Halved, because the span of two very large floats overflows to infinity.
    span = (high / 2 - low / 2) or 1.0
    step = width / max(1, len(values) - 1)
    pieces, pen = [], "M"
    for index, value in enumerate(values):
        if not math.isfinite(value):
            pen = "M"
            continue
        level = (value / 2 - low / 2) / span if high > low else 0.5
        pieces.append(f"{pen}{index * step:.1f} {2 + (1 - level) * (height - 4):.1f}")
        pen = "L"
    return format_html(
        '<svg class="rs-plot" role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">'
        '<path class="rs-axis" d="M0 {}.5H{}"/><path class="rs-line" d="{}"/></svg>',
        label, width, height, height - 1, width, "".join(pieces),
    )  # fmt: skip


def stacked_bars(series: Sequence[Series], *, label: str) -> SafeString:
    """Draw one stacked bar for each bucket.

    Args:
        series: Rows of equal length; the first stands at the bottom.
        label: What a screen reader says instead.
    """
    step, height = 10, 90
    buckets = len(series[0].values) if series else 0
    top = max((sum(row.values[i] for row in series) for i in range(buckets)), default=0) or 1
    shapes = []
    for index in range(buckets):
        floor = float(height)
        for row in series:
            tall = row.values[index] / top * height
            if tall <= 0:
                continue
            floor -= tall
            shapes.append((row.css, index * step, round(floor, 1), step - 2, round(max(tall, 1), 1)))
    bars = format_html_join("", '<rect class="rs-fill-{}" x="{}" y="{}" width="{}" height="{}"/>', shapes)
    width = max(1, buckets) * step
    grid = mark_safe("".join(f'<path class="rs-grid" d="M0 {y}.5H{width}"/>' for y in (0, height // 2)))  # noqa: S308  # numbers only
    return format_html(
        '<svg class="rs-chart" role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">'
        '{}{}<path class="rs-axis" d="M0 {}.5H{}"/></svg>',
        label, width, height + 1, grid, bars, height, width,
    )  # fmt: skip
