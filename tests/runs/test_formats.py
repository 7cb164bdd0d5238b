from __future__ import annotations

import datetime as dt
import decimal
import io
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import uuid
import zipfile
from collections import OrderedDict
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from django.test import override_settings
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from resilience.exceptions import CheckpointError
from resilience.runs.encoding import MAX_DEPTH
from resilience.runs.formats import prepare, read
from tests.length import shorter
from tests.runs.exactness import same

plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**2000), 2**2000),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(max_size=3000),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5.5)), ZoneInfo("Europe/Berlin")])),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
)
dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(),
    npst.floating_dtypes(endianness="?"),
    npst.complex_number_dtypes(),
    npst.datetime64_dtypes(endianness="<"),
    npst.timedelta64_dtypes(),
    npst.byte_string_dtypes(),
    npst.unicode_string_dtypes(),
)
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ndarrays = npst.arrays(dtypes, shapes).flatmap(lambda a: st.sampled_from([a, a.T, np.asfortranarray(a)]))
scalars = npst.arrays(dtypes, ()).map(lambda a: a[()])
keys = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()), st.just("$tuple"))
states = st.recursive(
    st.one_of(plain_values, ndarrays, scalars),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.text(), inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


def stored(state: object, name: str = "auto") -> tuple[str, bytes]:
    """Write a state and return its format and bytes."""
    payload, file = prepare(state, name), io.BytesIO()
    payload.write(file)
    return payload.format, file.getvalue()


def loaded(name: str, data: bytes) -> Any:
    return read(name, io.BytesIO(data), len(data))


@settings(max_examples=shorter(200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=states)
@example(state={"nan": float("nan"), "negative zero": -0.0, "inf": [float("inf"), -float("inf")]})
@example(state={"$tuple": [1], "nested": {"$array": 0}})
@example(state=np.arange(6.0).reshape(2, 3).T)
@example(state="\x00 \ud800 é")
def test_formats__whatever_is_stored_comes_back_exactly(state: Any) -> None:
    """A stored state has the same types, order and bits when it is read back; nothing is changed on the way."""
    name, data = stored(state)

    result = loaded(name, data)

    assert same(result, state)


@settings(max_examples=shorter(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=states)
def test_formats__equal_states_have_equal_bytes(state: Any) -> None:
    """The bytes depend on the state alone, so equal states have equal sha256."""
    first = stored(state)

    second = stored(loaded(*first))

    assert second == first


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"step": 3}, "json"),
        ({"name": b"short"}, "json"),
        ({"lr": np.float32(0.1)}, "json"),
        ({"name": b"x" * 2000}, "zip"),
        ({"w": np.zeros(3)}, "zip"),
        ([[({"deep": np.zeros(0)},)]], "zip"),
    ],
)
def test_prepare__chooses_the_format_by_content(state: object, name: str) -> None:
    """Plain values become JSON, anything with arrays or long bytes becomes a zip."""
    payload = prepare(state)

    assert payload.format == name


class Model:
    """Something no format carries."""


def lambda_in(depth: int) -> Any:
    state: Any = len
    for _ in range(depth):
        state = [state]
    return state


cyclic: dict[str, Any] = {"a": []}
cyclic["a"].append(cyclic)


