"""What people see of circuits: the dict of `get_stats`, for one circuit or for a thousand in a few round trips."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from resilience import clock, conf
from resilience.circuits import config as configs
from resilience.circuits import keys, machine
from resilience.circuits.circuit import Circuit
from resilience.circuits.columns import Column, Past, Place, number, recall, remember
from resilience.circuits.config import CircuitBreakerConfig
from resilience.circuits.local import BUCKETS
from resilience.circuits.records import CLOSED_STATES, OPEN_STATES, Counts, Record
from resilience.circuits.store import CircuitStore, StoreUnavailableError

__all__ = ["Detail", "Subject", "collect", "restore_fields"]

#: Fields of a configuration that are kept in the index as they are; classes and functions are only named there.
_PORTABLE = frozenset(
    definition.name
    for definition in dataclasses.fields(CircuitBreakerConfig)
    if definition.name not in {"exceptions", "ignore", "failure_if", "failure_on_result", "fallback", "cache"}
    and not definition.name.startswith("on_")
)


#: Failures, slow calls and successes of each part of a window, oldest first; empty when there was none.
_Series = list[tuple[int, int, int]]


class Detail(Enum):
    """How much to tell: each level reads more of the cache than the one before."""

    #: State, failures and refused calls: enough to put a thousand circuits in order. Successes only where they decide.
    STANDING = 1
    #: All counts as well.
    COUNTS = 2
    #: Older transitions and failures as well.
    HISTORY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A circuit to tell about.

    Args:
        name: Its name.
        config: Its configuration as plain types.
        declared_in: Where it is declared.
        cache: The cache alias.
        circuit: This process's own, if it has it.
        last_seen: When a process last registered it, in seconds since the epoch.
    """

    name: str
    config: Mapping[str, Any]
    declared_in: str
    cache: str
    circuit: Circuit | None = None
    last_seen: float | None = None

    @classmethod
    def own(cls, circuit: Circuit) -> Subject:
        """Return the subject for a circuit of this process."""
        circuit.collect()
        return cls(
            name=circuit.name,
            config=circuit.config.describe(),
            declared_in=circuit.declared_in,
            cache=circuit.store.alias,
            circuit=circuit,
        )

    @classmethod
    def planned(cls, name: str) -> Subject:
        """Return the subject for a circuit that nobody has used yet, as the settings would have it."""
        try:
            config = configs.resolve(name, None, {})
        except ImproperlyConfigured:  # the system checks tell; what people look at must still be shown
            config = CircuitBreakerConfig(cache=conf.current().cache)
        return cls(name=name, config=config.describe(), declared_in="", cache=config.cache or conf.current().cache)

    @classmethod
    def listed(cls, name: str, entry: Mapping[str, Any], alias: str) -> Subject:
        """Return the subject for an entry of the index."""
        return cls(name=name, config=entry["config"], declared_in=entry["declared_in"], cache=alias, last_seen=entry["seen"])

    @property
    def window(self) -> float:
        """Length of the sliding window, in seconds."""
        return float(self.config["failure_window"])

    @property
    def is_timed(self) -> bool:
        """Do successes decide too, because a rate does?"""
        return self.config.get("failure_rate_threshold") is not None or self.config.get("slow_call_duration") is not None


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of the cache about one circuit: its newest record, and the keys that hold the rest."""

    subject: Subject
    record: Record
    columns: Mapping[str, Column]
    totals: list[str]
    history: list[str]

    @property
    def keys(self) -> list[str]:
        return [*(key for column in self.columns.values() for key in column.keys), *self.totals, *self.history]


def restore_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration that survive the index, to operate a circuit declared elsewhere."""
    return {name: value for name, value in config.items() if name in _PORTABLE}


def collect(store: CircuitStore, subjects: Iterable[Subject], detail: Detail = Detail.HISTORY) -> dict[str, dict[str, Any]]:
    """Return the statistics of circuits by name, in two reads of the cache for all of them.

    While the cache is away, the dicts hold what this process knows and say so in `cache_available`.

    Args:
        store: The cache's side.
        subjects: The circuits.
        detail: How much to read; what is not read is empty or 0.
    """
    subjects, wall = list(subjects), clock.time()
    found: dict[str, Any] = {}
    records: dict[str, Record | None] = {}
    try:
        heads = store.read(keys.head_key(subject.name) for subject in subjects)
        records = {subject.name: Record.load(heads.get(keys.head_key(subject.name))) for subject in subjects}
    except StoreUnavailableError:
        pass
    past = recall(store) if detail is Detail.STANDING else {}
    questions = [_question(subject, _latest(subject, records), wall, detail, past) for subject in subjects]
    if records:
        try:
            found = store.read(key for question in questions for key in question.keys)
        except StoreUnavailableError:
            questions = [_question(subject, _latest(subject, {}), wall, detail, {}) for subject in subjects]
        else:
            if detail is Detail.STANDING:
                remember(store, (column for question in questions for column in question.columns.values()), found)
    store.tell_news()
    return {question.subject.name: _describe(question, found, wall, store) for question in questions}


def _latest(subject: Subject, records: Mapping[str, Record | None]) -> Record:
    """Return the newest generation that the cache or this process knows."""
    stored = records.get(subject.name)
    known = subject.circuit.view.record if subject.circuit is not None else None
    candidates = [record for record in (stored, known) if record is not None]
    return max(candidates, key=lambda record: record.generation, default=machine.birth(0.0))


