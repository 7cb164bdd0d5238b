"""The ledger of work that must be done once: one row for each idempotency key, written by the work's own transaction."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

__all__ = ["IdempotencyKey"]


class IdempotencyKey(models.Model):
    """The proof that a piece of work was committed, and the value it returned.

    Rows are never removed unasked: `manage.py resilience_runs prune --idempotency-days N` deletes those older than the
    longest time after which the same work might be asked for again.
    """

    key = models.CharField(_("key"), max_length=200, primary_key=True)
    owner = models.CharField(_("owner"), max_length=32, editable=False)
    result = models.JSONField(_("result"), null=True, default=None)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True, db_index=True)

    class Meta:
        verbose_name = _("idempotency key")
        verbose_name_plural = _("idempotency keys")

    def __str__(self) -> str:
        return self.key
