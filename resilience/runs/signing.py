"""Pickled states that are signed, and unpickled only after their signature was verified.

Pickle executes what it reads. So this format must be asked for, needs keys of its own in
`RUNS["SIGNING_KEYS"]`, and trusts a file only as far as an HMAC-SHA256 over all of it: the first key signs, any key
verifies, so that keys can be rotated. Whoever knows a key can execute code on your workers: keep the keys
where you keep SECRET_KEY, and prefer the other formats.

A file is the magic, the pickle, and 32 bytes of signature over both.
"""

from __future__ import annotations

import hmac
import pickle
import tempfile
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from resilience import conf
from resilience.exceptions import CheckpointError
from resilience.runs.arrays import CHUNK

if TYPE_CHECKING:
    from resilience.runs.formats import Sink

__all__ = ["MIN_KEY_LENGTH", "read", "signing_keys", "write"]

#: Shortest key that is accepted, in bytes.
MIN_KEY_LENGTH = 32

_MAGIC = b"resilience signed pickle 1\n"
_SIGNATURE = 32
_IN_MEMORY = 4 * CHUNK
_PROTOCOL = 5


def signing_keys() -> list[bytes]:
    """Return the keys of `RUNS["SIGNING_KEYS"]`, the one that signs first.

    Raises:
        CheckpointError: There are none, or one is too short.
    """
    keys = conf.current().runs.get("SIGNING_KEYS") or ()
    if isinstance(keys, (str, bytes)) or not keys:
        raise CheckpointError(
            'RUNS["SIGNING_KEYS"] must be a list with at least one key, to store or load pickles. '
            "Set it, or use a format that needs no trust.",
            "configuration",
        )
    encoded = [key.encode() if isinstance(key, str) else bytes(key) for key in keys]
    if min(map(len, encoded)) < MIN_KEY_LENGTH:
        raise CheckpointError(
            f'RUNS["SIGNING_KEYS"] must be keys of at least {MIN_KEY_LENGTH} bytes. Make one with secrets.token_urlsafe(48).',
            "configuration",
        )
    return encoded


def write(sink: Sink, state: object, keys: Sequence[bytes]) -> None:
    """Write a signed pickle of `state`, signed with the first key.

    Raises:
        CheckpointError: Something in the state cannot be pickled; `path` says where.
    """
    signer = _Signer(sink, keys[0])
    signer.write(_MAGIC)
    try:
        pickle.Pickler(signer, _PROTOCOL).dump(state)
    except CheckpointError:
        raise
    except OSError:
        raise
    except Exception as error:
        path, value = _unpicklable(state)
        raise CheckpointError(
            f"{path} must be something pickle can store, not a {type(value).__qualname__} ({type(error).__name__}). Leave it out.",
            "unstorable",
            path,
        ) from error
    sink.write(signer.hmac.digest())


def read(file: IO[bytes], size: int, keys: Sequence[bytes]) -> Any:
    """Verify a signed pickle with any of the keys, then load it.

    What is loaded is the private copy that was verified, so nobody can change the file in between.

    Raises:
        CheckpointError: No key fits ("unsigned"), or the pickle needs a class that is gone ("configuration").
    """
    if size < len(_MAGIC) + _SIGNATURE:
        raise CheckpointError("The checkpoint is too short for a signed pickle. Use the checkpoint before it.", "unsigned")
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as copy:
        macs = [hmac.new(key, digestmod="sha256") for key in keys]
        _copy(file, copy, size - _SIGNATURE, macs)
        signature = file.read(_SIGNATURE)
        # Every key is compared, so that the time taken does not tell which one fits.
        fits = sum([hmac.compare_digest(mac.digest(), signature) for mac in macs])
        copy.seek(0)
        if not fits or copy.read(len(_MAGIC)) != _MAGIC:
            raise CheckpointError(
                'The checkpoint is signed by none of RUNS["SIGNING_KEYS"], so it was not loaded. '
                "Put the key that signed it at the list's end, if you trust it.",
                "unsigned",
            )
        try:
            return pickle.load(copy)  # noqa: S301  # its signature was verified above
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint's pickle could not be loaded ({type(error).__name__}). Deploy the code that wrote it.",
                "configuration",
            ) from error


class _Signer:
    """Pass bytes on to a sink and into the signature."""

    def __init__(self, sink: Sink, key: bytes) -> None:
        self.hmac = hmac.new(key, digestmod="sha256")
        self._sink = sink

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            piece = bytes(view[start : start + CHUNK])
            self.hmac.update(piece)
            self._sink.write(piece)
        return len(view)


def _copy(source: IO[bytes], target: IO[bytes], length: int, macs: Sequence[hmac.HMAC]) -> None:
    while length > 0:
        piece = source.read(min(CHUNK, length))
        if not piece:
            return
        for mac in macs:
            mac.update(piece)
        target.write(piece)
        length -= len(piece)


def _unpicklable(value: object, path: str = "state", depth: int = 20) -> tuple[str, object]:
    """Find the innermost part that pickle refuses, through dicts, lists and tuples."""
    if isinstance(value, dict):
        parts = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        parts = []
    for name, item in parts if depth else ():
        try:
            pickle.dumps(item, _PROTOCOL)
        except Exception:  # noqa: BLE001  # whatever it raises, it is the part that fails
            return _unpicklable(item, name, depth - 1)
    return path, value
