"""Databases of tests that need one which is neither in memory nor shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections


@pytest.fixture
def sqlite_file(tmp_path: Path, django_db_blocker: Any) -> Iterator[str]:
    """The alias of a SQLite file in WAL mode, which threads can share."""
    with django_db_blocker.unblock():
        settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3"), "OPTIONS": {"timeout": 20}}
        settings["OPTIONS"]["init_command"] = "PRAGMA journal_mode=WAL"  # type: ignore[index]  # a dict
        connections.databases["sqlite_file"] = connections.configure_settings({"default": {}, "sqlite_file": settings})[
            "sqlite_file"
        ]
        call_command("migrate", database="sqlite_file", run_syncdb=True, verbosity=0)
        yield "sqlite_file"
        connections["sqlite_file"].close()
        del connections["sqlite_file"], connections.databases["sqlite_file"]
