"""Bodies: which encoding a value gets, what it is when it arrives, and what is refused."""

from __future__ import annotations

import datetime
import enum
import functools
import importlib.util
import pickle
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import numpy as np
import pytest

from loom.errors import NotSendable, ProtocolError
from loom.wire import arrays, codec
from loom.wire.codec import Body
from loom.wire.envelope import MSGPACK, PICKLE


@dataclass
class Parcel:
    label: str
    content: Any = None


class Colour(enum.Enum):
    RED = 1


class Crash(Exception):
    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


def double(value: int) -> int:
    return 2 * value


def travel(value: Any, accept: str = PICKLE) -> Any:
    """A result, there and back; buffers arrive as bytes, as they do in frames."""
    return arrive(codec.encode_value(value, accept))


def arrive(body: Body) -> Any:
    return codec.decode_value(body.encoding, body.data, [memoryview(one).tobytes("A") for one in body.buffers])


def same_array(found: Any, expected: np.ndarray) -> bool:
    return bool(
        isinstance(found, np.ndarray)
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


class TestWhichEncoding:
    @pytest.mark.parametrize("value", [None, True, 3, -1.5, "text", b"bytes", 2**64 - 1, -(2**63)])
    def test_plain_values_are_msgpack_for_everyone(self, value: Any) -> None:
        for accept in (MSGPACK, PICKLE):
            body = codec.encode_value(value, accept)
            assert body.encoding == MSGPACK
            assert msgpack.unpackb(body.data) == value
            assert arrive(body) == value

    @pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800", (1,), {1}, [1], {"a": 1}])
    def test_the_rest_is_pickled_for_python(self, value: Any) -> None:
        assert codec.encode_value(value, PICKLE).encoding == PICKLE
        assert travel(value) == value
        assert type(travel(value)) is type(value)

    def test_nan(self) -> None:
        assert np.isnan(travel(float("nan")))

    def test_arguments(self) -> None:
        plain = codec.encode_call((1, "a"), {"by": None})
        assert plain.encoding == MSGPACK
        assert msgpack.unpackb(plain.data) == [[1, "a"], {"by": None}]
        for args, kwargs in [(([1],), {}), ((), {"by": (1,)}), ((2**64,), {}), ((), {"by": "\ud800"})]:
            body = codec.encode_call(args, kwargs)
            assert body.encoding == PICKLE
            assert arrive(body) == (args, kwargs)

    def test_a_subclass_of_a_plain_type_stays_what_it_is(self) -> None:
        class Name(str):
            pass

        assert type(travel(Name("a"))).__name__ == "Name"
        assert travel(Colour.RED) is Colour.RED


class TestNeutral:
    """What a caller that accepts no pickles gets."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ((1, 2), [1, 2]),
            ({"a": (1, {"b": [None]})}, {"a": [1, {"b": [None]}]}),
            ({3}, [3]),
            (Parcel("a", 1), {"label": "a", "content": 1}),
            (Colour.RED, 1),
            (np.float32(1.5), 1.5),
            (np.int64(-3), -3),
            (np.bool_(True), True),
            ({1: "a"}, {1: "a"}),
        ],
        ids=repr,
    )
    def test_values(self, value: Any, expected: Any) -> None:
        body = codec.encode_value(value, MSGPACK)
        assert body.encoding == MSGPACK
        assert msgpack.unpackb(body.data, strict_map_key=False) == expected

    @pytest.mark.parametrize(
        ("value", "word"),
        [
            (2**64, "out of range|too big|64"),
            ("\ud800", "surrogates"),
            (object(), "builtins.object"),
            (1j, "builtins.complex"),
            (double, "function"),
            (np.array([None]), "numpy.ndarray"),
            (threading.Lock(), "lock"),
        ],
        ids=["big", "surrogate", "object", "complex", "function", "objects", "lock"],
    )
    def test_what_has_no_form_is_named(self, value: Any, word: str) -> None:
        for one in (value, [value], {"a": value}):
            with pytest.raises(NotSendable, match=word):
                codec.encode_value(one, MSGPACK)

    def test_a_list_within_itself(self) -> None:
        knot: list[Any] = []
        knot.append(knot)
        with pytest.raises(NotSendable):
            codec.encode_neutral(knot)

    def test_code_of_a_value_that_raises(self) -> None:
        class Shy(np.float32):
            def item(self, *args: Any) -> Any:
                raise OSError("not today")

        with pytest.raises(NotSendable, match="not today"):
            codec.encode_neutral([Shy(1)])

    def test_another_library_reads_an_array(self) -> None:
        body = codec.encode_value({"rows": np.arange(6, dtype="<i4").reshape(2, 3)}, MSGPACK)
        found = msgpack.unpackb(body.data)["rows"]
        assert found.code == 1
        assert msgpack.unpackb(found.data) == ["<i4", [2, 3], 0]
        assert bytes(body.buffers[0]) == np.arange(6, dtype="<i4").tobytes()


RECORD = np.dtype([("at", "<f8"), ("grid", "<i2", (2, 3)), ("inner", [("a", "|S3"), ("b", ">u4")])])
PADDED = np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8], "itemsize": 24})
ARRAYS: dict[str, np.ndarray] = {
    "doubles": np.linspace(0, 1, 12).reshape(3, 4),
    "big-endian": np.arange(5, dtype=">i4"),
    "booleans": np.array([True, False]),
    "halves": np.ones(3, "<f2"),
    "complex": np.array([1 + 2j]),
    "bytes": np.array([b"a", b"bcd"]),
    "text": np.array(["a", "né"]),
    "times": np.array(["2026-01-01", "NaT"], "M8[ns]"),
    "spans": np.array([1, 2], "m8[ms]"),
    "void": np.zeros(2, "V5"),
    "zero-dimensional": np.array(2.5),
    "empty": np.zeros((0,)),
    "empty with shape": np.zeros((3, 0, 2), ">i2"),
    "column-major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20)[::3],
    "backwards": np.arange(5)[::-1],
    "records": np.zeros(2, RECORD),
    "padded records": np.zeros(2, PADDED),
    "empty records": np.zeros(0, RECORD),
    "large": np.arange(100_000),
    "large and column-major": np.asfortranarray(np.random.default_rng(1).random((100, 100))),
}


@pytest.mark.parametrize("accept", [MSGPACK, PICKLE])
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
class TestArrays:
    def test_there_and_back(self, array: np.ndarray, accept: str) -> None:
        assert same_array(travel([array], accept)[0], array)

    def test_a_buffer_beside_the_body_comes_out_read_only(self, array: np.ndarray, accept: str) -> None:
        body = codec.encode_value([array], accept)
        if body.buffers and array.size:
            assert not arrive(body)[0].flags.writeable

    def test_the_senders_stays_as_it_was(self, array: np.ndarray, accept: str) -> None:
        before = array.tobytes()
        travel([array], accept)
        assert array.flags.writeable
        assert array.tobytes() == before


class TestBuffers:
    def test_large_ones_ride_beside_a_pickle_small_ones_in_it(self) -> None:
        large, small = np.zeros(arrays.BESIDE_BYTES, "u1"), np.zeros(arrays.BESIDE_BYTES - 1, "u1")
        body = codec.encode_value([large, small], PICKLE)
        assert [memoryview(one).nbytes for one in body.buffers] == [arrays.BESIDE_BYTES]
        assert len(body.data) < 2 * arrays.BESIDE_BYTES

    def test_nothing_is_copied(self) -> None:
        array = np.zeros(10_000)
        for accept in (MSGPACK, PICKLE):
            body = codec.encode_value([array], accept)
            assert np.shares_memory(np.frombuffer(body.buffers[0], "u1"), array)

    def test_several_of_them_keep_their_order(self) -> None:
        arrays = [np.full(3000 + n, n, "u1") for n in range(5)]
        for accept in (MSGPACK, PICKLE):
            found = travel({"arrays": arrays, "again": arrays[0]}, accept)
            assert all(same_array(one, other) for one, other in zip(found["arrays"], arrays, strict=True))
            assert same_array(found["again"], arrays[0])

    def test_a_closure_over_a_large_array(self) -> None:
        array = np.arange(10_000)
        body = codec.encode_value(lambda: array.sum(), PICKLE)
        assert len(body.buffers) == 1
        assert arrive(body)() == array.sum()


class TestPython:
    @pytest.mark.parametrize(
        "value",
        [
            (1, (2, [3])),
            {frozenset({1}): {2}},
            Parcel("a", Parcel("b")),
            Colour.RED,
            datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            Path("/tmp"),
            10**100,
            "caf\udce9",
            bytearray(b"abc"),
            range(3),
            slice(1, 2),
            int,
            Parcel,
            double,
            len,
            np.dtype("<f8"),
            functools.partial(double, 3).args,
        ],
        ids=lambda value: getattr(value, "__name__", repr(value)),
    )
    def test_values(self, value: Any) -> None:
        found = travel([value])[0]
        assert found == value
        assert type(found) is type(value)

    def test_exceptions(self) -> None:
        found = travel(Crash("boom", 7))
        assert type(found) is Crash
        assert (found.args, found.number) == (("boom", 7), 7)

    def test_functions_without_a_name(self) -> None:
        def add(by: int) -> Any:
            return lambda value: value + by

        assert travel(add(3))(4) == 7
        assert travel([lambda: 5])[0]() == 5

    def test_a_class_without_a_name_to_import(self) -> None:
        @dataclass
        class Local:
            x: int

        found = travel([Local(3)])[0]
        assert found.x == 3
        assert type(found) is Local, "in the process that it comes from it is the same class again"

    def test_what_its_name_does_not_lead_to(self) -> None:
        made = enum.Enum("made", ["ONE"])  # type: ignore[misc]
        pair = namedtuple("pair", ["a", "b"])
        assert travel([made.ONE])[0].name == "ONE"  # type: ignore[attr-defined]
        assert travel([pair(1, 2)])[0] == (1, 2)

    @pytest.mark.parametrize(
        "value", [threading.Lock(), (one for one in ()), sys._getframe()], ids=["lock", "generator", "frame"]
    )
    def test_what_cannot_travel_is_named(self, value: Any) -> None:
        for body in (lambda: codec.encode_value([value], PICKLE), lambda: codec.encode_call((value,), {})):
            with pytest.raises(NotSendable, match=type(value).__name__):
                body()

    def test_code_of_a_value_that_raises(self) -> None:
        class Shy:
            def __reduce__(self) -> Any:
                raise OSError("not today")

        with pytest.raises(NotSendable, match="OSError: not today"):
            codec.encode_value(Shy(), PICKLE)

    def test_an_order_carries_the_class(self) -> None:
        cls, args, kwargs = pickle.loads(codec.dumps_order(Parcel, ("a",), {"content": 2}))
        assert cls(*args, **kwargs) == Parcel("a", 2)

    def test_an_order_that_cannot_travel(self) -> None:
        with pytest.raises(NotSendable, match="the actor's class or arguments"):
            codec.dumps_order(Parcel, (threading.Lock(),), {})


class TestByName:
    """A class travels by its name where that leads to it, else by value."""

    def elsewhere(self, value: Any, tmp_path: Path) -> str:
        """What repr() says of a pickled value in a process with this one's sys.path, and nothing loaded."""
        file = tmp_path / "value"
        file.write_bytes(codec.dumps_order(None, (value,), {}))
        code = f"import pickle, sys; sys.path[:] = {sys.path!r}; print(pickle.load(open({str(file)!r}, 'rb'))[1][0])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def load(self, path: Path, name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_what_can_be_imported_goes_by_name(self) -> None:
        for value in (Path, np.ndarray, codec.Body, subprocess.run, pytest.raises, np.linalg.norm):
            assert len(codec.dumps_order(None, (value,), {})) < 120, value

    def test_the_classes_of_a_test(self, tmp_path: Path) -> None:
        assert self.elsewhere(Parcel("a", 1), tmp_path) == "Parcel(label='a', content=1)"

    def test_a_module_off_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = "class Plug:\n    def __repr__(self):\n        return f'<{helper()}>'\n\ndef helper():\n    return 3\n"
        (tmp_path / "plug.py").write_text(source)
        monkeypatch.setitem(sys.modules, "loom_test_plug", None)
        module = self.load(tmp_path / "plug.py", "loom_test_plug")
        assert self.elsewhere(module.Plug(), tmp_path) == "<3>"

    def test_a_module_that_another_of_its_name_hides(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder, number in (("first", 1), ("second", 2)):
            (tmp_path / folder).mkdir()
            source = f"class Twin:\n    def __repr__(self):\n        return '{number}'\n"
            (tmp_path / folder / "loom_test_twin.py").write_text(source)
        monkeypatch.setitem(sys.modules, "loom_test_twin", None)
        monkeypatch.syspath_prepend(str(tmp_path / "first"))
        module = self.load(tmp_path / "second" / "loom_test_twin.py", "loom_test_twin")
        assert self.elsewhere(module.Twin(), tmp_path) == "2"

    def test_a_module_made_by_hand(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("loom_test_hand")
        monkeypatch.setitem(sys.modules, "loom_test_hand", module)
        exec("class Made:\n    def __repr__(self):\n        return 'made'\n", module.__dict__)
        assert self.elsewhere(module.Made(), tmp_path) == "made"


MALFORMED = {
    "nothing": b"",
    "never used byte": b"\xc1",
    "cut off": b"\x93\x01\x02",
    "something after it": b"\x01\x02",
    "a list of four thousand million": b"\xdd\xff\xff\xff\xff",
    "a map of four thousand million": b"\xdf\xff\xff\xff\xff",
    "bytes of four thousand million": b"\xc6\xff\xff\xff\xff",
    "text that is not UTF-8": b"\xa2\xff\xfe",
    "100,000 levels": b"\x91" * 100_000 + b"\xc0",
    "100,000 levels of maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "a map as a key": b"\x81\x81\x01\x02\x03",
    "an extension nobody knows": b"\xd4\x05\x00",
    "an array without its buffer": b"\xd4\x01\x00",
    "no time": b"\xd7\xff" + b"\xff" * 8,
}


@pytest.mark.parametrize("buffers", [(), (b"12345678",)], ids=["alone", "with a buffer"])
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bodies(data: bytes, buffers: tuple[bytes, ...]) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.decode_value(MSGPACK, data, buffers)
    assert caught.value.code == "L2006"


BAD_ARRAYS: list[Any] = [
    None,
    ["<f8", [1]],
    ["<f8", [1], 0, 0],
    ["<f8", [1], 1],
    ["<f8", [1], -1],
    ["<f8", [-1], 0],
    ["<f8", [2], 0],
    ["<f8", [2**62, 4], 0],
    ["<f8", [2**63], 0],
    ["<f8", [1] * 100, 0],
    ["<f8", 1, 0],
    ["<f8", [1.0], 0],
    ["|O", [1], 0],
    ["no such type", [1], 0],
    ["", [1], 0],
    ["<M8[xx]", [1], 0],
    ["V0", [3], 0],
    [None, [1], 0],
    [8, [1], 0],
    [{"a": 1}, [1], 0],
    [[["a", "|O"]], [1], 0],
    [[["a"]], [1], 0],
    [[["a", "<f8", "x"]], [1], 0],
    [[["a", "<f8", [-1]]], [1], 0],
    [[["a", "<f4"], ["a", "<f4"]], [1], 0],
    [["a", "<f8"], [1], 0],
    [[3], [1], 0],
]


@pytest.mark.parametrize("content", BAD_ARRAYS, ids=repr)
def test_malformed_arrays(content: Any) -> None:
    data = msgpack.packb(msgpack.ExtType(arrays.NDARRAY, msgpack.packb(content)))
    with pytest.raises(ProtocolError, match="malformed array"):
        codec.decode_value(MSGPACK, data, [b"12345678"])


class TestPickles:
    def test_are_refused_from_strangers(self) -> None:
        with pytest.raises(ProtocolError, match="private sockets"):
            codec.decode_value(PICKLE, pickle.dumps(1), trusted=False)

    @pytest.mark.parametrize(
        "data",
        [b"", b"\x80", pickle.dumps([1, 2, 3])[:-2], b"cno_such_module\nthing\n.", b"cos\nno_such_name\n.", b"none"],
        ids=repr,
    )
    def test_malformed(self, data: bytes) -> None:
        with pytest.raises(ProtocolError, match="cannot be unpickled here"):
            codec.decode_value(PICKLE, data)

    def test_too_few_buffers(self) -> None:
        body = codec.encode_value([np.zeros(10_000)], PICKLE)
        with pytest.raises(ProtocolError):
            codec.decode_value(body.encoding, body.data, [])

    def test_whatever_unpickling_raises(self) -> None:
        with pytest.raises(ProtocolError, match="ZeroDivisionError"):
            codec.decode_value(PICKLE, b"c_operator\ntruediv\n(I1\nI0\ntR.")


def test_an_unknown_encoding() -> None:
    with pytest.raises(ProtocolError, match="expected 'msgpack' or 'pickle', got 'json'"):
        codec.decode_value("json", b"{}")


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("|V0", [-1]),
        ("|S0", [-1]),
        ("<M8[s/0]", [1]),
        ([["at", "<m8[ns/0]"]], [1]),
        ([["in", [["at", "<M8[Y/0]"]]]], [1]),
    ],
)
def test_an_array_that_numpy_would_die_of_is_refused(dtype: Any, shape: list[int]) -> None:
    body = msgpack.packb(msgpack.ExtType(1, msgpack.packb([dtype, shape, 0])))
    with pytest.raises(ProtocolError, match="malformed array"):
        codec.decode_value("msgpack", body, [b"\0" * 8])
