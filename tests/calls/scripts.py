"""Functions that do what a script says, and a clock that only sleeping moves."""

from __future__ import annotations

import asyncio


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        #: Seconds that each sleep takes longer than asked.
        self.oversleeps = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds + self.oversleeps

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)


class Script:
    """A function that does one step a call, the last one for ever: raises exceptions, returns everything else.

    Args:
        steps: What to do.
        takes: Seconds each call takes on `time`.
        time: The clock to move.
    """

    def __init__(self, *steps: object, takes: float = 0, time: FakeTime | None = None) -> None:
        self.steps = steps
        self.calls = 0
        self.takes, self.time = takes, time
        self.is_warming_up = False

    def __call__(self) -> object:
        if self.is_warming_up:
            return None
        step = self.steps[min(self.calls, len(self.steps) - 1)]
        self.calls += 1
        if self.time is not None:
            self.time.now += self.takes
        if isinstance(step, BaseException):
            raise step
        return step

    async def run(self) -> object:
        await asyncio.sleep(0)
        return self()
