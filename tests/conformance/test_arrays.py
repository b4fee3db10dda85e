"""Arrays to an actor and back: every layout and dtype, and what becomes of their memory.

After each test nothing may be in flight, and no block in use: `desk` looks.
"""

from __future__ import annotations

import array
import dataclasses
import gc
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import loom
from loom.arena import ArenaStats
from loom.errors import ActorDied, ArenaFull, LoomError, NotSendable, RemoteError
from loom.wire import frames

BIG = 40_000
"""Elements of arrays that go through the arena, whatever their dtype of these tests (but for the smallest)."""

NUMPY = tuple(map(int, np.__version__.split(".")[:2]))


@dataclasses.dataclass
class Parcel:
    label: str
    array: np.ndarray
    more: list[np.ndarray]


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray


class Desk(loom.Actor):
    """Receives anything."""

    def __init__(self) -> None:
        self.drawer: Any = None

    def echo(self, value: Any) -> Any:
        return value

    def digest(self, value: np.ndarray) -> tuple[str, Any, tuple[int, ...], bool]:
        return digest_of(value), value.dtype, value.shape, value.flags.writeable

    def scribble(self, value: np.ndarray) -> str:
        try:
            value.flags.writeable = True
        except ValueError as error:
            return str(error)
        return "writeable"

    def are_one(self, first: Any, second: Any) -> tuple[bool, bool]:
        return first is second, bool(np.shares_memory(first, second))

    def keep(self, value: Any) -> None:
        self.drawer = value

    def kept(self) -> Any:
        return self.drawer

    def many(self, n: int) -> np.ndarray:
        return np.zeros(n)

    def settle(self) -> None:
        self.drawer = None
        gc.collect()
        loom.arena.current().collect()

    def pid(self) -> int:
        return os.getpid()


