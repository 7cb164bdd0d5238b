"""Checkpoints on real disks and real databases: kills in the middle of a save, a full disk, exact bytes in rows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resilience import load_checkpoint, open_run, save_checkpoint, testing
from resilience.exceptions import CheckpointError
from resilience.runs import store
from resilience.runs.models import Checkpoint, Run
from tests.runs.exactness import same

LIMIT = 120

TRAIN = """
import sys
import django
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
from django.test import override_settings
import numpy as np
from resilience import open_run, testing

location, number, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
files = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": location}}
with override_settings(STORAGES={"files": files}, RESILIENCE={"RUNS": {"STORAGE": "files"}}):
    with testing.crash_at_save(number, moment, kill=True), open_run("train", lease=1) as run:
        for step in run.steps(6):
            before = np.zeros(100_000) if run.state is None else run.state["w"]
            run.checkpoint({"w": before * 0.9 + step, "step": step})
            print("step", step, flush=True)
"""


def expected() -> np.ndarray[Any, Any]:
    weights = np.zeros(100_000)
    for step in range(6):
        weights = weights * 0.9 + step
    return weights


def train(location: Path, url: str, number: int, moment: str) -> tuple[int, list[int]]:
    """Train in a process that is killed; return how it ended and which steps it did."""
    command = [sys.executable, "-c", TRAIN, str(location), str(number), moment]
    environment = os.environ | {"TEST_DATABASE_URL": url}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert result.returncode in {0, -9}, result.stderr
    return result.returncode, [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("step")]


@pytest.mark.parametrize("moment", ["writing", "stored", "committed"])
def test_killed_in_a_save__resumes_to_the_same_bytes(
    postgresql: str, postgresql_server: Any, directory: Path, moment: str
) -> None:
    """SIGKILL while the file is written, before the commit and after it: same weights, and no row without a file."""
    killed, first = train(directory, postgresql_server.url, 3, moment)
    Run.objects.using(postgresql).update(lease_expires_at="2000-01-01T00:00Z")

    ended, second = train(directory, postgresql_server.url, 100, moment)

    weights = load_checkpoint("train", using=postgresql)["w"]
    names = set(Checkpoint.objects.using(postgresql).values_list("name", flat=True))
    assert (killed, ended) == (-9, 0)
    assert weights.tobytes() == expected().tobytes()
    assert second[0] == (3 if moment == "committed" else 2)
    assert all((directory / name).is_file() for name in names)
    assert first == [0, 1]


FULL = """
import sys
import django
from django.conf import settings
settings.configure()
django.setup()
import numpy as np
from django.core.files.storage import FileSystemStorage
from resilience.exceptions import CheckpointError
from resilience.runs import files, formats

storage = FileSystemStorage(sys.argv[1])
good = formats.prepare({"w": np.zeros(50_000)})
saved = files.save(storage, "good.zip", good.write)
try:
    files.save(storage, "large.zip", formats.prepare({"w": np.zeros(1_000_000)}).write)
except CheckpointError as error:
    print(error.reason, error)
with files.opened(storage, saved.name, saved.size, saved.sha256) as file:
    print(formats.read("zip", file, saved.size)["w"].sum(), sorted(storage.listdir("")[1]))
"""


def test_full_disk__is_told_and_the_last_good_one_is_kept(tmp_path: Path) -> None:
    """On a file system of 2 MB that is really full: a clear error, no leftovers, and the checkpoint before it is sound."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        if "unshare" in os.environ.get("RESILIENCE_REQUIRE", ""):
            pytest.fail("unshare is required")
        pytest.skip("a file system of one's own needs unshare, which this machine refuses")
    script = f"mount -t tmpfs -o size=2m tmpfs {tmp_path} && exec {sys.executable} -c '{FULL}' {tmp_path}"

    result = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=LIMIT, check=True)

    error, rest = result.stdout.splitlines()
    assert error.startswith("storage The checkpoint could not be stored (OSError: No space left on device).")
    assert rest == "0.0 ['good.zip']"


STATES = {
    "text": "\x00 \ud800 é 漢 \U0001f600 \\ \" '",
    "numbers": [1e16, 1.0, -0.0, float("nan"), 2**80, 0.1 + 0.2],
    "keys": {1: "a", (2, "x"): "b", None: "c", "$dict": "d"},
    "large": ["x" * 1000] * 60,
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_rows__keep_every_byte(request: pytest.FixtureRequest, server: str, name: str) -> None:
    """A small state comes back from the database's row exactly, whatever the database does to text and numbers."""
    alias = request.getfixturevalue(server)

    save_checkpoint("row", STATES[name], using=alias)

    row = Checkpoint.objects.using(alias).get(run__key="row")
    assert row.tier == "row"
    assert same(load_checkpoint("row", using=alias), STATES[name])


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_damage__falls_back_on_real_databases(request: pytest.FixtureRequest, server: str, directory: Path) -> None:
    """A rotten file is quarantined and the one before it is used; when all are rotten it is an error."""
    alias = request.getfixturevalue(server)
    for step in range(3):
        save_checkpoint("rot", {"w": np.full(30_000, step)}, using=alias)
    names = list(Checkpoint.objects.using(alias).order_by("-sequence").values_list("name", flat=True))
    (directory / names[0]).write_bytes(b"rotten")

    found = load_checkpoint("rot", using=alias)
    for name in names[1:]:
        (directory / name).unlink()

    with pytest.raises(CheckpointError, match="All 3 checkpoints"):
        load_checkpoint("rot", using=alias)
    assert found["w"][0] == 1
    assert Checkpoint.objects.using(alias).filter(status="quarantined").count() == 3


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_retention__is_right_on_real_databases(request: pytest.FixtureRequest, server: str, directory: Path) -> None:
    """Rows and files that are left are those the rules keep, a NaN among the metrics included."""
    alias = request.getfixturevalue(server)
    losses = [0.5, 0.25, float("nan"), 0.75, 0.3]

    with open_run("keep", using=alias, keep_last=2, keep_best=("loss", "min", 1)) as run:
        for step in run.steps(5):
            run.checkpoint({"w": np.full(30_000, step)}, metrics={"loss": losses[step]})

    rows = Checkpoint.objects.using(alias).filter(run__key="keep").order_by("step")
    assert list(rows.values_list("step", flat=True)) == [1, 3, 4]
    assert {str(path.relative_to(directory)) for path in directory.rglob("*.zip")} == set(rows.values_list("name", flat=True))


def test_race__two_who_save_under_one_key_leave_a_sound_chain(postgresql: str, directory: Path) -> None:
    """Of saves at the same instant each is whole or refused as busy; what is stored can be read."""

    def save(number: int) -> str:
        try:
            save_checkpoint("contended", {"w": np.full(30_000, number)}, using=postgresql)
        except Exception as error:
            return type(error).__name__
        return "saved"

    outcomes = testing.race(*(lambda number=number: save(number) for number in range(4)))

    state = load_checkpoint("contended", using=postgresql)
    rows = Checkpoint.objects.using(postgresql).filter(run__key="contended")
    assert set(outcomes) <= {"saved", "RunBusyError"}
    assert "saved" in outcomes
    assert rows.count() == min(outcomes.count("saved"), 3)
    assert len(set(state["w"])) == 1
    assert len(set(rows.values_list("sequence", flat=True))) == rows.count()
    assert store.storage().listdir(f"{store.DIRECTORY}/{rows[0].run_id}")[1]
