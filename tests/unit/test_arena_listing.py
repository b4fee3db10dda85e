"""What an arena lists of itself: segments, blocks, references in flight, and who has what of it."""

from __future__ import annotations

import gc
import mmap
import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from loom import _native
from loom.arena import Arena, BlockInfo, FullPolicy, Participant, SegmentInfo, destroy_files
from loom.errors import LoomError, UsageError
from loom.node.holdings import LISTED, Tally

MIB = 1 << 20
SEGMENTS_OFFSET, TOKENS_OFFSET = 135168, 200704
"""Of the control file: native/include/loom_arena.h."""


@pytest.fixture
def node() -> Iterator[Arena]:
    name = f"loom-list-{os.getpid()}"
    node = Arena.create(name, 64 * MIB)
    yield node
    node.close()
    gc.collect()
    destroy_files(name)
    assert not list(Path("/dev/shm").glob(f"{name}*"))


@pytest.fixture
def sender(node: Arena) -> Iterator[Arena]:
    sender = Arena.attach(node.name)
    yield sender
    sender.close()


@pytest.fixture
def receiver(node: Arena) -> Iterator[Arena]:
    receiver = Arena.attach(node.name)
    yield receiver
    receiver.close()


def test_an_arena_without_segments(node: Arena) -> None:
    assert (node.segments(), node.blocks(), node.in_flight()) == ([], [], {})


def test_segments_have_owners_and_sizes(node: Arena, sender: Arena) -> None:
    held = [sender.lease(100), sender.lease(5 * MIB), node.lease(1)]
    rows = node.segments()
    assert [(row.index, row.state, row.owner, row.size_bytes) for row in rows] == [
        (0, "live", sender.participant, 4 * MIB),
        (1, "live", sender.participant, 8 * MIB),
        (2, "live", 0, 4 * MIB),
    ]
    assert sum(row.size_bytes for row in rows) == node.stats().reserved_bytes
    assert all(Path(f"/dev/shm/{node.name}.{row.sequence}").exists() for row in rows)
    assert sender.segments() == rows
    assert len(held) == 3


def test_blocks_are_listed_for_as_long_as_anybody_holds_them(node: Arena, sender: Arena, receiver: Arena) -> None:
    first, second = sender.lease(100), sender.lease(0)
    reference = sender.send(memoryview(first))[0]
    assert node.in_flight() == {sender.participant: 1}
    taken = receiver.accept(reference)
    assert node.in_flight() == {}
    rows = {row.generation: row for row in node.blocks()}
    both = (sender.participant, receiver.participant)
    age_s = rows[first.generation].age_s
    assert rows[first.generation] == BlockInfo(0, first.index, sender.participant, 100, first.generation, age_s, both)
    assert rows[second.generation].holders == (sender.participant,)
    assert rows[second.generation].generation > first.generation
    assert rows[second.generation].size_bytes == 0
    assert len(rows) == node.stats().blocks == 2
    first.release()
    second.release()
    sender.collect()
    assert [row.holders for row in node.blocks()] == [(receiver.participant,)]
    taken.release()
    assert node.blocks() == []
    assert len(node.segments()) == 1  # kept warm


def test_blocks_of_one_segment(node: Arena) -> None:
    held = [node.lease(100), node.lease(5 * MIB)]
    assert [row.size_bytes for row in node.blocks(0)] == [100]
    assert [row.size_bytes for row in node.blocks(1)] == [5 * MIB]
    assert node.blocks(2) == []
    assert len(node.blocks()) == len(held)


@pytest.mark.parametrize("segment", [-1, _native.SEGMENTS, 2**32, 2**70])
def test_there_is_no_such_segment(node: Arena, segment: int) -> None:
    with pytest.raises(UsageError, match="L1008"):
        node.blocks(segment)


def test_a_block_has_the_age_of_its_lease(node: Arena, receiver: Arena) -> None:
    before = time.monotonic()
    old = node.lease(10)
    time.sleep(0.05)
    between = time.monotonic()
    young = node.lease(20)
    taken = receiver.accept(node.send(old)[0])  # who holds it now does not matter
    ages = {row.size_bytes: row.age_s for row in receiver.blocks()}
    now = time.monotonic()
    tick_s = 0.011  # the clock that is read is up to so old
    assert 0.05 - tick_s <= ages[10] - ages[20]
    assert ages[10] <= now - before + tick_s
    assert 0 <= ages[20] <= now - between + tick_s
    old.release()
    taken.release()
    young.release()
    node.collect()
    again = node.lease(10)
    assert node.blocks()[0].age_s < ages[10]
    again.release()


