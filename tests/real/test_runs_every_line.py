"""SIGKILL before each line of a save: what is committed stands, what is not never was, and nothing is left lying about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.length import LONG

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 300)]

KILL = """
import os, shutil, signal, sys, time
folder, stride = sys.argv[1], int(sys.argv[2])
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
django.setup()
import numpy as np
from django.core.management import call_command
from django.db import connection
import resilience.runs
from resilience import open_run
from resilience.runs import cleanups
from resilience.runs.models import Checkpoint, Run

ROOM = os.path.dirname(resilience.runs.__file__)

def train(at=None):
    lines = 0
    def count(frame, event, argument):
        nonlocal lines
        if event == "line" and at is not None:
            lines += 1
            if lines == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return count
    def enter(frame, event, argument):
        return count if frame.f_code.co_filename.startswith(ROOM) else None
    with open_run("train", keep_last=2) as run:
        for step in run.steps(4):
            weights = np.zeros(20_000) if run.state is None else run.state["w"]
            weights = weights * 0.9 + step
            # The third save: it has a predecessor, and one to delete.
            sys.settrace(enter if step == 2 else None)
            run.checkpoint({"w": weights})
            sys.settrace(None)
        return run.state["w"]

def resume():
    Run.objects.update(lease_expires_at="2000-01-01T00:00Z")
    before = Run.objects.get().step
    weights, expected = train(), np.zeros(20_000)
    for step in range(4):
        expected = expected * 0.9 + step
    assert weights.tobytes() == expected.tobytes()
    old = time.time() - 3 * 86_400
    media = os.environ["TEST_MEDIA_ROOT"]
    files = lambda: {os.path.relpath(os.path.join(where, name), media) for where, _, names in os.walk(media) for name in names}
    for name in files():
        os.utime(os.path.join(media, name), (old, old))
    cleanups.collect_orphans()
    assert files() == set(Checkpoint.objects.values_list("name", flat=True))
    # Python itself ends with 1 when something is wrong.
    return 10 + before

def in_child(work):
    pid = os.fork()
    if not pid:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

call_command("migrate", run_syncdb=True, verbosity=0)
connection.close()
database, empty = os.path.join(folder, "db.sqlite3"), os.path.join(folder, "empty.sqlite3")
shutil.copy(database, empty)
at = 1
while True:
    shutil.rmtree(os.environ["TEST_MEDIA_ROOT"], ignore_errors=True)
    shutil.copy(empty, database)
    ended = in_child(lambda: train(at) is None)
    if ended == 0:
        break
    print(at, ended, in_child(resume), flush=True)
    at += stride
"""


def test_killed_before_any_line_of_a_save__resumes_from_a_good_checkpoint(tmp_path: Path) -> None:
    """Each kill leaves the second or the third checkpoint to resume from, the same weights, and no file without a row."""
    environment = os.environ | {
        "TEST_DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
        "TEST_MEDIA_ROOT": str(tmp_path / "media"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", KILL, str(tmp_path), "1" if LONG else "13"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    kills = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(kills) > 10
    assert {ended for _, ended, _ in kills} == {-9}
    assert {resumed for *_, resumed in kills} == {10 + 1, 10 + 2}, done.stderr
