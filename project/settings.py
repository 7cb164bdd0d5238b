"""Settings of the demo project, all from the environment; without any, everything runs embedded in `var/`.

Three URLs move the same code to real servers:

    DATABASE_URL=postgres://user:password@host/name    (or mysql://...; default: a SQLite file)
    CACHE_URL=redis://host:6379/1                      (default: a cache in files that all processes share)
    CELERY_BROKER_URL=amqp://user:password@host//      (default: a queue in files)
"""

from __future__ import annotations

import secrets
from pathlib import Path

import environ
import pymysql

from resilience.conf import from_env

# Django asks for mysqlclient by its version; PyMySQL is the driver that needs no compiler.
pymysql.version_info = (2, 2, 8, "final", 0)
pymysql.install_as_MySQLdb()

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

#: Where everything embedded lives: database, cache, queue, checkpoints.
VAR_DIR = Path(env.str("DEMO_VAR", default=str(BASE_DIR / "var")))
VAR_DIR.mkdir(parents=True, exist_ok=True)


def _own_secret() -> str:
    """Return a secret key that is made once and kept, readable by its owner alone."""
    file = VAR_DIR / "secret_key"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(50))
    return file.read_text()


SECRET_KEY = env.str("SECRET_KEY", default="") or _own_secret()
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "resilience",
    "project.demo",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
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

DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{VAR_DIR / 'demo.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # A write lock taken at BEGIN cannot fail half-way with BUSY_SNAPSHOT, and WAL lets readers read on.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The default is shared by all processes of this machine, counts atomically and knows nothing of transactions.
CACHES = {
    "default": env.cache_url("CACHE_URL")
    if "CACHE_URL" in env
    else {"BACKEND": "diskcache.DjangoCache", "LOCATION": str(VAR_DIR / "cache"), "OPTIONS": {"disk_min_file_size": 2**20}}
}

CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="filesystem://localhost")
if CELERY_BROKER_URL.startswith("filesystem:"):
    _queue, _control = VAR_DIR / "queue", VAR_DIR / "queue-control"
    _queue.mkdir(exist_ok=True)
    _control.mkdir(exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(_queue),
        "data_folder_out": str(_queue),
        "control_folder": str(_control),
        "polling_interval": 0.2,
    }
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_DEFAULT_QUEUE = "resilience-demo"
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BEAT_SCHEDULE = {"sweep-runs": {"task": "resilience.tasks.sweep_runs", "schedule": 5.0}}

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(VAR_DIR / "media")}},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
USE_TZ = True
USE_I18N = True
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="WARNING")},
}

RESILIENCE = {
    "SYNC_INTERVAL": 0.5,
    **from_env(env),
    "POLICIES": {
        "labelling": {
            # With 30 % of the calls failing, one in 15,000 fails eight times in a row.
            "retry": {"max_attempts": 8, "delay": 0.05, "max_delay": 0.5},
            "circuit": {
                "failure_rate_threshold": 0.7,
                "minimum_calls": 20,
                "failure_window": 3.0,
                "recovery_timeout": 2.0,
                "success_threshold": 2,
            },
            "timeout": 0.8,
            "deadline": 10.0,
            "fallback": "project.demo.labelling.guess_label",
        }
    },
}
