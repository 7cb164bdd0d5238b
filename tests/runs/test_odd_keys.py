from __future__ import annotations

from typing import Any

import pytest

from resilience import load_checkpoint, open_run, save_checkpoint
from resilience.runs.models import Run

ODD_KEYS = {"empty": "", "long": "x" * 300, "surrogate": "a\ud800", "nul": "a\0b", "none": None, "number": 7}


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.django_db(transaction=True)), "postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    if request.param != "default":
        request.getfixturevalue(request.param)
    return str(request.param)


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=ODD_KEYS)
def test_checkpoints__odd_keys_are_told_alike_by_all(alias: str, key: Any) -> None:
    """What no database takes for a key is refused with the same words when it is saved, loaded or opened, and leaves no row."""
    calls = {
        "save": lambda: save_checkpoint(key, 1, using=alias),
        "load": lambda: load_checkpoint(key, using=alias),
        "open": lambda: open_run(key, using=alias).__enter__(),
    }
    told = {}

    for name, call in calls.items():
        with pytest.raises(ValueError, match="key must be") as caught:
            call()
        told[name] = str(caught.value)

    assert len(set(told.values())) == 1
    assert len(told["load"]) < 200
    assert not Run.objects.using(alias).exists()


@pytest.mark.parametrize("other", ["Case", "case "])
def test_load_checkpoint__gives_no_others_state(alias: str, other: str) -> None:
    """A database that takes two keys for one gives nobody a state that was stored under the other."""
    save_checkpoint("case", 1, using=alias)

    assert load_checkpoint(other, default="nothing", using=alias) == "nothing"
    assert load_checkpoint("case", using=alias) == 1
