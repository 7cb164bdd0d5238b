"""When the states given to `run.checkpoint` are stored: as `every` says, before leaving, beside the loop or in it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from resilience import clock
from resilience.runs import randomness, store
from resilience.runs.background import BackgroundSaver
from resilience.runs.leases import has_second_view
from resilience.runs.options import RunConfig
from resilience.runs.saves import Saver
from resilience.runs.steps import Place

__all__ = ["SaveSchedule", "unwrap"]

_STATE, _RNG = "resilience:state", "resilience:rng"


@dataclass(slots=True)
class _Offer:
    """A state that was given and is not stored yet."""

    state: object
    place: Place
    metrics: dict[str, Any]
    is_step: bool
    is_detached: bool = False


class SaveSchedule:
    """Stores what it is offered when it is due.

    A state that is not due is only referred to, and good until its step ends: then the loop may change it in place.
    Bodies that do not offer one at each step get theirs detached, so that it can be stored at any later time.

    Args:
        saver: Does the storing.
        config: Says when.
        place: Where the run resumed.
    """

    def __init__(self, saver: Saver, config: RunConfig, place: Place | None) -> None:
        self._saver = saver
        self._config = config
        self._offered = 0
        self._offered_at = -1 if place is None else place.position
        self._saved_at = clock.monotonic()
        self._offer: _Offer | None = None
        self._is_safe = True
        in_background = config.background and has_second_view(saver.lease.using)
        self._background = BackgroundSaver() if in_background else None

    @property
    def has_progressed(self) -> bool:
        """Whether this attempt stored something new."""
        return self._saver.has_progressed

    def offer(self, state: object, place: Place, metrics: Mapping[str, Any] | None, *, is_step: bool) -> bool:
        """Take a state, and store it if that is due; True when it was stored or handed to the background."""
        if metrics is not None and not isinstance(metrics, Mapping):
            raise TypeError(f'metrics must be a dict of figures, not {metrics!r:.80}. Write {{"loss": 0.25}}.')
        offer = self._offer = _Offer(self._with_rng(state), place, dict(metrics or {}), is_step)
        is_sparse = not is_step or place.position - self._offered_at > 1
        self._offered += 1
        self._offered_at = place.position
        if self._is_due():
            return self.store()
        if is_sparse:
            self._detach(offer)
        return False

    def has_fresh(self, place: Place) -> bool:
        """Whether a state waits that is as good as when it was given."""
        return self._offer is not None and (self._offer.is_detached or self._offer.place == place)

    def store(self) -> bool:
        """Store the state that waits; False when that failed and the run may go on."""
        offer = self._offer
        if offer is None:
            return True
        if self._background is not None:
            self._detach(offer)
            self._background.submit(lambda: self._save(offer))
        elif not self._save(offer):
            return False
        self._offer = None
        self._saved_at = clock.monotonic()
        return True

    def settle(self, place: Place) -> bool:
        """Store what waits and is fresh at `place`, and wait until it is safe; False when it is not."""
        stored = self.store() if self.has_fresh(place) else True
        if self._background is not None:
            self._background.wait()
        return stored and self._is_safe

    def close(self) -> None:
        """End the background; what it could not store was reported by `settle`, or is not worth another error."""
        if self._background is not None:
            with suppress(Exception):
                self._background.close()

    def _save(self, offer: _Offer) -> bool:
        self._is_safe = self._saver.save(offer.state, offer.place, offer.metrics, is_step=offer.is_step)
        return self._is_safe

    def _detach(self, offer: _Offer) -> None:
        if not offer.is_detached:
            payload = store.prepare(offer.state, self._config.format)
            payload.detach()
            offer.state, offer.is_detached = payload, True

    def _is_due(self) -> bool:
        seconds = self._config.every_seconds
        in_time = seconds is None or clock.monotonic() - self._saved_at >= seconds
        return in_time and self._offered % self._config.every == 0

    def _with_rng(self, state: object) -> object:
        return {_STATE: state, _RNG: randomness.capture()} if self._config.rng else state


def unwrap(state: Any, *, restore: bool) -> Any:
    """Return the state as it was given, from one that may have random numbers beside it.

    Args:
        state: As it was loaded.
        restore: Put the random number generators back to where they were.
    """
    if not isinstance(state, dict) or state.keys() != {_STATE, _RNG}:
        return state
    if restore:
        randomness.restore(state[_RNG])
    return state[_STATE]
