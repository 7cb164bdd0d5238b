"""Values of the user in a form that every database keeps in its columns of text and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from resilience.exceptions import CheckpointError

__all__ = ["LONGEST", "as_json", "as_metrics", "is_storable"]

#: Most bytes of JSON that a row keeps of a result: much less than any database takes in one statement.
LONGEST = 1_048_576


def as_json(value: object) -> object:
    """Return what JSON keeps of `value`, as every database holds it; None if it keeps nothing.

    That need not be equal: tuples become lists, dates and decimals become texts.

    Raises:
        ValueError: It is longer than `LONGEST`.

    Example:
        >>> as_json((1, "a")), as_json(object())
        ([1, 'a'], None)
    """
    try:
        text = json.dumps(value, cls=DjangoJSONEncoder, allow_nan=False, ensure_ascii=False)
        kept = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    if not is_storable(text) or "\\u0000" in text:
        return None
    if (size := len(text.encode())) > LONGEST:
        raise ValueError(
            f"result must be at most {LONGEST} bytes as JSON, not {size}. Return an id, and store the data elsewhere."
        )
    return kept


def as_metrics(metrics: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metrics as every database stores them: numbers of NumPy and PyTorch as plain ones, NaN and infinities as text.

    A loss that became NaN must not stop the training: it is kept to be seen, and is never the best.

    Args:
        metrics: Names to numbers, texts, booleans or None.

    Raises:
        CheckpointError: A value is something else, or a name is no string (reason "unstorable").

    Example:
        >>> as_metrics({"loss": float("nan"), "accuracy": 0.5})
        {'loss': 'nan', 'accuracy': 0.5}
    """
    plain = {}
    for name, value in metrics.items():
        item = _plain(value)
        if type(name) is not str or not (item is None or isinstance(item, (bool, int, float, str))):
            path = f"metrics[{name!r}]"
            raise CheckpointError(
                f"{path} must be a number under a string, not {type(value).__name__}. Give figures here, all else in the state.",
                "unstorable",
                path,
            )
        if not is_storable(name) or (isinstance(item, str) and not is_storable(item)):
            path = f"metrics[{name!r}]"
            raise CheckpointError(
                f"{path} must be without NUL characters and lone surrogates. Give figures here.", "unstorable", path
            )
        plain[name] = str(float(item)) if isinstance(item, float) and not math.isfinite(item) else item
    return plain


def is_storable(text: str) -> bool:
    r"""Tell whether every database takes a text: PostgreSQL refuses NUL, and all of them half a pair of surrogates.

    Example:
        >>> is_storable("naïve"), is_storable("nul: \0")
        (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _plain(value: Any) -> Any:
    """Return the number in a scalar, an array or a tensor of one element; everything else as it is."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value
