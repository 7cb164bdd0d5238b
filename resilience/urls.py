"""URLs to include in a project: the health endpoint.

`path("health/", include("resilience.urls"))` gives `health/` and `health/ready/` (readiness) and `health/live/`.
"""

from __future__ import annotations

from django.urls import URLPattern, path

from resilience import health

app_name = "resilience"
urlpatterns: list[URLPattern] = [
    path("", health.ready, name="health"),
    path("ready/", health.ready, name="ready"),
    path("live/", health.live, name="live"),
]
