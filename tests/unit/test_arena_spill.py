"""An arena without room: waiting, raising, spilling to a folder, and what is left in that folder: nothing."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from loom import _native
from loom.arena import Arena, FullPolicy, clear_spill, destroy_files, empty, share
from loom.errors import ArenaFull, StaleReference, StartFailed, UsageError

MIB = 1 << 20
SEGMENTS_OFFSET = 135168

Make = Callable[[FullPolicy], Arena]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "spill"
    folder.mkdir()
    yield folder
    assert os.listdir(folder) == []


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    made: list[Arena] = []

    def create(policy: FullPolicy) -> Arena:
        made.append(Arena.create(f"loom-full-{os.getpid()}-{len(made)}", 8 * MIB, policy))
        return made[-1]

    yield create
    for arena in made:
        destroy_files(arena.name)
        arena.close()
        assert not list(Path("/dev/shm").glob(f"{arena.name}*"))


def files(arena: Arena) -> list[str]:
    return sorted(os.listdir(arena.policy.spill))


# --- wait and raise ---------------------------------------------------------------------------------------------------


def test_everybody_learns_the_policy(make: Make, folder: Path) -> None:
    for policy in (
        FullPolicy(),
        FullPolicy("raise", 0.0),
        FullPolicy("wait", 0.25),
        FullPolicy("spill", 3.0, str(folder)),
    ):
        node = make(policy)
        other = Arena.attach(node.name)
        own = str(folder / f"{node.name}.spill") if policy.spill else ""
        assert node.policy == other.policy == FullPolicy(policy.full, policy.wait_s, own)
        other.close()


@pytest.mark.parametrize(
    ("full", "spill"), [("spill", ""), ("wait", "/tmp"), ("spill", "relative"), ("spill", "/" * 1024)]
)
def test_a_policy_that_contradicts_itself(full: str, spill: str) -> None:
    with pytest.raises(UsageError, match="L1008"):
        Arena.create(f"loom-full-{os.getpid()}", MIB, FullPolicy(full, 1.0, spill))  # type: ignore[arg-type]


def test_raise_is_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make(FullPolicy("raise"))
    held = node.lease(8 * MIB)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    for attempt in (
        lambda: node.lease(1),
        lambda: node.send(b"x"),
        lambda: node.send(b"x", None, None, time.monotonic() + 60),
        lambda: empty(10, arena=node),
        lambda: share(np.ones(10), arena=node),
    ):
        with pytest.raises(ArenaFull, match=r"L3003 .* no room for .* \(waited 0 s\): budget 8\.0 MiB"):
            attempt()
    held.release()


def test_wait_is_until_room_is_made(make: Make) -> None:
    node = make(FullPolicy("wait", 3600.0))
    held = node.lease(8 * MIB)
    asked = threading.Event()
    other = Arena.attach(node.name)

    def let_go() -> None:
        asked.wait()
        held.release()

    thread = threading.Thread(target=let_go)
    thread.start()
    real = time.sleep

    def sleep(seconds: float) -> None:
        asked.set()  # it found no room, and waits
        real(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        assert share(np.arange(1000), arena=other).sum() == 499500
    thread.join()
    other.close()


@pytest.mark.parametrize("wait_s", [0.0, 0.15])
def test_wait_ends(make: Make, wait_s: float) -> None:
    node = make(FullPolicy("wait", wait_s))
    held = node.lease(8 * MIB)
    start = time.monotonic()
    with pytest.raises(ArenaFull, match=r"Remedy: drop arrays"):
        node.lease(1)
    with pytest.raises(ArenaFull):
        empty(10, arena=node)
    assert time.monotonic() - start >= 2 * wait_s
    held.release()


def test_a_deadline_is_how_long_to_wait(make: Make) -> None:
    node = make(FullPolicy("wait", 3600.0))
    held = node.lease(8 * MIB)
    deadline = time.monotonic() + 0.2
    with pytest.raises(ArenaFull):
        node.send(b"x", None, None, deadline)
    assert time.monotonic() >= deadline
    with pytest.raises(ArenaFull, match=r"waited 0 s"):
        node.send(b"x", None, None, deadline)  # it has passed
    held.release()


def test_what_can_never_fit_is_not_waited_for(make: Make) -> None:
    node = make(FullPolicy("wait", 3600.0))
    with pytest.raises(ArenaFull, match="it can never fit"):
        node.lease(9 * MIB)


# --- spill ------------------------------------------------------------------------------------------------------------


def test_what_finds_no_room_is_spilled_and_arrives(make: Make, folder: Path) -> None:
    node = make(FullPolicy("spill", 1.0, str(folder)))
    sender, receiver = Arena.attach(node.name), Arena.attach(node.name)
    held = sender.lease(8 * MIB)
    assert files(node) == []
    array = share(np.arange(500_000.0), arena=sender)
    assert array.flags.writeable
    assert len(files(node)) == 1
    reference, copied = sender.send(array, receiver.participant)
    assert not copied
    taken = receiver.accept(reference)
    view = memoryview(taken)
    assert view.readonly
    assert np.array_equal(np.frombuffer(view, float), np.arange(500_000.0))
    stats = node.stats()
    assert (stats.spilled_blocks, stats.spilled_bytes, stats.blocks_spilled) == (1, 4_000_000, 1)
    assert (stats.blocks, stats.in_use_bytes) == (2, 8 * MIB + 4_000_000)
    assert (stats.reserved_bytes, stats.spill_reserved_bytes) == (8 * MIB, 4 * MIB)
    assert stats.warm_bytes == 0
    assert stats.spill_free_bytes > 0
    (row,) = (row for row in node.segments() if row.spilled)
    assert (row.size_bytes, row.state, files(node)) == (4 * MIB, "live", [str(row.sequence)])
    del array
    sender.collect()
    assert len(files(node)) == 1
    assert bytes(view[:8]) == struct.pack("<d", 0.0)
    del view
    taken.release()
    sender.collect()
    assert files(node) == []
    stats = node.stats()
    assert (stats.spilled_blocks, stats.spill_reserved_bytes, stats.bytes_spilled) == (0, 0, 4_000_000)
    held.release()
    assert not files(node)
    sender.close()
    receiver.close()


def test_other_memory_is_copied_there(make: Make, folder: Path) -> None:
    node = make(FullPolicy("spill", 1.0, str(folder)))
    held = node.lease(8 * MIB)
    reference, copied = node.send(b"s" * 100_000)
    assert copied
    assert len(files(node)) == 1
    taken = node.accept(reference)
    assert bytes(taken) == b"s" * 100_000
    taken.release()
    node.collect()
    assert files(node) == []
    held.release()


def test_memory_comes_first_again_as_soon_as_there_is_room(make: Make, folder: Path) -> None:
    node = make(FullPolicy("spill", 1.0, str(folder)))
    held = node.lease(8 * MIB)
    spilled = [node.lease(100) for _ in range(20)]
    assert len(files(node)) == 1  # they share a segment
    held.release()
    assert node.lease(100).segment != spilled[0].segment
    assert node.stats().spilled_blocks == 20
    while spilled:
        assert len(files(node)) == 1
        spilled.pop().release()
    assert files(node) == []


def test_what_is_larger_than_the_budget_is_spilled(make: Make, folder: Path) -> None:
    node = make(FullPolicy("spill", 1.0, str(folder)))
    block = node.lease(30 * MIB)
    memoryview(block)[-3:] = b"end"
    assert node.stats().spill_reserved_bytes == 30 * MIB
    assert node.stats().reserved_bytes == 0
    block.release()
    assert files(node) == []


def test_another_user_of_the_folder_is_left_alone(make: Make, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "models.spill").mkdir(mode=0o755)  # open to others: none of ours
    (shared / "models.spill" / "17").write_text("weights")
    (shared / "mine").mkdir()
    (shared / "mine" / "18").touch()
    (shared / "kept.spill").mkdir(mode=0o700)
    (shared / "kept.spill" / "notes.txt").touch()
    one, two = (make(FullPolicy("spill", 1.0, str(shared))) for _ in range(2))
    held = [(node.lease(8 * MIB), node.lease(10)) for node in (one, two)]
    assert clear_spill(str(shared)) == 0
    destroy_files(one.name)
    assert len(files(two)) == 1
    assert not Path(one.policy.spill).exists()
    assert memoryview(held[0][1]).nbytes == 10  # mapped
    held.clear()
    destroy_files(two.name)
    assert sorted(str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file()) == [
        "kept.spill/notes.txt",
        "mine/18",
        "models.spill/17",
    ]


def test_what_a_reboot_leaves_is_cleared_by_the_next_node(make: Make, folder: Path) -> None:
    """Then there is no control file any more; a folder that a node holds is spared."""
    node, lost = make(FullPolicy("spill", 1.0, str(folder))), make(FullPolicy("spill", 1.0, str(folder)))
    held = [(one.lease(8 * MIB), one.lease(10)) for one in (node, lost)]
    assert len(files(lost)) == 1
    for path in Path("/dev/shm").glob(f"{lost.name}.*"):
        path.unlink()
    assert clear_spill(str(folder)) == 0  # its node lives
    held.pop()
    lost._handle.abandon()
    assert set(os.listdir(folder)) == {f"{node.name}.spill", f"{lost.name}.spill"}
    assert clear_spill(str(folder)) == 1
    assert os.listdir(folder) == [f"{node.name}.spill"]
    assert len(files(node)) == 1
    held.clear()


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(StartFailed, match=r"L3001 .*No such file or directory"):
        Arena.create(f"loom-full-{os.getpid()}", MIB, FullPolicy("spill", 1.0, str(folder / "absent")))
    with pytest.raises(StartFailed, match="No such file"):
        clear_spill(str(folder / "absent"))
    assert not Path(f"/dev/shm/loom-full-{os.getpid()}.ctl").exists()


def test_after_the_node_is_gone_spilling_is_arena_full(make: Make, folder: Path) -> None:
    node = make(FullPolicy("spill", 1.0, str(folder)))
    other = Arena.attach(node.name)
    held, spilled = other.lease(8 * MIB), other.lease(3)
    memoryview(spilled)[:] = b"abc"
    destroy_files(node.name)
    with pytest.raises(ArenaFull, match="L3003"):
        other.lease(5 * MIB)
    assert bytes(spilled) == b"abc"  # mapped until it is let go
    spilled.release()
    held.release()
    other.close()


def test_a_reference_into_a_spill_folder_that_was_overwritten(make: Make, folder: Path) -> None:
    """The table says another folder than it is in: stale, and nothing else."""
    node = make(FullPolicy("spill", 1.0, str(folder)))
    other = Arena.attach(node.name)
    held, spilled = node.lease(8 * MIB), node.lease(10)
    (row,) = (row for row in node.segments() if row.spilled)
    reference, _ = node.send(spilled)
    with open(f"/dev/shm/{node.name}.ctl", "r+b") as control:
        control.seek(SEGMENTS_OFFSET + 64 * row.index + 24)
        before = control.read(8)
        control.seek(-8, 1)
        control.write(bytes(8))
        control.flush()
        with pytest.raises(StaleReference):
            other.accept(reference)
        control.seek(-8, 1)
        control.write(before)
    taken = other.accept(reference)
    taken.release()
    del held, spilled
    other.close()


@pytest.mark.parametrize("spill", [b"/tmp", b"/etc/x.spill", b"relative", b"/" + b"a" * 1023])
def test_a_control_file_that_names_another_folder(make: Make, folder: Path, spill: bytes) -> None:
    node = make(FullPolicy("spill", 1.0, str(folder)))
    with open(f"/dev/shm/{node.name}.ctl", "r+b") as control:
        control.seek(2048)
        before = control.read(1024)
        control.seek(2048)
        control.write(spill.ljust(1024, b"\0") if len(spill) < 1024 else spill)
        control.flush()
        with pytest.raises(Exception, match="contradict each other"):
            Arena.attach(node.name)
        control.seek(2048)
        control.write(before)


def test_too_many_references_are_waited_for_with_any_policy(make: Make, folder: Path) -> None:
    node = make(FullPolicy("spill", 0.05, str(folder)))
    block = node.lease(10)
    references = [node.send(block)[0] for _ in range(_native.TOKEN_LIMIT)]
    start = time.monotonic()
    with pytest.raises(ArenaFull, match="references in flight: wait for replies"):
        node.send(block)
    assert time.monotonic() - start >= 0.05
    for reference in references:
        node.recall(reference)


# --- reclaimed --------------------------------------------------------------------------------------------------------


def test_what_the_dead_held_is_counted(make: Make) -> None:
    node = make(FullPolicy())
    reader, owner = Arena.attach(node.name), Arena.attach(node.name)
    block, other = node.lease(1000), node.lease(10)
    kept = [reader.accept(node.send(block)[0]), owner.lease(700), owner.lease(900)]
    block.release()
    node.collect()
    node.send(other, reader.participant)  # addressed to the dead
    reader.send(kept[0])  # from the dead
    onward = node.accept(owner.send(kept[2])[0])
    owner.collect()
    for arena in (reader, owner):
        arena._handle.abandon()
    assert node.reap(reader.participant, revoke=True) == 0
    assert node.reap(owner.participant, revoke=True) == 0
    stats = node.stats()
    assert (stats.reclaimed_blocks, stats.reclaimed_bytes) == (2, 1700)  # node's own, and one of the owner's
    assert stats.reclaimed_references == 2
    assert stats.reclaimed_segments == 0  # the node holds a block in it
    onward.release()
    other.release()
    node.sweep()
    assert node.stats().reclaimed_segments == 1
    node.reap(owner.participant)
    assert node.stats().reclaimed_blocks == 2
    kept.clear()
