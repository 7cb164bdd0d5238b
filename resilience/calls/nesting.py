"""Retries inside retries: the level that gave up leaves a mark on the exception, so that the levels around pass it on.

Three levels of three attempts would otherwise make 27 calls. Nothing is kept while calls succeed: what a level has
to know, it reads off the exception when there is one.
"""

from __future__ import annotations

import contextlib

__all__ = ["annotate", "gave_up", "mark_gave_up", "marks"]

_ATTRIBUTE = "_resilience_gave_up"
#: When the latest note was written, as `marks.count` has it, and the notes of that call.
_NOTES = "_resilience_notes"


class _Marks:
    """How many marks and notes this process has given; a call notes the count at its start, to tell old marks from its own."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


marks = _Marks()


class _Mark(int):
    """What `marks.count` was. It says nothing in another process: there, what was given up was given up just now."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[float], tuple[str]]:
        return float, ("inf",)  # builtins alone: whoever reads it need not have this package


def mark_gave_up(exc: BaseException) -> None:
    """Mark an exception as given up after retries, so that no level around retries it again.

    Example:
        >>> error = TimeoutError()
        >>> mark_gave_up(error)
        >>> gave_up(error)
        True
    """
    marks.count += 1
    # A frozen dataclass takes no mark; the levels around it then decide by themselves.
    with contextlib.suppress(Exception):
        setattr(exc, _ATTRIBUTE, _Mark(marks.count))


def gave_up(exc: BaseException, since: int = 0) -> bool:
    """Tell whether a level further in has given this exception up.

    Args:
        exc: The exception that came out.
        since: `marks.count` at the start of the call, so that the mark of an earlier call on an exception object that
            is raised again (a module's constant, a test's `side_effect`) does not count.
    """
    return bool(exc.__dict__.get(_ATTRIBUTE, 0) > since)


def annotate(exc: BaseException, note: str, since: int | None = None) -> None:
    """Add a note to an exception that takes one; a frozen dataclass passes without it.

    Args:
        exc: The exception.
        note: What to add.
        since: `marks.count` at the start of the call: notes of an earlier call on an exception object that is raised
            again go, so that they do not pile up. Those of levels further in stay.

    Example:
        >>> error = TimeoutError()
        >>> annotate(error, "the second time today")
        >>> error.__notes__
        ['the second time today']
    """
    with contextlib.suppress(Exception):
        written, notes = exc.__dict__.get(_NOTES, (0, ()))
        if since is not None and written <= since:
            exc.__notes__ = [other for other in getattr(exc, "__notes__", ()) if other not in notes]
            notes = ()
        exc.add_note(note)
        marks.count += 1
        setattr(exc, _NOTES, (_Mark(marks.count), (*notes, note)))
