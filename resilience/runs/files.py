"""Files of checkpoints: written whole or not at all, hashed on the way, verified before they are read.

On a `FileSystemStorage` a file is written under a temporary name in its own directory, flushed to the disk and
renamed; the directory is flushed too. Other storages get it through `Storage.save` from a temporary file, under
a name that was never used before, so that nothing is ever overwritten. In both cases the file counts for nothing
until a row names it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from django.core.exceptions import SuspiciousFileOperation
from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage

from resilience.calls.classify import classify
from resilience.exceptions import CheckpointError
from resilience.runs.arrays import CHUNK
from resilience.runs.formats import Sink

__all__ = ["TEMPORARY", "SavedFile", "opened", "save"]

#: How the name of a file that is not finished ends.
TEMPORARY = ".tmp"

#: Shorter pieces are hashed at once: handing them to a thread would take longer.
_HASH_HERE = 256 * 1024
#: The disk is set to work each time so many bytes were written, long before the flush at the end waits for it.
_PUSH = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file as it lies in a storage.

    Args:
        name: Its name, as the storage gave it.
        size: Its length in bytes.
        sha256: Its SHA-256 in hex.
    """

    name: str
    size: int
    sha256: str


def save(storage: Storage, name: str, write: Callable[[Sink], None]) -> SavedFile:
    """Write a new file: when this returns it is whole and on the disk; when it raises there is none.

    Args:
        storage: Where to.
        name: A name that was never used.
        write: Writes the content to the file it is given.

    Raises:
        CheckpointError: The disk or the storage refused (reason "storage").
    """
    try:
        path = _local_path(storage, name)
        return _save_remote(storage, name, write) if path is None else _save_local(storage, name, path, write)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        if classify(error).is_control_flow:
            raise  # a time limit strikes anywhere, and is no fault of the disk
        raise CheckpointError(
            f"The checkpoint could not be stored ({type(error).__name__}: {_reason(error)}). "
            "The state is unharmed and the checkpoint before it is kept: free the disk or repair the storage.",
            "storage",
        ) from error


@contextmanager
def opened(storage: Storage, name: str, size: int, sha256: str) -> Iterator[IO[bytes]]:
    """Open a file for reading after its size and SHA-256 were verified.

    Raises:
        CheckpointError: It is gone or its bytes are others ("damaged"), or the storage does not answer ("storage").
    """
    with _source(storage, name) as source, ExitStack() as stack:
        try:
            file = source
            if not source.seekable():
                file = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(source, file, CHUNK)
                file.seek(0)
            _verify(file, size, sha256)
            file.seek(0)
        except OSError as error:
            raise _unreachable(error) from error
        yield file


def _local_path(storage: Storage, name: str) -> Path | None:
    """Return where a plain `FileSystemStorage` keeps a file; None for others, and for those that change what they store."""
    plain = isinstance(storage, FileSystemStorage) and all(
        getattr(type(storage), method) is getattr(FileSystemStorage, method) for method in ("_save", "_open")
    )
    return Path(storage.path(name)) if plain else None


def _save_local(storage: Storage, name: str, path: Path, write: Callable[[Sink], None]) -> SavedFile:
    assert isinstance(storage, FileSystemStorage)
    _make_directory(path.parent, storage.directory_permissions_mode)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        # O_EXCL: whoever put something there under our random name is no friend.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            if storage.file_permissions_mode is not None:
                os.fchmod(descriptor, storage.file_permissions_mode)
            size, sha256 = _write_hashed(file, write)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
        _flush_directory(path.parent)
    except BaseException:
        for leftover in (temporary, path):
            with suppress(OSError):
                leftover.unlink()
        raise
    return SavedFile(name, size, sha256)


def _save_remote(storage: Storage, name: str, write: Callable[[Sink], None]) -> SavedFile:
    with tempfile.TemporaryFile() as file:
        size, sha256 = _write_hashed(file, write)
        file.seek(0)
        stored_name = storage.save(name, File(file, name))
    with suppress(NotImplementedError):
        stored_size = storage.size(stored_name)
        if stored_size != size:
            raise OSError(f"the storage kept {stored_size} of {size} bytes")
    return SavedFile(stored_name, size, sha256)


def _write_hashed(file: IO[bytes], write: Callable[[Sink], None]) -> tuple[int, str]:
    with _HashingSink(file) as sink:
        write(sink)
    return sink.size, sink.sha256


class _HashingSink:
    """Write to a file and hash what was written, in a thread of its own once there is much of it.

    `hashlib` releases the GIL, so that a piece is hashed while it is written and the next one is made: it must not
    change until the next `write` returns. The threads end with the `with` block.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.size = 0
        self.sha256 = ""
        self._file = file
        self._digest = hashlib.sha256()
        self._pushed = 0
        self._threads: ThreadPoolExecutor | None = None
        self._hashing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._threads is not None:
            self._threads.shutdown()
        self.sha256 = self._digest.hexdigest()

    def write(self, data: Any) -> int:
        length = len(data)
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None
        if length < _HASH_HERE:
            self._digest.update(data)
        else:
            self._threads = self._threads or ThreadPoolExecutor(2, thread_name_prefix="resilience-save")
            self._hashing = self._threads.submit(self._digest.update, data)
        self._file.write(data)
        self.size += length
        if self._threads is not None and self.size - self._pushed >= _PUSH:
            self._threads.submit(_push, self._file.fileno(), self._pushed, self.size - self._pushed)
            self._pushed = self.size
        return length

    def flush(self) -> None:
        """Do nothing: the file is flushed once, when it is whole."""


def _push(descriptor: int, offset: int, length: int) -> None:
    """Let the disk begin with what was written; on Linux the advice that nobody will read it does so at once."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def _make_directory(directory: Path, mode: int | None) -> None:
    """Make a directory and what leads to it, so that they outlive a power cut."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for child in reversed(missing):
        with suppress(FileExistsError):
            child.mkdir()
            if mode is not None:
                child.chmod(mode)
        _flush_directory(child.parent)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _source(storage: Storage, name: str) -> Iterator[IO[bytes]]:
    try:
        file = storage.open(name, "rb")
    except Exception as error:
        if classify(error).is_control_flow:
            raise
        if isinstance(error, FileNotFoundError) or _is_gone(storage, name):
            raise CheckpointError("The checkpoint's file is gone. Use the checkpoint before it.", "damaged") from error
        raise _unreachable(error) from error
    try:
        yield file
    finally:
        file.close()


def _is_gone(storage: Storage, name: str) -> bool:
    try:
        return not storage.exists(name)
    except Exception as error:
        if classify(error).is_control_flow:
            raise
        return False  # a storage that cannot tell has not said that the file is gone


def _verify(file: IO[bytes], size: int, sha256: str) -> None:
    digest, length = hashlib.sha256(), 0
    while length <= size and (piece := file.read(CHUNK)):
        digest.update(piece)
        length += len(piece)
    if length != size or digest.hexdigest() != sha256:
        what = f"has {length} bytes instead of {size}" if length != size else "has another SHA-256 than when it was written"
        raise CheckpointError(f"The checkpoint's file {what}. Use the checkpoint before it.", "damaged")


def _unreachable(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint's storage does not answer ({type(error).__name__}: {_reason(error)}). Repair it and start the run again.",
        "storage",
    )


def _reason(error: Exception) -> str:
    """Say what an error of a storage means, without the paths and addresses in its message."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "the name leads out of the storage" if isinstance(error, SuspiciousFileOperation) else "see the cause"
