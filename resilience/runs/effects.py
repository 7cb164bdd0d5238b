"""Database effects that happen exactly once in the life of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.db import IntegrityError, InterfaceError, OperationalError

from resilience.runs.keys import check_key
from resilience.runs.leases import Lease
from resilience.runs.locks import short_transaction
from resilience.runs.models import RunEffect
from resilience.runs.stored_values import as_json

__all__ = ["once"]

Result = TypeVar("Result")


def once(lease: Lease, key: Any, func: Callable[[], Result]) -> Result | Any:
    """Run `func` in a transaction with the row that says it ran; see `ActiveRun.once`."""
    check_key(key)
    if (done := _find(lease, key)) is not None:
        return done.result
    try:
        with short_transaction(lease.using, lease.seconds):
            # The row comes first: whoever else runs this effect now waits here until we are through.
            effect = RunEffect.objects.using(lease.using).create(run_id=lease.run_id, key=key)
            result = func()
            effect.result = as_json(result)
            effect.save(using=lease.using, update_fields=["result"])
            # The fence comes last: it locks the run's row, and the heartbeat must not wait for func.
            lease.write()
    except IntegrityError:
        if (done := _find(lease, key)) is None:
            raise
        return done.result
    except (OperationalError, InterfaceError):
        # Frozen or cut off in func for longer than the lease: then the run may be with another worker.
        lease.leave_if_lost()
        raise
    return result


def _find(lease: Lease, key: str) -> RunEffect | None:
    # Some collations take "a" for "A"; an effect taken for another one would silently not happen.
    found = [row for row in RunEffect.objects.using(lease.using).filter(run_id=lease.run_id, key=key) if row.key == key]
    return found[0] if found else None
