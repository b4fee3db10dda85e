"""Frames: where each bulk buffer rides, and that references are neither lost nor taken twice, whatever goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from loom.arena import Arena, destroy_files
from loom.errors import ArenaFull, ProtocolError, StaleReference
from loom.wire import codec, envelope, frames
from loom.wire.codec import Body
from loom.wire.envelope import Envelope
from loom.wire.frames import ARENA_BYTES

LARGE = np.arange(ARENA_BYTES, dtype="u1")
SMALL = np.arange(ARENA_BYTES - 1, dtype="u1")
OTHER = np.full(ARENA_BYTES, 7, "u1")


@pytest.fixture
def sender() -> Iterator[Arena]:
    name = f"loom-frames-{os.getpid()}"
    arena = Arena.create(name, 16 << 20)
    yield arena
    arena.close()
    destroy_files(name)


@pytest.fixture
def receiver(sender: Arena) -> Iterator[Arena]:
    arena = Arena.attach(sender.name)
    yield arena
    arena.close()


def body_of(*buffers: Any) -> Body:
    return Body("msgpack", b"\xc0", buffers)


def packed(body: Body, arena: Arena | None, receiver: int) -> tuple[Envelope, list[Any]]:
    """What arrives: the header as the other side decodes it, and the frames after header and body."""
    header = Envelope(1, "call")
    parts = frames.pack(header, body, arena, receiver)
    found = envelope.decode(parts[0])
    assert found.encoding == body.encoding
    data, rest = frames.split(found, parts[1:])
    assert bytes(data) == body.data
    return found, list(rest)


def in_flight(arena: Arena) -> int:
    arena.collect()
    return arena.stats().in_flight


class TestBody:
    @pytest.mark.parametrize("encoding", ["msgpack", "pickle"])
    @pytest.mark.parametrize(
        ("size", "count"), [(1, 1), (frames.INLINE_BODY_BYTES, 1), (frames.INLINE_BODY_BYTES + 1, 2), (10**6, 2)]
    )
    def test_a_small_one_rides_in_the_header(self, encoding: str, size: int, count: int) -> None:
        data = b"\xc0" if size == 1 else b"\xc6" + (size - 5).to_bytes(4, "big") + bytes(size - 5)
        header = Envelope(1, "call")
        parts = frames.pack(header, Body(encoding, data), None, -1)
        assert len(parts) == count
        found = envelope.decode(parts[0])
        assert found.encoding == encoding
        body, rest = frames.split(found, parts[1:])
        assert (bytes(body), list(rest)) == (data, [])

    def test_in_the_header_it_is_plain_messagepack(self) -> None:
        parts = frames.pack(Envelope(1, "call"), Body("msgpack", msgpack.packb([[1], {"a": b"x"}])), None, -1)
        assert msgpack.unpackb(parts[0])["body"] == [[1], {"a": b"x"}]
        parts = frames.pack(Envelope(1, "call"), Body("pickle", b"any bytes"), None, -1)
        assert msgpack.unpackb(parts[0])["body"] == b"any bytes"

    def test_nil_is_a_body(self) -> None:
        found = envelope.decode(frames.pack(Envelope(1, "end"), Body("msgpack", b"\xc0"), None, -1)[0])
        assert bytes(frames.split(found, [])[0]) == b"\xc0"

    def test_none_at_all(self) -> None:
        with pytest.raises(ProtocolError, match="no body"):
            frames.split(Envelope(1, "call"), [])

    @pytest.mark.parametrize("body", [None, 5, "text", [1]])
    def test_a_pickle_that_is_no_bytes(self, body: Any) -> None:
        header = envelope.decode(msgpack.packb({"id": 1, "kind": "call", "encoding": "pickle", "body": body}))
        with pytest.raises(ProtocolError, match="not a pickle"):
            frames.split(header, [])

    @pytest.mark.parametrize("data", [b"\xc6\x00\x01\x00\x00" + bytes(65536), [b"\xc6\x00\x01\x00\x00", bytes(65536)]])
    def test_a_large_one_goes_by_reference_on_one_node(
        self, sender: Arena, receiver: Arena, data: bytes | list[bytes]
    ) -> None:
        header = Envelope(1, "call")
        parts = frames.pack(header, Body("msgpack", data, [LARGE]), sender, receiver.participant)
        assert len(parts) == 1
        found = envelope.decode(parts[0])
        assert frames.split(found, []) == (None, [])
        assert len(found.buffers) == 2
        assert frames.read(found, [], receiver) == bytes(65536)
        with pytest.raises(StaleReference):
            frames.read(found, [], receiver)
        assert in_flight(sender) == 0

    def test_a_large_one_in_pieces_is_one_frame_without_an_arena(self) -> None:
        pieces = [b"\xc6\x00\x01\x00\x00", bytes(65536)]
        parts = frames.pack(Envelope(1, "call"), Body("msgpack", pieces, [SMALL]), None, -1)
        assert parts[1:] == [b"".join(pieces), SMALL.tobytes()]

    @pytest.mark.parametrize(
        ("fields", "problem"), [({"buffers": []}, "no buffer"), ({"buffers": [None], "body": 1}, "two bodies")]
    )
    def test_a_header_that_is_wrong_about_it(self, fields: dict[str, Any], problem: str) -> None:
        found = envelope.decode(msgpack.packb({"id": 1, "kind": "call", "bulk_body": True, **fields}))
        with pytest.raises(ProtocolError, match=problem):
            frames.read(found, [b"\xc0"], None)

    def test_the_last_frame_may_be_it(self) -> None:
        found = envelope.decode(msgpack.packb({"id": 1, "kind": "call", "bulk_body": True, "buffers": [None]}))
        assert frames.read(found, [b"\x07"], None) == 7

    def test_one_in_the_header_leaves_the_frames_to_the_buffers(self) -> None:
        header, rest = packed(body_of(SMALL, OTHER), None, -1)
        assert header.buffers == (None, None)
        assert rest == [SMALL.tobytes(), OTHER.tobytes()]


class TestWhereItRides:
    def test_without_buffers_there_are_none(self) -> None:
        header, rest = packed(body_of(), None, -1)
        assert (header.buffers, rest) == ((), [])

    def test_beside_the_body_without_an_arena(self) -> None:
        header, rest = packed(body_of(LARGE, SMALL), None, 3)
        assert header.buffers == (None, None)
        assert rest == [LARGE.tobytes(), SMALL.tobytes()]

    def test_beside_the_body_for_a_receiver_without_an_arena(self, sender: Arena) -> None:
        header, rest = packed(body_of(LARGE), sender, -1)
        assert (header.buffers, rest) == ((None,), [LARGE.tobytes()])
        assert sender.stats().bytes_copied == LARGE.nbytes

    def test_large_ones_by_reference_on_one_node(self, sender: Arena, receiver: Arena) -> None:
        header, rest = packed(body_of(LARGE, SMALL, OTHER), sender, receiver.participant)
        first, second, third = header.buffers
        assert second is None
        assert rest == [SMALL.tobytes()]
        assert first is not None
        assert third is not None
        assert len(first) == len(third) == 8
        assert all(0 <= number < 2**53 for number in first)
        found = frames.unpack(header, rest, receiver)
        assert [bytes(one) for one in found] == [LARGE.tobytes(), SMALL.tobytes(), OTHER.tobytes()]

    def test_a_frame_is_a_copy(self) -> None:
        array = LARGE.copy()
        _, rest = packed(body_of(array), None, -1)
        array[:] = 0
        assert rest == [LARGE.tobytes()]

    def test_column_major(self, sender: Arena, receiver: Arena) -> None:
        array = np.asfortranarray(np.random.default_rng(1).random((100, 100)))
        for participant in (-1, receiver.participant):
            body = codec.encode_value([array], "pickle")
            header, rest = packed(body, sender, participant)
            buffers = frames.unpack(header, rest, receiver)
            assert np.array_equal(codec.decode_value(body.encoding, body.data, buffers)[0], array)

    def test_what_lives_in_the_arena_is_sealed_not_copied(self, sender: Arena, receiver: Arena) -> None:
        array = np.frombuffer(sender.lease(ARENA_BYTES), "u1")
        view = array[: ARENA_BYTES // 2].reshape(2, -1)
        before = sender.stats().bytes_copied
        header, rest = packed(body_of(array), sender, receiver.participant)
        assert sender.stats().bytes_copied == before
        assert not array.flags.writeable
        assert frames.unpack(header, rest, receiver)[0].size_bytes == ARENA_BYTES
        assert view.flags.writeable, "a view made before is its holder's affair"


class TestWhatGoesWrong:
    def test_no_room_leaves_nothing_in_flight(self, sender: Arena, receiver: Arena) -> None:
        too_large = np.zeros(17 << 20, "u1")
        with pytest.raises(ArenaFull):
            packed(body_of(LARGE, OTHER, too_large), sender, receiver.participant)
        assert in_flight(sender) == 0

    def test_nobody_is_there(self, sender: Arena) -> None:
        with pytest.raises(StaleReference):
            packed(body_of(LARGE), sender, 900)
        assert in_flight(sender) == 0

    def test_recall(self, sender: Arena, receiver: Arena) -> None:
        header, rest = packed(body_of(LARGE, SMALL, OTHER), sender, receiver.participant)
        assert in_flight(sender) == 2
        frames.recall(header.buffers, sender)
        assert in_flight(sender) == 0
        with pytest.raises(StaleReference):
            frames.unpack(header, rest, receiver)

    @pytest.mark.parametrize("change", ["one frame less", "one frame more"])
    def test_frames_and_header_disagree(self, sender: Arena, receiver: Arena, change: str) -> None:
        header, rest = packed(body_of(SMALL, LARGE), sender, receiver.participant)
        wrong = rest[1:] if change == "one frame less" else [*rest, b""]
        with pytest.raises(ProtocolError, match=rf"announces 1 buffer frames, the message has {len(wrong)}"):
            frames.unpack(header, wrong, receiver)
        assert in_flight(sender) == 0, "what the message held is let go of"

    def test_one_stale_reference_lets_go_of_the_others(self, sender: Arena, receiver: Arena) -> None:
        header, _ = packed(body_of(LARGE, OTHER, LARGE), sender, receiver.participant)
        assert header.buffers[1] is not None
        sender.recall(header.buffers[1])
        with pytest.raises(StaleReference):
            frames.unpack(header, [], receiver)
        assert in_flight(sender) == 0
        assert sender.stats().in_use_bytes == 0

    def test_a_reference_is_taken_once(self, sender: Arena, receiver: Arena) -> None:
        header, rest = packed(body_of(LARGE), sender, receiver.participant)
        kept = frames.unpack(header, rest, receiver)
        with pytest.raises(StaleReference):
            frames.unpack(header, rest, receiver)
        assert bytes(kept[0]) == LARGE.tobytes()

    @pytest.mark.parametrize("place", [(), (1,), (0,) * 8, (-1,) * 8, (2**64 - 1,) * 8, (0,) * 9], ids=repr)
    def test_bogus_references(self, receiver: Arena, place: tuple[int, ...]) -> None:
        with pytest.raises(StaleReference):
            frames.unpack(Envelope(1, "call", buffers=(place,)), [], receiver)

    def test_a_reference_for_a_side_without_an_arena(self) -> None:
        with pytest.raises(ProtocolError, match="this side has no arena"):
            frames.unpack(Envelope(1, "call", buffers=((0,) * 8,)), [], None)

    def test_discard(self, sender: Arena, receiver: Arena) -> None:
        header, _ = packed(body_of(LARGE, SMALL), sender, receiver.participant)
        frames.discard(Envelope(1, "call", buffers=(*header.buffers, (5,), (-1,) * 8)), receiver)
        assert in_flight(sender) == 0
        frames.discard(header, receiver)
        frames.discard(header, None)