def test_a_time_that_cannot_be_is_no_age(node: Arena) -> None:
    held = node.lease(100)
    sequence = node.segments()[0].sequence
    write(f"/dev/shm/{node.name}.{sequence}", 256 + 192 * held.index + 40, b"\xff" * 8)
    assert node.blocks()[0].age_s == 0
    held.release()


def test_an_orphan_is_the_nodes(node: Arena, receiver: Arena) -> None:
    dead = Arena.attach(node.name)
    taken = receiver.accept(dead.send(b"abc")[0])
    dead._handle.abandon()
    node.reap(dead.participant)
    assert [(row.state, row.owner) for row in node.segments()] == [("orphaned", 0)]
    assert [(row.owner, row.holders) for row in node.blocks()] == [(0, (receiver.participant,))]
    taken.release()
    node.sweep()
    assert node.segments() == []


def test_a_full_segment_is_listed_whole(node: Arena) -> None:
    held = [node.lease(1) for _ in range(600)]
    assert [row.generation for row in node.blocks()] != []
    assert {row.generation for row in node.blocks()} == {block.generation for block in held}


def test_a_closed_arena_lists_nothing(node: Arena) -> None:
    gone = Arena.attach(node.name)
    gone.close()
    for listing in (gone.segments, gone.blocks, gone.in_flight, lambda: gone.blocks(0)):
        with pytest.raises(UsageError, match="closed"):
            listing()


# --- Damaged tables --------------------------------------------------------------------------------------------------


def write(path: str, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def test_numbers_that_cannot_be_are_bounded(node: Arena, receiver: Arena) -> None:
    held = node.lease(100)
    control = f"/dev/shm/{node.name}.ctl"
    segment = f"/dev/shm/{node.name}.{node.segments()[0].sequence}"
    most = 2**64 - 1
    at = 256 + 192 * held.index
    write(segment, at + 16, struct.pack("<QQ", most, most))
    write(segment, at + 64, b"\xff" * 128)
    write(segment, 48, b"\xff" * 4)  # high_water
    (row,) = receiver.blocks()
    assert (row.size_bytes, row.generation, row.holders) == (4 * MIB, most, tuple(range(_native.PARTICIPANTS)))
    write(control, SEGMENTS_OFFSET + 64 * 7, struct.pack("<QQQ", 0xFFFF << 8 | 0x4D, most, most))
    assert receiver.segments()[1] == SegmentInfo(7, "damaged", 0xFFFF, most, most)
    assert receiver.blocks(7) == []
    write(control, SEGMENTS_OFFSET + 64 * 7, struct.pack("<Q", 0xFFFF << 8 | 2))  # live, and there is no such file
    assert receiver.blocks(7) == []
    write(control, SEGMENTS_OFFSET + 64 * 8, struct.pack("<QQQ", 0xFFFF << 8 | 2, most, most))
    tally = Tally(receiver.segments())
    tally.add(receiver.blocks())
    report = tally.report(node.name, node.policy, node.stats(), node.participants(), node.in_flight(), {})
    assert report.label(0xFFFF) == "participant 65535"
    assert report.holdings[-1].reserved_bytes == most
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=type(report)) == report
    for index in (7, 8):
        write(control, SEGMENTS_OFFSET + 64 * index, bytes(24))
    held.release()


