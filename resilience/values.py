"""Checks of the numbers that users give: one rule and one wording for all options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeGuard

__all__ = ["checked_count", "checked_number", "checked_seconds", "is_number", "is_whole"]


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether `value` is a number that can be reckoned with; True, NaN, infinities and what no float can hold are none.

    Example:
        >>> is_number(1), is_number(True), is_number(float("nan")), is_number("1")
        (True, False, False, False)
    """
    return _is_real(value) and _is_finite(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether `value` is a whole number; True and False are none.

    Example:
        >>> is_whole(1), is_whole(True), is_whole(1.0)
        (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def checked_number(name: str, value: object, rule: str, advice: str, fits: Callable[[float], bool]) -> float:
    """Return a finite number that keeps a rule.

    Args:
        name: The option's name, for the message.
        value: What was given.
        rule: What it must be, for the message.
        advice: The sentence that tells what to do instead.
        fits: Whether a number keeps the rule.

    Raises:
        TypeError: `value` is no number.
        ValueError: `value` is not finite or breaks the rule.

    Example:
        >>> checked_number("ratio", 0.2, "a number above 0", "Use 0.2 if in doubt.", lambda number: number > 0)
        0.2
    """
    return _checked(value, fits, f"{name} must be {rule}, not {value!r}. {advice}")


def checked_count(name: str, value: object, least: int, advice: str) -> int:
    """Return a whole number that is not below `least`.

    Raises:
        TypeError: `value` is no whole number.
        ValueError: `value` is below `least`.

    Example:
        >>> checked_count("max_attempts", 0, 1, "It counts all calls: use 1 not to retry.")
        Traceback (most recent call last):
        ValueError: max_attempts must be a whole number of 1 or more, not 0. It counts all calls: use 1 not to retry.
    """
    message = f"{name} must be a whole number of {least} or more, not {value!r}. {advice}"
    if not is_whole(value):
        raise TypeError(message)
    if value < least:
        raise ValueError(message)
    return value


def checked_seconds(name: str, value: object, advice: str, *, zero: bool = False, or_none: bool = False) -> float:
    """Return a duration in seconds.

    Args:
        name: The option's name, for the message.
        value: A number of seconds or a `timedelta`.
        advice: The sentence that tells what to do instead.
        zero: Whether 0 is allowed.
        or_none: Whether the message is to name None too, which the caller lets pass itself.

    Raises:
        TypeError: `value` is no duration.
        ValueError: `value` is not finite or out of range.

    Example:
        >>> checked_seconds("max_wait", timedelta(minutes=1), "Use 0 to refuse at once.", zero=True)
        60.0
    """
    rule = ("0 or more seconds" if zero else "a number of seconds above 0") + (" or None" if or_none else "")
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    message = f"{name} must be {rule}, not {value!r}. {advice}"
    return float(_checked(seconds, lambda number: number >= 0 if zero else number > 0, message))


def _checked(value: object, fits: Callable[[float], bool], message: str) -> float:
    if not _is_real(value):
        raise TypeError(message)
    if not (_is_finite(value) and fits(value)):
        raise ValueError(message)
    return value


def _is_real(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    # Not math.isfinite, which raises for a whole number beyond the floats.
    return abs(value) <= sys.float_info.max
