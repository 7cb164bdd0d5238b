"""Tell the world about a change of state: the callbacks of the circuit and the signals of the app."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

from django.dispatch import Signal

from resilience import signals
from resilience.circuits.config import CircuitBreakerConfig, CircuitState
from resilience.circuits.judging import is_control_flow
from resilience.circuits.records import OPEN_STATES, Record, Transition
from resilience.redaction import log_exception

__all__ = ["announce"]

logger = logging.getLogger("resilience.circuits")


def announce(name: str, config: CircuitBreakerConfig, sender: type, record: Record, *, operated: bool) -> None:
    """Fire what listens to a change that this process made; a listener that fails is logged and breaks nothing.

    Args:
        name: The circuit's name.
        config: Has the callbacks.
        sender: Sender of the signals.
        record: The generation that began.
        operated: Whether somebody asked for it.
    """
    transition = record.transition(name)
    callback, signal = _listeners(config, record)
    if callback is not None:
        _call_back(callback, transition)
    if signal is not None:
        signals.emit(signal, sender, name=name, transition=transition)
    if operated:
        signals.emit(signals.circuit_operated, sender, name=name, transition=transition, actor=record.actor)


def _listeners(config: CircuitBreakerConfig, record: Record) -> tuple[Callable[..., object] | None, Signal | None]:
    if record.state in OPEN_STATES:
        return config.on_open, signals.circuit_opened
    if record.state is CircuitState.HALF_OPEN:
        return config.on_half_open, signals.circuit_half_opened
    if record.state is CircuitState.CLOSED and record.old is not CircuitState.CLOSED:
        return config.on_close, signals.circuit_closed
    return None, None


def _call_back(callback: Callable[..., object], transition: Transition) -> None:
    try:
        if _wants_transition(callback):
            callback(transition)
        else:
            callback()
    except Exception as error:
        if is_control_flow(error):
            raise
        extra = {"circuit": transition.name}
        log_exception(logger, "A callback of circuit %r failed.", transition.name, error=error, extra=extra)


def _wants_transition(callback: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        parameter.kind is parameter.VAR_POSITIONAL
        or (
            parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
            and parameter.default is parameter.empty
        )
        for parameter in parameters
    )
