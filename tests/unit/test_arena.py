"""The Python face of the arena: one process, several handles, no sleeps."""

from __future__ import annotations

import gc
import mmap
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loom import _native
from loom.arena import Arena, ArenaStats, Reference, current, destroy_files, use
from loom.errors import ArenaFull, NodeNotFound, ProtocolError, StaleReference, StartFailed, UsageError

MIB = 1 << 20


@pytest.fixture
def name() -> Iterator[str]:
    name = f"loom-unit-{os.getpid()}"
    yield name
    gc.collect()
    destroy_files(name)
    assert not list(Path("/dev/shm").glob(f"{name}*"))


@pytest.fixture
def node(name: str) -> Iterator[Arena]:
    node = Arena.create(name, 64 * MIB)
    yield node
    node.close()


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


def settled(node: Arena, *others: Arena) -> ArenaStats:
    for arena in others:
        arena.collect()
    node.sweep()
    return node.stats()


# --- Opening ---------------------------------------------------------------------------------------------------------


def test_participants_have_indices_and_identities(node: Arena, sender: Arena) -> None:
    assert (node.participant, sender.participant) == (0, 1)
    assert sender.budget_bytes == 64 * MIB
    rows = node.participants()
    assert [(row.index, row.pid, row.alive) for row in rows] == [(0, os.getpid(), True), (1, os.getpid(), True)]
    assert rows[0].start_time == _native.start_time(os.getpid())


def test_attach_to_nothing_says_so() -> None:
    with pytest.raises(NodeNotFound, match=r"L1007 cannot attach to arena 'loom-nobody': there is no arena"):
        Arena.attach("loom-nobody")


def test_create_twice_is_refused(node: Arena) -> None:
    with pytest.raises(StartFailed, match="exists"):
        Arena.create(node.name, MIB)


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a.b", "ä", "a" * 97])
def test_bad_names_are_refused(bad: str) -> None:
    with pytest.raises(UsageError):
        Arena.create(bad, MIB)
    with pytest.raises(UsageError):
        destroy_files(bad)


@pytest.mark.parametrize("budget", [0, -1, 2**53])
def test_bad_budgets_are_refused(name: str, budget: int) -> None:
    with pytest.raises(UsageError, match="budget"):
        Arena.create(name, budget)


@pytest.mark.parametrize(("at", "what"), [(0, "no arena file"), (8, "layout version"), (16, "no arena file")])
def test_another_layout_is_refused(node: Arena, at: int, what: str) -> None:
    with open(f"/dev/shm/{node.name}.ctl", "r+b") as file:
        file.seek(at)
        good = file.read(4)
        file.seek(at)
        file.write(b"\xff\xff\xff\x7f")
        file.flush()
        with pytest.raises(ProtocolError, match=what):
            Arena.attach(node.name)
        file.seek(at)
        file.write(good)


def test_files_of_others_are_refused(node: Arena) -> None:
    os.chmod(f"/dev/shm/{node.name}.ctl", 0o644)
    with pytest.raises(ProtocolError, match="another user"):
        Arena.attach(node.name)


def test_destroy_files_leaves_other_names_alone(node: Arena) -> None:
    neighbour = Arena.create(node.name + "-b", MIB)
    node.lease(10)
    assert destroy_files(node.name) == 2
    assert Path(f"/dev/shm/{neighbour.name}.ctl").exists()
    neighbour.destroy()
    neighbour.close()


# --- Blocks ----------------------------------------------------------------------------------------------------------


def test_a_lease_is_writable_and_its_memory_is_reused(node: Arena) -> None:
    block = node.lease(1000)
    view = memoryview(block)
    assert (len(view), view.readonly, block.size_bytes, block.readonly) == (1000, False, 1000, False)
    view[:] = b"x" * 1000
    with pytest.raises(BufferError, match="1 views"):
        block.release()
    view.release()
    place = (block.segment, block.index)
    block.release()
    block.release()
    with pytest.raises(BufferError, match="released"):
        memoryview(block)
    again = node.lease(1000)
    assert (again.segment, again.index) == place
    assert again.generation > block.generation


def test_a_block_lives_as_long_as_its_last_view(node: Arena) -> None:
    view = memoryview(node.lease(1000))
    assert node.stats().blocks == 1
    view.release()
    del view
    assert node.stats().blocks == 0


def test_an_empty_lease(node: Arena) -> None:
    block = node.lease(0)
    assert bytes(block) == b""
    reference, copied = node.send(block)
    assert not copied or reference[4] == 0
    assert bytes(node.accept(reference)) == b""


