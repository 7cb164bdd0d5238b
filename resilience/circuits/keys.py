"""The keys of circuits in the cache, how long they live and how counts are packed: no other module knows.

| key | holds | lives |
|---|---|---|
| `<circuit>:head` | the latest record, a hint that may be old or gone | 30 days after it was last seen |
| `<circuit>:<generation>` | the record whose `add` was the vote | 1 day |
| `<circuit>:<generation>:f...`, `:s...` | failures (and slow calls), successes of one bucket of the window | 2 windows |
| `<circuit>:<generation>:r`, `:ok` | refused calls, successful probes | 1 day |
| `<circuit>:<generation>:p<slot>` | the lease of one probe | `half_open_timeout` |
| `<circuit>:errors` | the latest failures | 7 days |
| `index:<shard>` | names of circuits and how they are configured | 30 days |
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

__all__ = [
    "DAY",
    "ERRORS_TTL",
    "HEAD_TTL",
    "PREFIX",
    "RECORD_TTL",
    "RING",
    "SHARDS",
    "count_key",
    "count_keys",
    "errors_key",
    "head_key",
    "lease_key",
    "pack",
    "record_key",
    "shard_key",
    "shard_keys",
    "total_key",
    "unpack",
]

DAY = 86_400
HEAD_TTL = 30 * DAY - 60  # Memcached takes 30 days and more for a date
RECORD_TTL = DAY
ERRORS_TTL = 7 * DAY
#: Errors and transitions kept of each circuit.
RING = 20
#: Two counts share one integer, the second above this many bits: one `incr` moves both.
PACK = 32
_LOW = (1 << PACK) - 1


#: Schema version in every key: another release with other records does not read these.
PREFIX = "resilience:1"
#: Parts of the index, so that a thousand circuits stay far below Memcached's 1 MB a value.
SHARDS = 32


@lru_cache(maxsize=4_096)
def pack(low: int, high: int) -> int:
    """Put two counts into one integer."""
    return low | high << PACK


def unpack(packed: int) -> tuple[int, int]:
    """Return the two counts that `pack` put together."""
    return packed & _LOW, packed >> PACK


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogatepass")


@lru_cache(maxsize=4_096)
def _circuit(name: str) -> str:
    # Hashed: names may be of any length and alphabet, Memcached's keys may not.
    return f"{PREFIX}:{sha256(_encoded(name)).hexdigest()[:24]}"


def head_key(name: str) -> str:
    """Return the key of the latest record."""
    return f"{_circuit(name)}:head"


def record_key(name: str, generation: int) -> str:
    """Return the key of one generation."""
    return f"{_circuit(name)}:{generation}"


def count_key(name: str, generation: int, kind: str, window: float, bucket: int) -> str:
    """Return the key of a bucket; processes whose windows differ in length count apart."""
    return f"{_circuit(name)}:{generation}:{kind}{int(window * 1000)}:{bucket}"


def count_keys(name: str, generation: int, kind: str, window: float, buckets: Iterable[int]) -> list[str]:
    """Return the keys of several buckets of one kind."""
    start = f"{_circuit(name)}:{generation}:{kind}{int(window * 1000)}:"
    return [f"{start}{bucket}" for bucket in buckets]


def total_key(name: str, generation: int, kind: str) -> str:
    """Return the key of a count that runs over a whole generation."""
    return f"{_circuit(name)}:{generation}:{kind}"


def lease_key(name: str, generation: int, slot: int) -> str:
    """Return the key of a probe's lease."""
    return f"{_circuit(name)}:{generation}:p{slot}"


def errors_key(name: str) -> str:
    """Return the key of the recent failures."""
    return f"{_circuit(name)}:errors"


def shard_key(name: str) -> str:
    """Return the key of the index's part that lists the circuit."""
    return f"{PREFIX}:index:{zlib.crc32(_encoded(name)) % SHARDS}"


def shard_keys() -> list[str]:
    """Return the keys of all parts of the index."""
    return [f"{PREFIX}:index:{number}" for number in range(SHARDS)]
