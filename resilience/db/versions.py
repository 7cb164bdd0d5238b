"""A version number in the row that makes a stale `save()` fail instead of overwriting someone else's work."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import connections, models
from django.db.models.query_utils import DeferredAttribute
from django.utils.translation import gettext_lazy as _

from resilience import signals
from resilience.exceptions import ConcurrentUpdateError

__all__ = ["VersionField", "find_version_field", "remember_version"]


class _Hook:
    """An `on_commit` hook by which a version number learns what became of the transaction that wrote it.

    Django drops the hooks of a transaction or savepoint that is rolled back. So a hook that neither ran nor
    still waits on its connection says that the row has its old version back.
    """

    __slots__ = ("connection", "has_run", "savepoints")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.savepoints = set(connection.savepoint_ids)
        self.has_run = False

    def __call__(self) -> None:
        self.has_run = True

    def was_rolled_back(self) -> bool:
        return not self.has_run and not any(hook is self for _, hook, *_ in reversed(self.connection.run_on_commit))

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process cannot follow the transaction: it takes the version as it stands.
        return _settled_hook, ()


def _settled_hook() -> _Hook:
    hook = _Hook.__new__(_Hook)
    hook.has_run = True
    return hook


def _hook_of(connection: Any) -> _Hook:
    """Return the hook at the end of the queue if it shares the present savepoints' fate, or append one."""
    if connection.run_on_commit:
        last = connection.run_on_commit[-1][1]
        if isinstance(last, _Hook) and last.savepoints == set(connection.savepoint_ids):
            return last
    hook = _Hook(connection)
    connection.on_commit(hook, robust=True)
    return hook


class _VersionAttribute(DeferredAttribute):
    """The version in memory: right also after the transaction that raised it was rolled back."""

    def __get__(self, instance: models.Model | None, cls: type[models.Model] | None = None) -> Any:
        if instance is not None and (history := instance._state.__dict__.get("resilience_versions")):
            while history and history[-1][1].was_rolled_back():
                instance.__dict__[self.field.attname] = history.pop()[0]
            if history and history[-1][1].has_run:
                history.clear()
        return super().__get__(instance, cls)

    def __set__(self, instance: models.Model, value: Any) -> None:
        instance._state.__dict__.pop("resilience_versions", None)
        instance.__dict__[self.field.attname] = value


def remember_version(instance: models.Model, field: models.Field[Any, Any], new: int, using: str) -> None:
    """Put the version that was just written into `instance`, to be taken back if the transaction is rolled back."""
    connection: Any = connections[using]
    old = getattr(instance, field.attname)
    history = instance._state.__dict__.get("resilience_versions", [])
    setattr(instance, field.attname, new)
    if connection.in_atomic_block and isinstance(field, VersionField):
        instance._state.__dict__["resilience_versions"] = [*history, (old, _hook_of(connection))]


class _NextVersion(int):
    """The version `save()` is about to write; a raw save, as of a fixture, passes a plain number instead."""


