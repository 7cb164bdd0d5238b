"""The Celery app whose workers the tests kill: real training on real data, and a log that survives everything."""

from __future__ import annotations

import os
import time
from pathlib import Path

import django
import environ
from celery import Celery
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
# A message may die with the child it was handed to; a minute of patience is too much for a test.
settings.RESILIENCE = {"RUNS": {"WAKE_AFTER": 2.0}}
django.setup()

from resilience import resumable_task  # noqa: E402  # settings first
from resilience import tasks as _tasks  # noqa: E402, F401  # registers the sweeper
from tests.real.runs_training import begin, data, digest, learn  # noqa: E402  # as above

env = environ.Env()
FOLDER = Path(env.str("RUNS_FOLDER", default="/tmp"))
BROKER = env.str("TEST_BROKER_URL", default="memory://")

app = Celery("runs", broker=BROKER)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options=env.json("RUNS_TRANSPORT", default={}),
    result_backend=env.str("RUNS_BACKEND", default=f"file://{FOLDER}/results"),
    worker_prefetch_multiplier=1,
    worker_soft_shutdown_timeout=env.float("RUNS_SOFT", default=0.0),
    task_acks_late=False,
    worker_hijack_root_logger=False,
)
(FOLDER / "results").mkdir(parents=True, exist_ok=True)
app.set_default()

OPTIONS = env.json("RUNS_OPTIONS", default={})
STEPS = env.int("RUNS_STEPS", default=60)
PAUSE = env.float("RUNS_PAUSE", default=0.02)


def note(*words: object) -> None:
    """Append one line to the log, in one write."""
    line = " ".join(map(str, words)) + f" {os.getpid()} {time.time():.4f}\n"
    with (FOLDER / "log").open("ab", buffering=0) as log:
        log.write(line.encode())


@resumable_task(key="digits:{number}", **{"lease": 1.0, "max_stalled_attempts": 10, **OPTIONS})
def train(run, number, steps=STEPS):
    """Train on the digits, one checkpoint a step."""
    x, y = data()
    state = run.state or begin()
    for step in run.steps(steps):
        note("step", number, step)
        state = learn(state, x, y)
        time.sleep(PAUSE)
        run.once(f"step:{step}", lambda step=step: _effect(number, step))
        run.checkpoint(state, metrics={"loss": state["losses"][-1]})
        note("done", number, step)
    return digest(state)


def _effect(number, step) -> None:
    from tests.testapp.models import RunsLedger

    RunsLedger.objects.create(number=number, step=step)


@resumable_task(key="crash:{number}", lease=1.0, max_stalled_attempts=3)
def crash(run, number, at=3):
    """Fail at the same step each time."""
    for step in run.steps(10):
        note("step", number, step)
        if step == at:
            raise ValueError("password=hunter2")
        run.checkpoint(step)


@resumable_task(key="hang:{number}", lease=30.0, max_stalled_attempts=2, time_limit=1)
def hang(run, number):
    """Get stuck in the same step each time, far within the lease."""
    for step in run.steps(10):
        note("step", number, step)
        if step == 3:
            time.sleep(60)
        run.checkpoint(step)
