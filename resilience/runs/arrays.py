"""NumPy arrays and PyTorch tensors as streams of bytes, without pickle and without a second copy in memory.

Neither library is imported unless a state holds one of its values or a checkpoint asks for it. Arrays are
written as `.npy` (version 1.0); tensors as the `.npy` of their bytes, so that every dtype of PyTorch comes back as
it was, those that NumPy does not know (bfloat16, float8) included.

Source:
    The NPY format: NumPy Enhancement Proposal 1, and `numpy.lib.format`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from itertools import cycle
from typing import IO, TYPE_CHECKING, Any

from resilience.exceptions import CheckpointError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CHUNK",
    "array_chunks",
    "array_header",
    "check_array",
    "check_tensor",
    "copied",
    "is_array",
    "is_tensor",
    "read_array",
    "read_raw",
    "scalar_from_json",
    "scalar_to_json",
    "tensor_bytes",
    "tensor_from_bytes",
]

#: Bytes that are copied at a time: the memory a save or load takes above the state is a few of these.
CHUNK = 4 * 1024 * 1024


def is_array(value: object) -> bool:
    """Tell whether `value` is exactly a `numpy.ndarray`; its subclasses carry more than an array file holds."""
    module = sys.modules.get("numpy")
    return module is not None and type(value) is module.ndarray


def is_tensor(value: object) -> bool:
    """Tell whether `value` is exactly a `torch.Tensor`, not a subclass such as `Parameter`."""
    module = sys.modules.get("torch")
    return module is not None and type(value) is module.Tensor


def scalar_to_json(value: object) -> list[str] | None:
    """Return dtype and bytes of a NumPy scalar, or None if `value` is none.

    Raises:
        ValueError: The scalar has a dtype that its short name does not describe.
    """
    module = sys.modules.get("numpy")
    if module is None or not isinstance(value, module.generic):
        return None
    array = module.asarray(value)
    if module.dtype(array.dtype.str) != array.dtype:
        raise ValueError(f"a NumPy scalar of dtype {array.dtype}")
    return [array.dtype.str, array.tobytes().hex()]


def scalar_from_json(document: list[str]) -> Any:
    """Rebuild a NumPy scalar from what `scalar_to_json` gave."""
    numpy = _library("numpy")
    name, digits = document
    dtype = numpy.dtype(name)
    if dtype.hasobject:
        raise ValueError("an object dtype")
    data = bytes.fromhex(digits)
    if len(data) != dtype.itemsize:
        raise ValueError("a scalar of the wrong size")
    return numpy.ndarray((), dtype, data)[()]


def check_array(array: np.ndarray[Any, Any]) -> None:
    """Make sure that an array can be written without pickle and comes back with the same dtype.

    Raises:
        ValueError: It cannot; the message names what it is.
    """
    if array.dtype.hasobject:
        raise ValueError(f"an array of dtype {array.dtype}: only pickle could store the objects in it")
    try:
        _, _, dtype = _read_header(BytesIO(array_header(array)))
    except (ValueError, TypeError):
        dtype = None
    if dtype != array.dtype:
        raise ValueError(f"an array of dtype {array.dtype}")


def array_header(array: np.ndarray[Any, Any]) -> bytes:
    """Return what stands before the data in the array's `.npy` file."""
    codec = _library("numpy.lib.format")
    buffer = BytesIO()
    codec.write_array_header_1_0(buffer, codec.header_data_from_array_1_0(array))
    return buffer.getvalue()


def array_chunks(array: np.ndarray[Any, Any], *, order: str = "A") -> Iterator[memoryview]:
    """Yield copies of the array's data in pieces of at most `CHUNK` bytes.

    A copy keeps what is hashed equal to what is written while another thread changes the array. Two buffers take
    turns, which saves the kernel from handing out fresh pages: a piece is valid until the next but one is asked for.

    Args:
        array: The array.
        order: "A" writes Fortran-ordered arrays as they lie in memory, "C" always by rows.
    """
    if order == "A" and array.flags.f_contiguous and not array.flags.c_contiguous:
        array = array.T
    size = min(array.nbytes, CHUNK)
    for piece, buffer in zip(_blocks(array), cycle((bytearray(size), bytearray(size))), strict=False):
        view = memoryview(buffer)[: piece.nbytes]
        _library("numpy").frombuffer(view, piece.dtype).reshape(piece.shape)[...] = piece
        yield view


