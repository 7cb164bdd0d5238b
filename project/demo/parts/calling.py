"""Part c: a flaky service, called bare and through a policy."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import requests
from rich.table import Table

from project.demo import digits, labelling
from project.demo.parts.report import Report
from project.demo.processes import Family, free_port
from project.demo.service import LabelServer
from resilience import get_circuit_breaker_stats

__all__ = ["call_service", "compare_calls", "serve_labels"]

_CALLERS = 3
#: Moods of the service and how long each lasts, in seconds.
_MOODS = (("flaky", 6.0), ("outage", 6.0), ("healthy", 6.0))
_REST = 0.02


@dataclass
class _Tally:
    """What the callers saw in one pass over all moods."""

    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    opened_in: set[int] = field(default_factory=set)
    last_state: dict[int, str] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)

    def note(self, line: dict[str, Any], mood: str) -> None:
        """Count one call."""
        self.answers[mood][line["by"]] += 1
        if line["state"] == "open":
            self.opened_in.add(line["process"])
        self.last_state[line["process"]] = line["state"]

    def calls(self, mood: str) -> int:
        """Return how many calls were made in a mood."""
        return sum(self.answers[mood].values())

    def share(self, mood: str) -> float:
        """Return the share of calls that got an answer, from 0 to 1."""
        return 1 - self.answers[mood]["nobody"] / max(1, self.calls(mood))


def compare_calls(report: Report, family: Family, pace: float = 1.0) -> None:
    """Send the same traffic twice and put the outcomes side by side.

    Args:
        report: Where the outcome goes.
        family: Starts the service and its callers.
        pace: Multiplies how long each mood of the service lasts.
    """
    report.begin(
        "c. A flaky service",
        "30 % of the calls fail, then all do, then it recovers; three processes call it: bare, then with a policy.",
    )
    url = f"http://127.0.0.1:{(port := free_port())}"
    service = family.start_part("serve", port)
    _wait_for(url, family)

    bare = _traffic(report, family, url, "bare", pace)
    guarded = _traffic(report, family, url, "policy", pace)
    family.stop(service)

    _show(report, bare, guarded)
    stats = get_circuit_breaker_stats("labelling")
    moves = [move["new"] for move in reversed(stats["transitions"])] if stats["transitions"] else []
    spared = 1 - guarded.requests.get("outage", 0) / max(1, bare.requests.get("outage", 0))
    report.figures["calls"] = {
        "calls_bare": sum(map(bare.calls, bare.answers)),
        "calls_with_policy": sum(map(guarded.calls, guarded.answers)),
        "answered_bare": bare.share("flaky"),
        "answered_with_policy": guarded.share("flaky"),
        "answered_in_outage_bare": bare.share("outage"),
        "answered_in_outage_with_policy": guarded.share("outage"),
        "share_of_requests_in_outage_spared": spared,
        "circuit_transitions": len(moves),
        "processes_that_saw_it_open": len(guarded.opened_in),
    }
    by_service = guarded.answers["flaky"]["service"] / max(1, guarded.calls("flaky"))
    report.promise("with the policy every call is answered", all(guarded.share(mood) == 1 for mood, _ in _MOODS))
    report.promise(
        f"the flaky service itself answered {by_service:.1%} of the calls, after retries", by_service >= 0.99
    )  # the promise
    report.promise("the circuit was seen open in every process", len(guarded.opened_in) == _CALLERS)
    report.promise(f"the service in its outage was spared {spared:.0%} of the requests", spared >= 0.5)  # the promise
    report.promise("the circuit closed again after the outage", set(guarded.last_state.values()) == {"closed"})


def _traffic(report: Report, family: Family, url: str, mode: str, pace: float) -> _Tally:
    """Run all callers through all moods."""
    tally, mood = _Tally(), "healthy"
    children = [family.start_part("call", url, mode) for _ in range(_CALLERS)]

    def listen(line: dict[str, Any]) -> None:
        tally.note(line, mood)

    listeners = family.listen(children, listen)
    with report.progress() as progress:
        bar = progress.add_task(f"{mode:>6}", total=len(_MOODS), note="the callers are starting")
        while len(tally.last_state) < _CALLERS:
            family.blame(children)
            family.rest(0.05)
        tally.answers.clear()
        before = Counter(_set_mood(url, _MOODS[0][0]))
        for mood, length in _MOODS:
            _set_mood(url, mood)
            progress.update(bar, note=f"the service is {mood}")
            family.rest(length * pace)
            progress.advance(bar)
        for child in children:
            family.stop(child)
        for listener in listeners:
            listener.join()
        tally.requests = dict(Counter(_set_mood(url, "healthy")) - before)
        progress.update(bar, note="")
    return tally


def _set_mood(url: str, mood: str) -> dict[str, int]:
    """Change the service's mood; return how many requests it got in each mood so far."""
    counts: dict[str, int] = labelling.session.post(f"{url}/mood/{mood}", timeout=5).json()
    return counts


def _show(report: Report, bare: _Tally, guarded: _Tally) -> None:
    table = Table("the service is", "", "calls", "answered", "by the service", "by the fallback", "requests it got")
    for mood, _ in _MOODS:
        for name, tally in (("bare", bare), ("policy", guarded)):
            answers = tally.answers[mood]
            table.add_row(
                mood if name == "bare" else "",
                name,
                f"{tally.calls(mood):,}",
                f"{tally.share(mood):.1%}",
                f"{answers['service']:,}",
                f"{answers['fallback']:,}",
                f"{tally.requests.get(mood, 0):,}",
                end_section=name == "policy",
            )
    report.console.print(table)


def _wait_for(url: str, family: Family, limit: float = 60.0) -> None:
    """Wait until the service answers."""
    deadline = time.monotonic() + limit
    while True:
        try:
            labelling.session.post(f"{url}/mood/healthy", timeout=1)
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
            family.rest(0.05)
        else:
            return


def serve_labels(port: Any) -> None:
    """Be the service until ended: the body of a child process."""
    with LabelServer(int(port)) as server:
        server.serve_forever()


def call_service(url: Any, mode: Any) -> None:
    """Ask for one label after the other until told to end: the body of a child process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ask = labelling.ask_label if mode == "bare" else labelling.ask_label_resiliently
    count, process = len(digits.load_arrays()[1]), os.getpid()
    for number in itertools.cycle(range(count)):
        try:
            _, by = ask(url, number)
        except requests.RequestException:
            by = "nobody"
        state = "closed" if mode == "bare" else str(get_circuit_breaker_stats("labelling")["state"])
        print(json.dumps({"by": by, "state": state, "process": process}))
        time.sleep(_REST)