@pytest.mark.parametrize("size", [-1, 2**64])
def test_a_size_out_of_range(node: Arena, size: int) -> None:
    with pytest.raises(UsageError, match="expected a size"):
        node.lease(size)


def test_full_says_the_numbers_and_the_remedy(node: Arena) -> None:
    held = [node.lease(16 * MIB) for _ in range(4)]
    with pytest.raises(ArenaFull) as caught:
        node.lease(16 * MIB, timeout_s=0)
    for part in ("L3003", "no room for 16.0 MiB", "budget 64.0 MiB", "in use 64.0 MiB in 4 blocks", "Remedy: drop"):
        assert part in str(caught.value)
    with pytest.raises(ArenaFull, match="it can never fit"):
        node.lease(65 * MIB)
    with pytest.raises(ArenaFull, match="waited 0 s"):
        node.send(bytes(1), timeout_s=0)
    held[0].release()
    assert node.lease(16 * MIB, timeout_s=0).size_bytes == 16 * MIB


def test_an_idle_participant_gives_back_what_another_lacks(node: Arena, sender: Arena) -> None:
    node.lease(48 * MIB).release()
    assert node.stats().reserved_bytes == 48 * MIB
    with pytest.raises(ArenaFull):
        sender.lease(32 * MIB, timeout_s=0)
    node.collect()
    assert sender.lease(32 * MIB, timeout_s=0).size_bytes == 32 * MIB


def test_trim_gives_back_only_what_is_free(node: Arena) -> None:
    small, large = node.lease(100), node.lease(10 * MIB)
    large.release()
    assert node.trim() == 10 * MIB
    assert node.stats().segments == 1
    small.release()
    assert node.trim() == 4 * MIB
    assert [path.name for path in Path("/dev/shm").glob(f"{node.name}.*")] == [f"{node.name}.ctl"]


# --- References ------------------------------------------------------------------------------------------------------


def test_memory_of_the_arena_is_sent_without_a_copy(node: Arena, sender: Arena, receiver: Arena) -> None:
    block = sender.lease(1000)
    view = memoryview(block)
    view[:] = bytes(range(250)) * 4
    reference, copied = sender.send(view[250:500], receiver.participant)
    assert not copied
    assert all(0 <= number < 2**53 for number in reference)
    taken = receiver.accept(list(reference))
    assert bytes(taken) == bytes(range(250))
    assert taken.readonly
    assert receiver.holds(taken)
    assert not sender.holds(taken)
    assert not receiver.holds(b"abc")
    onward, copied = receiver.send(taken, node.participant)
    assert not copied
    assert (onward[0], onward[1], onward[3]) == (block.segment, block.index, 250)
    assert bytes(node.accept(onward)) == bytes(range(250))
    assert node.stats().bytes_shared == 500


def test_other_memory_is_copied_and_lives_by_its_reference(node: Arena, sender: Arena, receiver: Arena) -> None:
    reference, copied = sender.send(b"hello")
    assert copied
    assert node.stats().in_flight == 1
    taken = receiver.accept(reference)
    assert settled(node, sender).blocks == 1
    assert bytes(taken) == b"hello"
    del taken
    assert settled(node, sender).blocks == 0
    assert node.stats().bytes_copied == 5
    sender.count_copied(7)
    assert node.stats().bytes_copied == 12


def test_only_the_receiver_named_may_accept_and_only_once(node: Arena, sender: Arena, receiver: Arena) -> None:
    reference, _ = sender.send(b"x", receiver.participant)
    with pytest.raises(StaleReference):
        node.accept(reference)
    receiver.accept(reference)
    with pytest.raises(StaleReference, match="taken already"):
        receiver.accept(reference)


def test_a_recalled_reference_is_stale(node: Arena, sender: Arena, receiver: Arena) -> None:
    reference, _ = sender.send(b"x")
    assert not receiver.recall(reference)
    assert sender.recall(reference)
    assert not sender.recall(reference)
    with pytest.raises(StaleReference):
        receiver.accept(reference)
    assert node.stats().blocks == 0


def test_sending_to_nobody(sender: Arena) -> None:
    with pytest.raises(StaleReference, match="no process takes part"):
        sender.send(b"x", 77)
    with pytest.raises(UsageError):
        sender.send(b"x", -1)
    with pytest.raises(UsageError):
        sender.send(b"x", 70000)


