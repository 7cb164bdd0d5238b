"""A state as a JSON document, exactly: what comes back is equal, of the same type and in the same order.

JSON carries `None`, bools, ints, finite floats, strings, lists and dicts with string keys as they are. Everything
else is either written as a dict with one key that begins with "$", or refused with its path and type; nothing
is changed on the way, as plain `json` does with tuples and with keys that are numbers. Large parts (arrays,
tensors, long bytes) stay out of the document: it holds their number, and `formats` writes them as files.

| in the document | stands for |
|---|---|
| `{"$tuple": [...]}` | a tuple |
| `{"$dict": [[key, value], ...]}` | a dict with keys that are no strings, or that begin with "$" |
| `{"$ordered": [[key, value], ...]}` | an `OrderedDict` |
| `{"$float": "7ff8000000000000"}` | NaN and the infinities, bit for bit |
| `{"$int": "0x..."}` | an int above 1,024 bits |
| `{"$bytes": "..."}` | up to 1,024 bytes in base64 |
| `{"$datetime": ...}`, `$date`, `$time`, `$timedelta`, `$decimal`, `$uuid`, `$complex` | what the name says |
| `{"$scalar": ["<f4", "..."]}` | a NumPy scalar: its dtype and its bytes in hex |
| `{"$array": 0}`, `{"$blob": 0}`, `{"$tensor": [0, dtype, shape]}` | the file with that number |
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import math
import struct
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from resilience.exceptions import CheckpointError
from resilience.runs import arrays

__all__ = ["MAX_DEPTH", "Encoder", "decode"]

#: How deeply dicts, lists and tuples may be nested.
MAX_DEPTH = 100

_LONG_INT_BITS = 1024
_LONG_BYTES = 1024


def _encode_datetime(value: dt.datetime | dt.time) -> list[Any]:
    zone = value.tzinfo
    name = zone.key if isinstance(zone, ZoneInfo) else None
    if zone is not None and name is None and type(zone) is not dt.timezone:
        raise ValueError(f"a time zone of type {type(zone).__name__}")
    text = (value.replace(tzinfo=None) if name else value).isoformat()
    return [text, name, value.fold]


def _decode_datetime(kind: type[Any], document: list[Any]) -> Any:
    text, name, fold = document
    value = kind.fromisoformat(text).replace(fold=fold)
    return value.replace(tzinfo=ZoneInfo(name)) if name else value


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def _from_bits(text: str) -> float:
    return struct.unpack(">d", bytes.fromhex(text))[0]  # type: ignore[no-any-return]  # struct is untyped


#: Types that are written as one tagged value: tag, to JSON, and back.
_SCALARS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    complex: ("$complex", lambda z: [_bits(z.real), _bits(z.imag)], lambda p: complex(*map(_from_bits, p))),
    dt.datetime: ("$datetime", _encode_datetime, lambda p: _decode_datetime(dt.datetime, p)),
    dt.time: ("$time", _encode_datetime, lambda p: _decode_datetime(dt.time, p)),
    dt.date: ("$date", dt.date.isoformat, dt.date.fromisoformat),
    dt.timedelta: ("$timedelta", lambda d: [d.days, d.seconds, d.microseconds], lambda p: dt.timedelta(*p)),
    decimal.Decimal: ("$decimal", str, decimal.Decimal),
    uuid.UUID: ("$uuid", str, uuid.UUID),
}

_HINTS: dict[type, str] = {
    set: "Store sorted(...) and build the set again: a set has no order of its own.",
    frozenset: "Store sorted(...) and build the set again: a set has no order of its own.",
}
_HINT = "Store plain values, arrays or tensors, as in an object's state_dict(), or leave it out."


class Encoder:
    """Turn one state into a document and a list of large parts.

    `parts` holds what stays out of the document, in the order of its numbers: arrays, tensors and bytes.

    Example:
        >>> encoder = Encoder()
        >>> encoder.encode({"step": 3, "betas": (0.9, 0.999)})
        {'step': 3, 'betas': {'$tuple': [0.9, 0.999]}}
        >>> Encoder().encode({"model": {"tags": {1, 2}}})
        Traceback (most recent call last):
        ...
        resilience.exceptions.CheckpointError: state['model']['tags'] must be something a checkpoint can hold, not a set. ...
    """

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self._path: list[str] = []
        self._open: set[int] = set()

    def encode(self, value: Any) -> Any:
        """Return `value` as something `json.dumps` writes and `decode` reads back exactly.

        Raises:
            CheckpointError: The value, or something in it, cannot be stored; `path` says where.
        """
        kind = type(value)
        if value is None or kind is str or kind is bool:
            return value
        if kind is int:
            return value if value.bit_length() <= _LONG_INT_BITS else {"$int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": _bits(value)}
        if kind in {dict, list, tuple, OrderedDict}:
            return self._container(value, kind)
        return self._leaf(value, kind)

    def text(self, state: Any) -> str:
        """Return the document of `state` as JSON text in ASCII."""
        try:
            return json.dumps(self.encode(state), separators=(",", ":"), allow_nan=False)
        except RecursionError:
            raise self._refusal("must be nested less deep where so much of the stack is in use", "Flatten it.") from None

    def _container(self, value: Any, kind: type) -> Any:
        if id(value) in self._open:
            raise self._refusal("must not contain itself", "Break the cycle.")
        if len(self._path) >= MAX_DEPTH:
            raise self._refusal(f"must be nested at most {MAX_DEPTH} deep, not deeper", "Flatten it.")
        self._open.add(id(value))
        try:
            if kind is list:
                return self._items(value)
            if kind is tuple:
                return {"$tuple": self._items(value)}
            if kind is OrderedDict:
                return {"$ordered": self._pairs(value)}
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self._at(f"[{key!r}]", item) for key, item in value.items()}
            return {"$dict": self._pairs(value)}
        finally:
            self._open.discard(id(value))

    def _items(self, values: Sequence[Any]) -> list[Any]:
        return [self._at(f"[{index}]", item) for index, item in enumerate(values)]

    def _pairs(self, value: dict[Any, Any]) -> list[list[Any]]:
        return [[self._at(f" key {key!r}", key), self._at(f"[{key!r}]", item)] for key, item in value.items()]

    def _at(self, step: str, value: Any) -> Any:
        self._path.append(step)
        encoded = self.encode(value)
        self._path.pop()
        return encoded

    def _leaf(self, value: Any, kind: type) -> Any:
        if kind is bytes:
            if len(value) > _LONG_BYTES:
                return {"$blob": self._part(value)}
            return {"$bytes": base64.b64encode(value).decode()}
        try:
            if kind in _SCALARS:
                tag, to_json, _ = _SCALARS[kind]
                return {tag: to_json(value)}
            if (scalar := arrays.scalar_to_json(value)) is not None:
                return {"$scalar": scalar}
            if arrays.is_array(value):
                arrays.check_array(value)
                return {"$array": self._part(value)}
            if arrays.is_tensor(value):
                dtype, shape = arrays.check_tensor(value)
                return {"$tensor": [self._part(value), dtype, shape]}
        except ValueError as error:
            raise self._refusal(f"must be something a checkpoint can hold, not {error}", _HINT) from None
        hint = _HINTS.get(kind, _HINT)
        raise self._refusal(f"must be something a checkpoint can hold, not {_described(kind)}", hint)

    def _part(self, value: Any) -> int:
        self.parts.append(value)
        return len(self.parts) - 1

    def _refusal(self, rule: str, hint: str) -> CheckpointError:
        path = "state" + "".join(self._path)
        return CheckpointError(f"{path} {rule}. {hint}", "unstorable", path)


def decode(document: Any, part: Callable[[str, int], Any]) -> Any:
    """Rebuild the state of a document that `Encoder.encode` made.

    Args:
        document: The document, as `json.loads` gives it.
        part: Returns the large part of the given kind ("array", "blob", "tensor") and number.

    Raises:
        CheckpointError: The document is not one, or has tags this version does not know.

    Example:
        >>> decode({"betas": {"$tuple": [0.9, 0.999]}}, part=None)
        {'betas': (0.9, 0.999)}
    """
    try:
        return _Decoder(part).decode(document)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        message = f"The checkpoint's document cannot be read ({type(error).__name__}). Use the checkpoint before it."
        raise CheckpointError(message, "damaged") from error


class _Decoder:
    """Rebuild the values of a document."""

    def __init__(self, part: Callable[[str, int], Any]) -> None:
        self._part = part
        self._tags: dict[str, Callable[[Any], Any]] = {
            "$tuple": lambda items: tuple(map(self.decode, items)),
            "$dict": lambda pairs: dict(map(self._pair, pairs)),
            "$ordered": lambda pairs: OrderedDict(map(self._pair, pairs)),
            "$float": _from_bits,
            "$int": lambda digits: int(digits, 16),
            "$bytes": lambda digits: base64.b64decode(digits, validate=True),
            "$scalar": arrays.scalar_from_json,
            "$array": lambda number: part("array", number),
            "$blob": lambda number: part("blob", number),
            "$tensor": lambda fields: arrays.tensor_from_bytes(part("tensor", fields[0]), *fields[1:]),
            **{tag: back for tag, _, back in _SCALARS.values()},
        }

    def decode(self, document: Any) -> Any:
        if isinstance(document, list):
            return [self.decode(item) for item in document]
        if not isinstance(document, dict):
            return document
        for key, value in document.items():
            if key.startswith("$"):
                if key not in self._tags or len(document) != 1:
                    raise CheckpointError(
                        f"The checkpoint holds {key!r}, which this version cannot read. Upgrade to the version that wrote it.",
                        "newer",
                    )
                return self._tags[key](value)
        return {key: self.decode(value) for key, value in document.items()}

    def _pair(self, pair: list[Any]) -> tuple[Any, Any]:
        key, value = pair
        return self.decode(key), self.decode(value)


def _described(kind: type) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
