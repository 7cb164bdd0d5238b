"""The runs pillar: long tasks that survive being killed and resume from a checkpoint.

To read the room, take one column after the other, from the top; `models` and `leases` are what all others stand on.

| a run's life | its work | its checkpoints | what is in them |
|---|---|---|---|
| `runs` open_run | `active` what a body gets | `schedules` when to save | `formats` which format |
| `attempts` one attempt | `steps` what it goes over | `background` beside the loop | `arrays`, `tensorfiles` |
| `sweeps` find the lost | `heartbeats` life and progress | `saves` commit under a lease | `encoding` plain values |
| `operations`, `wakeups` | `effects` once | `store` row or file | `signing` pickle |
| `leases` who may write | `options`, `keys` | `files` whole or not at all | `randomness` |
| `models` the rows | `checks` of the settings | `retention` what stays | `stored_values` beside it |
| | | `cleanups` what goes on request | |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazy import lazy_names

if TYPE_CHECKING:
    from resilience.runs.active import ActiveRun
    from resilience.runs.models import Checkpoint, Run
    from resilience.runs.options import RunConfig
    from resilience.runs.runs import load_checkpoint, open_run, save_checkpoint
    from resilience.runs.sweeps import SweepResult, sweep

__all__ = [
    "ActiveRun",
    "Checkpoint",
    "Run",
    "RunConfig",
    "SweepResult",
    "load_checkpoint",
    "open_run",
    "save_checkpoint",
    "sweep",
]

_NAMES = {
    "resilience.runs.active": ("ActiveRun",),
    "resilience.runs.models": ("Checkpoint", "Run"),
    "resilience.runs.options": ("RunConfig",),
    "resilience.runs.runs": ("load_checkpoint", "open_run", "save_checkpoint"),
    "resilience.runs.sweeps": ("SweepResult", "sweep"),
}

__getattr__ = lazy_names(__name__, _NAMES)
