"""What a run is asked to do: how often it saves, what it keeps, how long its lease is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from resilience.runs.formats import AUTO, FORMATS
from resilience.values import is_number, is_whole

__all__ = ["RunConfig"]

#: What the columns hold.
_MOST = {"max_stalled_attempts": 2**31 - 1, "schema": 2**15 - 1}
_LONGEST = 31_536_000
_POLICIES = ("fail", "resume", "restart")
_MODES = ("min", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The options of `resumable_task` and `open_run`.

    Args:
        every: Save every n-th state given to `run.checkpoint`; 1 or more.
        every_seconds: Save at most once in that many seconds; more than 0. None saves as `every` says. When both
            are given, both must be due.
        keep_last: How many of the newest checkpoints to keep; 1 or more. Keep at least 2, so that a damaged
            one has a predecessor.
        keep_best: Also keep the best ones by a metric, as `("accuracy", "max", 2)`: the name in `metrics`, "min" or
            "max", and how many.
        keep_every: Also keep each checkpoint whose step is a multiple of this; 1 or more.
        lease: Seconds that a worker holds the run beyond its last sign of life; more than 0. A worker that is frozen
            or cut off for longer loses the run to another.
        max_slice: Seconds after which a worker leaves the run to the next message, at the end of a step; more
            than 0. None works to the end.
        max_stalled_attempts: Attempts without progress before the run fails, the first included; 1 or more. None
            tries for ever.
        max_failed_saves: Saves that may fail in a row before the run's attempt fails; 1 or more.
        on_config_change: What to do when the configuration differs from the one the run was started with: "fail"
            raises `RunConfigChangedError`, "resume" goes on with the new one, "restart" forgets the checkpoints.
        format: Format of the checkpoints, see docs/runs.md; None asks `RUNS["FORMAT"]`.
        schema: Version of your own layout of the state; 1 or more. Raise it when the layout changes.
        migrate: Called with an older state and its version; returns the state in the layout `schema`.
        background: Save in a thread while the next steps run; the newest state waiting wins.
        rng: Store and restore the random numbers of `random`, NumPy and PyTorch with each checkpoint.

    Raises:
        ValueError: A value is out of range.
        TypeError: migrate is no function.

    Example:
        >>> RunConfig(every=10, keep_best=("accuracy", "max", 2)).keep_last
        3
    """

    every: int = 1
    every_seconds: float | None = None
    keep_last: int = 3
    keep_best: tuple[str, str, int] | None = None
    keep_every: int | None = None
    lease: float = 60.0
    max_slice: float | None = None
    max_stalled_attempts: int | None = 3
    max_failed_saves: int = 3
    on_config_change: Literal["fail", "resume", "restart"] = "fail"
    format: str | None = None
    schema: int = 1
    migrate: Callable[[Any, int], Any] | None = None
    background: bool = False
    rng: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in {AUTO, *FORMATS}:
            allowed = ", ".join(map(repr, (AUTO, *FORMATS)))
            raise ValueError(f"format must be one of {allowed}, not {self.format!r}. Leave it out to choose by content.")
        if self.migrate is not None and not callable(self.migrate):
            raise TypeError(f"migrate must be a function of a state and its version, not {self.migrate!r:.80}.")
        for name in ("every", "keep_last", "keep_every", "max_stalled_attempts", "max_failed_saves", "schema"):
            most = _MOST.get(name)
            _check_count(name, getattr(self, name), optional=name in {"keep_every", "max_stalled_attempts"}, most=most)
        for name in ("every_seconds", "lease", "max_slice"):
            _check_seconds(name, getattr(self, name), optional=name != "lease")
        if self.on_config_change not in _POLICIES:
            allowed = ", ".join(map(repr, _POLICIES))
            raise ValueError(f"on_config_change must be one of {allowed}, not {self.on_config_change!r}. Use 'fail' when unsure.")
        _check_best(self.keep_best)


def _check_count(name: str, value: object, *, optional: bool, most: int | None = None) -> None:
    if value is None and optional:
        return
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, not {value!r}. Use 1 for the smallest.")
    if most is not None and value > most:
        raise ValueError(f"{name} must be {most} or less, not {value!r}. Databases store no more.")


def _check_seconds(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {value!r}. Give seconds as a number.")
    if value > _LONGEST:
        raise ValueError(f"{name} must be {_LONGEST} seconds (a year) or less, not {value!r}. Give seconds as a number.")


def _check_best(value: Any) -> None:
    if value is None:
        return
    is_triple = isinstance(value, (tuple, list)) and len(value) == 3  # noqa: PLR2004  # name, direction and count
    if not is_triple or not isinstance(value[0], str) or value[1] not in _MODES:
        raise ValueError(f"keep_best must be (metric, 'min' or 'max', count), not {value!r}. Write ('accuracy', 'max', 2).")
    _check_count("the count of keep_best", value[2], optional=False)