def _question(subject: Subject, record: Record, wall: float, detail: Detail, past: Past) -> _Question:
    name, generation, is_closed = subject.name, record.generation, record.state in CLOSED_STATES
    kinds: list[str] = []
    history: list[str] = []
    if is_closed:
        kinds = ["f", "s"] if subject.is_timed or detail is not Detail.STANDING else ["f"]
    columns = {kind: Column.of(Place(name, generation, kind, subject.window), wall, past) for kind in kinds}
    # A closed circuit refuses nothing and probes nothing.
    totals = [] if is_closed and detail is Detail.STANDING else [keys.total_key(name, generation, kind) for kind in ("r", "ok")]
    if detail is Detail.HISTORY:
        # Nothing came before the first record of a circuit.
        rounds = 0 if record.born else keys.RING
        history = [keys.errors_key(name), *(keys.record_key(name, generation - back) for back in range(rounds))]
    return _Question(subject, record, columns, totals, history)


def _describe(question: _Question, found: Mapping[str, Any], wall: float, store: CircuitStore) -> dict[str, Any]:
    subject, record = question.subject, question.record
    state, series = machine.effective_state(record, wall), _series(question, found)
    counts = _counts(question, found, series)
    history = _history(question, found)
    minimum = int(subject.config["minimum_calls"])
    retry_after = record.remaining(wall) if state in OPEN_STATES else None
    return {
        "name": subject.name,
        "state": str(state),
        "failure_count": counts.failures,
        "success_count": counts.successes,
        "rejected_count": number(found, keys.total_key(subject.name, record.generation, "r")) + _unsent(subject, record),
        "slow_count": counts.slow,
        "failure_rate": counts.failure_rate(minimum),
        "slow_rate": counts.slow_rate(minimum),
        "failure_threshold": subject.config["failure_threshold"],
        "opened_at": _opened_at(record, history),
        "retry_after": retry_after,
        "reason": record.reason,
        "actor": record.actor,
        "changed_at": None if record.born else record.at,
        "generation": record.generation,
        "last_error": record.trigger,
        "recent_failures": _errors(subject, found),
        "transitions": _transitions(subject, history),
        "series": [(failures, successes) for failures, _, successes in series] or [(0, 0)] * BUCKETS,
        "config": dict(subject.config),
        "declared_in": subject.declared_in,
        "scope": subject.config["scope"],
        "cache": subject.cache,
        "cache_available": not store.is_down,
        "last_seen": subject.last_seen,
    }


def _own_view(subject: Subject, record: Record) -> Any:
    """Return this process's view if it is of the same generation."""
    view = subject.circuit.view if subject.circuit is not None else None
    return view if view is not None and view.record == record else None


def _unsent(subject: Subject, record: Record) -> int:
    view = _own_view(subject, record)
    return view.unsent_refusals if view is not None else 0


def _series(question: _Question, found: Mapping[str, Any]) -> _Series:
    counts = {kind: column.read(found) for kind, column in question.columns.items()}
    if not any(map(any, counts.values())):
        return []
    nothing = [0] * BUCKETS
    pairs = zip(counts.get("f", nothing), counts.get("s", nothing), strict=True)
    return [(*keys.unpack(failed), succeeded) for failed, succeeded in pairs]


def _counts(question: _Question, found: Mapping[str, Any], series: _Series) -> Counts:
    subject, record = question.subject, question.record
    if record.state not in CLOSED_STATES:
        probes = number(found, keys.total_key(subject.name, record.generation, "ok"))
        return Counts(failures=record.failures, successes=record.successes + probes, slow=record.slow)
    failures, slow, successes = (sum(column) for column in zip(*series, strict=True)) if series else (0, 0, 0)
    view = _own_view(subject, record)
    if view is None:
        return Counts(failures=failures, successes=successes, slow=slow)
    own_failures, own_slow, own_successes = view.unshared()
    known = view.counts()
    return Counts(
        failures=max(failures + own_failures, known.failures), successes=successes + own_successes, slow=slow + own_slow
    )


def _errors(subject: Subject, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    stored = found.get(keys.errors_key(subject.name))
    own = subject.circuit.notes.unsent if subject.circuit is not None else []
    return [*(stored if isinstance(stored, list) else []), *own][-keys.RING :]


def _history(question: _Question, found: Mapping[str, Any]) -> list[Record]:
    """Return the records that were read, oldest first, and the present one."""
    record = question.record
    loaded = (Record.load(found.get(key)) for key in question.history[1:])
    older = [item for item in loaded if item is not None and item.generation != record.generation]
    return sorted([*older, *([] if record.born else [record])], key=lambda item: item.generation)


def _transitions(subject: Subject, history: list[Record]) -> list[dict[str, Any]]:
    return [
        {**dataclasses.asdict(item.transition(subject.name)), "old": str(item.old), "new": str(item.state)} for item in history
    ]


def _opened_at(record: Record, history: list[Record]) -> float | None:
    """Return since when the circuit is not closed, or None."""
    if record.state in CLOSED_STATES:
        return None
    for item in reversed(history):
        if item.state in OPEN_STATES:
            return item.at
    return record.at
