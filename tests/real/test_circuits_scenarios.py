"""The catalogue's scenarios that a single process could pass for the wrong reason: three processes, one Redis, real time."""

from __future__ import annotations

import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.circuits_fleet import Process, Processes, redis_cache
from tests.servers import Redis, wait_until

HOUR = 3600.0


class Trio:
    """One circuit in three processes."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.name = ""

    def declare(self, **fields: Any) -> tuple[Process, Process, Process]:
        self.name = f"circuit-{uuid.uuid4().hex}"
        self.processes.ask("declare", name=self.name, **fields)
        first, second, third = self.processes
        return first, second, third

    def call(self, process: Process, kind: str = "fine", times: int = 1) -> list[str]:
        answer: list[str] = process.ask("calls", names=[self.name] * times, kind=kind)
        return answer

    def stats(self, process: Process) -> dict[str, Any]:
        answer: dict[str, Any] = process.ask("stats", name=self.name)
        return answer

    def begin(self, process: Process) -> str:
        return str(process.ask("begin", name=self.name))

    def end(self, process: Process, kind: str) -> str:
        return str(process.ask("end", name=self.name, kind=kind))

    def states(self) -> set[str]:
        return {answer[0] for answer in self.processes.ask("states", names=[self.name])}

    def wait_for(self, state: str) -> None:
        wait_until(lambda: self.states() == {state})

    def events(self) -> dict[str, int]:
        """Return how often each change was told in the whole fleet."""
        seen: Counter[str] = self.processes.events()
        return {kind: seen[f"{kind}:{self.name}"] for kind in ("opened", "half_opened", "closed") if seen[f"{kind}:{self.name}"]}


@pytest.fixture(scope="module")
def processes(redis_server: Redis) -> Iterator[Processes]:
    with Processes(3, redis_cache(redis_server.url, 5.0), sync_interval=0.1) as fleet:
        yield fleet


@pytest.fixture
def trio(processes: Processes) -> Trio:
    return Trio(processes)


def open_time(stats: dict[str, Any]) -> float:
    """Return how long an open state lasts from its beginning."""
    return float(stats["retry_after"] + stats["now"] - stats["opened_at"])


def test_late__failure_in_another_process_neither_repeats_the_event_nor_prolongs(trio: Trio) -> None:
    """31, 49: a call that began before another process opened the circuit fails afterwards, and changes nothing."""
    slow, other, third = trio.declare(failure_threshold=1, recovery_timeout=HOUR)
    trio.begin(slow)
    trio.call(other, "fail")
    opened_at = trio.stats(third)["opened_at"]

    assert trio.end(slow, "fail") == "ConnectionError"

    assert {trio.stats(process)["opened_at"] for process in trio.processes} == {opened_at}
    assert trio.events() == {"opened": 1}


@pytest.mark.parametrize("kind", ["fine", "fail"])
def test_late__call_of_the_closed_time_is_no_probe(trio: Trio, kind: str) -> None:
    """50: admitted while closed, it ends while another process probes: neither closes nor opens."""
    slow, other, prober = trio.declare(failure_threshold=1, recovery_timeout=0.3, success_threshold=1)
    trio.begin(slow)
    trio.call(other, "fail")
    trio.wait_for("half_open")
    assert trio.begin(prober) == "running"

    trio.end(slow, kind)

    assert trio.stats(other)["state"] == "half_open"
    assert trio.end(prober, "fine") == "fine"
    trio.wait_for("closed")
    assert trio.events() == {"opened": 1, "half_opened": 1, "closed": 1}


@pytest.mark.parametrize("kind", ["fine", "fail"])
def test_late__probe_of_a_process_that_was_frozen_decides_nothing(trio: Trio, kind: str) -> None:
    """c: stopped in mid-probe past the end of its lease, and woken when another probes in its place."""
    frozen, other, third = trio.declare(
        failure_threshold=1, recovery_timeout=0.2, half_open_timeout=1.0, success_threshold=1, half_open_max_calls=1
    )
    trio.call(other, "fail")
    wait_until(lambda: trio.begin(frozen) == "running")
    frozen.popen.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: trio.begin(other) == "running")
        assert trio.call(third) == ["refused"]
    finally:
        frozen.popen.send_signal(signal.SIGCONT)

    trio.end(frozen, kind)

    assert trio.stats(third)["state"] == "half_open"
    trio.end(other, "fine")
    wait_until(lambda: trio.call(third) == ["fine"])
    trio.wait_for("closed")
    assert trio.events() == {"opened": 1, "half_opened": 1, "closed": 1}


def test_probe__that_a_shutdown_ends_frees_its_place_for_another_process(trio: Trio) -> None:
    """46, i: SystemExit passes unchanged, counts nowhere, and nobody waits for the lease to run out."""
    leaving, other, _ = trio.declare(failure_threshold=1, recovery_timeout=0.2, half_open_timeout=HOUR, success_threshold=1)
    trio.call(other, "fail")
    wait_until(lambda: trio.begin(leaving) == "running")
    assert trio.call(other) == ["refused"]

    assert trio.end(leaving, "exit") == "SystemExit"

    wait_until(lambda: trio.call(other) == ["fine"])
    trio.wait_for("closed")
    assert trio.events() == {"opened": 1, "half_opened": 1, "closed": 1}


def test_half_open__successes_of_three_processes_close_it(trio: Trio) -> None:
    """e: whoever joins leaves the others' successes alone; one process tells that it closed."""
    first, second, third = trio.declare(failure_threshold=1, recovery_timeout=0.2, success_threshold=3)
    trio.call(first, "fail")
    trio.wait_for("half_open")

    assert trio.call(first) == ["fine"]
    assert trio.call(second) == ["fine"]
    assert trio.stats(third)["state"] == "half_open"
    assert trio.call(third) == ["fine"]

    trio.wait_for("closed")
    assert trio.events() == {"opened": 1, "half_opened": 1, "closed": 1}


