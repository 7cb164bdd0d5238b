from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from resilience.observability import prometheus

urlpatterns = [
    path("admin/", admin.site.urls),
    path("metrics", prometheus.metrics),
    path("resilience/", include("resilience.urls")),
]
