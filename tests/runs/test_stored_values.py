from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from resilience import open_run
from resilience.exceptions import CheckpointError
from resilience.runs.models import Run
from resilience.runs.stored_values import as_metrics


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (0.5, 0.5),
        (3, 3),
        (True, True),
        (None, None),
        ("warm-up", "warm-up"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (np.float32(0.25), 0.25),
        (np.float64("nan"), "nan"),
        (np.int64(7), 7),
        (np.array(1.5), 1.5),
    ],
)
def test_as_metrics__gives_what_every_database_stores(value: object, stored: object) -> None:
    """Figures of NumPy and losses that became NaN are stored, not errors of the database."""
    result = as_metrics({"loss": value})

    assert result == {"loss": stored}
    assert type(result["loss"]) is type(stored)


@pytest.mark.parametrize(
    ("metrics", "path"),
    [
        ({"w": [1]}, "metrics['w']"),
        ({3: 1.0}, "metrics[3]"),
        ({"w": np.ones(2)}, "metrics['w']"),
        ({"w": object()}, "metrics['w']"),
    ],
)
def test_as_metrics__refuses_what_is_no_figure(metrics: dict[Any, Any], path: str) -> None:
    """Anything else is named with its path."""
    with pytest.raises(CheckpointError, match="must be a number under a string") as caught:
        as_metrics(metrics)

    assert (caught.value.reason, caught.value.path) == ("unstorable", path)


def test_as_metrics__refuses_text_that_databases_refuse() -> None:
    """It is told with its name, not by the database."""
    with pytest.raises(CheckpointError, match="must be without NUL characters"):
        as_metrics({"note": "a\0"})


@pytest.mark.parametrize("text", ["nul \0", "half \ud800"])
def test_odd_text__ends_no_run(postgresql: str, text: str) -> None:
    """Characters that databases refuse, in messages, results and errors, cost nobody the run."""
    with open_run("odd", using=postgresql) as run:
        run.progress(1, 2, text)
        run.once("effect", lambda: {"said": text})
    with pytest.raises(ValueError, match="odd"), open_run("odd", using=postgresql):
        raise ValueError(f"odd {text}")

    row = Run.objects.using(postgresql).get()
    assert row.status == "failed"
    assert "ValueError: odd" in row.last_error
    assert row.message.startswith(("'nul", "'half"))


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
@pytest.mark.parametrize(("text", "kept"), [("bad byte \0", r"bad byte \0"), ("no file caf\udce9", r"no file caf\udce9")])
def test_open_run__notes_errors_that_no_database_could_store(
    server: str, text: str, kept: str, request: pytest.FixtureRequest
) -> None:
    """An odd character in a message neither hides the error nor leaves the run running."""
    alias = request.getfixturevalue(server)

    with pytest.raises(ValueError, match=r"bad byte|no file"), open_run("a", using=alias):
        raise ValueError(text)

    run = Run.objects.using(alias).get()
    assert (run.status, run.last_error) == ("failed", f"ValueError: {kept}")
