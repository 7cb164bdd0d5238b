from __future__ import annotations

import pytest
from django.contrib.auth.models import Group
from django.db import IntegrityError, OperationalError

from resilience import Policy, classify_db_error, db_retry
from resilience.testing import FakeClock, fail_database, failing, inject_faults


def test_failing__fails_as_often_as_told() -> None:
    """The function is reached after so many failures, and its name is kept."""
    flaky = failing(len, TimeoutError("slow"), times=2)

    outcomes = []
    for _ in range(3):
        try:
            outcomes.append(flaky("abc"))
        except TimeoutError as error:
            outcomes.append(str(error))

    assert outcomes == ["slow", "slow", 3]
    assert flaky.__name__ == "len"


def test_failing__takes_its_time(fake_clock: FakeClock) -> None:
    """Latency passes on the app's clock."""
    failing(len, times=0, latency=3)("abc")

    assert fake_clock.monotonic() == 3


@pytest.mark.django_db(transaction=True)
def test_fail_database__looks_like_the_driver() -> None:
    """The error is classified as the real one would be, and the statement after it goes through."""
    with fail_database(5):
        with pytest.raises(OperationalError) as caught:
            Group.objects.count()
        count = Group.objects.count()

    assert classify_db_error(caught.value, "default").retry
    assert count == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("fast_retries")
def test_fail_database__is_cured_by_db_retry() -> None:
    """What users want to test with it: the retry around their own function."""
    create = db_retry(max_attempts=3)(lambda: Group.objects.create(name="a"))

    with fail_database(5, times=2):
        create()

    assert Group.objects.count() == 1


def test_fail_database__speaks_each_vendors_language(postgresql: str, mariadb: str) -> None:
    """SQLSTATE on PostgreSQL, numbers on MariaDB."""
    for alias, code in ((postgresql, "40P01"), (mariadb, 1213)):
        with fail_database(code, using=alias), pytest.raises(OperationalError) as caught:
            Group.objects.using(alias).count()

        assert classify_db_error(caught.value, alias).code == str(code)


@pytest.mark.django_db(transaction=True)
def test_fail_database__chooses_djangos_class_on_sqlite() -> None:
    """A constraint's code is an IntegrityError, and never one that is retried."""
    with fail_database(2067), pytest.raises(IntegrityError) as caught:
        Group.objects.count()

    assert not classify_db_error(caught.value, "default").retry


def test_fail_database__chooses_djangos_class_as_django_does(postgresql: str, mariadb: str) -> None:
    """The same on the servers, each with its own codes."""
    for alias, code in ((postgresql, "23505"), (mariadb, 1062)):
        with fail_database(code, using=alias), pytest.raises(IntegrityError) as caught:
            Group.objects.using(alias).count()

        assert not classify_db_error(caught.value, alias).retry


def test_inject_faults__ends_with_the_block() -> None:
    """The policy fails inside the block and works after it, without a word in the settings."""
    policy = Policy("testing-injected", timeout=5)

    with inject_faults("testing-injected", error_rate=1, error="rate_limit"), pytest.raises(Exception, match="status 429"):
        policy.call(len, "abc")

    assert policy.call(len, "abc") == 3


def test_inject_faults__refuses_what_it_does_not_know() -> None:
    """A typing error is told at once, and not by a test that passes because nothing was injected."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'eror_rate'"), inject_faults("x", eror_rate=1):
        pass
