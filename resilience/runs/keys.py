"""From a call's arguments to the key of its run and to the hashes of its configuration."""

from __future__ import annotations

import hashlib
import inspect
import json
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from resilience.runs.stored_values import is_storable

__all__ = ["KeyTemplate", "changed_names", "check_key", "hash_config", "hash_value"]

_LONGEST_KEY = 255


class KeyTemplate:
    """A run's key with places for the arguments of the call, as "train:{model_run_id}".

    Args:
        template: The key; `{name}` stands for the argument of that name.
        function: The function whose first parameter is `run` and whose others the template names.

    Raises:
        ValueError: The template is empty, or names something that is no parameter.

    Example:
        >>> template = KeyTemplate("train:{model_run_id}", lambda run, model_run_id, rate=0.1: None)
        >>> template.resolve((7,), {"rate": 0.2})
        ('train:7', {'rate': 0.2})
    """

    def __init__(self, template: Any, function: Callable[..., Any]) -> None:
        if not isinstance(template, str) or not template:
            raise ValueError(f"key must be a text such as 'train:{{model_run_id}}', not {template!r}. Name what makes a run one.")
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind not in {parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD}:
            raise ValueError(f"{_name(function)} must take the run as its first argument. Write def {_name(function)}(run, ...).")
        self.template: str = template
        self.signature = inspect.Signature(parameters[1:])
        self.fields = self._fields()

    def _fields(self) -> tuple[str, ...]:
        fields = [field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None]
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.signature.parameters.values())
        for field in fields:
            if not field.isidentifier() or not (takes_any or field in self.signature.parameters):
                known = ", ".join(self.signature.parameters) or "none"
                raise ValueError(f"key {self.template!r} must name arguments of the call, not {field!r}. Use one of: {known}.")
        return tuple(dict.fromkeys(fields))

    def resolve(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the key, and the arguments outside it, for one call.

        Raises:
            TypeError: The arguments do not fit the function.
            ValueError: A field of the key is missing, or the key is too long.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                values.update(values.pop(parameter.name))
        for field in self.fields:
            if values.get(field) is None or values[field] == "":
                raise ValueError(f"key {self.template!r} must find a value for {field!r}, not {values.get(field)!r}. Pass it.")
        key = check_key(self.template.format_map({field: values.pop(field) for field in self.fields}))
        return key, values


def check_key(key: Any) -> str:
    """Return `key` if it can be stored.

    Raises:
        ValueError: It is empty, longer than 255 characters, or has characters that databases refuse.
    """
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY:
        raise ValueError(f"key must be a text of 1 to {_LONGEST_KEY} characters, not {key!r:.80}. Put an id in it, not the data.")
    if not is_storable(key):
        raise ValueError(f"key must be without NUL characters and lone surrogates, not {key!r:.80}. Put an id in it.")
    return key


class _Encoder(DjangoJSONEncoder):
    """Also takes bytes, which task queues carry."""

    def default(self, o: Any) -> Any:
        return o.hex() if isinstance(o, bytes) else super().default(o)


def hash_value(value: object) -> str:
    """Return a short hash of one argument that is the same in every process.

    Example:
        >>> hash_value({"b": 1, "a": 2}) == hash_value({"a": 2, "b": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, cls=_Encoder, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the arguments with a hash of each value; the values themselves are not in it.

    Raises:
        TypeError: A value is not JSON.
    """
    hashes = {}
    for name, value in sorted(config.items()):
        try:
            hashes[name] = hash_value(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"the configuration's {name!r} must be JSON ({error}). Pass an id, or plain values.") from error
    return hashes


def changed_names(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names whose hashes differ, sorted.

    Example:
        >>> changed_names({"rate": "1", "size": "2"}, {"rate": "3", "size": "2"})
        ('rate',)
    """
    return tuple(sorted(name for name in {*old, *new} if old.get(name) != new.get(name)))


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
