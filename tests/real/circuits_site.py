"""A site whose views call one guarded service, for gunicorn: the circuit is made and used before the workers are forked."""

from __future__ import annotations

import json
import os
import time

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path
from redis.backoff import NoBackoff
from redis.retry import Retry

settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": os.environ["TEST_CACHE"],
            "OPTIONS": {"socket_timeout": 0.3, "socket_connect_timeout": 0.3, "retry": Retry(NoBackoff(), 0)},
        }
    },
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["resilience"],
    LOGGING_CONFIG=None,
    ROOT_URLCONF=__name__,
    SECRET_KEY="tests-only",
    USE_TZ=True,
)
django.setup()

from resilience import CircuitOpenError, circuit_breaker, signals  # noqa: E402  # after django.setup()

events = []


def note(transition, **kwargs):
    events.append(str(transition.new))


for kind in ("opened", "half_opened", "closed"):
    getattr(signals, f"circuit_{kind}").connect(note, weak=False)


@circuit_breaker("dependency", **json.loads(os.environ["TEST_CIRCUIT"]))
def service(outcome):
    """Do what the request asks for."""
    time.sleep(0.01)
    if outcome == "fail":
        raise ConnectionError("down")


def call(request, outcome):
    """Tell how the call ended, how long it took, and which process answered."""
    started = time.monotonic()
    try:
        service(outcome)
        answer = "fine"
    except CircuitOpenError:
        answer = "refused"
    except ConnectionError:
        answer = "failed"
    return JsonResponse({"pid": os.getpid(), "answer": answer, "seconds": time.monotonic() - started, "events": events})


urlpatterns = [path("<str:outcome>/", call)]
application = get_wsgi_application()
service("fine")
