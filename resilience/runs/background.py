"""Save checkpoints beside the training loop: one thread a run, the newest state wins, errors come back to the loop.

While one save is under way, later ones wait in a single place and replace each other, so that a storage slower
than the loop costs neither time nor memory without bound. The thread is started with the first save, ends with
`close`, and uses database connections of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from django.db import connections

__all__ = ["BackgroundSaver"]


class BackgroundSaver:
    """Run saves one after the other in a thread of its own; of those that wait only the newest is run.

    The job must not refer to anything the loop changes: prepare the state first and detach it,
    see `resilience.runs.formats.Payload.detach`.

    Example:
        >>> saved = []
        >>> with BackgroundSaver() as saver:
        ...     saver.submit(lambda: saved.append("step 1"))
        >>> saved
        ['step 1']
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: Callable[[], object] | None = None
        self._error: BaseException | None = None
        self._is_saving = False
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BackgroundSaver:  # noqa: PYI034  # final in all but name
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except BaseException as failure:
            if error is None:
                raise
            # The loop's own exception goes on; that a save failed too is told beside it.
            error.add_note(f"A background save failed too: {type(failure).__name__}")

    def submit(self, job: Callable[[], object]) -> None:
        """Let `job` save soon, in place of any that still waits.

        Raises:
            Exception: What an earlier save raised; `job` was taken all the same.
            RuntimeError: The saver was closed.
        """
        with self._changed:
            if self._is_closing:
                raise RuntimeError("A closed BackgroundSaver takes no more saves. Make a new one.")
            self._waiting = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="resilience-save", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            self._raise_error()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing waits or is being saved.

        Args:
            timeout: Seconds to wait at most; None waits for ever.

        Returns:
            Whether all is saved.

        Raises:
            Exception: What a save raised.
        """
        with self._changed:
            idle = self._changed.wait_for(lambda: self._waiting is None and not self._is_saving, timeout)
            self._raise_error()
            return idle

    def close(self) -> None:
        """Finish what waits, end the thread, and raise what the last save raised.

        Raises:
            Exception: What a save raised that `submit` or `wait` has not raised yet.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._raise_error()

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                error: BaseException | None = None
                try:
                    job()
                except BaseException as caught:  # noqa: BLE001  # carried to the loop's thread, where it is raised
                    error = caught
                self._done(error)
        finally:
            connections.close_all()

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._is_closing)
            job, self._waiting = self._waiting, None
            self._is_saving = job is not None
            return job

    def _done(self, error: BaseException | None) -> None:
        with self._changed:
            self._is_saving = False
            # A later save that succeeds does not hide that one failed.
            self._error = error or self._error
            self._changed.notify_all()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
