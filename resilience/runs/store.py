"""Where the state of a checkpoint lies: small JSON in its row, all else in a file that the row names.

`write` stores a state and returns what belongs into the row; the row, inserted by the holder of the run's lease in a
fenced transaction, is the commit point. `load` trusts bytes only after their size and SHA-256 were verified.
`load_latest` walks from the newest checkpoint to the oldest and quarantines what is damaged, but only that: a
storage that does not answer, a missing key or a newer format are errors to repair, not reasons to go back.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ObjectDoesNotExist
from django.core.files.storage import InvalidStorageError, Storage, storages

from resilience import clock, conf, signals
from resilience.calls.classify import classify
from resilience.exceptions import CheckpointError
from resilience.runs import files, formats

if TYPE_CHECKING:
    from resilience.runs.models import Checkpoint, Run

__all__ = [
    "DIRECTORY",
    "INLINE_LIMIT",
    "StoredState",
    "current_storage",
    "delete",
    "discard",
    "load",
    "load_latest",
    "prepare",
    "storage",
    "write",
]

#: Where in the storage all files of checkpoints lie.
DIRECTORY = "resilience/runs"

#: Default of `RUNS["INLINE_LIMIT"]`: JSON up to this many bytes is stored in the row.
INLINE_LIMIT = 65_536

_READS = 3
#: How often the rows are listed anew because retention deleted one while it was read.
_LISTINGS = 10
_FIRST_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class StoredState:
    """A state that is stored but not committed: the columns of its `Checkpoint` row.

    Args:
        tier: "row" or "file".
        format: Name of the format, see `formats`.
        schema: Version of the user's own layout of the state.
        size: Bytes.
        sha256: SHA-256 of the bytes, in hex.
        data: The bytes themselves in tier "row", else None.
        storage: Alias of the storage in tier "file", else "".
        name: The file's name in the storage in tier "file", else "".
    """

    tier: str
    format: str
    schema: int
    size: int
    sha256: str
    data: bytes | None
    storage: str = ""
    name: str = ""

    def fields(self) -> dict[str, Any]:
        """Return the columns as keyword arguments for `Checkpoint`."""
        return asdict(self)


def current_storage() -> str:
    """Return the alias named by `RUNS["STORAGE"]`: where new files go."""
    return str(conf.current().runs.get("STORAGE", "default"))


def storage(alias: str = "") -> Storage:
    """Return a storage by its alias; by default the one for new files.

    Files stay where they were written when the setting changes: their rows name the alias.

    Raises:
        CheckpointError: STORAGES has no such alias (reason "configuration").
    """
    alias = alias or current_storage()
    try:
        return storages[alias]
    except InvalidStorageError as error:
        raise CheckpointError(
            f"The storage of checkpoints must be an alias in STORAGES, not {alias!r}. Add it there.", "configuration"
        ) from error


def prepare(state: object, format: str | None = None) -> formats.Payload:  # noqa: A002  # the user's word
    """Check a state and choose its format, without writing anything; see `formats.prepare`.

    Args:
        state: What to store.
        format: One of `formats.FORMATS`; None and "auto" ask `RUNS["FORMAT"]`, which chooses by content unless set.

    Raises:
        CheckpointError: Something in the state cannot be stored (reason "unstorable").
    """
    if format is None or format == formats.AUTO:
        format = conf.current().runs.get("FORMAT", formats.AUTO)  # noqa: A001  # the user's word
    return formats.prepare(state, format)


def write(run: Run | int, step: int | None, state: object, *, format: str | None = None, schema: int = 1) -> StoredState:  # noqa: A002  # the user's word
    """Store a state; it counts only when a row with the returned columns is committed.

    Args:
        run: The run, or its primary key.
        step: Position of the last step whose work the state contains; part of the file's name.
        state: What to store; it is not kept and not changed. Or a payload that was prepared of it.
        format: One of `formats.FORMATS`; None and "auto" ask `RUNS["FORMAT"]`, which chooses by content unless set.
        schema: Version of the user's own layout of the state, 1 or more.

    Raises:
        CheckpointError: The state cannot be stored ("unstorable"), or not now ("storage").
    """
    options = conf.current().runs
    payload = state if isinstance(state, formats.Payload) else prepare(state, format)
    text = payload.text
    if text is not None and len(text) <= options.get("INLINE_LIMIT", INLINE_LIMIT):
        return StoredState("row", payload.format, schema, len(text), hashlib.sha256(text).hexdigest(), text)
    number = "start" if step is None else f"{step:012d}"
    name = f"{DIRECTORY}/{getattr(run, 'pk', run)}/{number}-{uuid.uuid4().hex}.{payload.extension}"
    alias = current_storage()
    file = files.save(storage(alias), name, payload.write)
    return StoredState("file", payload.format, schema, file.size, file.sha256, None, alias, file.name)


def discard(stored: StoredState) -> None:
    """Delete the file of a state that will certainly never be committed.

    Never call it when the outcome of the commit is unknown: the file is collected as an orphan if it is one.
    """
    if stored.name:
        delete(stored.storage, stored.name)


def delete(alias: str, name: str) -> None:
    """Delete a file, if the storage does that now; otherwise it is an orphan, and collected as one.

    Args:
        alias: The storage.
        name: The file's name in it.
    """
    try:
        storage(alias).delete(name)
    except Exception as error:
        if classify(error).is_control_flow:
            raise  # a time limit strikes anywhere


def load(checkpoint: Checkpoint, *, schema: int | None = None, migrate: Callable[[Any, int], Any] | None = None) -> Any:
    """Return the state of one checkpoint, verified.

    Args:
        checkpoint: The row.
        schema: Version of the layout that the caller understands; None takes any.
        migrate: Called with an older state and its version; returns the state in the layout `schema`.

    Raises:
        CheckpointError: The bytes are damaged, their format or schema is newer, they are not signed, or the
            storage does not answer; `reason` tells which.
    """
    if schema is not None and checkpoint.schema > schema:
        raise CheckpointError(
            f"The checkpoint has schema {checkpoint.schema}, and this code reads up to {schema}. Deploy the version that wrote it.",
            "newer",
        )
    state = _read_row(checkpoint) if checkpoint.tier == "row" else _read_file(checkpoint)
    if schema is None or checkpoint.schema == schema:
        return state
    if migrate is None:
        raise CheckpointError(
            f"The checkpoint has schema {checkpoint.schema}, and this code expects {schema}. Give migrate, a function of state and version.",
            "configuration",
        )
    return migrate(state, checkpoint.schema)


def load_latest(
    run: Run, *, schema: int | None = None, migrate: Callable[[Any, int], Any] | None = None
) -> tuple[Checkpoint | None, Any]:
    """Return a run's newest sound checkpoint and its state; `(None, None)` if it never had one.

    A damaged checkpoint is quarantined and the one before it is used. When none is sound, those quarantined
    before are looked at again: a volume that was not mounted makes every file look lost.

    Raises:
        CheckpointError: All checkpoints are damaged, or one could not be read for another reason than damage.
    """
    for _ in range(_LISTINGS):
        # Where the run is, and not where a router sends reads: a replica may not have the newest yet.
        rows = list(run.checkpoints.using(run._state.db).defer("data").order_by("-sequence"))
        if not rows:
            return None, None
        with suppress(_Replaced):
            return _newest_sound(run, rows, schema, migrate)
    raise CheckpointError(
        f"The checkpoints of run {run.key!r} were replaced faster than they could be read. Save less often, or keep more.",
        "storage",
    )


class _Replaced(Exception):  # noqa: N818  # no error: whoever holds the run saved a newer checkpoint
    """Retention deleted a checkpoint while it was read."""


def _newest_sound(
    run: Run, rows: list[Checkpoint], schema: int | None, migrate: Callable[[Any, int], Any] | None
) -> tuple[Checkpoint, Any]:
    for checkpoint in (row for row in rows if row.status == "good"):
        try:
            return checkpoint, load(checkpoint, schema=schema, migrate=migrate)
        except CheckpointError as error:
            if error.reason != "damaged":
                raise
            if not _quarantine(run, checkpoint, error):
                raise _Replaced from None
    for checkpoint in rows:
        with suppress(CheckpointError):
            state = load(checkpoint, schema=schema, migrate=migrate)
            _set_status(checkpoint, "good", "")
            return checkpoint, state
    raise CheckpointError(
        f"All {len(rows)} checkpoints of run {run.key!r} are damaged, and it is not restarted silently. "
        "Restore the storage, or delete the run to start again.",
        "damaged",
    )


def _read_row(checkpoint: Checkpoint) -> Any:
    try:
        data = bytes(checkpoint.data or b"")
    except ObjectDoesNotExist as error:
        raise CheckpointError("The checkpoint's row is gone. Use the checkpoint before it.", "damaged") from error
    if len(data) != checkpoint.size or hashlib.sha256(data).hexdigest() != checkpoint.sha256:
        raise CheckpointError("The checkpoint's row has other bytes than were written. Use the checkpoint before it.", "damaged")
    return formats.read(checkpoint.format, BytesIO(data), checkpoint.size)


def _read_file(checkpoint: Checkpoint) -> Any:
    """Read a file, waiting a moment for a storage that does not answer."""
    for attempt in range(1, _READS + 1):
        try:
            with files.opened(storage(checkpoint.storage), checkpoint.name, checkpoint.size, checkpoint.sha256) as file:
                return formats.read(checkpoint.format, file, checkpoint.size)
        except CheckpointError as error:
            if error.reason != "storage" or attempt == _READS:
                raise
            clock.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _quarantine(run: Run, checkpoint: Checkpoint, error: CheckpointError) -> bool:
    """Mark a damaged checkpoint; its file is kept for a look. False when retention deleted it while it was read."""
    reason = str(error).partition(". ")[0]
    if not _set_status(checkpoint, "quarantined", reason):
        return False
    sent = {"key": run.key, "task": run.task, "step": checkpoint.step, "reason": reason}
    signals.emit(signals.checkpoint_damaged, type(checkpoint), **sent)
    return True


def _set_status(checkpoint: Checkpoint, status: str, reason: str) -> bool:
    checkpoint.status, checkpoint.reason = status, reason[:200]
    rows = type(checkpoint).objects.using(checkpoint._state.db).filter(pk=checkpoint.pk)  # Django's documented attribute
    return bool(rows.update(status=status, reason=reason[:200]))
