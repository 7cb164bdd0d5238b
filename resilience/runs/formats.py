"""The formats of checkpoints: which one a state gets, how it is written, how it is read back.

| name | for | written as |
|---|---|---|
| `json` | plain values | one JSON document (`encoding`) |
| `zip` | plain values with arrays, tensors or long bytes | a zip, not compressed: `state.json` and one file a part |
| `safetensors` | on request: a dict of names to arrays or tensors | a safetensors file |
| `pickle` | on request, with `RUNS["SIGNING_KEYS"]`: anything pickle takes | a signed pickle (`signing`) |

Nothing but `pickle` can execute anything on load, and a pickle is touched only after its signature was verified.
The bytes depend on the state alone (no dates, no names of hosts), so equal states have equal sha256.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol

from resilience.exceptions import CheckpointError
from resilience.runs import arrays, signing, tensorfiles
from resilience.runs.encoding import Encoder, decode

__all__ = ["AUTO", "FORMATS", "FORMAT_VERSION", "Payload", "Sink", "prepare", "read"]

#: Choose by what the state holds: `json`, or `zip` if it has parts.
AUTO = "auto"

#: Version of the `json` and `zip` formats that this code writes; it reads this and every older one.
FORMAT_VERSION = 1

_STATE = "state.json"
_DATE = (1980, 1, 1, 0, 0, 0)
_OWNER_READS_AND_WRITES = 0o600 << 16


class Sink(Protocol):
    """Where a payload is written: what a binary file has of it."""

    def write(self, data: bytes | memoryview, /) -> Any:
        """Take some bytes."""

    def flush(self) -> None:
        """Called by some formats now and then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A checked state, ready to be written.

    Args:
        format: Name of its format.
        extension: Ending of its file's name.
        write: Writes it to a binary file, piece by piece.
        detach: Takes copies of what the payload refers to, so that the caller may change the state before it is written.
        text: The whole document if the format is `json`, else None.
    """

    format: str
    extension: str
    write: Callable[[Sink], None]
    detach: Callable[[], None]
    text: bytes | None = None


def prepare(state: object, format: str = AUTO) -> Payload:  # noqa: A002  # the word users write in settings
    """Check a state and choose its format; nothing is written yet.

    The payload refers to the state's arrays: do not change them before it is written, or `detach` it.

    Args:
        state: What to store.
        format: `AUTO` or one of `FORMATS`.

    Raises:
        CheckpointError: Something in the state cannot be stored in that format; `path` says where.
        ValueError: There is no such format.

    Example:
        >>> prepare({"step": 3}).text
        b'{"resilience":1,"state":{"step":3}}'
    """
    if format == AUTO:
        return _prepare_document(state)
    if format not in FORMATS:
        raise ValueError(
            f"format must be one of {', '.join([AUTO, *FORMATS])}, not {format!r}. Leave it out to choose by content."
        )
    return FORMATS[format].prepare(state)


def read(format: str, file: IO[bytes], size: int) -> Any:  # noqa: A002  # as above
    """Read a state back.

    Args:
        format: The format it was written in.
        file: A seekable binary file, at its beginning.
        size: Its length in bytes.

    Raises:
        CheckpointError: The bytes are damaged, or of a format or version that this code does not know.

    Example:
        >>> from io import BytesIO
        >>> read("json", BytesIO(b'{"resilience":1,"state":{"step":3}}'), 35)
        {'step': 3}
    """
    if format not in FORMATS:
        raise CheckpointError(
            f"The checkpoint has the format {format!r}, which this version cannot read. Upgrade to the version that wrote it.",
            "newer",
        )
    return FORMATS[format].read(file, size)


def _prepare_document(state: object, *, only: str = AUTO) -> Payload:
    encoder = Encoder()
    text = f'{{"resilience":{FORMAT_VERSION},"state":{encoder.text(state)}}}'.encode("ascii")
    parts = encoder.parts

    def detach() -> None:
        parts[:] = [arrays.copied(part) for part in parts]

    if only == "zip" or (parts and only == AUTO):
        return Payload(format="zip", extension="zip", write=lambda sink: _write_zip(sink, text, parts), detach=detach)
    if parts:
        raise CheckpointError(
            "state must hold no arrays, tensors or long bytes, to be stored as JSON. Use the format 'zip'.", "unstorable"
        )
    return Payload(format="json", extension="json", write=lambda sink: _write_text(sink, text), detach=detach, text=text)


def _write_text(sink: Sink, text: bytes) -> None:
    sink.write(text)


def _write_zip(sink: Sink, text: bytes, parts: list[Any]) -> None:
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]  # a Sink is all a stream needs
        archive.writestr(_member(_STATE, len(text)), text)
        for number, part in enumerate(parts):
            if isinstance(part, bytes):
                with archive.open(_member(_part_name("blob", number), len(part)), "w") as member:
                    for start in range(0, len(part), arrays.CHUNK):
                        member.write(part[start : start + arrays.CHUNK])
                continue
            kind, array = ("tensor", arrays.tensor_bytes(part)) if arrays.is_tensor(part) else ("array", part)
            header = arrays.array_header(array)
            with archive.open(_member(_part_name(kind, number), len(header) + array.nbytes), "w") as member:
                member.write(header)
                for piece in arrays.array_chunks(array):
                    member.write(piece)


def _member(name: str, size: int) -> zipfile.ZipInfo:
    """Describe a member whose header depends on nothing but its name and size."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = 3
    info.external_attr = _OWNER_READS_AND_WRITES
    info.file_size = size
    return info