def digest_of(value: np.ndarray) -> str:
    """Of its elements in C order."""
    return hashlib.sha256(value.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def the_node() -> Iterator[loom.Node]:
    with loom.Node() as node:
        node.spawn(Desk, name="desk")
        yield node


@pytest.fixture
def desk(the_node: loom.Node, until: Any) -> Iterator[loom.ActorRef]:
    desk = the_node.lookup("desk")
    yield desk
    left: list[ArenaStats] = []

    def nothing_left() -> bool:
        gc.collect()
        loom.arena.current().collect()
        desk.settle().result(timeout_s=10)
        stats = the_node.stats().arena
        left[:] = [stats]
        return (stats.in_use_bytes, stats.blocks, stats.in_flight) == (0, 0, 0)

    assert until(nothing_left), left


@pytest.fixture
def figures(the_node: loom.Node) -> Callable[[], ArenaStats]:
    """The arena's figures now."""

    def read() -> ArenaStats:
        gc.collect()
        loom.arena.current().collect()
        return the_node.stats().arena

    return read


def noise(n: int) -> NDArray[np.float64]:
    return np.random.default_rng(n).normal(size=n)


def of_bytes(n: int, dtype: Any) -> np.ndarray:
    kind = np.dtype(dtype)
    found: np.ndarray = np.random.default_rng(n).integers(0, 256, n * kind.itemsize, dtype=np.uint8).view(kind)
    return found


def unaligned(n: int) -> np.ndarray:
    found = np.frombuffer(bytearray(n * 8 + 1), np.uint8)[1:].view("<f8")
    found[:] = noise(n)
    assert not found.flags.aligned
    return found


RECORD = np.dtype([("a", "<i4"), ("b", ">f8", (3,)), ("c", "S5"), ("d", [("x", "?"), ("y", "<U3")])])
PADDED = np.dtype([("a", "i1"), ("b", "f8"), ("c", "i1")], align=True)

LAYOUTS: dict[str, Callable[[int], np.ndarray]] = {
    "contiguous": noise,
    "strided": lambda n: noise(3 * n)[::3],
    "reversed": lambda n: noise(n)[::-1],
    "a column": lambda n: noise(4 * n).reshape(n, 4)[:, 1],
    "strided in two dimensions": lambda n: noise(n * 6).reshape(2 * n, 3)[::2, ::2],
    "Fortran": lambda n: np.asfortranarray(noise(3 * n).reshape(3, n)),
    "transposed": lambda n: noise(6 * n).reshape(n, 2, 3).transpose(2, 0, 1),
    "both C and Fortran": lambda n: noise(n).reshape(1, n),
    "zero-size": lambda n: np.zeros((0, n)),
    "zero-size inside": lambda n: np.zeros((n, 0, 3), "f4"),
    "0-d": lambda n: np.array(float(n)),
    "structured": lambda n: of_bytes(n, [("a", "<i4"), ("b", ">f8", (3,)), ("c", "S5"), ("d", "<f4", (3,))]),
    "structured, nested": lambda n: np.array([(1, (1.0, 2.0, 3.0), b"abc", (True, "xyz"))] * n, RECORD),
    "structured, padded": lambda n: np.array([(1, 2.0, 3)] * n, PADDED),
    "a field of it": lambda n: np.array([(1, 2.0, 3)] * n, PADDED)["b"],
    "big-endian": lambda n: noise(n).astype(">f8"),
    "big-endian integers": lambda n: np.arange(n, dtype=">i4"),
    "bool": lambda n: noise(n) > 0,
    "complex64": lambda n: noise(2 * n).astype("f4").view("c8"),
    "complex128": lambda n: noise(2 * n).view("c16"),
    "datetime64": lambda n: np.array(["2024-02-29T12:00", "NaT"] * n, "M8[ns]"),
    "timedelta64": lambda n: np.arange(n).astype("m8[us]"),
    "structured, with a date": lambda n: of_bytes(n, [("at", "<M8[s]"), ("x", "<f4")]),
    "dates, transposed": lambda n: np.arange(2 * n).astype("M8[s]").reshape(2, n).T,
    "float16": lambda n: noise(n).astype("f2"),
    "longdouble": lambda n: noise(n).astype("g"),
    "text": lambda n: np.array(["", "é", "xyz"] * n),
    "bytes": lambda n: np.array([b"", b"a\0b"] * n),
    "void": lambda n: of_bytes(n, "V7"),
    "unaligned": unaligned,
    "broadcast": lambda n: np.broadcast_to(noise(n), (3, n)),
    "broadcast from one": lambda n: np.broadcast_to(np.float64(7.5), (n,)),
    "sliding windows": lambda n: np.lib.stride_tricks.sliding_window_view(noise(n), 3),
    "odd numbers": lambda n: np.array([np.nan, -0.0, -np.inf, 5e-324] * n),
}


@pytest.mark.parametrize("n", [5, BIG])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(desk: loom.ActorRef, layout: str, n: int) -> None:
    sent = LAYOUTS[layout](n)
    before = sent.tobytes()
    digest, dtype, shape, _ = desk.digest(sent).result(timeout_s=30)
    assert (digest, dtype, shape) == (digest_of(sent), sent.dtype, sent.shape)
    back = desk.echo(sent).result(timeout_s=30)
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape) == (sent.dtype, sent.shape)
    assert back.tobytes() == sent.tobytes() == before
    assert sent.flags.f_contiguous is False or back.flags.f_contiguous
    assert sent.flags.c_contiguous is False or back.flags.c_contiguous


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith(("zero", "0-d"))])
def test_no_layout_goes_around_the_arena(desk: loom.ActorRef, figures: Callable[[], ArenaStats], layout: str) -> None:
    """Nor is any copied more than once on its way in."""
    sent = LAYOUTS[layout](BIG)
    before = figures()
    desk.digest(sent).result(timeout_s=30)
    after = figures()
    assert after.references_sent - before.references_sent == 1
    assert after.bytes_copied - before.bytes_copied == sent.nbytes


def test_received_arrays_are_read_only(desk: loom.ActorRef) -> None:
    assert desk.digest(noise(BIG)).result(timeout_s=10)[3] is False
    assert "WRITEABLE" in desk.scribble(noise(BIG)).result(timeout_s=10)
    back = desk.echo(noise(BIG)).result(timeout_s=10)
    assert not back.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        back.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1.0


