from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from resilience.exceptions import CheckpointError
from resilience.runs import signing

FIRST, SECOND = b"a" * 32, b"b" * 32


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def signed(state: object, *keys: bytes) -> bytes:
    file = io.BytesIO()
    signing.write(file, state, keys)
    return file.getvalue()


def load(data: bytes, *keys: bytes) -> Any:
    return signing.read(io.BytesIO(data), len(data), keys)


def test_read__returns_what_was_signed() -> None:
    """Anything pickle takes comes back, arrays larger than a piece included."""
    state = {"tags": {1, 2}, "w": np.arange(3_000_000), "model": Path("x")}

    result = load(signed(state, FIRST), FIRST)

    assert result["tags"] == {1, 2}
    assert result["w"].tobytes() == state["w"].tobytes()
    assert result["model"] == Path("x")


@pytest.mark.parametrize("keys", [(FIRST,), (SECOND, FIRST), (SECOND, b"c" * 32, FIRST)])
def test_read__any_key_of_the_list_verifies(keys: tuple[bytes, ...]) -> None:
    """After a rotation the old key stays at the list's end until its checkpoints are gone."""
    assert load(signed([1], FIRST), *keys) == [1]


def test_read__another_key_is_refused_before_anything_is_executed(tmp_path: Path) -> None:
    """The signature is checked first, the pickle not touched."""
    trap = tmp_path / "executed"

    with pytest.raises(CheckpointError, match=r'signed by none of RUNS\["SIGNING_KEYS"\], so it was not loaded') as caught:
        load(signed(Trap(trap), SECOND), FIRST)

    assert caught.value.reason == "unsigned"
    assert not trap.exists()


def test_read__a_bare_pickle_is_refused(tmp_path: Path) -> None:
    """Without a signature nothing is executed, short or long."""
    trap = tmp_path / "executed"

    for data in (pickle.dumps(Trap(trap)), b"", b"x" * 10, signing._MAGIC + pickle.dumps(Trap(trap)) + b"\0" * 32):
        with pytest.raises(CheckpointError) as caught:
            load(data, FIRST)
        assert caught.value.reason == "unsigned"

    assert not trap.exists()


@given(data=st.data())
def test_read__no_byte_can_be_changed(data: st.DataObject) -> None:
    """Every byte, the signature's included, is covered."""
    changed = bytearray(signed({"a": 1}, FIRST))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(CheckpointError) as caught:
        load(bytes(changed), FIRST)

    assert caught.value.reason == "unsigned"


def test_read__what_is_loaded_is_what_was_verified(tmp_path: Path) -> None:
    """A file that changes between the check and the load is not read twice."""
    good, trap = signed({"a": 1}, FIRST), tmp_path / "executed"
    evil = pickle.dumps(Trap(trap))

    class Turning(io.BytesIO):
        """Gives the good bytes once, and then an attacker's."""

        def seek(self, position: int, whence: int = 0) -> int:
            self.__init__(evil)  # type: ignore[misc]
            return super().seek(position, whence)

    assert signing.read(Turning(good), len(good), [FIRST]) == {"a": 1}
    assert not trap.exists()


def test_read__a_class_that_is_gone_is_told_as_such() -> None:
    """A pickle that needs code which is not deployed is not called damaged."""
    data = signed(Trap, FIRST).replace(b"Trap", b"Gone")
    import hmac

    resigned = data[:-32] + hmac.new(FIRST, data[:-32], "sha256").digest()

    with pytest.raises(
        CheckpointError, match=r"could not be loaded \(AttributeError\)\. Deploy the code that wrote it"
    ) as caught:
        load(resigned, FIRST)

    assert caught.value.reason == "configuration"


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({"a": [1, {"f": lambda: 0}]}, "state['a'][1]['f']"),
        ((1, (2, lambda: 0)), "state[1][1]"),
        (lambda: 0, "state"),
    ],
)
def test_write__names_the_part_that_cannot_be_pickled(state: object, path: str) -> None:
    """What pickle refuses is named with its path and type."""
    with pytest.raises(CheckpointError, match="must be something pickle can store, not a function") as caught:
        signed(state, FIRST)

    assert (caught.value.reason, caught.value.path) == ("unstorable", path)


def test_write__a_full_disk_is_not_taken_for_a_bad_state() -> None:
    """An error of the disk goes through as it is."""

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        signing.write(Full(), {"a": 1}, [FIRST])


@pytest.mark.parametrize("keys", [None, [], "a" * 40, b"a" * 40])
def test_signing_keys__there_must_be_a_list(keys: object) -> None:
    """No keys, or one string in the place of a list, is refused with what to do."""
    with override_settings(RESILIENCE={"RUNS": {"SIGNING_KEYS": keys}}), pytest.raises(CheckpointError, match="must be a list"):
        signing.signing_keys()


@pytest.mark.parametrize("keys", [[""], ["a" * 31], ["a" * 40, "short"]])
def test_signing_keys__must_be_long(keys: list[str]) -> None:
    """A key that could be guessed is refused."""
    with (
        override_settings(RESILIENCE={"RUNS": {"SIGNING_KEYS": keys}}),
        pytest.raises(CheckpointError, match="at least 32 bytes") as caught,
    ):
        signing.signing_keys()

    assert "short" not in str(caught.value)


def test_signing_keys__are_read_in_order() -> None:
    """Strings and bytes are taken, and the first one signs."""
    with override_settings(RESILIENCE={"RUNS": {"SIGNING_KEYS": ["a" * 32, SECOND]}}):
        assert signing.signing_keys() == [FIRST, SECOND]
