"""Real servers, each a private copy on a free port in a temporary folder, so that tests may kill and freeze them.

A server whose program is not installed skips the test with the package to install; a name listed in
`RESILIENCE_REQUIRE` (comma-separated) turns that skip into a failure.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

START_LIMIT = 60.0


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def required(name: str) -> bool:
    """Tell whether RESILIENCE_REQUIRE lists `name`."""
    return name in os.environ.get("RESILIENCE_REQUIRE", "").replace(" ", "").split(",")


def find_program(server: str, package: str, *names: str) -> str:
    """Return the path of the first program found, or skip (fail when required) naming the package to install."""
    folders = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/lib/rabbitmq/bin"]
    folders += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    for name in names:
        if path := shutil.which(name, path=os.pathsep.join(folders)):
            return os.path.realpath(path) if server == "postgresql" else path
    reason = f"{server} is not installed: no {names[0]} on this machine. Install it; Debian's package is {package}."
    if required(server):
        pytest.fail(reason)
    pytest.skip(reason)


class Server:
    """A server process of its own that tests may stop, kill, freeze and start again on the same port and data."""

    name = "server"
    #: The account to run under when the tests run as root, for servers that refuse root.
    account: str | None = None

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"resilience-{self.name}-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.folder / "server.log"
        if self.user:
            shutil.chown(self.folder, self.user)

    @property
    def user(self) -> str | None:
        """The account to switch to, or None to stay."""
        if os.geteuid() != 0 or self.account is None:
            return None
        try:
            pwd.getpwnam(self.account)
        except KeyError:
            return "nobody"
        return self.account

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C"}

    def prepare(self) -> None:
        """Make the data folder; runs once."""

    def is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True

    def run(self, *command: str) -> None:
        """Run a set-up command under the server's account; its output is in the log."""
        with self.log.open("ab") as log:
            subprocess.run(
                command,
                check=True,
                stdout=log,
                stderr=log,
                user=self.user,
                cwd=self.folder,
                env=self.environment(),
                timeout=START_LIMIT,
            )

    def start(self) -> Self:
        """Start (again) and wait until it answers."""
        if not (self.folder / ".prepared").exists():
            self.prepare()
            (self.folder / ".prepared").touch()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                user=self.user,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
            )
        wait_until(
            self._answers, START_LIMIT, lambda: f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}"
        )
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended at once: {self.log.read_text(errors='replace')[-2000:]}")
        try:
            return self.is_ready()
        except Exception:  # any error means "not yet"; the time limit reports it
            return False

    def send(self, number: int) -> None:
        """Send a signal to the server's main process."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def freeze(self) -> None:
        """Stop the whole process group from running; connections stay open and nothing answers."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the whole process group at once, as a power failure would."""
        if self.process is None:
            return
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
        self.process.wait(START_LIMIT)
        self.process = None

    def stop(self) -> None:
        """End politely, by force after a while."""
        if self.process is None:
            return
        self.send(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.kill()

    def restart(self) -> None:
        """Kill and start again on the same port and data."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class PostgreSQL(Server):
    """PostgreSQL with the superuser `postgres`, trusted from the loopback interface."""

    name = "postgresql"
    account = "postgres"

    def __init__(self) -> None:
        self.program = find_program("postgresql", "postgresql", "postgres")
        super().__init__()

    def prepare(self) -> None:
        initdb = str(Path(self.program).parent / "initdb")
        self.run(initdb, "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def command(self) -> list[str]:
        # fsync protects against a power failure, which no test can cause; killing the processes it survives without.
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "max_connections": "200",
            "deadlock_timeout": "100ms",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [self.program, "-D", str(self.folder / "data"), "-p", str(self.port), *settings]

    def is_ready(self) -> bool:
        import psycopg

        with psycopg.connect(self.dsn(), connect_timeout=2):
            return True

    def stop_immediately(self) -> None:
        """Shut down as `pg_ctl -m immediate` does: no checkpoint, recovery at the next start."""
        assert self.process is not None
        self.send(signal.SIGQUIT)
        self.process.wait(START_LIMIT)
        self.kill()

    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def settings(self) -> dict[str, object]:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
        }


class MariaDB(Server):
    """MariaDB with the user `root` without a password and the database `test`."""

    name = "mariadb"
    account = "mysql"

    def __init__(self) -> None:
        self.program = find_program("mariadb", "mariadb-server", "mariadbd", "mysqld")
        self.installer = find_program("mariadb", "mariadb-server", "mariadb-install-db", "mysql_install_db")
        super().__init__()

    def prepare(self) -> None:
        data = f"--datadir={self.folder / 'data'}"
        self.run(self.installer, "--no-defaults", data, "--auth-root-authentication-method=normal", "--skip-test-db")

    def command(self) -> list[str]:
        return [
            self.program,
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder / 'server.sock'}",
            f"--pid-file={self.folder / 'server.pid'}",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=64M",
            "--character-set-server=utf8mb4",
            "--max-connections=200",
        ]

    def is_ready(self) -> bool:
        import pymysql

        connection = pymysql.connect(host="127.0.0.1", port=self.port, user="root", connect_timeout=2)
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE IF NOT EXISTS test CHARACTER SET utf8mb4")
        return True

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/test"

    @property
    def settings(self) -> dict[str, object]:
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "test",
            "USER": "root",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "OPTIONS": {"charset": "utf8mb4"},
        }


class Redis(Server):
    """Redis without persistence: it starts empty each time."""

    name = "redis"

    def __init__(self, *options: str) -> None:
        self.program = find_program("redis", "redis-server", "redis-server")
        self.options = options
        super().__init__()

    def command(self) -> list[str]:
        return [
            self.program,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self.folder),
            *self.options,
        ]

    def is_ready(self) -> bool:
        import redis

        with redis.Redis(port=self.port, socket_timeout=2) as client:
            return bool(client.ping())

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class Memcached(Server):
    """Memcached with 64 MB."""

    name = "memcached"

    def __init__(self) -> None:
        self.program = find_program("memcached", "memcached", "memcached")
        super().__init__()

    def command(self) -> list[str]:
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        return [self.program, "-p", str(self.port), "-l", "127.0.0.1", "-m", "64", *user]

    @property
    def location(self) -> str:
        return f"127.0.0.1:{self.port}"


class RabbitMQ(Server):
    """RabbitMQ with the user guest/guest, a node of its own and no plug-ins."""

    name = "rabbitmq"
    account = "rabbitmq"

    def __init__(self) -> None:
        self.program = find_program("rabbitmq", "rabbitmq-server", "rabbitmq-server")
        super().__init__()
        self.distribution_port = free_port()

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"resilience{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "rabbit.pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
        }

    def prepare(self) -> None:
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 1MB\n")

    def command(self) -> list[str]:
        # Debian wraps the program in a script that insists on its own account; the one behind it does not.
        inner = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        return [str(inner) if inner.exists() else self.program]

    def is_ready(self) -> bool:
        import amqp

        with amqp.Connection(f"127.0.0.1:{self.port}", userid="guest", password="guest", connect_timeout=2) as connection:
            return bool(connection.connected)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


def wait_until(condition: Callable[[], object], limit: float = 30.0, message: str | Callable[[], str] = "condition") -> None:
    """Wait for a condition of the outside world; `limit` is a bound against hanging, not a speed check."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit} s: {message() if callable(message) else message}")
        time.sleep(0.02)
