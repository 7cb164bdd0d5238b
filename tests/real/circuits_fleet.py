"""Real processes that share circuits, and the commands that the tests send them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


def redis_cache(url: str, timeout: float = 0.3) -> dict[str, Any]:
    """Return the CACHES entry that the docs recommend."""
    return {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": url,
        "OPTIONS": {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": "none"},
    }


def memcached_cache(location: str) -> dict[str, Any]:
    """Return an entry that gives up as fast."""
    return {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": location,
        "OPTIONS": {"timeout": 0.3, "connect_timeout": 0.3, "ignore_exc": False},
    }


class Process:
    """One process of the fleet."""

    def __init__(self, cache: dict[str, Any], **circuit: Any) -> None:
        environment = {**os.environ, "CIRCUITS_TEST": json.dumps({"cache": cache, "circuit": circuit}), "PYTHONPATH": str(ROOT)}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.real.circuits_fleet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )

    def send(self, do: str, **arguments: Any) -> Self:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.popen.stdin.flush()
        return self

    def receive(self) -> Any:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        return self.send(do, **arguments).receive()

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(30)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()


class Processes(list[Process]):
    """Several processes, started together and ended together."""

    def __init__(self, count: int, cache: dict[str, Any], **circuit: Any) -> None:
        super().__init__(Process(cache, **circuit) for _ in range(count))

    def __enter__(self) -> Self:
        self.ask("ready")
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self:
            process.close()

    def ask(self, do: str, **arguments: Any) -> list[Any]:
        """Send to all before waiting for the first answer."""
        for process in self:
            process.send(do, **arguments)
        return [process.receive() for process in self]

    def events(self) -> Counter[str]:
        """Return how often each event was seen in the whole fleet."""
        return sum((Counter(found) for found in self.ask("events")), Counter())


class Running:
    """A call under way, in a thread."""

    def __init__(self, breaker: Any) -> None:
        self.breaker = breaker
        self.news: queue.Queue[str] = queue.Queue()
        self.orders: queue.Queue[str] = queue.Queue()

    def begin(self) -> str:
        threading.Thread(target=self._call, daemon=True).start()
        return self.news.get(timeout=30)

    def end(self, kind: str) -> str:
        self.orders.put(kind)
        return self.news.get(timeout=30)

    def _service(self) -> None:
        self.news.put("running")
        kind = self.orders.get(timeout=600)
        if kind != "fine":
            raise {"fail": ConnectionError, "exit": SystemExit}[kind]

    def _call(self) -> None:
        try:
            self.breaker.call(self._service)
        except BaseException as error:
            self.news.put(type(error).__name__)
        else:
            self.news.put("fine")


class Worker:
    """What runs in a process."""

    def __init__(self, circuit: dict[str, Any]) -> None:
        from resilience import signals

        self.fields = circuit
        self.breakers: dict[str, Any] = {}
        self.running: dict[str, Running] = {}
        self.events: Counter[str] = Counter()
        for kind in ("opened", "half_opened", "closed"):
            getattr(signals, f"circuit_{kind}").connect(self._heard(kind), weak=False)
        for kind in ("failed", "recovered"):
            getattr(signals, f"circuit_store_{kind}").connect(self._store_heard(kind), weak=False)

    def _heard(self, kind: str) -> Any:
        return lambda name, **kwargs: self.events.update([f"{kind}:{name}"])

    def _store_heard(self, kind: str) -> Any:
        return lambda **kwargs: self.events.update([f"store:{kind}"])

    def breaker(self, name: str) -> Any:
        from resilience import CircuitBreaker

        if name not in self.breakers:
            callbacks = {"on_open": lambda: self.events.update([f"callback:{name}"])}
            self.breakers[name] = CircuitBreaker(name, **self.fields, **callbacks)
        return self.breakers[name]

    def one(self, name: str, kind: str) -> str:
        from resilience import CircuitOpenError

        def service() -> None:
            if kind == "fail":
                raise ConnectionError("down")
            if kind == "slow":
                time.sleep(0.06)

        try:
            self.breaker(name).call(service)
        except CircuitOpenError:
            return "refused"
        except ConnectionError:
            return "failed"
        return "fine"

    def do_ready(self) -> str:
        return "ready"

    def do_calls(self, names: list[str], kind: str, at: float = 0.0) -> list[str]:
        time.sleep(max(at - time.time(), 0))
        return [self.one(name, kind) for name in names]

    def do_timed(self, name: str, kind: str, times: int, pause: float) -> dict[str, Any]:
        outcomes, longest = Counter(), []
        for _ in range(times):
            started = time.monotonic()
            outcomes[self.one(name, kind)] += 1
            longest.append(time.monotonic() - started)
            time.sleep(pause)
        return {"outcomes": outcomes, "slow": sum(item > 0.2 for item in longest), "longest": max(longest)}

    def do_states(self, names: list[str]) -> list[str]:
        return [str(self.breaker(name).state) for name in names]

    def do_events(self) -> dict[str, int]:
        return dict(self.events)

    def do_operate(self, name: str, action: str, at: float = 0.0, **arguments: Any) -> None:
        time.sleep(max(at - time.time(), 0))
        getattr(self.breaker(name), action)(**arguments)

    def do_declare(self, name: str, **fields: Any) -> None:
        """Give a circuit values of its own, and read what there is."""
        from resilience import CircuitBreaker

        self.breakers[name] = CircuitBreaker(name, **{**self.fields, **fields})
        _ = self.breakers[name].state

    def do_stats(self, name: str) -> dict[str, Any]:
        stats = self.breaker(name).get_stats()
        return {**stats, "now": time.time()}

    def do_begin(self, name: str) -> str:
        """Begin a call that ends when the tests say so."""
        self.running[name] = Running(self.breaker(name))
        return self.running[name].begin()

    def do_end(self, name: str, kind: str) -> str:
        return self.running.pop(name).end(kind)

    def do_hang(self, name: str) -> None:
        """Begin a probe and never end it."""

        def service() -> None:
            answer("probing")
            time.sleep(600)

        self.breaker(name).call(service)

    def do_storm(self, name: str, threads: int, calls: int, at: float, url: str) -> dict[str, int]:
        """Count on the server how many probes run at once."""
        import redis

        from resilience import CircuitOpenError

        peaks: list[int] = []

        def service(client: Any) -> None:
            peaks.append(client.incr("running"))
            time.sleep(0.003)
            client.decr("running")

        def caller() -> None:
            with redis.Redis.from_url(url) as client:
                time.sleep(max(at - time.time(), 0))
                for _ in range(calls):
                    try:
                        self.breaker(name).call(service, client)
                    except CircuitOpenError:
                        time.sleep(0.002)

        self.breaker(name)
        callers = [threading.Thread(target=caller) for _ in range(threads)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        return {"peak": max(peaks, default=0), "probes": len(peaks)}

    def do_fork(self, name: str) -> dict[str, Any]:
        """Use a circuit, fork, and use it in both."""
        before = self.one(name, "fine")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            answers = [self.one(name, "fail") for _ in range(4)]
            os.write(writing, json.dumps(answers).encode())
            os._exit(0)
        os.waitpid(child, 0)
        answers = json.loads(os.read(reading, 65_536))
        os.close(reading)
        os.close(writing)
        time.sleep(self.fields.get("sync_interval", 1.0) + 0.05)
        return {"before": before, "child": answers, "after": self.one(name, "fine")}


def answer(value: Any) -> None:
    """Send one line to the tests."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer the commands of the tests."""
    wanted = json.loads(os.environ["CIRCUITS_TEST"])
    options = wanted["cache"].get("OPTIONS", {})
    if options.get("retry") == "none":
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options["retry"] = Retry(NoBackoff(), 0)

    import django
    from django.conf import settings

    settings.configure(CACHES={"default": wanted["cache"]}, LOGGING_CONFIG=None, SECRET_KEY="x", USE_TZ=True)
    django.setup()
    worker = Worker(wanted["circuit"])
    for line in sys.stdin:
        command = json.loads(line)
        answer(getattr(worker, f"do_{command.pop('do')}")(**command))


if __name__ == "__main__":
    main()
