"""Circuits around blocks: `with` and `async with`, nested, in threads and in tasks."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple, Self

from resilience import clock
from resilience.circuits.config import CircuitBreakerConfig
from resilience.circuits.judging import Outcome, judge_error
from resilience.circuits.probes import Permit
from resilience.exceptions import CircuitOpenError

__all__ = ["Blocks"]


class _Entry(NamedTuple):
    """A `with` block under way; the blocks of one context form a stack."""

    breaker: Blocks
    permit: Permit | None
    started: float
    outer: _Entry | None


_entries: ContextVar[_Entry | None] = ContextVar("resilience_circuit_entries", default=None)


class Blocks:
    """The part of a breaker that is a context manager. One object serves any number of blocks at a time."""

    config: CircuitBreakerConfig

    def _admit(self) -> Permit | CircuitOpenError | None:
        raise NotImplementedError

    async def _aadmit(self) -> Permit | CircuitOpenError | None:
        raise NotImplementedError

    def _settle(self, permit: Permit, started: float, outcome: str, error: BaseException | None) -> None:
        raise NotImplementedError

    async def _asettle(self, permit: Permit, started: float, outcome: str, error: BaseException | None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._push(self._admit())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        entry = self._pop()
        if entry is not None and entry.permit is not None:
            outcome = Outcome.SUCCESS if error is None else judge_error(self.config, error)
            self._settle(entry.permit, entry.started, outcome, error)

    async def __aenter__(self) -> Self:
        self._push(await self._aadmit())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        entry = self._pop()
        if entry is not None and entry.permit is not None:
            outcome = Outcome.SUCCESS if error is None else judge_error(self.config, error)
            await self._asettle(entry.permit, entry.started, outcome, error)

    def _push(self, admitted: Permit | CircuitOpenError | None) -> None:
        if isinstance(admitted, CircuitOpenError):
            raise admitted
        _entries.set(_Entry(self, admitted, clock.monotonic(), _entries.get()))

    def _pop(self) -> _Entry | None:
        entry = _entries.get()
        if entry is None or entry.breaker is not self:
            # Left in another context than it was entered in; the permit's lease, if any, runs out by itself.
            return None
        _entries.set(entry.outer)
        return entry