def _blocks(array: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield views of the array, by rows, of at most `CHUNK` bytes each."""
    if array.flags.c_contiguous:
        # As bytes, so that no value is looked at on its way.
        flat = array.reshape(-1).view("u1")
        yield from (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
    elif array.nbytes <= CHUNK:
        yield array
    else:
        rows = max(CHUNK * len(array) // array.nbytes, 1)
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            yield from _blocks(part[0] if len(part) == 1 else part)


def copied(value: Any) -> Any:
    """Return a copy of an array or tensor that lies in memory as the original; bytes are their own copy."""
    if is_array(value):
        return value.copy(order="K")
    return value.clone() if is_tensor(value) else value


def read_array(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """Read a `.npy` file of `size` bytes; nothing in it is executed, and no more memory is taken than `size`.

    Raises:
        ValueError: It is no array file, holds objects, or declares another size than it has.
    """
    shape, fortran_order, dtype = _read_header(file)
    if min(shape, default=0) < 0:
        raise ValueError("an array file with a shape that is none")
    array = read_raw(file, dtype, math.prod(shape), size - file.tell())
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def read_raw(file: IO[bytes], dtype: Any, count: int, size: int) -> np.ndarray[Any, Any]:
    """Read `count` items of `dtype`, which must take exactly `size` bytes, into a flat array.

    Raises:
        ValueError: They take another size, hold objects, or the file ends too early.
    """
    numpy = _library("numpy")
    dtype = numpy.dtype(dtype)
    if dtype.hasobject:
        raise ValueError("an array file that holds pickled objects")
    if size != count * dtype.itemsize:
        raise ValueError("an array file of another size than it declares")
    array = numpy.empty(count, dtype)
    if array.nbytes:
        _fill(memoryview(array.view("u1")), file)
    return array  # type: ignore[no-any-return]  # numpy is loaded late


def check_tensor(tensor: Any) -> tuple[str, list[int]]:
    """Return dtype and shape of a tensor that can be stored.

    Raises:
        ValueError: It is sparse, quantized, without data, or part of a graph.
    """
    torch = _library("torch")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ValueError("a sparse, quantized or meta tensor")
    if tensor.requires_grad:
        raise ValueError("a tensor that requires grad: call .detach() first")
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def tensor_bytes(tensor: Any) -> np.ndarray[Any, Any]:
    """Return the tensor's data, by rows, as a NumPy array of bytes; without a copy if it lies so on the CPU."""
    torch = _library("torch")
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()  # type: ignore[no-any-return]  # torch is loaded late


def tensor_from_bytes(data: np.ndarray[Any, Any], dtype: str, shape: list[int]) -> Any:
    """Rebuild a tensor, on the CPU, from what `tensor_bytes` and `check_tensor` gave."""
    torch = _library("torch")
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise TypeError(dtype)
    if data.size == 0:
        return torch.empty(shape, dtype=kind)
    return torch.from_numpy(data).view(kind).reshape(shape)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    codec = _library("numpy.lib.format")
    if codec.read_magic(file) != (1, 0):
        raise ValueError("an array file of another version than 1.0")
    return codec.read_array_header_1_0(file)  # type: ignore[no-any-return]  # numpy is loaded late


def _fill(view: memoryview, file: IO[bytes]) -> None:
    position = 0
    while position < len(view):
        piece = file.read(min(CHUNK, len(view) - position))
        if not piece:
            raise ValueError("an array file that ends too early")
        view[position : position + len(piece)] = piece
        position += len(piece)


def _library(name: str) -> Any:
    """Import a library that a checkpoint needs, or say which one is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        root = name.partition(".")[0]
        raise CheckpointError(f"The checkpoint holds {root} values. Install {root} to read it.", "configuration") from error