class VersionField(models.PositiveBigIntegerField):  # type: ignore[type-arg]  # not subscriptable when it runs
    """A number that every `save()` raises by one and checks: a save from a stale read raises `ConcurrentUpdateError`.

    Adding the field to a model is all there is to do. The check and the write are one UPDATE statement
    (`... WHERE id = 7 AND version = 3`), whatever `update_fields` says. After a failed save, or when the
    transaction is rolled back, the number in memory is the row's again. `atomic_update` uses the field by itself.
    Model forms carry it hidden, and tell a stale form from a fresh one when they are validated.

    Not checked, as it goes past `save()`: `QuerySet.update`, `bulk_update`, `delete()` and raw SQL. Fixtures are
    stored as they are. An instance whose row was deleted by someone else is not inserted again by `save()`; so to
    clone one, set its `pk` to None, or to a new key together with `_state.adding = True`.

    Raises:
        ConcurrentUpdateError: From `save()`: the row was changed or deleted since it was read. Inside an atomic
            block it needs a rollback after that, as after any error in `save()`.

    Example:
        >>> from tests.testapp.models import Versioned  # a model with `version = VersionField()`
        >>> mine, yours = Versioned.objects.create(), Versioned.objects.latest("pk")
        >>> yours.save()
        >>> mine.save()
        Traceback (most recent call last):
        ...
        resilience.exceptions.ConcurrentUpdateError: testapp.Versioned ... was changed or deleted by others since it was read...
    """

    description = _("Version number, raised by every save")
    descriptor_class = _VersionAttribute

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("default", 1)
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        """Name the public path, so that migrations survive a move of the module."""
        name, _path, args, kwargs = super().deconstruct()
        return name, "resilience.VersionField", args, kwargs

    def contribute_to_class(self, cls: type[models.Model], name: str, private_only: bool = False) -> None:
        """Give the model the `_do_update` that checks, once for a class and its heirs."""
        super().contribute_to_class(cls, name, private_only=private_only)
        guarded: Any = cls
        if not getattr(guarded._do_update, "checks_version", False):
            guarded._do_update = _checking(guarded._do_update)

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        """Return the number to write: the present one for a new row, the next one for an old row."""
        if add:
            return getattr(model_instance, self.attname)
        return _NextVersion(_loaded_version(model_instance, self) + 1)

    def validate(self, value: Any, model_instance: models.Model | None) -> None:
        """Refuse a form that was filled in from an older version of the row."""
        super().validate(value, model_instance)
        if model_instance is None or model_instance._state.adding:
            return
        rows = type(model_instance)._base_manager.using(model_instance._state.db).filter(pk=model_instance.pk)
        stored = rows.values_list(self.attname, flat=True).first()
        if stored != value:
            raise ValidationError(
                _("Someone else changed this record in the meantime. Reload it and make your changes again."), code="stale"
            )

    def formfield(self, *args: Any, **kwargs: Any) -> Any:
        """Return a hidden form field, so that a form posts back the version it was filled in from."""
        return super().formfield(*args, **{**kwargs, "widget": forms.HiddenInput})


def find_version_field(model: type[models.Model]) -> VersionField | None:
    """Return the model's `VersionField`, its own or an ancestor's, or None."""
    return next((field for field in model._meta.concrete_fields if isinstance(field, VersionField)), None)


def _loaded_version(instance: models.Model, field: VersionField) -> int:
    if field.attname not in instance.__dict__:
        raise ValueError(
            f"{field.name} must be loaded before {instance._meta.label} is saved, not deferred. "
            "Add it to only(), or take it out of defer(): a version read later says nothing about the other fields."
        )
    return getattr(instance, field.attname) or 0


def _checking(do_update: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a model's `_do_update` so that it writes only over the version that was read.

    `*rest` covers the two forms of Django's hook: from 6.0 on it takes `returning_fields` and returns rows.
    """

    @wraps(do_update)
    def checked(  # noqa: PLR0917  # the order is Django's
        self: Any, base_qs: Any, using: str, pk_val: Any, values: list[Any], update_fields: Any, *rest: Any
    ) -> Any:
        field = next((field for field in base_qs.model._meta.local_concrete_fields if isinstance(field, VersionField)), None)
        given = next((value for candidate, _, value in values if candidate is field), None)
        if field is None or (given is not None and not isinstance(given, _NextVersion)):
            return do_update(self, base_qs, using, pk_val, values, update_fields, *rest)
        old = _loaded_version(self, field)
        values = [*(entry for entry in values if entry[0] is not field), (field, None, old + 1)]
        if updated := do_update(self, base_qs.filter(**{field.attname: old}), using, pk_val, values, update_fields, *rest):
            remember_version(self, field, old + 1, using)
            return updated
        is_known = not self._state.adding and self._state.db == using
        is_forced = bool(rest[0])
        if base_qs.filter(pk=pk_val).exists() or (is_known and not is_forced):
            signals.emit(signals.update_conflicted, type(self), model=self._meta.label, attempt=1)
            raise ConcurrentUpdateError(self._meta.label, pk_val)
        return updated

    checked.checks_version = True  # type: ignore[attr-defined]  # the mark that contribute_to_class looks for
    return checked
