from __future__ import annotations

from tests.real.dashboard_site import browser, chromium, operator, site
from tests.real.db_aliases import sqlite_file
from tests.real.runs_scenes import scene, sqlite
from tests.runs.checkpoint_files import directory

__all__ = ["browser", "chromium", "directory", "operator", "scene", "site", "sqlite", "sqlite_file"]
