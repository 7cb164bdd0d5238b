"""A Celery app whose tasks raise Celery's own exceptions through every wrapper; each run and each publication leaves a line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import django
from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.signals import before_task_publish

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from resilience.calls.bulkheads import Bulkhead  # noqa: E402  # after django.setup()
from resilience.calls.fallbacks import fallback  # noqa: E402
from resilience.calls.retries import retry  # noqa: E402
from resilience.calls.timeouts import timeout  # noqa: E402
from resilience.celery_retries import retry_in_task  # noqa: E402
from resilience.policies import Policy  # noqa: E402

FOLDER = Path(os.environ["TEST_CELERY_FOLDER"])
LONG = 60.0

app = Celery("calls", broker="filesystem://")
for name in ("messages", "control"):
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER / "messages"),
        "data_folder_out": str(FOLDER / "messages"),
        "control_folder": str(FOLDER / "control"),
    },
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)


def note(*words: object) -> None:
    """Add one line to the log; short appends of several processes do not mix."""
    with (FOLDER / "log").open("a") as log:
        log.write(" ".join(map(str, words)) + "\n")


@before_task_publish.connect
def _published(headers, **kwargs):
    note("published", headers["id"])


def everything(func):
    policy = Policy(
        "everything",
        retry={"max_attempts": 3, "delay": 0, "exceptions": Exception},
        circuit={"scope": "process"},
        timeout=LONG,
        deadline=LONG,
        fallback="answered",
        bulkhead=Bulkhead("everything", 5),
    )
    return policy(func)


WRAPPERS = {
    "retry": retry(max_attempts=3, delay=0, exceptions=Exception),
    "fallback": fallback("answered", exceptions=BaseException),
    "timeout": timeout(LONG),
    "policy": everything,
    "retry_in_task": retry_in_task(max_attempts=3, delay=0, exceptions=Exception),
}


def body(self, wrapper, what):
    note("ran", self.request.id)
    if what == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    if what == "ignore":
        raise Ignore
    if what == "reject":
        raise Reject("bad", requeue=False)
    if what == "soft limit":
        time.sleep(LONG)
    if what == "exit":
        raise SystemExit(1)
    note("returned", self.request.id)


for wrapper_name, wrap in WRAPPERS.items():
    app.task(bind=True, name=wrapper_name, soft_time_limit=2)(wrap(body))


@app.task(bind=True, name="long waits")
@retry_in_task(max_attempts=4, delay=0.2, jitter=False, longer_than=0.3)
def long_waits(self):
    note("ran", self.request.id, self.request.retries)
    raise ConnectionRefusedError
