"""Telling how far a long piece of work has come: to a function of the caller's, or with a bar on stderr."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from resilience import clock
from resilience.redaction import log_exception

__all__ = ["Progress", "check_progress", "report_progress"]

logger = logging.getLogger("resilience.calls")

Progress = Callable[[int, int | None], object] | bool | None


def check_progress(progress: object) -> None:
    """Refuse what can neither be called nor means yes or no.

    Raises:
        TypeError: `progress` is of the wrong type.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(
            f"progress must be a function (done, total), True for a bar, or None, not {progress!r}. Leave it out for silence."
        )


@contextlib.contextmanager
def report_progress(progress: Progress, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of items done so far.

    A `progress` function that raises is logged once and not called again: the work is worth more than its bar.

    Args:
        progress: `(done, total)`, with a total of None when nobody knows it; True for a bar; None for nothing.
        name: What the bar is called.
        total: How many items there are, or None.

    Example:
        >>> with report_progress(lambda done, total: print(done, "of", total), "mails", 2) as report:
        ...     report(1)
        1 of 2
    """
    if callable(progress):
        yield _Guarded(progress, total)
    elif not progress:
        yield _ignore
    elif importlib.util.find_spec("rich") is not None:
        yield from _rich_bar(name, total)
    else:
        line = _TextLine(name, total, sys.stderr)
        yield line
        line.finish()


def _ignore(done: int) -> None:
    """Tell nobody."""


class _Guarded:
    __slots__ = ("_broken", "_progress", "_total")

    def __init__(self, progress: Callable[[int, int | None], object], total: int | None) -> None:
        self._progress = progress
        self._total = total
        self._broken = False

    def __call__(self, done: int) -> None:
        if self._broken:
            return
        try:
            self._progress(done, self._total)
        except Exception as error:  # noqa: BLE001  # logged, and not worth the work it tells of
            self._broken = True
            message = "The progress function failed and is not called again."
            log_exception(logger, message, error=error, level=logging.WARNING)


def _rich_bar(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)


class _TextLine:
    """One line, rewritten on a terminal; where stderr is a file, a new line every ten seconds."""

    __slots__ = ("_done", "_interval", "_is_terminal", "_name", "_shown", "_stream", "_total")

    def __init__(self, name: str, total: int | None, stream: TextIO) -> None:
        self._name, self._total, self._stream = name, total, stream
        self._is_terminal = stream.isatty()
        self._interval = 0.1 if self._is_terminal else 10.0
        self._shown = clock.monotonic()
        self._done = 0

    def __call__(self, done: int) -> None:
        self._done = done
        if clock.monotonic() - self._shown >= self._interval:
            self._show(end="\r" if self._is_terminal else "\n")

    def finish(self) -> None:
        self._show(end="\n")

    def _show(self, end: str) -> None:
        self._shown = clock.monotonic()
        share = f"/{self._total} ({self._done * 100 // self._total} %)" if self._total else ""
        self._stream.write(f"{self._name}: {self._done}{share}{end}")
        self._stream.flush()
