from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from tests.factories import StaffFactory

VIEW_CIRCUIT, OPERATE_CIRCUIT, VIEW_RUN, OPERATE_RUN = "view_circuit", "operate_circuit", "view_run", "operate_run"


@pytest.fixture
def sign_in(db: None) -> Callable[..., Client]:
    """Return a function that makes a staff user with just these permissions and signs in."""

    def make(*permissions: str, name: str = "anna", superuser: bool = False) -> Client:
        user = StaffFactory(username=name, is_superuser=superuser)
        found = Permission.objects.filter(content_type__app_label="resilience", codename__in=permissions)
        assert found.count() == len(permissions)
        user.user_permissions.set(found)
        client = Client()
        client.force_login(user)
        return client

    return make


@pytest.fixture
def operator(sign_in: Callable[..., Client]) -> Client:
    """Somebody who may see and do everything on the pages, and nothing else."""
    return sign_in(VIEW_CIRCUIT, OPERATE_CIRCUIT, VIEW_RUN, OPERATE_RUN)
