"""The demo's own page: what this is, and where the dashboard stands."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from project.demo.models import Digit, TrainedModel

__all__ = ["home"]


def home(request: HttpRequest) -> HttpResponse:
    """Show what the demo has done so far."""
    context = {"digits": Digit.objects.count(), "models": TrainedModel.objects.order_by("name")}
    return render(request, "demo/home.html", context)
