"""Whatever can be sent arrives as it was; whatever is no message ends as ProtocolError and nothing else."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from loom.errors import LoomError, NotSendable, ProtocolError
from loom.wire import codec, envelope, failures
from loom.wire.arrays import BESIDE_BYTES, NDARRAY
from loom.wire.envelope import MSGPACK, PICKLE, Envelope


@dataclass(frozen=True)
class Parcel:
    label: str
    content: Any


class Crash(Exception):
    pass


LONE_SURROGATES = st.text(st.characters(categories=["Cs", "L", "N"]), max_size=5)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=10)
    | LONE_SURROGATES
    | st.binary(max_size=10)
)
DTYPES = (
    stn.scalar_dtypes()
    | stn.unicode_string_dtypes()
    | stn.byte_string_dtypes()
    | stn.array_dtypes(stn.scalar_dtypes(), max_size=4)
)
SHAPES = stn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Arrays of every dtype, byte order, shape and memory order; views too."""
    dtype, shape = draw(DTYPES), draw(SHAPES)
    count = math.prod(shape)
    data = draw(st.binary(min_size=dtype.itemsize * count, max_size=dtype.itemsize * count))
    if dtype.kind == "U":  # not any bytes are characters
        array = np.full(shape, draw(st.text(max_size=3)), dtype)
    else:
        array = np.frombuffer(data or b"", dtype, count).reshape(shape) if data else np.zeros(shape, dtype)
    kind = draw(st.sampled_from(["C", "F", "reversed", "strided"]))
    if kind == "F":
        return np.asfortranarray(array) if array.ndim else array
    if array.ndim and kind == "reversed":
        return array[::-1]
    if array.ndim and kind == "strided":
        return array[..., ::2]
    return array.copy()


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
NEUTRAL = st.recursive(
    PLAIN | arrays(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5), below, max_size=4),
    max_leaves=12,
)
WIRE_INTEGERS = st.integers(-(2**63), 2**64 - 1)
HASHABLE = st.recursive(
    ATOMS.filter(lambda value: value == value),  # a NaN is in no set but as itself
    lambda below: st.tuples(below, below) | st.frozensets(below, max_size=3),
    max_leaves=5,
)
_ANYTHING = st.recursive(
    ATOMS | arrays(),
    lambda below: (
        st.lists(below, max_size=4)
        | st.tuples(below, below)
        | st.dictionaries(HASHABLE, below, max_size=4)
        | st.sets(HASHABLE, max_size=3)
        | st.builds(Parcel, LONE_SURROGATES, below)
        | st.builds(Crash, below)
    ),
    max_leaves=12,
)


@st.composite
def anything(draw: st.DrawFn) -> Any:
    """Any value that Python peers can send each other."""
    return draw(_ANYTHING)


def same(left: Any, right: Any) -> bool:
    """Equal in type and content, NaN equal to itself, -0.0 not to 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        left, right = _native(left), _native(right)
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and same(list(left.items()), list(right.items()))
    if isinstance(left, Parcel):
        return same(left.label, right.label) and same(left.content, right.content)
    if isinstance(left, Crash):
        return same(left.args, right.args)
    if isinstance(left, float | complex):
        return repr(left) == repr(right)
    return bool(left == right)


def _native(array: np.ndarray) -> np.ndarray:
    """In this machine's byte order: NumPy itself, unpickling a big-endian array that was a view, gives that."""
    return array.astype(array.dtype.newbyteorder("="))


def arrive(body: codec.Body) -> Any:
    return codec.decode_value(body.encoding, body.data, [memoryview(one).tobytes("A") for one in body.buffers])