def test_objects_travel_by_value(desk: loom.ActorRef) -> None:
    sent = np.array([None, "text", 1 << 80, {"a": (1,)}] * 2000, dtype=object)
    assert desk.echo(sent).result(timeout_s=10).tolist() == sent.tolist()


# --- What is copied, and how often ---


@pytest.mark.parametrize(
    ("part", "copies"),
    [
        (np.s_[:], False),
        (np.s_[100:300], False),
        (np.s_[7:8], False),
        (np.s_[-1:], False),
        (np.s_[100:300:2], True),
        (np.s_[:, 5:], True),
    ],
)
def test_a_slice_of_a_shared_array(
    desk: loom.ActorRef, figures: Callable[[], ArenaStats], part: Any, copies: bool
) -> None:
    shared = loom.arena.share(noise(500 * 5000).reshape(500, 5000))
    sent = shared[part]
    before = figures()
    assert desk.digest(sent).result(timeout_s=10)[0] == digest_of(sent)
    after = figures()
    assert after.bytes_copied - before.bytes_copied == (sent.nbytes if copies else 0)
    assert after.bytes_shared - before.bytes_shared == (0 if copies else sent.nbytes)


def test_what_was_received_is_handed_on_uncopied(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    before = figures()
    back = desk.echo(noise(BIG)).result(timeout_s=10)
    for _ in range(5):
        back = desk.echo(back).result(timeout_s=10)
    after = figures()
    assert digest_of(back) == digest_of(noise(BIG))
    assert after.bytes_copied - before.bytes_copied == back.nbytes
    assert after.bytes_shared - before.bytes_shared == 11 * back.nbytes
    assert after.blocks == 1


def test_a_shared_fortran_array_stays_one(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    shared = loom.arena.share(np.asfortranarray(noise(2 * BIG).reshape(2, BIG)))
    before = figures()
    back = desk.echo(shared).result(timeout_s=10)
    assert back.flags.f_contiguous
    assert digest_of(back) == digest_of(shared)
    assert figures().bytes_copied == before.bytes_copied


def test_sending_seals_a_shared_array_for_its_sender(desk: loom.ActorRef) -> None:
    shared, private = loom.arena.share(noise(BIG)), noise(BIG)
    desk.digest(shared[10:]).result(timeout_s=10)
    desk.digest(private).result(timeout_s=10)
    assert not shared.flags.writeable
    assert private.flags.writeable


def test_the_same_array_twice_in_one_call(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    once = noise(BIG)
    before = figures()
    assert desk.are_one(once, once).result(timeout_s=10) == (True, True)
    after = figures()
    assert after.references_sent - before.references_sent == 1
    assert after.bytes_copied - before.bytes_copied == once.nbytes
    shared = loom.arena.share(once)
    assert desk.are_one(shared, shared[:]).result(timeout_s=10) == (False, True)
    assert desk.are_one(shared, shared[100:]).result(timeout_s=10) == (False, True)
    back, again = desk.echo([shared, shared[5:]]).result(timeout_s=10)
    assert np.shares_memory(back, again)
    assert figures().bytes_copied == after.bytes_copied


# --- Arrays inside of other things ---


def test_nested_arrays(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    a, b, c = noise(BIG), noise(BIG + 1), noise(3)
    before = figures()
    back = desk.echo({"a": a, "deep": [{"b": (b, c)}], "n": 1}).result(timeout_s=10)
    assert list(back) == ["a", "deep", "n"]
    found = back["a"], *back["deep"][0]["b"]
    assert [digest_of(one) for one in found] == [digest_of(one) for one in (a, b, c)]

    parcel = desk.echo(Parcel("x", a, [b, c])).result(timeout_s=10)
    assert isinstance(parcel, Parcel)
    assert [digest_of(one) for one in (parcel.array, *parcel.more)] == [digest_of(one) for one in (a, b, c)]

    pair = desk.echo(Pair(a, b)).result(timeout_s=10)
    assert isinstance(pair, Pair)
    assert (digest_of(pair.first), digest_of(pair.second)) == (digest_of(a), digest_of(b))
    assert figures().references_sent - before.references_sent == 3 * 2 * 2


def test_keyword_arguments(desk: loom.ActorRef) -> None:
    assert desk.digest(value=noise(BIG)).result(timeout_s=10)[0] == digest_of(noise(BIG))


def test_many_arrays_in_one_message(desk: loom.ActorRef) -> None:
    sent = [noise(4096 + n) for n in range(100)]
    back = desk.echo(sent).result(timeout_s=30)
    assert [digest_of(one) for one in back] == [digest_of(one) for one in sent]


# --- Buffers that are no arrays ---


@pytest.mark.parametrize("size", [0, 100, 3000, 100_000, 5_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_stay_what_they_are(desk: loom.ActorRef, kind: type, size: int) -> None:
    sent = kind(os.urandom(size))
    for value in (sent, [sent, sent], {"a": sent}):
        back = desk.echo(value).result(timeout_s=10)
        assert back == value
        assert type(back) is type(value)
    assert type(desk.echo([sent]).result(timeout_s=10)[0]) is kind


def test_an_array_of_the_array_module(desk: loom.ActorRef) -> None:
    sent = array.array("d", noise(BIG))
    assert desk.echo(sent).result(timeout_s=10) == sent


@pytest.mark.parametrize("kind", [bytes, bytearray, str])
def test_large_bytes_go_through_the_arena_wherever_they_are(
    desk: loom.ActorRef, figures: Callable[[], ArenaStats], kind: type
) -> None:
    sent = kind(os.urandom(3_000_000)) if kind is not str else "ö" * 1_500_000
    for value in (sent, [1, {"deep": (sent,)}]):
        before = figures()
        assert desk.echo(value).result(timeout_s=10) == value
        after = figures()
        assert after.references_sent - before.references_sent == 2
        assert 6_000_000 <= after.bytes_copied - before.bytes_copied < 6_001_000


def test_named_bytes(desk: loom.ActorRef) -> None:
    sent = os.urandom(100_000)
    assert desk.echo(value=sent).result(timeout_s=10) == sent


def test_a_large_body_of_small_things(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    sent = {"numbers": list(range(100_000)), "words": [str(n) for n in range(50_000)]}
    before = figures()
    assert desk.echo(sent).result(timeout_s=10) == sent
    assert figures().references_sent - before.references_sent == 2


@pytest.mark.parametrize("size", [0, 100, 100_000])
@pytest.mark.parametrize(
    "make",
    [
        memoryview,
        lambda data: memoryview(bytearray(data)),
        lambda data: memoryview(data).cast("d") if len(data) % 8 == 0 else memoryview(data).cast("i"),
        lambda data: memoryview(data)[::2],
        lambda data: memoryview(data).cast("B", (10, len(data) // 10)) if data else memoryview(data),
        lambda data: memoryview(np.frombuffer(data, "u1")),
    ],
    ids=["of bytes", "of a bytearray", "of numbers", "strided", "of two dimensions", "of an array"],
)
def test_a_memoryview_arrives_as_one_and_read_only(
    desk: loom.ActorRef, make: Callable[[bytes], memoryview], size: int
) -> None:
    sent = make(os.urandom(size))
    for value in (sent, [sent]):
        back = desk.echo(value).result(timeout_s=10)
        back = back if isinstance(back, memoryview) else back[0]
        assert type(back) is memoryview
        assert (back.format, back.shape, back.tobytes()) == (sent.format, sent.shape, sent.tobytes())
        assert back.readonly
        del back


def test_a_memoryview_of_shared_memory_is_not_copied(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    shared = loom.arena.share(noise(BIG))
    before = figures()
    back = desk.echo(memoryview(shared)).result(timeout_s=10)
    assert back.tolist() == shared.tolist()
    assert figures().bytes_copied == before.bytes_copied
    with pytest.raises(ValueError, match="read-only"):
        shared[0] = 1


@pytest.mark.parametrize("array", [np.zeros(20_000, [("a", "i4"), ("b", "f8")]), np.zeros((3, 0))])
def test_a_memoryview_that_cannot_be_rebuilt_is_refused_with_a_reason(desk: loom.ActorRef, array: np.ndarray) -> None:
    with pytest.raises(NotSendable, match=r"send numpy\.asarray"):
        desk.echo(memoryview(array))
    assert desk.echo(np.asarray(memoryview(array))).result(timeout_s=10).tobytes() == array.tobytes()


def test_a_memoryview_beside_what_only_goes_by_value(desk: loom.ActorRef) -> None:
    view = memoryview(os.urandom(100_000))
    back, function = desk.echo([view, lambda: 7]).result(timeout_s=10)
    assert type(back) is memoryview
    assert (back.tobytes(), function()) == (view.tobytes(), 7)


def test_arrow_buffers_and_tables(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"n": np.arange(BIG), "x": noise(BIG), "word": ["a", None] * (BIG // 2)})
    before = figures()
    back = desk.echo(table).result(timeout_s=10)
    assert back.equals(table)
    copied = figures().bytes_copied - before.bytes_copied
    assert copied >= BIG * 16  # into the arena once; the way back is by reference
    assert copied < 2 * BIG * 16
    sent = arrow.py_buffer(os.urandom(100_000))
    assert desk.echo(sent).result(timeout_s=10).equals(sent)
    shared = arrow.py_buffer(loom.arena.share(noise(BIG)))
    before = figures()
    assert desk.echo(shared).result(timeout_s=10).equals(shared)
    assert figures().bytes_copied == before.bytes_copied


# --- Who keeps a block alive ---


def blocks_after(figures: Callable[[], ArenaStats], desk: loom.ActorRef) -> int:
    desk.settle().result(timeout_s=10)
    return figures().blocks


def test_a_view_keeps_the_block(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    back = desk.echo(noise(BIG)).result(timeout_s=10)
    view = back[100:200]
    buffer = memoryview(back)
    right = view.copy()
    del back
    assert blocks_after(figures, desk) == 1
    del buffer
    assert blocks_after(figures, desk) == 1
    for _ in range(20):  # whatever may be written over is written over
        desk.echo(np.zeros(BIG)).result(timeout_s=10)
    assert np.array_equal(view, right)
    del view
    assert blocks_after(figures, desk) == 0


@pytest.mark.skipif(NUMPY < (2, 1), reason="NumPy exports read-only arrays over DLPack from 2.1 on")
def test_dlpack_keeps_the_block(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    back = desk.echo(noise(BIG)).result(timeout_s=10)
    other = np.from_dlpack(back)
    assert other.ctypes.data == back.ctypes.data
    assert not other.flags.writeable
    capsule = back.__dlpack__(max_version=(1, 0))
    del back
    assert blocks_after(figures, desk) == 1
    del capsule
    assert blocks_after(figures, desk) == 1
    for _ in range(20):
        desk.echo(np.zeros(BIG)).result(timeout_s=10)
    assert digest_of(other) == digest_of(noise(BIG))
    tail = other[5:]
    del other
    assert blocks_after(figures, desk) == 1
    del tail
    assert blocks_after(figures, desk) == 0


def test_the_owner_may_drop_it_while_it_is_on_its_way(desk: loom.ActorRef) -> None:
    replies = []
    for number in range(30):
        shared = loom.arena.share(np.full(BIG, float(number)))
        replies.append(desk.echo(shared))
        del shared
    for number, reply in enumerate(replies):
        assert np.all(reply.result(timeout_s=10) == number)


def test_an_actor_keeps_what_it_was_sent(desk: loom.ActorRef, figures: Callable[[], ArenaStats]) -> None:
    desk.keep(noise(BIG)).result(timeout_s=10)
    assert figures().blocks == 1
    for number in range(20):
        desk.digest(np.full(BIG, float(number))).result(timeout_s=10)
    assert digest_of(desk.kept().result(timeout_s=10)) == digest_of(noise(BIG))


# --- No room ---


def test_an_array_larger_than_the_budget_is_refused_with_the_numbers() -> None:
    with loom.Node(arena="8MiB") as node:
        desk = node.spawn(Desk)
        pid = desk.pid().result(timeout_s=10)
        too_large = np.zeros(2 << 20)
        started = time.monotonic()
        with pytest.raises(ArenaFull, match=r"16\.0 MiB.*8\.0 MiB") as caught:
            desk.digest(too_large).result(timeout_s=10)
        assert caught.value.code == "L3003"
        with pytest.raises(ArenaFull, match=r"16\.0 MiB"):
            loom.arena.share(too_large)
        assert time.monotonic() - started < 30  # no time makes room for it, so none is spent waiting
        with pytest.raises(RemoteError, match=r"ArenaFull.*16\.0 MiB"):  # and when it is the actor that sends it
            desk.many(2 << 20).result(timeout_s=10)
        assert desk.digest(noise(BIG)).result(timeout_s=10)[0] == digest_of(noise(BIG))
        assert desk.pid().result(timeout_s=10) == pid


def test_a_full_arena_has_room_again_when_somebody_lets_go() -> None:
    with loom.Node(arena="8MiB") as node:
        desk = node.spawn(Desk)
        mine = [loom.arena.share(np.full(256 << 10, float(number))) for number in range(3)]
        with pytest.raises(ArenaFull, match="in use"):
            desk.digest(np.zeros(512 << 10)).result(timeout_s=10)
        del mine[1:]
        assert desk.digest(np.zeros(256 << 10)).result(timeout_s=10)[2] == (256 << 10,)
        assert np.all(desk.echo(mine[0]).result(timeout_s=10) == 0.0)


def test_a_message_with_one_array_too_many_leaves_nothing_behind(until: Any) -> None:
    """The references made before the one that found no room are taken back."""
    with loom.Node(arena="8MiB") as node:
        desk = node.spawn(Desk)
        desk.pid().result(timeout_s=10)
        with pytest.raises(ArenaFull):
            desk.echo([noise(100_000), noise(100_000), np.zeros(2 << 20)])

        def nothing_left() -> bool:
            loom.arena.current().collect()
            stats = node.stats().arena
            return (stats.in_flight, stats.blocks) == (0, 0)

        assert until(nothing_left)


# --- A receiver that dies while its array is copied ---


@pytest.mark.parametrize("restart", ["permanent", "temporary"])
def test_the_receiver_dies_before_the_reference_is_made(
    restart: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """Its participant number is its successor's then, or nobody's: the call goes to that one, or ends in ActorDied."""
    child = loom.ChildSpec(Desk, name="desk", restart=restart)
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=10, within_s=60, children=(child,))) as node:
        desk = node.lookup("desk")
        pid = desk.pid().result(timeout_s=10)
        real = frames.pack

        def kill_first(*args: Any, **named: Any) -> Any:
            monkeypatch.setattr(frames, "pack", real)
            participants = node.stats().arena.participants
            os.kill(pid, signal.SIGKILL)
            left = 1 if restart == "temporary" else 0
            until(lambda: all(one.pid != pid for one in node.stats().actors))
            until(lambda: node.stats().arena.participants == participants - left)
            return real(*args, **named)

        monkeypatch.setattr(frames, "pack", kill_first)
        if restart == "permanent":
            assert desk.digest(noise(BIG)).result(timeout_s=10)[0] == digest_of(noise(BIG))
        else:
            with pytest.raises(ActorDied, match="killed by SIGKILL"):
                desk.digest(noise(BIG)).result(timeout_s=10)
        if restart == "permanent":
            assert desk.digest(noise(BIG)).result(timeout_s=10)[0] == digest_of(noise(BIG))
        else:
            with pytest.raises(LoomError):
                desk.digest(noise(BIG)).result(timeout_s=10)

        def nothing_left() -> bool:
            loom.arena.current().collect()
            stats = node.stats().arena
            return (stats.in_flight, stats.blocks) == (0, 0)

        assert until(nothing_left)
