"""One project in two kinds of processes: gunicorn serves pages and /metrics, a Celery worker runs tasks; both count."""

from __future__ import annotations

import os
from pathlib import Path

import django
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402  # after django.setup()
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

import tests.urls  # noqa: E402
from resilience import circuit_breaker, resumable_task, retry  # noqa: E402
from resilience.observability import prometheus  # noqa: E402

prometheus.register()
FOLDER = Path(os.environ["TEST_SITE_FOLDER"])

app = Celery("site", broker="filesystem://")
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
app.set_default()


def work() -> int:
    """Make one call through a circuit, with one failure before it."""
    left = [ConnectionRefusedError("first")]

    @retry(max_attempts=2, delay=0)
    @circuit_breaker("upstream", failure_threshold=10_000)
    def upstream() -> int:
        if left:
            raise left.pop()
        return os.getpid()

    return upstream()


def serve_work(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(work()))


tests.urls.urlpatterns += [path("metrics", prometheus.metrics), path("work", serve_work)]
application = get_wsgi_application()


@app.task(name="work")
def work_task() -> None:
    (FOLDER / f"worked-{work()}-{os.urandom(4).hex()}").touch()


@resumable_task(key="train:{number}")
def train(run, number: int) -> None:
    for step in run.steps(3):
        run.checkpoint({"step": step})
