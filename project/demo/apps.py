"""The demo app's entry in INSTALLED_APPS."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["DemoConfig"]


class DemoConfig(AppConfig):
    """Digits, accounts and the training task."""

    name = "project.demo"
    label = "demo"
    default_auto_field = "django.db.models.BigAutoField"
