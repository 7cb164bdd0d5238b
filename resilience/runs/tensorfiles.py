"""The safetensors format: named arrays and tensors that other tools can open.

Written here rather than by the library, which takes the whole file in memory; the library reads what this
writes. On load the header's claims are checked before any memory is taken for them.

Source:
    The safetensors format: an unsigned 64-bit little-endian length, a JSON header of that length, then the data of
    all tensors by rows, little-endian, without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from resilience.exceptions import CheckpointError
from resilience.runs import arrays

if TYPE_CHECKING:
    from resilience.runs.formats import Sink

__all__ = ["check", "read", "write"]

_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000

#: Names in the file of NumPy's dtypes and, below, of PyTorch's.
_NUMPY = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<c8": "C64",
    "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8",
    "<u8": "U64", "<u4": "U32", "<u2": "U16", "|u1": "U8", "|b1": "BOOL",
}  # fmt: skip
_TORCH = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_NUMPY_BACK = {name: dtype for dtype, name in _NUMPY.items()}
_TORCH_BACK = {name: dtype for dtype, name in _TORCH.items()}


def check(state: object) -> dict[str, Any]:
    """Make sure that `state` is a dict of names to arrays or tensors this format has dtypes for.

    Raises:
        CheckpointError: It is not; `path` says where.
    """
    if type(state) is not dict:
        raise CheckpointError(
            f"state must be a dict of arrays for safetensors, not {type(state).__name__}. Use the format 'zip'.",
            "unstorable",
            "state",
        )
    for name, value in state.items():
        if type(name) is not str or name == _METADATA or _dtype(value) is None:
            path = f"state[{name!r}]"
            what = f"dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise CheckpointError(
                f"{path} must be an array or tensor under a string, for safetensors, not {what}. Use the format 'zip'.",
                "unstorable",
                path,
            )
    return state


def write(sink: Sink, tensors: Mapping[str, Any]) -> None:
    """Write a checked state, piece by piece."""
    header: dict[str, Any] = {
        _METADATA: {"resilience": "1", "torch": json.dumps([n for n, v in tensors.items() if arrays.is_tensor(v)])}
    }
    data, position = [], 0
    for name, value in tensors.items():
        array = arrays.tensor_bytes(value) if arrays.is_tensor(value) else value
        data.append(array)
        header[name] = {"dtype": _dtype(value), "shape": list(value.shape), "data_offsets": [position, position + array.nbytes]}
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    sink.write(struct.pack("<Q", len(text)) + text)
    for array in data:
        for piece in arrays.array_chunks(array, order="C"):
            sink.write(piece)


def read(file: IO[bytes], size: int) -> dict[str, Any]:
    """Read such a file back, without trusting what it says of itself.

    Raises:
        CheckpointError: The header is not one, or does not fit the file.
    """
    try:
        header, start = _header(file, size)
        metadata = header.pop(_METADATA, {})
        as_torch = set(json.loads(metadata.get("torch", "[]")))
        return _tensors(file, header, as_torch, size - start)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        message = (
            f"The checkpoint's safetensors file cannot be read ({type(error).__name__}: {error}). Use the checkpoint before it."
        )
        raise CheckpointError(message, "damaged") from error


def _header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(_MAX_HEADER, size - 8):
        raise ValueError("the header is longer than the file")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("the header is no dict")
    return header, 8 + length


def _tensors(file: IO[bytes], header: dict[str, Any], as_torch: set[str], size: int) -> dict[str, Any]:
    """Read the tensors, which must lie in the header's order without gaps, up to the file's end."""
    position, found = 0, {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if begin != position or not begin <= end <= size:
            raise ValueError("the tensors overlap or leave a gap")
        found[name] = _tensor(file, entry["dtype"], entry["shape"], end - begin, name in as_torch)
        position = end
    if position != size:
        raise ValueError("the file goes on behind the last tensor")
    return found


def _tensor(file: IO[bytes], dtype: str, shape: list[int], size: int, is_torch: bool) -> Any:
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("a shape that is none")
    if is_torch:
        return arrays.tensor_from_bytes(arrays.read_raw(file, "u1", size, size), _TORCH_BACK[dtype], shape)
    array = arrays.read_raw(file, _NUMPY_BACK[dtype], math.prod(shape), size)
    return array.reshape(shape)


def _dtype(value: object) -> str | None:
    """Return the file's name of a value's dtype, or None if the format has none."""
    if arrays.is_array(value):
        return _NUMPY.get(value.dtype.str)  # type: ignore[attr-defined]  # an array
    if arrays.is_tensor(value):
        try:
            return _TORCH.get(arrays.check_tensor(value)[0])
        except ValueError:
            return None
    return None
