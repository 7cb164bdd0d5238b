from __future__ import annotations

import datetime as dt
import time

import pytest
from django.utils import timezone

from resilience import clock, open_run
from resilience.exceptions import RunBusyError
from resilience.runs import wakeups
from resilience.runs.leases import DatabaseNow, take
from resilience.runs.models import Run
from resilience.runs.sweeps import sweep

MINUTES = [-10, 10]


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.django_db(transaction=True)), "postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    if request.param != "default":
        request.getfixturevalue(request.param)
    return str(request.param)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the runs that a message was published for."""
    keys: list[str] = []
    glue = type("Glue", (), {"publish": staticmethod(lambda run, delay=0.0: keys.append(run.key))})
    monkeypatch.setattr(wakeups, "import_module", lambda name: glue)
    return keys


def set_clock(patch: pytest.MonkeyPatch, minutes: float) -> None:
    """Move the clock of this host, wherever code may ask for it; that of the database stays."""
    now, seconds = dt.datetime.now(dt.UTC), time.time()
    patch.setattr(timezone, "now", lambda: now + dt.timedelta(minutes=minutes))
    patch.setattr(time, "time", lambda: seconds + 60 * minutes)
    patch.setattr(clock, "time", lambda: seconds + 60 * minutes)


@pytest.mark.parametrize("holder", MINUTES)
@pytest.mark.parametrize("other", MINUTES)
def test_hosts_whose_clocks_disagree__agree_on_who_holds_a_run(alias: str, sent: list[str], holder: int, other: int) -> None:
    """A host ten minutes ahead neither takes, nor sweeps, nor ends a run that another one holds for a minute."""
    run = Run.objects.using(alias).create(key="a", task="tests.task")
    with pytest.MonkeyPatch.context() as patch:
        set_clock(patch, holder)
        found = take(run, alias, statuses=("queued",), lease_seconds=60.0)
    assert found is not None

    with pytest.MonkeyPatch.context() as patch:
        set_clock(patch, other)
        swept = sweep(alias)
        with pytest.raises(RunBusyError), open_run("a", using=alias):
            pass
        run.pause()
        found[1].write(message="mine")

    run.refresh_from_db()
    assert (swept.reclaimed, sent) == ((), [])
    assert (run.status, run.request, run.message, run.fence) == ("running", "pause", "mine", 1)


@pytest.mark.parametrize("minutes", MINUTES)
def test_hosts_whose_clocks_disagree__agree_on_who_is_gone(alias: str, sent: list[str], minutes: int) -> None:
    """A host ten minutes behind finds a lease that is over by the database's clock, and one ahead waits for young messages."""
    lost = Run.objects.using(alias).create(key="lost", task="tests.task")
    assert take(lost, alias, statuses=("queued",)) is not None
    Run.objects.using(alias).filter(key="lost").update(lease_expires_at=DatabaseNow(-1))
    Run.objects.using(alias).create(key="young", task="tests.task", woken_at=DatabaseNow(-30), wakeups=1)
    Run.objects.using(alias).create(key="overdue", task="tests.task", woken_at=DatabaseNow(-61), wakeups=1)

    with pytest.MonkeyPatch.context() as patch:
        set_clock(patch, minutes)
        sweep(alias)

    assert sorted(sent) == ["lost", "overdue"]