@pytest.mark.parametrize("seed", range(5))
def test_random_tables_are_listed_or_refused(node: Arena, receiver: Arena, seed: int) -> None:
    """Every listing returns or raises a LoomError, whatever is in the tables; the C tests do the same under ASan."""
    dice = random.Random(seed)
    held = [node.lease(1000) for _ in range(20)]
    held[0].release()
    sequence = node.segments()[0].sequence
    with open(f"/dev/shm/{node.name}.ctl", "r+b") as file:
        control = mmap.mmap(file.fileno(), TOKENS_OFFSET + 4096)
    with open(f"/dev/shm/{node.name}.{sequence}", "r+b") as file:
        segment = mmap.mmap(file.fileno(), 16384)
    before = control[SEGMENTS_OFFSET:], control[4096:SEGMENTS_OFFSET]
    for _ in range(100):
        at = dice.randrange(SEGMENTS_OFFSET, SEGMENTS_OFFSET + 4096)
        control[at : at + 8] = dice.randbytes(8)
        at = dice.randrange(0, 16384 - 8)
        segment[at : at + 8] = dice.randbytes(8)
        at = dice.randrange(TOKENS_OFFSET, TOKENS_OFFSET + 4088)
        control[at : at + 8] = dice.randbytes(8)
        at = dice.choice((16, 144, 272)) + 4096  # tokens_reserved
        control[at : at + 4] = dice.randbytes(4)
        for listing in (node.segments, node.blocks, receiver.blocks, receiver.in_flight):
            try:
                listing()
            except LoomError:
                pass
    control[SEGMENTS_OFFSET:], control[4096:SEGMENTS_OFFSET] = before
    control.close()
    segment.close()


# --- Who has what ----------------------------------------------------------------------------------------------------


def test_a_block_is_owned_once_and_leased_by_each_holder(node: Arena) -> None:
    tally = Tally([SegmentInfo(3, "live", 1, 9, 4096), SegmentInfo(4, "live", 1, 10, 4096)])
    tally.add([BlockInfo(3, 0, 1, 100, 1, 9.0, (1, 2)), BlockInfo(3, 1, 1, 50, 2, 20.0, (2,))])
    tally.add([BlockInfo(5, 0, 1, 7, 3, 30.0, (1,))])  # of a segment that came later
    people = [Participant(0, 10, 1, True), Participant(1, 11, 1, True), Participant(2, 12, 1, True)]
    report = tally.report("x", FullPolicy(), node.stats(), people, {1: 4, 9: 1}, {11: "loader", 10: "not me"})
    nobody, owner, reader, ghost = report.holdings
    assert [one.label for one in report.holdings] == ["node", "loader", "pid 12", "participant 9"]
    assert (nobody.segments, nobody.leases) == (0, 0)
    assert (owner.segments, owner.reserved_bytes, owner.blocks, owner.in_use_bytes) == (2, 8192, 2, 150)
    assert (owner.leases, owner.leased_bytes, owner.in_flight) == (1, 100, 4)
    assert (reader.blocks, reader.leases, reader.leased_bytes) == (0, 2, 150)
    assert (ghost.pid, ghost.alive, ghost.in_flight) == (0, False, 1)
    assert [(one.blocks, one.in_use_bytes, one.oldest_s) for one in report.segments] == [(2, 150, 20.0), (0, 0, 0.0)]
    assert [(one.oldest_s, one.oldest_lease_s) for one in (nobody, owner, reader)] == [(0, 0), (20, 9), (0, 20)]


def test_only_the_oldest_and_the_largest_are_named(node: Arena) -> None:
    tally = Tally([SegmentInfo(0, "live", 1, 1, 4096), SegmentInfo(1, "live", 2, 2, 4096, True)])
    for segment in (0, 1):  # sizes rise, ages fall
        tally.add([BlockInfo(segment, i, 1 + segment, 2 * i + segment, 1, 1000.0 - i, (1,)) for i in range(50)])
    report = tally.report("x", FullPolicy(), node.stats(), [], {}, {})
    assert [one.size_bytes for one in report.largest] == list(range(99, 99 - LISTED, -1))
    assert [one.age_s for one in report.oldest] == [1000.0 - i // 2 for i in range(LISTED)]
    memory, spilled = report.holdings
    assert (memory.reserved_bytes, memory.spill_reserved_bytes) == (4096, 0)
    assert (spilled.reserved_bytes, spilled.spill_reserved_bytes) == (0, 4096)


def test_the_dead_have_no_name(node: Arena) -> None:
    report = Tally([]).report(
        "x", FullPolicy(), node.stats(), [Participant(1, 11, 1, False)], {}, {11: "its successor"}
    )
    assert [(one.name, one.label, one.alive) for one in report.holdings] == [("", "pid 11", False)]
