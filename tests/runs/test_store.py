from __future__ import annotations

import errno
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.test import override_settings

from resilience import clock, load_checkpoint, save_checkpoint, signals
from resilience.exceptions import CheckpointError
from resilience.runs import cleanups, files, store
from resilience.runs.models import Checkpoint, Run

pytestmark = pytest.mark.django_db

KEY, OTHER_KEY = "k" * 40, "o" * 40


class ObjectStorage(Storage):
    """A storage as S3's: documented methods only, no paths, names of its own choice, errors of its own kind."""

    class UnavailableError(Exception):
        """503."""

    blobs: dict[str, bytes] = {}
    failures: dict[str, int] = {}

    def _maybe_fail(self, method: str) -> None:
        if self.failures.get(method, 0) > 0:
            self.failures[method] -= 1
            raise self.UnavailableError(f"503 on {method} at https://secret@bucket")

    def _open(self, name: str, mode: str = "rb") -> Any:
        self._maybe_fail("open")
        if name not in self.blobs:
            raise self.UnavailableError("404 no such key")
        return Unseekable(self.blobs[name], name)

    def _save(self, name: str, content: Any) -> str:
        self._maybe_fail("save")
        name = f"{name}-renamed"
        assert name not in self.blobs
        self.blobs[name] = content.read()
        return name

    def exists(self, name: str) -> bool:
        self._maybe_fail("exists")
        return name in self.blobs

    def delete(self, name: str) -> None:
        self._maybe_fail("delete")
        self.blobs.pop(name, None)

    def size(self, name: str) -> int:
        return len(self.blobs[name])


class Unseekable(ContentFile):
    """A response body: it can be read once, from the start."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content, name)
        self.file.seekable = lambda: False

    def seekable(self) -> bool:
        return False


STORAGES = {
    "files": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "memory": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    "objects": {"BACKEND": "tests.runs.test_store.ObjectStorage"},
}


@pytest.fixture(params=["files", "memory", "objects"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """Each kind of storage in turn."""
    with storage_settings(request.param, tmp_path) as storage:
        yield storage


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A FileSystemStorage's directory."""
    with storage_settings("files", tmp_path):
        yield tmp_path


def storage_settings(alias: str, path: Path, **runs: Any) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def active() -> Iterator[Storage]:
        configured = {**STORAGES, "files": {**STORAGES["files"], "OPTIONS": {"location": str(path)}}}
        with override_settings(STORAGES=configured, RESILIENCE={"RUNS": {"STORAGE": alias, "SIGNING_KEYS": [KEY], **runs}}):
            ObjectStorage.blobs, ObjectStorage.failures = {}, {}
            yield storages[alias]

    return active()


@pytest.fixture
def run() -> Run:
    return Run.objects.create(key="train:1")


@pytest.fixture
def damaged() -> Iterator[list[dict[str, Any]]]:
    """What the signal `checkpoint_damaged` told."""
    told: list[dict[str, Any]] = []

    def receiver(**arguments: Any) -> None:
        told.append(arguments)

    signals.checkpoint_damaged.connect(receiver)
    yield told
    signals.checkpoint_damaged.disconnect(receiver)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(clock, "sleep", slept.append)
    return slept


def commit(run: Run, state: object, step: int = 0, **options: Any) -> Checkpoint:
    """Store a state and insert its row, as the holder of a lease does."""
    run.sequence += 1
    return Checkpoint.objects.create(
        run=run, sequence=run.sequence, step=step, **store.write(run, step, state, **options).fields()
    )


def content(storage: Storage, name: str) -> bytes:
    with storage.open(name) as file:
        return bytes(file.read())


def replace(storage: Storage, name: str, data: bytes) -> None:
    """Put other bytes under a name, as damage or an intruder would."""
    if isinstance(storage, ObjectStorage):
        storage.blobs[name] = data
    else:
        storage.delete(name)
        assert storage.save(name, ContentFile(data)) == name


def weights(step: int) -> dict[str, Any]:
    return {"w": np.full(50_000, step, "f4"), "step": step}


# --- where a state goes --------------------------------------------------------------------------------------


def test_write__small_json_stays_in_the_row(backend: Storage, run: Run) -> None:
    """JSON up to the limit needs no file."""
    checkpoint = commit(run, {"a": (1, 2)})

    state = store.load(checkpoint)

    assert (checkpoint.tier, checkpoint.name, checkpoint.format) == ("row", "", "json")
    assert state == {"a": (1, 2)}


