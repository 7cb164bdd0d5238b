"""A Celery app whose children keep calling one guarded service that dies and recovers; what they meet goes to a Redis of its own."""

from __future__ import annotations

import json
import os
import time

import django
import redis
from celery import Celery
from celery.signals import worker_init
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

LEDGER, CACHE = os.environ["TEST_LEDGER"], os.environ["TEST_CACHE"]
#: Longest time a task calls the service, should nobody tell it to stop.
LONGEST = 120.0

settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": CACHE,
            "OPTIONS": {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "retry": Retry(NoBackoff(), 0)},
        }
    },
    INSTALLED_APPS=["resilience"],
    LOGGING_CONFIG=None,
    SECRET_KEY="tests-only",
    USE_TZ=True,
)
django.setup()

from resilience import CircuitOpenError, circuit_breaker, signals  # noqa: E402  # after django.setup()

app = Celery("circuits", broker=LEDGER)
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
ledger = redis.Redis.from_url(LEDGER)


def note(transition, **kwargs):
    ledger.rpush("events", json.dumps([transition.generation, transition.old, transition.new, transition.at]))


for kind in ("opened", "half_opened", "closed"):
    getattr(signals, f"circuit_{kind}").connect(note, weak=False)


@circuit_breaker("dependency", **json.loads(os.environ["TEST_CIRCUIT"]))
def service():
    """Fail while the ledger says so, and count on it how many calls run at once."""
    running = ledger.incr("running")
    try:
        ledger.rpush("calls", json.dumps([time.time(), os.getpid(), running]))
        time.sleep(0.02)
        if ledger.exists("down"):
            raise ConnectionError("down")
    finally:
        ledger.decr("running")


@worker_init.connect
def _use_before_fork(**kwargs):
    service()


@app.task
def traffic():
    """Call the service in a loop, until told to stop, and leave word of each outcome."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and not ledger.exists("stop"):
        try:
            service()
            outcome = "fine"
        except CircuitOpenError:
            outcome = "refused"
        except ConnectionError:
            outcome = "failed"
        except Exception as error:  # whatever else reaches a caller is what the test looks for
            outcome = repr(error)
        ledger.hset("latest", str(os.getpid()), outcome)
        ledger.hincrby("outcomes", outcome, 1)
        time.sleep(0.01)
