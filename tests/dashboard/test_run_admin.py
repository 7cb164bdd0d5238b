from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from resilience import Checkpoint, Run
from tests.dashboard.conftest import OPERATE_RUN, VIEW_CIRCUIT, VIEW_RUN
from tests.factories import RunFactory

LIST = "/admin/resilience/run/"
OPERATE = f"{LIST}operate/"


def _ticket(text: str) -> str:
    found = re.search(r'name="ticket" value="([0-9a-f]{32})"', text)
    assert found
    return found[1]


def _operate(client: Client, action: str, *runs: Run) -> None:
    keys = [run.pk for run in runs]
    page = client.post(OPERATE, {"action": action, "run": keys})
    client.post(OPERATE, {"action": action, "run": keys, "confirmed": "yes", "reason": "drill", "ticket": _ticket(page.text)})


def test_list__says_what_to_do_when_it_is_empty(operator: Client) -> None:
    """A newcomer's page shows how to write the first run."""
    assert "@resumable_task" in operator.get(LIST).text


def test_list__tells_a_lost_run(operator: Client) -> None:
    """A running run whose lease is over is shown as lost, and the filters agree with what is shown."""
    RunFactory(key="lost", status="running", lease_expires_at="2020-01-01T00:00Z")
    RunFactory(key="alive", status="running", lease_expires_at="2100-01-01T00:00Z")

    listed = operator.get(LIST).text

    assert "Lost" in listed
    assert re.findall(r"<bdi data-rs-name>(\w+)<", operator.get(f"{LIST}?status=lost").text) == ["lost"]
    assert re.findall(r"<bdi data-rs-name>(\w+)<", operator.get(f"{LIST}?status=running").text) == ["alive"]


def test_detail__shows_checkpoints_metrics_and_errors(operator: Client) -> None:
    """Steps, sizes, quarantine, plots and the history of errors are on one page; arguments are not."""
    run = RunFactory(
        key="train", status="failed", arguments={"password": "geheim"}, current=5, total=10,
        errors=[{"at": "2026-01-01T00:00:00+00:00", "error": "OperationalError: gone", "step": 3}],
    )  # fmt: skip
    for number, status in ((1, "good"), (2, "quarantined")):
        Checkpoint.objects.create(
            run=run, sequence=number, step=number, format="json", size=65_536, sha256="0" * 64, status=status,
            reason="sha256 differs" if status == "quarantined" else "", metrics={"loss": 1 / number, "note": "x", "bad": None},
        )  # fmt: skip

    text = operator.get(f"{LIST}{run.pk}/change/").text

    assert "64.0 KiB" in text
    assert "sha256 differs" in text
    assert "OperationalError: gone" in text
    assert "rs-plot" in text
    assert "geheim" not in text


@pytest.mark.parametrize(
    ("status", "offered"),
    [
        ("queued", ["pause", "cancel"]),
        ("running", ["pause", "cancel"]),
        ("paused", ["resume", "cancel", "skip"]),
        ("failed", ["cancel", "retry", "skip"]),
        ("cancelled", ["retry"]),
        ("finished", []),
    ],
)
def test_detail__offers_what_the_status_allows(operator: Client, status: str, offered: list[str]) -> None:
    """No button leads to a refusal."""
    run = RunFactory(key="train", status=status, lease_expires_at="2100-01-01T00:00Z")

    text = operator.get(f"{LIST}{run.pk}/change/").text

    assert re.findall(r'name="action" value="(\w+)"', text) == offered


def test_buttons__agree_with_the_table_of_the_runs(db: None) -> None:
    """What the page calls legal is what the runs accept, for every status and action."""
    from resilience.dashboard.operations import RUN_OPERATIONS
    from resilience.runs.operations import TRANSITIONS

    accepted = {(action, str(status)) for action, status in TRANSITIONS}

    assert {(key, status) for key, operation in RUN_OPERATIONS.items() for status in operation.legal} == accepted