@pytest.mark.parametrize(("length", "tier"), [(65_536 - 27, "row"), (65_536 - 26, "file")])
def test_write__the_inline_limit_is_exact(directory: Path, run: Run, length: int, tier: str) -> None:
    """65,536 bytes go into the row, one more into a file."""
    stored = store.write(run, 1, "x" * length)

    assert (stored.tier, stored.size) == (tier, length + 27)


def test_write__the_inline_limit_is_a_setting(tmp_path: Path, run: Run) -> None:
    """INLINE_LIMIT 0 sends everything to the storage."""
    with storage_settings("files", tmp_path, INLINE_LIMIT=0):
        checkpoint = commit(run, {"a": 1}, 7)

        assert checkpoint.tier == "file"
        assert store.load(checkpoint) == {"a": 1}
        assert Path(checkpoint.name).name.startswith("000000000007-")


def test_write__arrays_go_to_the_storage_and_come_back(backend: Storage, run: Run) -> None:
    """Arrays are written to a file under a fresh name, on every kind of storage."""
    first, second = commit(run, weights(1)), commit(run, weights(1))

    state = store.load(Checkpoint.objects.get(pk=first.pk))

    assert state["w"].tobytes() == weights(1)["w"].tobytes()
    assert first.name != second.name
    assert first.sha256 == second.sha256
    assert backend.exists(first.name)
    assert first.size == len(content(backend, first.name))


def test_write__refused_states_leave_nothing_behind(directory: Path, run: Run) -> None:
    """A state that cannot be stored is refused before a file is made."""
    with pytest.raises(CheckpointError, match=r"state\['model'\]"):
        store.write(run, 1, {"w": np.zeros(100_000), "model": object()})

    assert list(directory.rglob("*")) == []


def test_write__a_setting_chooses_the_format(tmp_path: Path, run: Run) -> None:
    """RUNS["FORMAT"] holds for all runs that do not ask for another."""
    with storage_settings("files", tmp_path, FORMAT="safetensors"):
        assert store.write(run, 1, {"w": np.zeros(3)}).format == "safetensors"
        assert store.write(run, 1, {"w": np.zeros(3)}, format="auto").format == "safetensors"
        assert store.write(run, 1, {"w": np.zeros(3)}, format="zip").format == "zip"


def test_write__an_unknown_storage_is_named(run: Run) -> None:
    """A wrong alias is a mistake in the settings, told as such."""
    with override_settings(RESILIENCE={"RUNS": {"STORAGE": "nowhere"}}), pytest.raises(CheckpointError) as caught:
        store.write(run, 1, weights(1))

    assert str(caught.value) == "The storage of checkpoints must be an alias in STORAGES, not 'nowhere'. Add it there."
    assert caught.value.reason == "configuration"


def test_write__takes_little_memory_beside_the_state(directory: Path, run: Run) -> None:
    """Saving goes piece by piece, hashing included."""
    state = {"w": np.zeros(64 * 1024 * 1024, "u1")}
    tracemalloc.start()

    store.write(run, 1, state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 16 * 1024 * 1024


# --- how files are written -----------------------------------------------------------------------------------


def test_save__flushes_the_file_before_and_the_directory_after_the_rename(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that survives a power cut: write, fsync, rename, fsync of the directory."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        events.append("fsync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        fsync(descriptor)

    def noted_rename(source: Path, target: Path) -> Path:
        assert source.parent == target.parent
        assert source.name.endswith(files.TEMPORARY)
        events.append("rename")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)

    store.write(run, 1, weights(1))

    assert events[-3:] == ["fsync file", "rename", "fsync directory"]
    assert events[:-3] == ["fsync directory"] * 3, "each new directory is flushed into its parent"


KILLED_WHILE_WRITING = """
import os, signal, sys
import django
from django.conf import settings
settings.configure()
django.setup()
from django.core.files.storage import FileSystemStorage
from resilience.runs import files

def write(sink):
    sink.write(b"x" * 100_000)
    os.kill(os.getpid(), signal.SIGKILL)

files.save(FileSystemStorage(sys.argv[1]), "resilience/runs/1/final.zip", write)
"""


def test_save__killed_in_the_middle_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """A process killed while it writes leaves a temporary file at most."""
    result = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)], timeout=60, check=False)

    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]

    assert result.returncode == -9
    assert left == ["final.zip.tmp"]


