from __future__ import annotations

from typing import Any

import pytest

from resilience.runs.keys import KeyTemplate, changed_names, check_key, hash_value


def train(run: object, model: int, rate: float = 0.1, **options: Any) -> None:
    """What a task looks like."""


@pytest.mark.parametrize("template", ["", None, 7])
def test_template__must_be_a_text(template: Any) -> None:
    """Anything else is refused where the task is written."""
    with pytest.raises(ValueError, match="key must be a text such as"):
        KeyTemplate(template, train)


@pytest.mark.parametrize("function", [lambda: None, lambda *, run: None])
def test_function__must_take_the_run(function: Any) -> None:
    """A body that cannot take the run as its first argument is refused."""
    with pytest.raises(ValueError, match="must take the run as its first argument"):
        KeyTemplate("train:{model}", function)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((7,), {"size": 2}), ((), {"model": 7, "size": 2}), ((7, 0.1), {"size": 2})],
)
def test_resolve__the_same_call_has_one_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """By position or by name, with a default or without: the key and the rest are the same."""
    assert KeyTemplate("train:{model}", train).resolve(args, kwargs) == ("train:7", {"rate": 0.1, "size": 2})


@pytest.mark.parametrize("value", [None, ""])
def test_resolve__wants_a_value_for_each_field(value: Any) -> None:
    """Two runs without a name would be one."""
    with pytest.raises(ValueError, match="must find a value for 'model'"):
        KeyTemplate("train:{model}", train).resolve((value,), {})


@pytest.mark.parametrize("key", ["", "x" * 256, 7, None])
def test_check_key__refuses_what_cannot_be_stored(key: Any) -> None:
    """A key is a text of 1 to 255 characters, and the error does not repeat a long one."""
    with pytest.raises(ValueError, match="1 to 255 characters") as caught:
        check_key(key)

    assert len(str(caught.value)) < 200
    assert check_key("x" * 255) == "x" * 255


def test_hash_value__takes_bytes() -> None:
    """Task queues carry bytes, which JSON does not."""
    assert hash_value({"data": b"one"}) == hash_value({"data": b"one"})
    assert hash_value({"data": b"one"}) != hash_value({"data": b"two"})


def test_changed_names__tells_new_gone_and_changed() -> None:
    """Every difference is named, in order."""
    assert changed_names({"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "4", "d": "5"}) == ("a", "c", "d")
