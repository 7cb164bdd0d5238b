"""Two operators, each in a process of his own, press buttons at the same instant: real PostgreSQL, real Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.length import LONG
from tests.real.dashboard_site import CIRCUITS, RUNS
from tests.servers import PostgreSQL, Redis

ROUNDS = 3 if LONG else 2
NAMES = ("anna", "bert")


class Office:
    """Two operators, and what the fleet looks like to a third."""

    def __init__(self, database: PostgreSQL, redis: Redis) -> None:
        self._environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_DATABASE_URL": database.url,
            "TEST_CACHE_URL": redis.url,
        }
        self.run("from django.core.management import call_command; call_command('migrate', verbosity=0)")
        self._people = [self._person(name) for name in NAMES]
        assert [person.stdout.readline() for person in self._people if person.stdout] == ["ready\n"] * 2

    def _person(self, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.real.dashboard_operator", name]
        return subprocess.Popen(
            command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )  # fmt: skip

    def run(self, code: str) -> Any:
        """Run code in the fleet, and return what it printed as JSON."""
        program = f"import json, django; django.setup()\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", program], env=self._environment, capture_output=True, text=True, timeout=120, check=True
        )
        return json.loads(done.stdout) if done.stdout else None

    def press(self, page: str, *forms: dict[str, str]) -> list[dict[str, Any]]:
        """Let each operator send his form, both at once, and return what each was told."""
        for person, form in zip(self._people, forms, strict=True):
            sure = {"confirmed": "1", "ticket": uuid.uuid4().hex, "reason": "night", "seconds": ""}
            assert person.stdin is not None
            person.stdin.write(json.dumps({"page": page, "form": {**form, **sure}}) + "\n")
        return [json.loads(person.stdout.readline()) for person in self._people if person.stdout]

    def log_of(self, object_id: str) -> list[list[str]]:
        """Return who did what to one object, oldest first."""
        return self.run(
            "from django.contrib.admin.models import LogEntry\n"
            f"found = LogEntry.objects.filter(object_id={object_id!r}).order_by('pk')\n"
            "print(json.dumps([list(row) for row in found.values_list('user__username', 'change_message')]))"
        )  # type: ignore[no-any-return]

    def close(self) -> None:
        """Send both home."""
        for person in self._people:
            person.kill()
            person.communicate()


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    with PostgreSQL() as database, Redis() as redis:
        found = Office(database, redis)
        yield found
        found.close()


_CIRCUITS = (
    "from resilience import CircuitBreaker, get_all_circuit_breaker_stats\n"
    "def tell(name):\n"
    "    stats = get_all_circuit_breaker_stats([name])[name]\n"
    "    moves = [[move['new'], move['actor']] for move in stats['transitions']]\n"
    "    print(json.dumps({'state': stats['state'], 'moves': moves}))\n"
)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_circuit__opposite_orders_are_put_in_line(office: Office, number: int) -> None:
    """One forces open, the other resets: the later holds, both stand in the history and the log, nobody's is lost."""
    name = f"opposite-{number}"
    office.run(f"{_CIRCUITS}CircuitBreaker({name!r}).call(lambda: 1)")

    answers = office.press(CIRCUITS, {"action": "open", "circuit": name}, {"action": "reset", "circuit": name})

    found = office.run(f"{_CIRCUITS}tell({name!r})")
    assert [answer["status"] for answer in answers] == [302, 302]
    assert sorted(found["moves"]) == [["closed", "admin:bert"], ["forced_open", "admin:anna"]]
    assert found["state"] == found["moves"][-1][0]
    assert sorted(who for who, _what in office.log_of(name)) == list(NAMES)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_circuit__one_probe_is_enough(office: Office, number: int) -> None:
    """Both ask for a probe: one change of state, by one of them; the other is told that it had changed."""
    name = f"probe-{number}"
    office.run(f"{_CIRCUITS}CircuitBreaker({name!r}).open()")

    answers = office.press(CIRCUITS, *[{"action": "half_open", "circuit": name}] * 2)

    found = office.run(f"{_CIRCUITS}tell({name!r})")
    said = sorted(" ".join(answer["said"]) for answer in answers)
    probes = [actor for state, actor in found["moves"] if state == "half_open"]
    assert len(probes) == 1
    assert "done for 1 circuit" in said[1]
    assert "left alone" in said[0]
    assert [f"admin:{who}" for who, _what in office.log_of(name)] == probes


_RUNS = (
    "from resilience.runs.models import Run\n"
    "def tell(key):\n"
    "    run = Run.objects.get(key=key)\n"
    "    print(json.dumps({'pk': str(run.pk), 'status': run.status}))\n"
)


@pytest.mark.parametrize(("first", "second"), [("pause", "pause"), ("pause", "cancel"), ("cancel", "cancel")])
@pytest.mark.parametrize("number", range(ROUNDS - 1))
def test_run__is_changed_by_one_and_the_other_is_told(office: Office, first: str, second: str, number: int) -> None:
    """The log has exactly what was done, and whoever came too late reads why nothing was."""
    key = f"{first}-{second}-{number}"
    run = office.run(f"{_RUNS}Run.objects.create(key={key!r}, status='queued')\ntell({key!r})")

    answers = office.press(RUNS, {"action": first, "run": run["pk"]}, {"action": second, "run": run["pk"]})

    told = [" ".join(answer["said"]) for answer in answers]
    done = [name for name, text in zip(NAMES, told, strict=True) if "done for 1 run" in text]
    late = [text for text in told if "done for 1 run" not in text]
    log = office.log_of(run["pk"])
    assert [answer["status"] for answer in answers] == [302, 302]
    assert sorted(who for who, _what in log) == done
    assert all(key in text for text in late)
    assert len(done) == 1 or {first, second} == {"pause", "cancel"}
    assert office.run(f"{_RUNS}tell({key!r})")["status"] == ("paused" if log[-1][1].startswith("Paused") else "cancelled")