@pytest.mark.parametrize("call", ["fsync", "rename", "write", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EXDEV, errno.EDQUOT, errno.EIO])
def test_save__a_failing_disk_is_told_and_cleaned_up(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Disk full, read-only or across devices: a clear error, no leftovers, and the checkpoint before is untouched."""
    before = commit(run, weights(1))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code), "/secret/path")

    target = {"fsync": (os, "fsync"), "open": (os, "open"), "rename": (Path, "rename"), "write": (files._HashingSink, "write")}[
        call
    ]
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(CheckpointError) as caught:
            store.write(run, 2, weights(2))

    assert caught.value.reason == "storage"
    assert os.strerror(code) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [path for path in directory.rglob("*") if path.is_file()] == [directory / before.name]
    assert store.load(before)["step"] == 1


def test_save__a_read_only_directory_is_told(directory: Path, run: Run) -> None:
    """A directory that refuses files gives a clear error."""
    (directory / "resilience").write_text("a file where a directory should be")

    with pytest.raises(CheckpointError, match=r"could not be stored \(NotADirectoryError: Not a directory\)"):
        store.write(run, 1, weights(1))


def test_save__system_exit_in_the_middle_leaves_nothing(directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is shut down while it writes cleans up and goes."""

    def stop(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise SystemExit(1)

    monkeypatch.setattr(os, "fsync", stop)

    with pytest.raises(SystemExit):
        store.write(run, 1, weights(1))

    assert [path for path in directory.rglob("*") if path.is_file()] == []


def test_save__obeys_the_storages_permissions(tmp_path: Path) -> None:
    """The storage's own modes of files and directories hold for checkpoints too."""
    storage = FileSystemStorage(tmp_path, file_permissions_mode=0o640, directory_permissions_mode=0o750)

    files.save(storage, "a/b/c.zip", lambda sink: sink.write(b"x"))

    assert stat.S_IMODE((tmp_path / "a/b/c.zip").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o750


def test_save__names_cannot_lead_out_of_the_storage(tmp_path: Path) -> None:
    """The storage's own check of names holds for the short cut around it."""
    with pytest.raises(CheckpointError, match="leads out of the storage"):
        files.save(FileSystemStorage(tmp_path / "in"), "../out.zip", lambda sink: sink.write(b"x"))

    assert not (tmp_path / "out.zip").exists()


def test_save__storages_that_change_what_they_store_are_asked_through_their_api(tmp_path: Path) -> None:
    """A subclass of FileSystemStorage with a _save of its own (encryption) is not bypassed."""

    class Scrambling(FileSystemStorage):
        def _save(self, name: str, content: Any) -> str:
            return super()._save(name, ContentFile(bytes(byte ^ 0xFF for byte in content.read())))

        def _open(self, name: str, mode: str = "rb") -> Any:
            with super()._open(name, mode) as file:
                return ContentFile(bytes(byte ^ 0xFF for byte in file.read()))

    storage = Scrambling(tmp_path)

    saved = files.save(storage, "x.bin", lambda sink: sink.write(b"secret"))

    assert (tmp_path / "x.bin").read_bytes() != b"secret"
    with files.opened(storage, saved.name, saved.size, saved.sha256) as file:
        assert file.read() == b"secret"


def test_save__a_failing_object_storage_is_told(tmp_path: Path, run: Run) -> None:
    """An error of the storage's own kind becomes a CheckpointError, without its message."""
    with storage_settings("objects", tmp_path) as storage:
        storage.failures["save"] = 1
        with pytest.raises(CheckpointError, match=r"could not be stored \(UnavailableError: see the cause\)") as caught:
            store.write(run, 1, weights(1))

    assert caught.value.reason == "storage"
    assert "secret" not in str(caught.value)


def test_save__a_storage_that_kept_less_is_told(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that was cut short is found at once, not when it is needed."""
    monkeypatch.setattr(ObjectStorage, "size", lambda self, name: 3)

    with storage_settings("objects", tmp_path), pytest.raises(CheckpointError, match="could not be stored"):
        store.write(run, 1, weights(1))


def test_discard__deletes_the_file_and_bears_a_storage_that_is_down(tmp_path: Path, run: Run) -> None:
    """What will never be committed is deleted now, or collected later; it never raises."""
    with storage_settings("objects", tmp_path) as storage:
        first, second = store.write(run, 1, weights(1)), store.write(run, 1, weights(1))
        storage.failures["delete"] = 1

        store.discard(first)
        store.discard(second)

        assert list(storage.blobs) == [first.name]


# --- damage --------------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


DAMAGE = {
    "a flipped byte": flipped,
    "cut in half": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "one byte more": lambda data: data + b"\0",
    "a pickle planted": lambda data: pickle.dumps(Trap(Path(os.environ["RESILIENCE_TRAP"]))),
    "deleted": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["zip", "safetensors", "pickle"])
def test_load_latest__uses_the_one_before_a_damaged_one(
    backend: Storage,
    run: Run,
    damaged: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    name: str,
) -> None:
    """Whatever happened to the newest file, the one before is used, the damaged one is quarantined and told, nothing is executed."""
    trap = tmp_path / "executed"
    monkeypatch.setenv("RESILIENCE_TRAP", str(trap))
    state = {"w": np.arange(50_000.0)}
    good, bad = commit(run, state, 1, format=name), commit(run, state, 2, format=name)
    if DAMAGE[damage] is None:
        backend.delete(bad.name)
    else:
        replace(backend, bad.name, DAMAGE[damage](content(backend, bad.name)))

    checkpoint, loaded = store.load_latest(run)

    bad.refresh_from_db()
    assert checkpoint == good
    assert loaded["w"].tobytes() == state["w"].tobytes()
    assert bad.status == "quarantined"
    assert bad.reason.startswith("The checkpoint's file")
    assert [(told["key"], told["step"]) for told in damaged] == [("train:1", 2)]
    assert not trap.exists()


@pytest.mark.parametrize("position", [0, 1, 100, 20_000, 40_001, -100, -30, -1])
def test_load__a_flipped_bit_anywhere_is_found(directory: Path, run: Run, position: int) -> None:
    """Headers, data, directory of the zip: no byte may change unnoticed."""
    checkpoint = commit(run, {"w": np.arange(5_000.0)})
    data = bytearray(content(storages["files"], checkpoint.name))
    data[position] ^= 0x10
    (directory / checkpoint.name).write_bytes(data)

    with pytest.raises(CheckpointError, match="has another SHA-256 than when it was written"):
        store.load(checkpoint)


def test_load_latest__a_damaged_row_falls_back_too(run: Run, damaged: list[dict[str, Any]]) -> None:
    """Inline states are verified like files."""
    commit(run, {"step": 1})
    bad = commit(run, {"step": 2})
    Checkpoint.objects.filter(pk=bad.pk).update(data=bytes(bad.data or b"").replace(b"2", b"3"))

    checkpoint, state = store.load_latest(run)

    assert state == {"step": 1}
    assert checkpoint is not None
    assert len(damaged) == 1


def test_load_latest__all_damaged_is_an_error_and_never_a_silent_restart(directory: Path, run: Run) -> None:
    """A run that had checkpoints does not begin at zero because they are gone."""
    for step in range(3):
        (directory / commit(run, weights(step), step).name).unlink()

    for _ in range(2):
        with pytest.raises(CheckpointError, match="All 3 checkpoints of run 'train:1' are damaged") as caught:
            store.load_latest(run)

    assert caught.value.reason == "damaged"


def test_load_latest__a_volume_that_comes_back_heals(directory: Path, run: Run, tmp_path: Path) -> None:
    """Files that were only out of sight are found again, and leave the quarantine."""
    checkpoint = commit(run, weights(1), 1)
    (directory / "resilience").rename(tmp_path / "unmounted")
    with pytest.raises(CheckpointError, match="are damaged"):
        store.load_latest(run)
    (tmp_path / "unmounted").rename(directory / "resilience")

    found, state = store.load_latest(run)

    checkpoint.refresh_from_db()
    assert (found, state["step"]) == (checkpoint, 1)
    assert (checkpoint.status, checkpoint.reason) == ("good", "")


def test_load_latest__without_checkpoints_is_none(run: Run) -> None:
    """A run that never saved has no state."""
    assert store.load_latest(run) == (None, None)


def test_load_latest__a_storage_that_is_down_is_no_damage(
    tmp_path: Path, run: Run, sleeps: list[float], damaged: list[dict[str, Any]]
) -> None:
    """503s are waited for a moment and then raised; no good checkpoint is quarantined for them."""
    with storage_settings("objects", tmp_path) as storage:
        checkpoint = commit(run, weights(1))
        storage.failures["open"] = 3
        with pytest.raises(CheckpointError, match="storage does not answer") as caught:
            store.load_latest(run)
        storage.failures["open"] = 2

        found, _ = store.load_latest(run)

    checkpoint.refresh_from_db()
    assert caught.value.reason == "storage"
    assert (found, checkpoint.status, damaged) == (checkpoint, "good", [])
    assert sleeps == [0.2, 0.4, 0.2, 0.4]


def test_load_latest__a_storage_that_cannot_tell_whether_a_file_exists_is_no_damage(
    tmp_path: Path, run: Run, sleeps: list[float]
) -> None:
    """Only a clear "no such file" is damage."""
    with storage_settings("objects", tmp_path) as storage:
        commit(run, weights(1))
        storage.failures.update(open=3, exists=3)

        with pytest.raises(CheckpointError) as caught:
            store.load_latest(run)

    assert caught.value.reason == "storage"


def test_load_latest__one_that_retention_just_deleted_is_not_told_as_damage(
    directory: Path, run: Run, damaged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row deleted between listing and reading is skipped in silence."""
    commit(run, weights(1), 1)
    gone = commit(run, weights(2), 2)
    read = store._read_file

    def deleted_meanwhile(checkpoint: Checkpoint) -> Any:
        if checkpoint.pk == gone.pk:
            Checkpoint.objects.filter(pk=gone.pk).delete()
            (directory / gone.name).unlink(missing_ok=True)
        return read(checkpoint)

    monkeypatch.setattr(store, "_read_file", deleted_meanwhile)

    _, state = store.load_latest(run)

    assert state["step"] == 1
    assert damaged == []


@pytest.mark.parametrize("state", [weights, lambda step: {"step": step}], ids=["file", "row"])
def test_load_latest__reads_the_newest_when_others_were_replaced_meanwhile(
    directory: Path, run: Run, damaged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    """Whoever looks at a run that saves and prunes at this moment gets its newest state, and no error about damage."""
    commit(run, state(1), 1)
    verify, replaced = store.load, [2, 3]

    def replace_meanwhile(checkpoint: Checkpoint, **options: Any) -> Any:
        if replaced:
            commit(run, state(replaced[0]), replaced.pop(0))
            run.checkpoints.filter(pk=checkpoint.pk).delete()
            if checkpoint.name:
                (directory / checkpoint.name).unlink()
        return verify(checkpoint, **options)

    monkeypatch.setattr(store, "load", replace_meanwhile)

    _, found = store.load_latest(run)

    assert found["step"] == 3
    assert damaged == []


def test_load_latest__gives_up_when_checkpoints_are_replaced_for_ever(
    run: Run, damaged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that never gets one to its end is told so, and nothing is taken for damaged."""
    commit(run, {"step": 1}, 1)
    monkeypatch.setattr(store, "_set_status", lambda *args: False)
    monkeypatch.setattr(store, "load", lambda *args, **options: refuse())

    with pytest.raises(CheckpointError, match="replaced faster than they could be read") as caught:
        store.load_latest(run)

    assert caught.value.reason == "storage"
    assert damaged == []


def refuse() -> None:
    raise CheckpointError("gone", "damaged")


# --- versions ------------------------------------------------------------------------------------------------


def test_load__an_older_schema_is_migrated(run: Run) -> None:
    """The user's function turns an older layout into the one the code knows."""
    checkpoint = commit(run, {"lr": 1}, schema=1)

    state = store.load(checkpoint, schema=3, migrate=lambda state, version: {"rate": state["lr"], "was": version})

    assert state == {"rate": 1, "was": 1}


def test_load__an_older_schema_without_migration_is_refused(run: Run) -> None:
    """Nobody guesses how to read an old layout."""
    checkpoint = commit(run, {"lr": 1}, schema=1)

    with pytest.raises(CheckpointError, match=r"has schema 1, and this code expects 2\. Give migrate") as caught:
        store.load(checkpoint, schema=2)

    assert caught.value.reason == "configuration"


def test_load_latest__a_newer_schema_is_refused_and_not_quarantined(run: Run) -> None:
    """Old code after a roll-back says so, and leaves the checkpoint for the code that can read it."""
    checkpoint = commit(run, {"lr": 1}, schema=2)

    with pytest.raises(CheckpointError, match="has schema 2, and this code reads up to 1") as caught:
        store.load_latest(run, schema=1)

    checkpoint.refresh_from_db()
    assert caught.value.reason == "newer"
    assert checkpoint.status == "good"


def test_load__a_newer_format_is_refused_and_not_quarantined(run: Run) -> None:
    """The version of the format itself is guarded in the same way."""
    data = json.dumps({"resilience": 99, "state": 1}).encode()
    checkpoint = commit(run, {"a": 1})
    from hashlib import sha256

    Checkpoint.objects.filter(pk=checkpoint.pk).update(data=data, size=len(data), sha256=sha256(data).hexdigest())

    with pytest.raises(CheckpointError) as caught:
        store.load_latest(run)

    checkpoint.refresh_from_db()
    assert (caught.value.reason, checkpoint.status) == ("newer", "good")


# --- signed pickles through the store ------------------------------------------------------------------------


def test_pickle__a_key_in_the_list_still_verifies_after_rotation(tmp_path: Path, run: Run) -> None:
    """The first key signs, every key of the list verifies, one that is gone refuses without quarantine."""
    with storage_settings("files", tmp_path, SIGNING_KEYS=[OTHER_KEY]):
        checkpoint = commit(run, {"a": {1, 2}}, format="pickle")
    with storage_settings("files", tmp_path, SIGNING_KEYS=[KEY, OTHER_KEY]):
        rotated = store.load_latest(run)[1]
    with storage_settings("files", tmp_path, SIGNING_KEYS=[KEY]), pytest.raises(CheckpointError) as caught:
        store.load_latest(run)

    checkpoint.refresh_from_db()
    assert rotated == {"a": {1, 2}}
    assert (caught.value.reason, checkpoint.status) == ("unsigned", "good")


def test_pickle__planted_with_a_row_that_fits_is_still_not_executed(directory: Path, run: Run, tmp_path: Path) -> None:
    """Who can write the database and the storage but has no key cannot execute anything."""
    from hashlib import sha256

    trap = tmp_path / "executed"
    planted = pickle.dumps(Trap(trap))
    checkpoint = commit(run, {"a": 1}, format="pickle")
    (directory / checkpoint.name).write_bytes(planted)
    Checkpoint.objects.filter(pk=checkpoint.pk).update(size=len(planted), sha256=sha256(planted).hexdigest())

    with pytest.raises(CheckpointError) as caught:
        store.load_latest(run)

    assert caught.value.reason == "unsigned"
    assert not trap.exists()


def test_opened__a_file_that_grows_while_it_is_read_is_damage(tmp_path: Path) -> None:
    """Reading stops behind the declared size, however long the file is."""
    storage = FileSystemStorage(tmp_path)
    saved = files.save(storage, "x.bin", lambda sink: sink.write(b"abc"))
    (tmp_path / "x.bin").write_bytes(b"abc" * 10)

    with pytest.raises(CheckpointError, match="instead of 3"), files.opened(storage, saved.name, saved.size, saved.sha256):
        pass


def test_hashing__large_files_are_hashed_whole(tmp_path: Path) -> None:
    """The hash that a thread computes beside the writing is the file's."""
    from hashlib import sha256

    pieces = [os.urandom(700_000) for _ in range(9)]

    def write(sink: Any) -> None:
        for piece in pieces:
            sink.write(piece)
            sink.write(memoryview(b"small"))

    saved = files.save(FileSystemStorage(tmp_path), "x.bin", write)

    data = (tmp_path / "x.bin").read_bytes()
    assert (saved.size, saved.sha256) == (len(data), sha256(data).hexdigest())
    assert data == b"".join(piece + b"small" for piece in pieces)
    assert io.BytesIO(data).read(1)


def test_storage__that_was_changed_leaves_old_checkpoints_where_they_are(
    tmp_path: Path, django_capture_on_commit_callbacks: Any
) -> None:
    """After RUNS["STORAGE"] names another storage, old checkpoints are read, collected and pruned in the one they are in."""
    backend = "django.core.files.storage.FileSystemStorage"
    places = {name: {"BACKEND": backend, "OPTIONS": {"location": str(tmp_path / name)}} for name in ("default", "other")}
    with override_settings(STORAGES=places):
        save_checkpoint("moved", {"w": np.zeros(30_000)}, keep_last=2)
        folder = next((tmp_path / "default").rglob("*.zip")).parent
        (folder / "orphan.zip").write_bytes(b"")
        os.utime(folder / "orphan.zip", (0, 0))
        with override_settings(RESILIENCE={"RUNS": {"STORAGE": "other"}}):
            found = load_checkpoint("moved")
            collected = cleanups.collect_orphans()
            with django_capture_on_commit_callbacks(execute=True):
                for number in (1, 2):
                    save_checkpoint("moved", {"w": np.full(30_000, number)}, keep_last=2)

    assert found["w"].sum() == 0
    assert collected == 1
    assert set(Checkpoint.objects.values_list("storage", flat=True)) == {"other"}
    assert list(folder.iterdir()) == []
