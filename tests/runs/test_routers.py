from __future__ import annotations

import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from resilience import load_checkpoint, open_run, save_checkpoint
from resilience.runs import cleanups
from resilience.runs.models import Run
from tests.real.db_aliases import sqlite_file  # noqa: F401  # a fixture
from tests.runs.checkpoint_files import age, existing


class Elsewhere:
    """Keeps the app's tables in a database of their own."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "sqlite_file" if model._meta.app_label == "resilience" else None

    db_for_write = db_for_read


class Replica(Elsewhere):
    """Sends reads to a copy that is behind: here it has nothing yet."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "default"


@pytest.fixture
def jobs(transactional_db: None, sqlite_file: str, directory: Path) -> Iterator[str]:  # noqa: F811  # the fixture
    """The alias of the database that holds the runs, which is not the default one; states are stored in files."""
    settings = {"RUNS": {"STORAGE": "files", "INLINE_LIMIT": 0}}
    with override_settings(RESILIENCE=settings, DATABASE_ROUTERS=[f"{__name__}.Elsewhere"]):
        yield sqlite_file


def test_prune__asks_the_database_that_holds_the_runs(jobs: str, directory: Path) -> None:
    """With a router the command looks where the rows are, and takes no file that one of them names."""
    save_checkpoint("train:7", {"w": 1})
    age(directory, 2 * 24 * 3600)

    call_command("resilience_runs", "prune", stdout=StringIO())

    assert load_checkpoint("train:7") == {"w": 1}


def test_collect_orphans__refuses_a_database_that_names_no_file(
    jobs: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked about the wrong database it deletes nothing, and says so."""
    save_checkpoint("train:7", {"w": 1})
    age(directory, 2 * 24 * 3600)
    before = existing(directory)

    with caplog.at_level(logging.WARNING, "resilience.runs"):
        count = cleanups.collect_orphans(using="default")

    assert (count, existing(directory)) == (0, before)
    assert "no row of this database names one" in caplog.text


def test_open_run__resumes_from_the_database_it_writes_to(jobs: str) -> None:
    """A replica that is behind never makes a run begin again."""
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.Replica"]):
        for _ in range(2):
            with open_run("train:7", keep_last=1) as run:
                before = run.state
                for step in run.steps(3):
                    run.checkpoint({"step": step})

        assert before == {"step": 2}
        assert Run.objects.using(jobs).get().checkpoints.using(jobs).count() == 1


def test_operate__changes_the_row_where_it_is_written(jobs: str) -> None:
    """A run that a page has read from a replica is paused in the primary database."""
    shown = Run.objects.using(jobs).create(key="train:7")
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.Replica"]):
        shown._state.db = "default"

        shown.pause()

    assert Run.objects.using(jobs).get().status == "paused"