@given(anything())
@example([np.zeros(BESIDE_BYTES // 8), np.zeros((50, 50), order="F")])
def test_python_to_python(value: Any) -> None:
    assert same(arrive(codec.encode_value(value, PICKLE)), value)


@given(NEUTRAL)
def test_python_to_anyone(value: Any) -> None:
    """Through MessagePack all comes back as it was; tuples, which it has not, are not in here."""
    assert same(arrive(codec.encode_value(value, MSGPACK)), value)


@given(st.lists(anything(), max_size=3), st.dictionaries(st.from_regex(r"\A[a-z]+\Z"), anything(), max_size=2))
def test_arguments(args: list[Any], kwargs: dict[str, Any]) -> None:
    found_args, found_kwargs = arrive(codec.encode_call(tuple(args), kwargs))
    assert same(list(found_args), args)
    assert same(found_kwargs, kwargs)


@given(NEUTRAL)
def test_another_library_reads_what_we_write(value: Any) -> None:
    body = codec.encode_neutral(value)
    found: list[Any] = []

    def array_of(code: int, data: bytes) -> Any:
        assert code == NDARRAY
        dtype, shape, index = msgpack.unpackb(data)
        found.append(index)
        if isinstance(dtype, list):  # records: their fields are tuples to NumPy, and so are [title, name] pairs
            dtype = [(tuple(name) if isinstance(name, list) else name, *rest) for name, *rest in dtype]
        return np.frombuffer(body.buffers[index], dtype).reshape(shape)

    assert same(msgpack.unpackb(body.data, ext_hook=array_of), value)
    assert sorted(found) == list(range(len(body.buffers)))


@given(st.recursive(PLAIN, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=20))
def test_we_read_what_another_library_writes(value: Any) -> None:
    assert same(codec.decode_value(MSGPACK, msgpack.packb(value)), value)


@given(st.integers() | LONE_SURROGATES)
def test_what_messagepack_has_no_room_for_is_refused_not_bent(value: Any) -> None:
    try:
        body = codec.encode_neutral(value)
    except NotSendable:
        assert isinstance(value, str) or not -(2**63) <= value < 2**64
    else:
        assert same(arrive(body), value)


BYTES = st.binary(max_size=200)
NEARLY = st.builds(  # real messages with something cut off, put in or changed
    lambda data, at, cut, put: data[: at % (len(data) + 1)] + put + data[(at + cut) % (len(data) + 1) :],
    st.builds(msgpack.packb, st.recursive(PLAIN, lambda b: st.lists(b) | st.dictionaries(st.text(), b), max_leaves=9)),
    st.integers(0, 1000),
    st.integers(0, 3),
    st.binary(max_size=3),
)


@given(BYTES | NEARLY, st.lists(BYTES, max_size=3))
def test_any_bytes_are_a_body_or_a_protocol_error(data: bytes, buffers: list[bytes]) -> None:
    try:
        codec.decode_value(MSGPACK, data, buffers)
    except ProtocolError:
        pass


@given(st.recursive(PLAIN, lambda below: st.lists(below, max_size=4), max_leaves=8), st.lists(BYTES, max_size=3))
@example([[["a", "<f8"]], [1], 0], [b"12345678"])
def test_any_array_header_is_an_array_or_a_protocol_error(content: Any, buffers: list[bytes]) -> None:
    data = msgpack.packb(msgpack.ExtType(NDARRAY, msgpack.packb(content)))
    try:
        found = codec.decode_value(MSGPACK, data, buffers)
    except ProtocolError:
        return
    assert isinstance(found, np.ndarray)


DESCRIPTIONS = st.recursive(
    st.sampled_from(["<f8", "|O", "|V3", "|S0", "<U2", "", "<M8[s]", "f8,i4", "(2,)i4", 8, None]),
    lambda below: st.lists(st.lists(st.just("x") | st.text(max_size=2) | below | st.lists(WIRE_INTEGERS), max_size=4)),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore:Data type alias 'a' was deprecated")
@given(DESCRIPTIONS, st.lists(st.integers(-2, 9), max_size=3), st.integers(-1, 1), BYTES)
def test_any_dtype_is_an_array_or_a_protocol_error(dtype: Any, shape: list[int], index: int, data: bytes) -> None:
    body = msgpack.packb(msgpack.ExtType(NDARRAY, msgpack.packb([dtype, shape, index])))
    try:
        found = codec.decode_value(MSGPACK, body, [data])
    except ProtocolError:
        return
    assert found.shape == tuple(shape)
    assert not found.dtype.hasobject


@given(BYTES | NEARLY)
def test_any_bytes_are_a_header_or_a_protocol_error(data: bytes) -> None:
    try:
        assert isinstance(envelope.decode(data), Envelope)
    except ProtocolError:
        assert 0 <= envelope.id_of(data) < 2**64


FIELDS = st.sampled_from(Envelope.__struct_fields__)


VALUES = PLAIN | st.lists(st.none() | WIRE_INTEGERS | st.text() | st.lists(WIRE_INTEGERS))


@given(st.dictionaries(FIELDS | st.text(max_size=8), VALUES, max_size=8))
def test_any_map_is_a_header_or_a_protocol_error(fields: dict[str, Any]) -> None:
    try:
        header = envelope.decode(msgpack.packb({"id": 1, "kind": "call", **fields}))
    except ProtocolError:
        return
    assert envelope.decode(envelope.encode(header)) == header or any(
        isinstance(value, float) and math.isnan(value) for value in fields.values()
    )


@given(st.integers(0, 2**64 - 1), st.text(), st.text(), st.integers(0, 100), st.floats(allow_nan=False), st.text())
def test_headers_survive(message_id: int, to: str, name: str, priority: int, deadline: float, unknown: str) -> None:
    header = Envelope(message_id, "call", to=to, name=name, priority=priority, deadline=deadline)
    data = envelope.encode(header)
    assert envelope.decode(data) == header
    more = {**msgpack.unpackb(data), f"x{unknown}": unknown}
    assert envelope.decode(msgpack.packb(more)) == header


@given(anything())
def test_any_error_body_is_an_error(body: Any) -> None:
    assert isinstance(failures.from_wire(body, "store"), LoomError)


@given(
    st.dictionaries(
        st.sampled_from(["code", "type", "message", "traceback", "started", "cause"]),
        st.sampled_from(["L2001", "L2005", "L1005", "L9001", "X"]) | anything(),
    )
)
def test_any_error_map_is_an_error_that_can_be_printed(body: dict[str, Any]) -> None:
    assert str(failures.from_wire(body, "store"))


@given(LONE_SURROGATES | st.text(), st.booleans())
def test_any_text_of_an_exception_travels(text: str, is_cause: bool) -> None:
    error = failures.errors.ActorDied("x", cause=text) if is_cause else Crash(text)
    body = failures.refusal(error) if isinstance(error, LoomError) else failures.raised(error)
    assert arrive(codec.encode_neutral(body))["code"] == ("L2001" if is_cause else "L2005")


@pytest.mark.parametrize("size", [0, 1, BESIDE_BYTES - 1, BESIDE_BYTES, 100_000])
@pytest.mark.parametrize("accept", [MSGPACK, PICKLE])
def test_sizes_around_the_limit(size: int, accept: str) -> None:
    array = np.random.default_rng(size).integers(0, 255, size, "u1")
    assert same(arrive(codec.encode_value([array], accept)), [array])


def test_this_python_still_has_the_limit_that_the_specification_counts_on() -> None:
    assert 500 <= sys.getrecursionlimit() <= 10_000