def test_operate__does_it_once_and_writes_it_down(operator: Client) -> None:
    """Pause, and the same form again: one change, one entry in the log, with the run's name."""
    run = RunFactory(key="train:7", status="queued")
    page = operator.post(OPERATE, {"action": "pause", "run": run.pk})
    form = {"action": "pause", "run": run.pk, "confirmed": "yes", "ticket": _ticket(page.text), "reason": "token=geheim"}

    operator.post(OPERATE, form)
    again = operator.post(OPERATE, form, follow=True)

    run.refresh_from_db()
    entry = LogEntry.objects.get()
    assert run.status == "paused"
    assert "This was done already." in again.text
    assert (entry.object_repr, entry.object_id, entry.user.username) == ("train:7", str(run.pk), "anna")
    assert "geheim" not in entry.change_message


def test_operate__tells_when_a_run_moved_on(operator: Client) -> None:
    """Between the question and the answer the run finished: nothing is done, and the page says so."""
    run = RunFactory(key="train", status="queued")
    page = operator.post(OPERATE, {"action": "pause", "run": run.pk})
    Run.objects.update(status="finished")

    answer = operator.post(
        OPERATE, {"action": "pause", "run": run.pk, "confirmed": "yes", "ticket": _ticket(page.text)}, follow=True
    )

    assert answer.status_code == 200
    assert "messagelist" in answer.text
    assert not LogEntry.objects.exists()


def test_operate__works_on_many(operator: Client) -> None:
    """A bulk action does what is legal and leaves the rest alone."""
    runs = [RunFactory(key=f"run-{status}", status=status) for status in ("failed", "cancelled")]

    _operate(operator, "retry", *runs)

    assert set(Run.objects.values_list("status", flat=True)) == {"queued"}
    assert LogEntry.objects.count() == 2


@pytest.mark.parametrize("keys", [["99"], ["x"], ["9" * 30], ["-1"], ["1 OR 1=1"]])
def test_operate__of_an_unknown_run_is_404(operator: Client, keys: list[str]) -> None:
    """Keys that do not exist or make no sense change nothing."""
    assert operator.post(OPERATE, {"action": "pause", "run": keys, "confirmed": "yes"}).status_code == 404
    assert operator.post(OPERATE, {"action": "delete", "run": []}).status_code == 404
    assert not Run.objects.exists()


@pytest.mark.parametrize("pk", ["99", "9" * 30])
def test_detail__of_an_unknown_run_is_404(operator: Client, pk: str) -> None:
    """Also of a number that no database can hold."""
    assert operator.get(f"{LIST}{pk}/change/").status_code == 404


@pytest.mark.parametrize("permissions", [(), (VIEW_CIRCUIT,), (OPERATE_RUN,)])
def test_pages__refuse_who_may_not_see_runs(sign_in: Callable[..., Client], permissions: tuple[str, ...]) -> None:
    """Neither staff alone, nor the circuits' permission, nor operating without seeing opens a page."""
    run = RunFactory(key="secret-run", status="queued")
    client = sign_in(*permissions)

    answers = [
        client.get(path) for path in (LIST, f"{LIST}fragment/", f"{LIST}{run.pk}/change/", f"{LIST}{run.pk}/change/fragment/")
    ]
    answers.append(client.post(OPERATE, {"action": "pause", "run": run.pk}))

    assert [answer.status_code for answer in answers] == [403] * 5
    assert not any("secret-run" in answer.text for answer in answers)


def test_pages__show_no_button_to_who_may_only_look(sign_in: Callable[..., Client]) -> None:
    """Seeing runs is not operating them, and a GET never is."""
    run = RunFactory(key="train", status="queued")
    client = sign_in(VIEW_RUN)

    text = client.get(LIST).text + client.get(f"{LIST}{run.pk}/change/").text

    assert 'name="action"' not in text
    assert client.post(OPERATE, {"action": "pause", "run": run.pk, "confirmed": "yes"}).status_code == 403
    assert sign_in(VIEW_RUN, OPERATE_RUN, name="bert").get(OPERATE, {"action": "pause", "run": run.pk}).status_code == 405


def test_fragment__is_sent_only_when_something_changed(operator: Client) -> None:
    """Progress is a change, the passing of time is not."""
    run = RunFactory(key="train", status="running", current=1, total=10)
    for path in (f"{LIST}fragment/", f"{LIST}{run.pk}/change/fragment/"):
        first = operator.get(path)
        same = operator.get(path, headers={"If-None-Match": first["ETag"]})
        Run.objects.update(current=Run.objects.get().current + 1)
        moved = operator.get(path, headers={"If-None-Match": first["ETag"]})

        assert [first.status_code, same.status_code, moved.status_code] == [200, 304, 200]
