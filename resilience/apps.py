"""The app's entry in INSTALLED_APPS."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

__all__ = ["ResilienceConfig"]


class ResilienceConfig(AppConfig):
    """Connect checks and receivers when Django starts; touch no database, cache or network."""

    name = "resilience"
    label = "resilience"
    verbose_name = _("Resilience")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks and the log receivers."""
        from resilience import checks  # noqa: F401  # importing registers
        from resilience.dashboard import rates
        from resilience.observability import logs

        logs.connect()
        rates.connect()