@pytest.mark.parametrize(
    ("state", "path", "kind"),
    [
        ({"model": {"layers": [1, Model()]}}, "state['model']['layers'][1]", "tests.runs.test_formats.Model"),
        ({"model": {"tags": {1, 2}}}, "state['model']['tags']", "a set. Store sorted"),
        ({"f": lambda: 0}, "state['f']", "a function"),
        ((1, {2: object()}), "state[1][2]", "an object"),
        ({Model: 1}, "state key <class 'tests.runs.test_formats.Model'>", "a type"),
        ({"w": np.array([1, "x", None], dtype=object)}, "state['w']", "dtype object"),
        ({"w": np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")])}, "state['w']", "only pickle could store"),
        ({"w": np.ma.masked_array([1, 2], [0, 1])}, "state['w']", "MaskedArray"),
        ({"w": np.array(["a"], dtype=np.dtypes.StringDType())}, "state['w']", "StringDType"),
        ({"path": io.BytesIO()}, "state['path']", "BytesIO"),
        (bytearray(b"x"), "state", "a bytearray"),
        (cyclic, "state['a'][0]", "must not contain itself"),
        (lambda_in(MAX_DEPTH + 1), "state[0]", "at most 100 deep"),
    ],
)
def test_prepare__refuses_what_cannot_come_back_exactly(state: object, path: str, kind: str) -> None:
    """What no format carries is refused before anything is written, with its path and type."""
    with pytest.raises(CheckpointError) as caught:
        prepare(state)

    assert caught.value.reason == "unstorable"
    assert caught.value.path.startswith(path)
    assert caught.value.path in str(caught.value)
    assert kind in str(caught.value)


def test_prepare__refuses_subclasses_of_plain_types() -> None:
    """A subclass would come back as its parent, so it is refused rather than changed."""

    class Meters(float):
        pass

    with pytest.raises(CheckpointError, match=r"state\['length'\] must be .* not a .*Meters"):
        prepare({"length": Meters(3)})


def test_prepare__a_value_seen_twice_is_no_cycle() -> None:
    """The same list in two places is stored twice, not mistaken for a cycle."""
    shared = [1, 2]

    result = loaded(*stored({"a": shared, "b": shared}))

    assert result == {"a": [1, 2], "b": [1, 2]}


def test_prepare__refuses_an_unknown_format() -> None:
    """A wrong format name fails with the names there are."""
    with pytest.raises(ValueError, match=r"format must be one of auto, json, zip, safetensors, pickle, not 'npz'\."):
        prepare({}, "npz")


def test_prepare__json_on_request_refuses_arrays() -> None:
    """Who asks for JSON learns that arrays do not fit into it."""
    with pytest.raises(CheckpointError, match="state must hold no arrays"):
        prepare({"w": np.zeros(3)}, "json")


def test_detach__later_changes_do_not_reach_the_checkpoint() -> None:
    """A detached payload holds the state as it was, whatever the loop does to its arrays and lists."""
    state = {"w": np.zeros(3), "losses": [1.0]}
    payload, file = prepare(state), io.BytesIO()
    payload.detach()
    state["w"][:] = 9
    state["losses"].append(2.0)

    payload.write(file)

    result = loaded("zip", file.getvalue())
    assert result["w"].tolist() == [0, 0, 0]
    assert result["losses"] == [1.0]


# --- what damage and malice do -------------------------------------------------------------------------------


def test_zip__is_readable_by_other_tools() -> None:
    """The zip holds a JSON document and .npy files that unzip and numpy.load open."""
    _, data = stored({"w": np.arange(6.0), "step": 3})

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        array = np.load(io.BytesIO(archive.read("array/000000.npy")), allow_pickle=False)
        document = json.loads(archive.read("state.json"))

    assert names == ["state.json", "array/000000.npy"]
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
    assert document == {"resilience": 1, "state": {"w": {"$array": 0}, "step": 3}}


class Bomb:
    """Unpickling this runs a command: it must never be unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def rezipped(data: bytes, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Copy a zip with some members replaced or added."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", compression) as archive:
        members = {name: source.read(name) for name in source.namelist()} | changes
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def test_zip__planted_object_array_is_refused_and_not_executed(tmp_path: Any) -> None:
    """An array file that carries a pickle is refused, and the pickle is not run."""
    trap = tmp_path / "executed"
    planted = io.BytesIO()
    np.save(planted, np.array([Bomb(str(trap))], dtype=object), allow_pickle=True)
    data = rezipped(stored({"w": np.zeros(3)})[1], {"array/000000.npy": planted.getvalue()})

    with pytest.raises(CheckpointError, match="holds an array file that holds pickled objects") as caught:
        loaded("zip", data)

    assert caught.value.reason == "damaged"
    assert not trap.exists()


@pytest.mark.parametrize("name", ["json", "zip", "safetensors"])
def test_formats__a_bare_pickle_is_refused_and_not_executed(name: str, tmp_path: Any) -> None:
    """A pickle in the place of another format's file is damage, and is not run."""
    trap = tmp_path / "executed"
    data = pickle.dumps(Bomb(str(trap)))

    with pytest.raises(CheckpointError):
        loaded(name, data)

    assert not trap.exists()


def test_zip__compressed_members_are_refused() -> None:
    """Nothing is ever unpacked, so a zip bomb has nothing to unfold."""
    data = rezipped(stored({"w": np.zeros(100_000)})[1], {}, zipfile.ZIP_DEFLATED)

    with pytest.raises(CheckpointError, match="compressed or encrypted member"):
        loaded("zip", data)


def test_zip__an_array_cannot_claim_more_memory_than_the_file_has() -> None:
    """A header that declares terabytes is refused before memory is taken for it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    data = rezipped(stored({"w": np.zeros(3)})[1], {"array/000000.npy": header.getvalue() + b"12345678"})

    with pytest.raises(CheckpointError, match="another size than it declares"):
        loaded("zip", data)


@pytest.mark.parametrize("shape", [(-1, 8), (2, -4), (-1, -8)])
def test_zip__negative_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """A shape with negative lengths is damage, not a crash."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    data = rezipped(stored({"w": np.zeros(3)})[1], {"array/000000.npy": header.getvalue() + b"12345678"})

    with pytest.raises(CheckpointError) as caught:
        loaded("zip", data)

    assert caught.value.reason == "damaged"


def test_zip__overlapping_members_are_refused() -> None:
    """Members that share bytes to look larger than the file are refused."""
    _, data = stored({"a": np.zeros(1000), "b": np.zeros(1000)})
    infos = zipfile.ZipFile(io.BytesIO(data)).infolist()
    doubled = data.replace(struct.pack("<II", infos[1].compress_size, infos[1].file_size), struct.pack("<II", 900_000, 900_000))

    with pytest.raises(CheckpointError):
        loaded("zip", doubled)


@settings(max_examples=shorter(150), deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["json", "zip", "safetensors"])
def test_formats__damage_is_reported_as_damage(name: str, data: st.DataObject) -> None:
    """Whatever bytes are flipped or cut, reading gives a CheckpointError or a value, never another exception."""
    _, good = stored({"w": np.arange(4.0), "b": np.zeros((2, 0), "i4")} if name != "json" else {"a": [1, (2, 3)]}, name)
    bad = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for position in data.draw(st.lists(st.integers(0, max(len(bad) - 1, 0)), max_size=4)) if bad else ():
        bad[position] ^= data.draw(st.integers(1, 255))

    try:
        result = loaded(name, bytes(bad))
    except CheckpointError as error:
        result = error.reason

    assert isinstance(result, dict) or result in {"damaged", "newer"}


@pytest.mark.parametrize("name", ["json", "zip"])
def test_formats__a_newer_version_is_refused_as_newer(name: str) -> None:
    """After a roll-back, checkpoints of the newer version are refused by name and not taken for damage."""
    _, data = stored({"step": 1}, name)
    newer = (
        data.replace(b'{"resilience":1,', b'{"resilience":2,')
        if name == "json"
        else rezipped(data, {"state.json": b'{"resilience":2,"state":0}'})
    )

    with pytest.raises(CheckpointError, match="has version 2 of its format, and this code reads up to 1") as caught:
        loaded(name, newer)

    assert caught.value.reason == "newer"


def test_read__an_unknown_format_or_tag_is_newer() -> None:
    """Formats and tags of later versions ask for an upgrade."""
    with pytest.raises(CheckpointError, match="format 'xyz'") as format_error:
        loaded("xyz", b"")
    with pytest.raises(CheckpointError, match="holds '\\$xyz'") as tag_error:
        loaded("json", b'{"resilience":1,"state":{"$xyz":1}}')

    assert format_error.value.reason == tag_error.value.reason == "newer"


# --- safetensors ---------------------------------------------------------------------------------------------


@settings(max_examples=shorter(60), deadline=None)
@given(
    state=st.dictionaries(
        st.text(st.characters(codec="utf-8")).filter(lambda name: name != "__metadata__"),
        npst.arrays(st.sampled_from(["<f8", "<f4", "<f2", "<i8", "|i1", "|u1", "<u4", "|b1"]), shapes),
        max_size=5,
    )
)
def test_safetensors__round_trip_and_readable_by_the_library(state: dict[str, np.ndarray[Any, Any]]) -> None:
    """Named arrays come back exactly, and the safetensors library reads the same from the file."""
    from safetensors.numpy import load

    name, data = stored(state, "safetensors")

    result, library = loaded(name, data), load(data)
    assert list(result) == list(state)
    assert library.keys() == state.keys()
    for name, array in state.items():
        assert result[name].dtype == library[name].dtype == array.dtype
        assert result[name].shape == array.shape
        assert result[name].tobytes() == library[name].tobytes() == array.tobytes()


def test_safetensors__reads_what_the_library_wrote() -> None:
    """A file of the safetensors library can be read back too."""
    from safetensors.numpy import save

    data = save({"b": np.arange(3, dtype="<f4"), "a": np.ones((2, 2), "<i8")})

    result = loaded("safetensors", data)

    assert result["b"].tolist() == [0, 1, 2]
    assert result["a"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], "state must be a dict of arrays for safetensors, not list"),
        ({"w": [1]}, r"state\['w'\] must be an array or tensor .*, not list"),
        ({1: np.zeros(1)}, r"state\[1\] must be an array or tensor under a string"),
        ({"w": np.zeros(1, ">f8")}, r"state\['w'\] must be .* not dtype >f8"),
        ({"__metadata__": np.zeros(1)}, "state"),
    ],
)
def test_safetensors__refuses_what_it_cannot_hold(state: object, message: str) -> None:
    """Anything but named arrays of the format's dtypes is refused with its path."""
    with pytest.raises(CheckpointError, match=message):
        prepare(state, "safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F64", "shape": [1], "data_offsets": [8, 16]}},
        {"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F64", "shape": [2**60], "data_offsets": [0, 2**63]}},
        {"a": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}},
        {"a": 3},
        [],
    ],
)
def test_safetensors__claims_that_do_not_fit_are_damage(header: object) -> None:
    """Offsets with gaps, sizes beyond the file and unknown dtypes are refused."""
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + b"12345678"

    with pytest.raises(CheckpointError) as caught:
        loaded("safetensors", data)

    assert caught.value.reason == "damaged"