def test_half_open__one_failed_probe_forgets_the_others_successes(trio: Trio) -> None:
    """41, 42: it opens for all, and the next half-open time begins at nothing."""
    first, second, third = trio.declare(failure_threshold=1, recovery_timeout=0.3, success_threshold=2)
    trio.call(first, "fail")
    trio.wait_for("half_open")
    assert trio.call(first) == ["fine"]
    assert trio.call(second, "fail") == ["failed"]
    trio.wait_for("half_open")

    assert trio.call(third) == ["fine"]
    assert trio.stats(second)["state"] == "half_open"
    assert trio.call(first) == ["fine"]

    trio.wait_for("closed")
    assert trio.events() == {"opened": 2, "half_opened": 2, "closed": 1}


def test_open__time_grows_over_processes_and_shrinks_after_closing(trio: Trio) -> None:
    """27, 28: each opening is another process's, the growth is the circuit's."""
    first, second, third = trio.declare(
        failure_threshold=1, recovery_timeout=0.4, recovery_backoff=4, max_recovery_timeout=2.0, success_threshold=1
    )
    times = []
    for opener, witness in ((first, second), (second, third), (third, first)):
        wait_until(lambda opener=opener: trio.call(opener, "fail") == ["failed"])
        times.append(open_time(trio.stats(witness)))
    wait_until(lambda: trio.call(first) == ["fine"])
    trio.wait_for("closed")
    trio.call(second, "fail")
    times.append(open_time(trio.stats(third)))

    assert times[0] == pytest.approx(0.4, abs=0.05)
    assert 1.5 <= times[1] <= 1.65
    assert 1.85 <= times[2] <= 2.05
    assert times[3] == pytest.approx(0.4, abs=0.05)


def test_order__over_a_running_probe_is_not_undone_by_its_result(trio: Trio) -> None:
    """55: the probe of one process ends after another was told to disable the circuit."""
    prober, operator, third = trio.declare(failure_threshold=1, recovery_timeout=0.2, success_threshold=1)
    for kind in ("fail", "fine"):
        operator.ask("operate", name=trio.name, action="open")
        operator.ask("operate", name=trio.name, action="half_open")
        wait_until(lambda: trio.begin(prober) == "running")
        operator.ask("operate", name=trio.name, action="disable", reason="by hand")

        trio.end(prober, kind)

        trio.wait_for("disabled")
        assert trio.call(third, "fail") == ["failed"]
        operator.ask("operate", name=trio.name, action="reset")
        trio.wait_for("closed")


def test_orders__of_two_operators_at_once_leave_one_state(trio: Trio) -> None:
    """55: whoever is later wins, both are in the history, and all processes agree."""
    first, second, third = trio.declare()

    for _ in range(5):
        at = time.time() + 0.1
        first.send("operate", name=trio.name, action="disable", at=at)
        second.send("operate", name=trio.name, action="open", at=at)
        first.receive()
        second.receive()
        wait_until(lambda: len(trio.states()) == 1)
        newest = [change["new"] for change in trio.stats(third)["transitions"]][-2:]

        assert sorted(newest) == ["disabled", "forced_open"]
        assert trio.states() == {newest[-1]}
        first.ask("operate", name=trio.name, action="reset")


