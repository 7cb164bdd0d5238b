from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from resilience.exceptions import CheckpointError
from resilience.runs import randomness
from tests.runs.test_formats import loaded, stored


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(3).tolist()]  # noqa: NPY002  # the global one is meant


def test_restore__draws_what_would_have_been_drawn() -> None:
    """After a round trip through a checkpoint the generators go on where they were."""
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002  # leaves a cached Gaussian behind
    name, data = stored({"random": randomness.capture()})
    expected = draws()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global one is meant

    randomness.restore(loaded(name, data)["random"])

    assert draws() == expected
    assert name == "json", "small enough to stay in the row"


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_restore__own_generators_of_every_kind(bits: Any) -> None:
    """Generators that the user passes are captured too, whatever their algorithm."""
    generator = np.random.Generator(bits(3))
    generator.standard_normal(5)
    generator.integers(0, 9, dtype="i4")
    captured = loaded(*stored(randomness.capture({"data": generator})))
    expected = generator.standard_normal(5).tolist(), generator.integers(0, 9, 5).tolist()
    other = np.random.Generator(bits(4))

    randomness.restore(captured, {"data": other})

    assert (other.standard_normal(5).tolist(), other.integers(0, 9, 5).tolist()) == expected


@pytest.mark.parametrize("given", [{}, {"other": None}, {"data": None, "more": None}])
def test_restore__names_generators_that_do_not_fit(given: dict[str, Any]) -> None:
    """A generator that was forgotten is an error, not a silent difference in the numbers."""
    captured = randomness.capture({"data": np.random.default_rng(1)})
    before = random.getstate()

    with pytest.raises(CheckpointError, match="generators must be those that were captured, but they differ in: "):
        randomness.restore(captured, {name: np.random.default_rng(2) for name in given})

    assert random.getstate() == before


def test_capture__imports_nothing() -> None:
    """A process without NumPy and PyTorch captures `random` alone, and stays without them."""
    code = (
        "import sys; from resilience.runs import randomness; state = randomness.capture(); randomness.restore(state); "
        "print(sorted(state), {'numpy', 'torch'} & set(sys.modules))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == "['random'] set()"


def test_restore__torch() -> None:
    """PyTorch's generator goes on where it was."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: run `pip install torch` to test it")
    captured = loaded(*stored(randomness.capture()))
    expected = torch.rand(3).tolist()

    randomness.restore(captured)

    assert torch.rand(3).tolist() == expected