def test_only_contiguous_memory_is_sent(sender: Arena) -> None:
    with pytest.raises(BufferError):
        sender.send(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        sender.send("text")  # type: ignore[arg-type]


HOSTILE: list[object] = [
    (), (1, 2), None, 7, "abcdefgh", [None] * 8, ["0"] * 8, (-1,) * 8, (2**64,) * 8, (2**63,) * 8, (1.5,) * 8,
    (0,) * 9, {0: 1}, b"12345678",
]  # fmt: skip


@pytest.mark.parametrize("reference", HOSTILE, ids=repr)
def test_what_is_no_reference_is_stale(receiver: Arena, reference: Reference) -> None:
    with pytest.raises(StaleReference):
        receiver.accept(reference)
    assert receiver.recall(reference) is False


def test_a_second_release_does_not_free_what_took_the_place(node: Arena, sender: Arena, receiver: Arena) -> None:
    first = sender.lease(5000)
    first.release()
    second = sender.lease(5000)
    assert (second.segment, second.index) == (first.segment, first.index)
    memoryview(second)[:] = b"2" * 5000
    taken = receiver.accept(sender.send(second)[0])
    for _ in range(3):
        first.release()
        second.release()
    third = sender.lease(5000)
    memoryview(third)[:] = b"3" * 5000
    assert bytes(taken) == b"2" * 5000
    assert third.index != second.index
    for _ in range(3):
        taken.release()
        third.release()
    assert settled(node, sender, receiver).blocks == 0


def test_a_reference_to_an_older_lease_of_the_same_place_is_stale(node: Arena, sender: Arena, receiver: Arena) -> None:
    """Every number right but the block's generation, or the token's."""
    first = sender.lease(5000)
    old, _ = sender.send(first)
    receiver.accept(old).release()
    first.release()
    sender.collect()
    second = sender.lease(5000)
    new, _ = sender.send(second)
    assert (new[:2], new[6]) == (old[:2], old[6])
    assert new[2] > old[2]
    assert new[7] > old[7]
    for stale in (old, (*new[:2], old[2], *new[3:]), (*new[:7], old[7]), (*old[:7], new[7])):
        for _ in range(2):
            with pytest.raises(StaleReference):
                receiver.accept(stale)
            with pytest.raises(StaleReference):
                node.accept(stale)
        assert not sender.recall(stale) or stale[7] == new[7]
        if stale[7] == new[7]:  # recalled: what matters there is the token alone
            new, _ = sender.send(second)
    receiver.accept(new).release()
    second.release()
    assert settled(node, sender, receiver).in_flight == 0


def test_too_many_references_in_flight(node: Arena, sender: Arena, receiver: Arena) -> None:
    block = sender.lease(8)
    references = [sender.send(block)[0] for _ in range(_native.TOKEN_LIMIT)]
    with pytest.raises(ArenaFull, match="2048 references in flight"):
        sender.send(block, timeout_s=0)
    receiver.accept(references[5])
    assert sender.send(block, timeout_s=0)[0][6] == references[5][6]
    assert node.stats().in_flight == _native.TOKEN_LIMIT


# --- Ends ------------------------------------------------------------------------------------------------------------


def test_close_with_a_live_view(node: Arena) -> None:
    sender, receiver = Arena.attach(node.name), Arena.attach(node.name)
    lease = sender.lease(5)
    memoryview(lease)[:] = b"hello"
    taken = receiver.accept(sender.send(lease)[0])
    sender.close()
    receiver.close()
    receiver.close()
    with pytest.raises(UsageError, match="closed"):
        receiver.lease(1)
    assert "closed" in repr(receiver)
    assert node.stats().participants == 3
    del lease
    assert node.stats().participants == 2
    assert bytes(taken) == b"hello"
    del taken
    assert settled(node).participants == 1
    assert node.stats().segments == 0


def test_a_handle_that_is_dropped_is_closed(node: Arena) -> None:
    Arena.attach(node.name)
    assert node.stats().participants == 1


def test_reap_with_grace(node: Arena, receiver: Arena) -> None:
    dead = Arena.attach(node.name)
    index = dead.participant
    first, second = dead.send(b"one")[0], dead.send(b"two")[0]
    assert node.reap(index) == 0  # lives: left alone
    dead._handle.abandon()
    assert [row.alive for row in node.participants()] == [True, True, False]
    assert node.reap(index, revoke=False) == 2
    taken = receiver.accept(first)
    assert node.reap(index, revoke=False) == 1
    assert node.reap(index) == 0
    assert bytes(taken) == b"one"
    with pytest.raises(StaleReference):
        receiver.accept(second)
    assert node.stats().orphaned == 1
    del taken
    assert settled(node).segments == 0


def test_only_the_node_reaps(node: Arena, sender: Arena) -> None:
    for call in (lambda: sender.reap(2), sender.sweep, sender.destroy, lambda: node.reap(0), lambda: node.reap(1024)):
        with pytest.raises(UsageError):
            call()


def test_a_forked_child_is_refused_and_changes_nothing(node: Arena, sender: Arena) -> None:
    block = sender.lease(10)
    view = memoryview(block)
    view[:] = b"0123456789"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                sender.send(view)
            except UsageError as error:
                code = 0 if "fork" in str(error) and bytes(view) == b"0123456789" else 2
            view.release()
            block.release()
            sender.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert node.stats().blocks == 1
    assert node.stats().participants == 2
    assert bytes(view) == b"0123456789"


def test_file_descriptors_are_not_kept(node: Arena, receiver: Arena) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        sender = Arena.attach(node.name)
        taken = receiver.accept(sender.send(bytes(5 * MIB))[0])
        sender.close()
        del taken
        node.sweep()
    assert len(os.listdir("/proc/self/fd")) == before
    assert node.stats().segments == 0


def test_current(node: Arena) -> None:
    with pytest.raises(UsageError, match="takes part in no arena"):
        current()
    use(node)
    try:
        assert current() is node
    finally:
        use(None)
    with pytest.raises(UsageError):
        current()


EXIT = """
import sys, threading
import numpy as np
from loom.arena import Arena, empty, use
arena, other = Arena.attach(sys.argv[1]), Arena.attach(sys.argv[1])
use(arena)
array, block, view = empty(1000), arena.lease(10), memoryview(arena.lease(10))
taken = other.accept(arena.send(array)[0])
reference = arena.send(array)
class Late:
    def __del__(self):
        self.arena.close()
        self.block.release()
late = Late()
late.arena, late.block = arena, arena.lease(5)
threading.Thread(target=lambda: [arena.lease(100).release() for _ in range(1000000)], daemon=True).start()
sys.modules["keeps"] = (arena, array)
"""


def test_an_interpreter_may_exit_with_everything_live(node: Arena) -> None:
    ran = subprocess.run([sys.executable, "-c", EXIT, node.name], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    for row in node.participants()[1:]:
        node.reap(row.index)
    assert settled(node).segments == 0
    assert node.stats().participants == 1


def test_threads_share_a_handle_that_one_of_them_closes(node: Arena) -> None:
    """Calls without the GIL keep the handle; it closes when the last of them returns."""
    arena = Arena.attach(node.name)

    def work() -> None:
        while True:
            try:
                held = [arena.lease(3 * MIB, timeout_s=0) for _ in range(3)]
                arena.trim()
                del held
            except ArenaFull:
                pass
            except UsageError:
                return

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while node.stats().segments == 0:
        pass
    arena.close()
    for thread in threads:
        thread.join()
    assert settled(node).participants == 1


# --- Another language ------------------------------------------------------------------------------------------------


def test_a_tensor_can_be_found_by_the_header_alone(node: Arena) -> None:
    """What a Go or Rust reader does after accepting, in plain struct and mmap: file, descriptor, bytes."""
    block = node.lease(100)
    memoryview(block)[:] = bytes(range(100))
    segment, index, generation, offset, size, *_ = node.send(memoryview(block)[10:20])[0]
    with open(f"/dev/shm/{node.name}.ctl", "rb") as file:
        control = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert control[:8] == b"LOOMCTL1"
    assert struct.unpack_from("<IIQQ", control, 8) == (_native.LAYOUT_VERSION, 4096, len(control), 64 * MIB)
    word, _, sequence = struct.unpack_from("<QQQ", control, 135168 + 64 * segment)
    assert word & 0xFF == 2  # LIVE
    with open(f"/dev/shm/{node.name}.{sequence}", "rb") as file:
        data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert data[:8] == b"LOOMSEG1"
    (data_offset,) = struct.unpack_from("<Q", data, 32)
    state, block_offset, block_size, block_generation = struct.unpack_from("<I4xQQQ", data, 256 + 192 * index)
    assert (state, block_size, block_generation) == (1, 100, generation)
    assert struct.unpack_from("<Q", data, 256 + 192 * index + 64)[0] == 1  # held by participant 0
    start = data_offset + block_offset + offset
    assert data[start : start + size] == bytes(range(10, 20))
    control.close()
    data.close()
