from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from resilience import BulkheadFullError, OperationTimeoutError, timeout
from resilience.calls import timeouts

LONG = 30.0


def test_timeout__refuses_at_once_when_too_many_calls_were_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that hangs costs a bounded number of threads, and all is well again when they have returned."""
    monkeypatch.setattr(timeouts, "MOST_ABANDONED", 3)
    monkeypatch.setattr(timeouts, "_abandoned", set())
    gate, stuck = threading.Event(), []

    @timeout(0.02)
    def lookup() -> None:
        stuck.append(threading.current_thread())
        gate.wait(LONG)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with pytest.raises(OperationTimeoutError):
                pool.submit(lookup).result()
        with pytest.raises(BulkheadFullError, match="lookup was not called: 3 calls that took longer"):
            pool.submit(lookup).result()
        gate.set()
        for thread in stuck:
            thread.join(LONG)

        pool.submit(timeout(LONG)(lookup)).result()

    assert len(stuck) == 4
