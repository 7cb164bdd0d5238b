"""Faults for the tests of long runs: die at the n-th save, rot a checkpoint, lose the lease, start at the same instant.

Use them around the code under test: a task that survives them here survives them on the worst night.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from unittest import mock

from django.core.files.base import ContentFile
from django.db import connections
from django.utils import timezone

from resilience import signals
from resilience.runs import files, store

if TYPE_CHECKING:
    from django.core.files.storage import Storage

    from resilience.runs.models import Checkpoint

__all__ = ["Crash", "Moment", "corrupt_checkpoint", "crash_at_save", "expire_lease", "race"]

Result = TypeVar("Result")

#: When to die: in the middle of writing the file, with the state stored but not committed, or right after the commit.
Moment = Literal["writing", "stored", "committed"]

Damage = Literal["flip", "truncate", "empty", "delete"]


class Crash(BaseException):
    """Stands for the end of the process in a test that cannot afford to die; `except Exception` does not stop it."""


@contextmanager
def crash_at_save(number: int, moment: Moment = "stored", *, kill: bool = False) -> Iterator[None]:
    """Die at the n-th save inside the block.

    Args:
        number: Which save, from 1.
        moment: When in the save. "writing" needs a state that goes to a file; a small JSON state dies as "stored".
        kill: True sends this process SIGKILL, for tests that start a worker of its own; False raises `Crash`, with
            which the run ends as if the process had been told to leave.

    Raises:
        Crash: At that moment, unless `kill`.
        ValueError: number or moment is out of range.

    Example:
        >>> from resilience import open_run
        >>> def work():
        ...     with open_run("docs:crash") as run:
        ...         for step in run.steps(5):
        ...             run.checkpoint({"last": step})
        ...         return run.state
        >>> try:
        ...     with crash_at_save(3, "committed"):
        ...         work()
        ... except Crash:
        ...     work()
        {'last': 4}
    """
    if number < 1:
        raise ValueError(f"number must be 1 or more, not {number!r}. The first save is 1.")
    if moment not in {"writing", "stored", "committed"}:
        raise ValueError(f"moment must be 'writing', 'stored' or 'committed', not {moment!r}. Choose one.")
    fault = _Fault(number, moment, kill)
    signals.checkpoint_saved.connect(fault.committed)
    try:
        with mock.patch.object(store, "write", fault.write), mock.patch.object(files, "save", fault.save):
            yield
    finally:
        signals.checkpoint_saved.disconnect(fault.committed)


def corrupt_checkpoint(key: str, damage: Damage = "flip", *, newest: int = 1) -> None:
    """Damage a stored checkpoint as a bad disk would.

    Args:
        key: The run's key.
        damage: Flip a bit in the middle, cut it in half, empty it, or delete the file (of a small state: its bytes).
        newest: Which one, counted from the newest, 1, on.

    Raises:
        LookupError: The run has not so many sound checkpoints.
        ValueError: There is no such damage.

    Example:
        >>> from resilience import load_checkpoint, save_checkpoint
        >>> for epoch in (1, 2):
        ...     save_checkpoint("docs:rot", {"epoch": epoch})
        >>> corrupt_checkpoint("docs:rot", "flip")
        >>> load_checkpoint("docs:rot")
        {'epoch': 1}
    """
    if damage not in {"flip", "truncate", "empty", "delete"}:
        raise ValueError(f"damage must be 'flip', 'truncate', 'empty' or 'delete', not {damage!r}. Choose one.")
    checkpoint = _sound_checkpoint(key, newest)
    if checkpoint.tier == "row":
        data = _damaged(bytes(checkpoint.data or b""), damage)
        type(checkpoint).objects.filter(pk=checkpoint.pk).update(data=data)
        return
    storage = store.storage(checkpoint.storage)
    with storage.open(checkpoint.name) as file:
        data = _damaged(file.read(), damage)
    storage.delete(checkpoint.name)
    if damage != "delete":
        _put(storage, checkpoint.name, data)


def expire_lease(key: str) -> None:
    """End the lease of a run as if its worker had been frozen for longer: another one may take it over now.

    What the first one still saves is refused.

    Args:
        key: The run's key.

    Raises:
        LookupError: There is no such run.
    """
    from resilience.runs.models import Run

    long_ago = timezone.now() - dt.timedelta(days=1)
    if not Run.objects.filter(key=key).update(lease_expires_at=long_ago):
        raise LookupError(f"key must be that of a run, not {key!r}. Start the run first.")


def race(*functions: Callable[[], Result], timeout: float = 30.0) -> list[Result | BaseException]:
    """Call functions at the same instant, each in a thread with database connections of its own.

    Args:
        functions: What to call.
        timeout: Seconds to wait for all of them.

    Returns:
        What each returned or raised, in order.

    Raises:
        TimeoutError: One of them did not end in time.

    Example:
        >>> race(lambda: 1, lambda: 1 / 0)
        [1, ZeroDivisionError('division by zero')]
    """
    results: list[Any] = [None] * len(functions)
    start = threading.Barrier(len(functions) or 1)

    def run(index: int, function: Callable[[], Result]) -> None:
        try:
            start.wait(timeout)
            results[index] = function()
        except BaseException as error:  # noqa: BLE001  # it is the result
            results[index] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=entry, daemon=True) for entry in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        if thread.is_alive():
            raise TimeoutError(f"A racer did not end within {timeout} s. Raise timeout, or look for a deadlock.")
    return results


class _Fault:
    """Counts saves and dies at the right moment of the right one."""

    def __init__(self, number: int, moment: Moment, kill: bool) -> None:
        self._number = number
        self._moment = moment
        self._kill = kill
        self._count = 0
        self._write = store.write
        self._save = files.save

    def write(self, *args: Any, **kwargs: Any) -> Any:
        self._count += 1
        stored = self._write(*args, **kwargs)
        if self._moment == "stored" or (self._moment == "writing" and stored.tier == "row"):
            self._die_if_due()
        return stored

    def save(self, storage: Storage, name: str, write: Callable[[Any], None]) -> Any:
        def write_a_little(sink: Any) -> None:
            sink.write(b"half of a checkpoint")
            self._die_if_due()

        is_due = self._moment == "writing" and self._count == self._number
        return self._save(storage, name, write_a_little if is_due else write)

    def committed(self, **arguments: Any) -> None:
        if self._moment == "committed":
            self._die_if_due()

    def _die_if_due(self) -> None:
        if self._count != self._number:
            return
        if self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Crash(f"crashed on purpose at save {self._number} ({self._moment})")


def _sound_checkpoint(key: str, newest: int) -> Checkpoint:
    from resilience.runs.models import Checkpoint

    rows = list(Checkpoint.objects.filter(run__key=key, status="good").order_by("-sequence")[:newest])
    if newest < 1 or len(rows) < newest:
        raise LookupError(f"newest must be 1 to the number of sound checkpoints of {key!r}, not {newest!r}. Save more first.")
    return rows[-1]


def _damaged(data: bytes, damage: Damage) -> bytes:
    middle = len(data) // 2
    if damage == "flip":
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return data[:middle] if damage == "truncate" else b""


def _put(storage: Storage, name: str, data: bytes) -> None:
    """Store bytes under exactly this name; it was deleted, so a storage has no reason to choose another."""
    saved = storage.save(name, ContentFile(data))
    if saved != name:
        raise RuntimeError(f"The storage stored {saved!r} instead of {name!r}. Damage its files by its own means.")
