"""How a signal's arguments become the labels and the amount of one reading, and the instruments that read them."""

from __future__ import annotations

from collections.abc import Callable

from django.dispatch import Signal

from resilience.circuits.memory import GeneratedName
from resilience.observability.instruments import Arguments, Instrument, Reading

__all__ = ["amount", "counter", "fallback", "fixed", "histogram", "one", "part", "transition"]


def one(*fields: str) -> Callable[[Arguments], Reading]:
    """Count one, labelled by the named arguments."""
    return lambda arguments: (tuple(_label(arguments[field]) for field in fields), 1)


def amount(amount: str, *fields: str) -> Callable[[Arguments], Reading]:
    """Take an argument as the amount, labelled by the other named arguments."""
    return lambda arguments: (tuple(_label(arguments[field]) for field in fields), float(arguments[amount]))


def fixed(value: str, *fields: str) -> Callable[[Arguments], Reading]:
    """Count one, labelled by the named arguments and one fixed value behind them."""
    return lambda arguments: ((*(_label(arguments[field]) for field in fields), value), 1)


def part(amount: str, outcome: str, *fields: str) -> Callable[[Arguments], Reading]:
    """Take an argument as the amount, labelled by the other named arguments and a fixed outcome."""
    return lambda arguments: ((*(_label(arguments[field]) for field in fields), outcome), float(arguments[amount]))


def transition(arguments: Arguments) -> Reading:
    """Count one change of state: which, from, to, and whether a person made it."""
    move = arguments["transition"]
    return (_label(arguments["name"]), str(move.old), str(move.new), "manual" if getattr(move, "actor", "") else "auto"), 1


def fallback(arguments: Arguments) -> Reading:
    """Count one answer of a fallback, and whether it failed too."""
    return (_label(arguments["name"]), "error" if arguments["failed"] else "ok"), 1


def _label(value: object) -> str:
    """Return a value as a label; names without end count as their kind."""
    return value.kind if isinstance(value, GeneratedName) else str(value)


def counter(  # noqa: PLR0917  # a row of the catalogue, read by column
    name: str, unit: str, description: str, labels: tuple[str, ...], signal: Signal, read: Callable[[Arguments], Reading]
) -> Instrument:
    """Return a counter."""
    return Instrument(name=name, kind="counter", unit=unit, description=description, labels=labels, signal=signal, read=read)


def histogram(  # noqa: PLR0917  # a row of the catalogue, read by column
    name: str, unit: str, description: str, labels: tuple[str, ...], signal: Signal, read: Callable[[Arguments], Reading]
) -> Instrument:
    """Return a histogram."""
    return Instrument(name=name, kind="histogram", unit=unit, description=description, labels=labels, signal=signal, read=read)
