"""The app's models, gathered for Django's app registry."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from resilience.db.models import IdempotencyKey
from resilience.runs.models import Checkpoint, Run, RunEffect

__all__ = ["Checkpoint", "Circuit", "IdempotencyKey", "Run", "RunEffect"]


class Circuit(models.Model):
    """No table: the anchor of the circuits page and of the permissions to see and to operate circuits.

    Circuits live in the cache; what Django needs a model for is a content type to hang permissions and the
    admin's log entries on.
    """

    name = models.CharField(_("name"), max_length=255, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ()
        permissions = [("view_circuit", "Can view circuits"), ("operate_circuit", "Can operate circuits")]
        verbose_name = _("circuit")
        verbose_name_plural = _("circuits")

    def __str__(self) -> str:
        return self.name
