"""Settings of the tests; processes that the tests start get other databases, caches and brokers by environment."""

from __future__ import annotations

import tempfile
from pathlib import Path

import environ
import pymysql

# Django asks for mysqlclient by its version; PyMySQL is the driver that needs no compiler.
pymysql.version_info = (2, 2, 8, "final", 0)
pymysql.install_as_MySQLdb()

env = environ.Env()

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "tests-only"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "/static/"
MEDIA_ROOT = env.str("TEST_MEDIA_ROOT", default=tempfile.gettempdir() + "/resilience-tests-media")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "resilience",
    "tests.testapp",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": env.db_url("TEST_DATABASE_URL", default="sqlite://:memory:")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"].setdefault("OPTIONS", {}).update({"transaction_mode": "IMMEDIATE", "timeout": 20})

_backends = {"redis": "redis.RedisCache", "memcached": "memcached.PyMemcacheCache", "locmem": "locmem.LocMemCache"}
_scheme, _, _location = env.str("TEST_CACHE_URL", default="locmem://tests").partition("://")
CACHES = {
    "default": {
        "BACKEND": f"django.core.cache.backends.{_backends[_scheme]}",
        "LOCATION": f"redis://{_location}" if _scheme == "redis" else _location,
    }
}

CELERY_BROKER_URL = env.str("TEST_BROKER_URL", default="memory://")

RESILIENCE: dict[str, object] = {}