def _part_name(kind: str, number: int) -> str:
    return f"{kind}/{number:06d}.{'bin' if kind == 'blob' else 'npy'}"


def _read_json(file: IO[bytes], size: int) -> Any:
    return decode(_document(file.read()), _no_part)


def _no_part(kind: str, number: int) -> Any:
    raise ValueError(f"part {number} of a document that has none")


def _read_zip(file: IO[bytes], size: int) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            _check_members(archive.infolist(), members, size)
            return decode(_document(archive.read(_STATE)), lambda kind, number: _read_part(archive, members, kind, number))
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, OverflowError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint's zip cannot be read ({error}). Use the checkpoint before it.", "damaged"
        ) from error


def _check_members(infos: list[zipfile.ZipInfo], members: dict[str, zipfile.ZipInfo], size: int) -> None:
    """Refuse what our own writer never makes: compressed, encrypted or repeated members, and sizes that lie."""
    if len(members) != len(infos):
        raise ValueError("two members of one name")
    if any(
        info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1 or info.file_size != info.compress_size for info in infos
    ):
        raise ValueError("a compressed or encrypted member")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("members larger than the file")


def _read_part(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], kind: str, number: int) -> Any:
    info = members[_part_name(kind, number)]
    try:
        with archive.open(info) as member:
            return member.read() if kind == "blob" else arrays.read_array(member, info.file_size)
    except ValueError as error:
        raise CheckpointError(
            f"The checkpoint's zip cannot be read: it holds {error}. Use the checkpoint before it.", "damaged"
        ) from error


def _document(text: bytes) -> Any:
    """Take a document out of its envelope, which tells the version that wrote it."""
    try:
        envelope = json.loads(text)
        version, state = envelope["resilience"], envelope["state"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError("The checkpoint's document cannot be read. Use the checkpoint before it.", "damaged") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"The checkpoint has version {version!r} of its format, and this code reads up to {FORMAT_VERSION}. "
            "Upgrade to the version that wrote it.",
            "newer",
        )
    return state


@dataclass(frozen=True, slots=True)
class _Format:
    prepare: Callable[[Any], Payload]
    read: Callable[[IO[bytes], int], Any]


def _prepare_safetensors(state: object) -> Payload:
    tensors = dict(tensorfiles.check(state))

    def detach() -> None:
        tensors.update({name: arrays.copied(value) for name, value in tensors.items()})

    return Payload(
        format="safetensors", extension="safetensors", write=lambda sink: tensorfiles.write(sink, tensors), detach=detach
    )


def _prepare_pickle(state: object) -> Payload:
    keys, held = signing.signing_keys(), [state]

    def detach() -> None:
        held[0] = copy.deepcopy(held[0])

    return Payload(format="pickle", extension="pickle", write=lambda sink: signing.write(sink, held[0], keys), detach=detach)


#: The formats by name.
FORMATS = {
    "json": _Format(lambda state: _prepare_document(state, only="json"), _read_json),
    "zip": _Format(lambda state: _prepare_document(state, only="zip"), _read_zip),
    "safetensors": _Format(_prepare_safetensors, tensorfiles.read),
    "pickle": _Format(_prepare_pickle, lambda file, size: signing.read(file, size, signing.signing_keys())),
}