# --- memory and libraries ------------------------------------------------------------------------------------


class Nowhere:
    def write(self, data: Any) -> int:
        return len(data)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("name", ["zip", "safetensors"])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_write__takes_little_memory_beside_the_state(name: str, layout: str) -> None:
    """Writing goes piece by piece: far less memory than the state, whatever its layout."""
    array = np.zeros((1024, 16 * 1024, 2), "f4")
    array = {"C": array, "F": np.asfortranarray(array), "strided": array[:, ::2]}[layout]
    payload = prepare({"w": array}, name)
    tracemalloc.start()

    payload.write(Nowhere())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 32 * 1024 * 1024


def test_read_array__needs_no_second_copy() -> None:
    """Reading takes the memory of the array itself and a few pieces more."""
    _, data = stored({"w": np.zeros(16 * 1024 * 1024, "f4")})
    tracemalloc.start()

    loaded("zip", data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < (64 + 24) * 1024 * 1024


def test_formats__plain_states_never_import_numpy_or_torch() -> None:
    """Who stores plain values pays for no library."""
    code = "import sys, io; from resilience.runs.formats import prepare; prepare({'a': (1, 2)}).write(io.BytesIO()); print({'numpy', 'torch'} & set(sys.modules))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == "set()"


def test_read__a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without the library that a checkpoint needs says so, and does not take the checkpoint for damaged."""
    _, data = stored({"w": np.zeros(3)})
    monkeypatch.setitem(sys.modules, "numpy.lib.format", None)

    with pytest.raises(CheckpointError, match=r"Install numpy to read it\.") as caught:
        loaded("zip", data)

    assert caught.value.reason == "configuration"


# --- PyTorch -------------------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    """PyTorch, where it is installed."""
    return pytest.importorskip("torch", reason="PyTorch is not installed: run `pip install torch` to test it")


def test_torch__tensors_of_every_dtype_come_back(torch: Any) -> None:
    """Tensors keep dtype, shape and bits, those that NumPy has no dtype for included."""
    kinds = ["float64", "float32", "float16", "bfloat16", "complex64", "int64", "uint8", "bool"]
    state = {kind: torch.arange(6).reshape(2, 3).to(getattr(torch, kind)) for kind in kinds}
    state["scalar"], state["empty"], state["transposed"] = torch.tensor(1.5), torch.zeros(0, 3), torch.ones(2, 3).T

    for name in ("zip", "safetensors"):
        result = loaded(*stored(state, name))

        for key, tensor in state.items():
            assert result[key].dtype == tensor.dtype
            assert torch.equal(result[key], tensor)


def test_torch__a_state_dict_goes_as_it_is(torch: Any) -> None:
    """Model and optimizer state dicts are stored without any change by the user."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()

    result = loaded(*stored({"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}))

    other = torch.nn.Linear(3, 2)
    other.load_state_dict(result["model"])
    torch.optim.Adam(other.parameters()).load_state_dict(result["optimizer"])
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("make", ["parameter", "sparse", "grad"])
def test_torch__refuses_what_would_lose_something(torch: Any, make: str) -> None:
    """Parameters, sparse tensors and tensors with a graph are refused with their path."""
    tensor = {
        "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
        "sparse": lambda: torch.eye(2).to_sparse(),
        "grad": lambda: torch.ones(2, requires_grad=True),
    }[make]()

    with pytest.raises(CheckpointError, match=r"state\['t'\] must be something"):
        prepare({"t": tensor})


def test_scalars__other_dtypes_than_their_name_are_refused() -> None:
    """A NumPy scalar of a structured dtype has more than its short name says."""
    value = np.zeros(1, [("a", "i4"), ("b", "f4")])[0]

    with pytest.raises(CheckpointError, match="a NumPy scalar of dtype"):
        prepare({"x": value})


def test_arrays__structured_dtypes_come_back() -> None:
    """Arrays of records without objects are stored with their field names."""
    array = np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")])

    result = loaded(*stored({"r": array}))

    assert result["r"].dtype == array.dtype
    assert result["r"].tolist() == [(1, 2.5)]


def test_decimal_uuid_and_zones__keep_their_kind() -> None:
    """A few everyday types keep their identity, time zones by name included."""
    state = {
        "price": decimal.Decimal("1.10"),
        "id": uuid.UUID(int=7),
        "at": dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    }

    result = loaded(*stored(state))

    assert str(result["price"]) == "1.10"
    assert result == state
    assert result["at"].fold == 1
    assert result["at"].tzinfo.key == "Europe/Berlin"


def test_time_zones__of_unknown_kinds_are_refused() -> None:
    """A home-made time zone could not be rebuilt."""

    class Zone(dt.tzinfo):
        def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
            return dt.timedelta(hours=1)

    with pytest.raises(CheckpointError, match=r"state\['at'\] must be .* a time zone of type Zone"):
        prepare({"at": dt.datetime(2026, 1, 1, tzinfo=Zone())})


@override_settings(RESILIENCE={})
def test_pickle__needs_keys_to_be_asked_for() -> None:
    """Without signing keys nobody stores or loads a pickle."""
    with pytest.raises(CheckpointError, match="SIGNING_KEYS") as caught:
        prepare({"a": 1}, "pickle")

    assert caught.value.reason == "configuration"