def test_rate__is_the_fleets_though_no_process_made_enough_calls(trio: Trio) -> None:
    """5, 8: three calls of each of three processes reach a minimum of nine."""
    trio.declare(failure_rate_threshold=0.6, minimum_calls=9)

    for process in trio.processes:
        assert trio.call(process) == ["fine"]
        assert trio.call(process, "fail", 2) == ["failed", "failed"]

    trio.wait_for("open")
    assert trio.events() == {"opened": 1}


def test_rate__of_slow_calls_is_the_fleets(trio: Trio) -> None:
    """7: two slow calls of each of three processes reach a minimum of six."""
    trio.declare(slow_call_duration=0.05, slow_call_rate_threshold=0.9, minimum_calls=6)

    for process in trio.processes:
        assert trio.call(process, "slow", 2) == ["fine", "fine"]

    trio.wait_for("open")
    assert trio.events() == {"opened": 1}


def test_window__forgets_the_failures_of_other_processes_too(trio: Trio) -> None:
    """9, 11: what two processes met two seconds ago does not open a circuit that looks back one."""
    first, second, third = trio.declare(failure_threshold=3, failure_window=1.0)
    trio.call(first, "fail")
    trio.call(second, "fail")
    wait_until(lambda: trio.stats(third)["failure_count"] == 0)

    trio.call(third, "fail")

    stats = trio.stats(first)
    assert stats["state"] == "closed"
    assert stats["failure_count"] <= 1


def test_metrics_only__counts_for_the_fleet_and_never_opens(trio: Trio) -> None:
    """53: an order in one process, failures in all."""
    first, _, third = trio.declare(failure_threshold=5)
    first.ask("operate", name=trio.name, action="metrics_only")
    trio.wait_for("metrics_only")

    for process in trio.processes:
        assert trio.call(process, "fail", 4) == ["failed"] * 4

    wait_until(lambda: trio.states() == {"metrics_only"} and trio.stats(third)["failure_count"] == 12)
    assert trio.events() == {}


def test_refusals__of_all_processes_are_summed_and_prolong_nothing(trio: Trio) -> None:
    """23: fifteen refused calls, one opening time."""
    first, _, third = trio.declare(failure_threshold=1, recovery_timeout=HOUR)
    trio.call(first, "fail")
    trio.wait_for("open")

    for process in trio.processes:
        assert trio.call(process, times=5) == ["refused"] * 5

    wait_until(lambda: max(trio.stats(process)["rejected_count"] for process in trio.processes) == 15)
    assert open_time(trio.stats(third)) == pytest.approx(HOUR, abs=0.05)
    assert trio.events() == {"opened": 1}


def test_open__for_a_given_time_ends_in_every_process(trio: Trio) -> None:
    """26: forced open for a second by one process, probed by another."""
    first, second, third = trio.declare(recovery_timeout=HOUR, success_threshold=1)
    first.ask("operate", name=trio.name, action="open", seconds=1.0)

    assert open_time(trio.stats(third)) == pytest.approx(1.0, abs=0.05)
    trio.wait_for("half_open")
    assert trio.call(second) == ["fine"]

    trio.wait_for("closed")


def test_open__is_found_by_a_process_that_starts_later(trio: Trio, redis_server: Redis) -> None:
    """56: after a deploy nobody who opened the circuit is left; the newcomer refuses its first call and tells nothing."""
    first, _, _ = trio.declare(failure_threshold=1, recovery_timeout=HOUR)
    trio.call(first, "fail")
    opened_at = trio.stats(first)["opened_at"]

    with Processes(1, redis_cache(redis_server.url, 5.0), recovery_timeout=HOUR) as (newcomer,):
        assert trio.call(newcomer) == ["refused"]
        stats = trio.stats(newcomer)

        assert (stats["state"], stats["opened_at"]) == ("open", opened_at)
        assert newcomer.ask("events") == {}


def test_times__below_a_second_are_kept_by_redis(trio: Trio) -> None:
    """h: a lease of four tenths of a second is neither none nor a whole one."""
    hanging, other, _ = trio.declare(failure_threshold=1, recovery_timeout=0.3, half_open_timeout=0.4, success_threshold=1)
    trio.call(other, "fail")
    wait_until(lambda: trio.begin(hanging) == "running")

    wait_until(lambda: trio.call(other) == ["fine"])

    trio.wait_for("closed")
    trio.end(hanging, "fail")
    assert trio.events() == {"opened": 1, "half_opened": 1, "closed": 1}
