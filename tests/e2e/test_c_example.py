"""The C example: built as its README says, against a running node. It reads what Python sent, and leaves nothing."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loom
from loom import _native
from loom.arena import Arena, FullPolicy

EXAMPLE = Path(__file__).parents[2] / "examples" / "c"


def _missing() -> str:
    for tool in ("cc", "make", "pkg-config"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if subprocess.run(["pkg-config", "--exists", "libzmq"], check=False).returncode:
        return "libzmq's headers are not installed (Debian: libzmq3-dev)"
    return ""


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing())


class Store(loom.Actor):
    def __init__(self) -> None:
        self.kept: np.ndarray | None = None

    def tensor(self, n: int) -> np.ndarray:
        return np.arange(float(n))

    def shared(self, n: int) -> np.ndarray:
        if self.kept is None or self.kept.size != n:
            self.kept = loom.arena.share(np.arange(float(n)))
        return self.kept

    def tail(self, n: int, start: int) -> np.ndarray:
        return self.shared(n)[start:]

    def drop(self) -> None:
        self.kept = None

    def noise(self, n: int) -> np.ndarray:
        return np.random.default_rng(n).normal(size=(n, 7))

    def twice(self, n: int) -> list[np.ndarray]:
        both = self.shared(n)
        return [both, both]

    def typed(self, dtype: str) -> np.ndarray:
        return np.zeros(10_000, dtype)

    def text(self, n: int) -> str:
        return "x" * n

    def fail(self) -> None:
        raise ValueError("no tensor today")

    def collect(self) -> None:
        loom.arena.current().collect()


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sum_tensor, built with -Wall -Wextra -Werror; once more with AddressSanitizer and UBSan."""
    out = tmp_path_factory.mktemp("c")
    sanitize = ["SANITIZE=1"] if request.param == "sanitized" else []
    done = subprocess.run(
        ["make", "-C", str(EXAMPLE), f"OUT={out}", *sanitize], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "sum_tensor"


def run(program: Path, node: loom.Node, *args: object) -> subprocess.CompletedProcess[str]:
    command = [str(program), node.endpoint, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def settled(node: loom.Node, participants: int) -> Callable[[], bool]:
    """Whether nothing is in flight or in use any more, and everybody who came has left."""

    def look() -> bool:
        node.lookup("store").collect().result(timeout_s=10)
        stats = node.stats().arena
        return (stats.in_flight, stats.in_use_bytes, stats.blocks, stats.participants) == (0, 0, 0, participants)

    return look


def test_the_sum_is_numpys(program: Path, node: loom.Node, until: Any) -> None:
    """From nothing over a frame of its own to a reference; whatever way, nothing is left of it."""
    store = node.spawn(Store, name="store")
    store.drop().result(timeout_s=10)
    start = node.stats().arena
    for n in (0, 1, 255, 256, 4_095, 4_096, 1_000_000):
        before = node.stats().arena
        done = run(program, node, "store", "tensor", n)
        assert (done.stderr, done.returncode) == ("", 0)
        assert float(done.stdout) == np.arange(float(n)).sum()
        after = node.stats().arena
        by_reference = int(n * 8 >= 32 * 1024)
        assert after.references_sent - before.references_sent == by_reference
        assert after.references_accepted - before.references_accepted == by_reference
    assert until(settled(node, start.participants))


def test_an_array_in_the_arena_is_not_copied(program: Path, node: loom.Node, until: Any) -> None:
    store = node.spawn(Store, name="store")
    store.drop().result(timeout_s=10)
    before = node.stats().arena
    for start in (0, 1, 499_999):  # a range that starts within the block, and one that is not 64-byte aligned
        done = run(program, node, "store", "tail", 500_000 + 8192, start)
        assert (done.stderr, done.returncode) == ("", 0)
        assert float(done.stdout) == np.arange(float(500_000 + 8192))[start:].sum()
    assert node.stats().arena.bytes_copied == before.bytes_copied
    store.drop().result(timeout_s=10)
    assert until(settled(node, before.participants))


def test_any_float64_array(program: Path, node: loom.Node) -> None:
    node.spawn(Store, name="store")
    done = run(program, node, "store", "noise", 5000)
    assert (done.stderr, done.returncode) == ("", 0)
    assert float(done.stdout) == pytest.approx(np.random.default_rng(5000).normal(size=(5000, 7)).sum(), rel=1e-9)


def test_what_it_cannot_sum_is_let_go_of_too(program: Path, node: loom.Node, until: Any) -> None:
    """Two references to one block, another dtype, no array at all: an error, and nothing is left behind."""
    store = node.spawn(Store, name="store")
    store.drop().result(timeout_s=10)
    before = node.stats().arena.participants
    for arguments, text in (
        (("twice", 10_000), "the method returned no array"),
        (("typed", ">f8"), "expected an array of float64 (<f8), got >f8"),
        (("typed", "<i4"), "expected an array of float64 (<f8), got <i4"),
        (("text", 100_000), "the method returned no array"),
        (("fail",), "L2005 ValueError: no tensor today"),
    ):
        done = run(program, node, "store", *arguments)
        assert (done.stdout, done.stderr, done.returncode) == ("", f"{text}\n", 1)
    store.drop().result(timeout_s=10)
    assert until(settled(node, before))


def test_errors_are_told(program: Path, node: loom.Node) -> None:
    node.spawn(Store, name="store").drop().result(timeout_s=10)
    done = run(program, node, "stare", "tensor", 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("L1003 ActorNotFound: ")
    done = run(program, node, "store")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")


def test_a_kill_at_any_moment_leaks_nothing(program: Path, node: loom.Node, until: Any) -> None:
    """SIGKILL after a growing delay: before it takes part, while it waits, while it reads, after it left."""
    store = node.spawn(Store, name="store")
    store.shared(500_000).result(timeout_s=10)
    before = node.stats().arena.participants
    whole = 0
    for delay_ms in [*range(0, 20, 2), 40, 80, 160, 320]:
        with subprocess.Popen(
            [str(program), node.endpoint, "store", "shared", "500000"], stdout=subprocess.PIPE, text=True
        ) as reader:
            try:
                out, _ = reader.communicate(timeout=delay_ms / 1000)
            except subprocess.TimeoutExpired:
                os.kill(reader.pid, signal.SIGKILL)
                out, _ = reader.communicate()
            if out:
                assert float(out) == np.arange(500_000.0).sum()
                whole += 1
    assert whole
    store.drop().result(timeout_s=10)
    assert until(settled(node, before), 20.0)


# --- The reader alone, in this process, against the arena's own core ---


class View(ctypes.Structure):
    """struct arena_view of arena_reader.h."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_uint64), ("hold", ctypes.c_void_p))

    def bytes(self) -> bytes:
        return ctypes.string_at(self.data, self.size)


class Reader:
    """arena_reader.c as a library; `participant` is its row."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library = library
        self._arena = (ctypes.c_uint64 * 64)()  # more than sizeof(struct arena)
        code = library.arena_open(self._arena, name.encode())
        assert code == 0, code
        at = ctypes.c_ulong.in_dll(library, "participant_at").value
        self.participant = int.from_bytes(bytes(self._arena)[at : at + 4], "little")

    def accept(self, reference: tuple[int, ...]) -> View | int:
        view = View()
        code: int = self._library.arena_accept(self._arena, (ctypes.c_uint64 * 8)(*reference), ctypes.byref(view))
        return code or view

    def take(self, reference: tuple[int, ...]) -> View:
        view = self.accept(reference)
        assert isinstance(view, View), view
        return view

    def release(self, view: View) -> None:
        self._library.arena_release(self._arena, ctypes.byref(view))

    def close(self) -> None:
        self._library.arena_close(self._arena)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("reader")
    (out / "offset.c").write_text(
        '#include "arena_reader.h"\nconst unsigned long participant_at = offsetof(struct arena, participant);\n'
    )
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-fPIC", "-shared", f"-I{EXAMPLE}"]
    headers = f"-I{EXAMPLE.parents[1] / 'native' / 'include'}"
    sources = [str(EXAMPLE / "arena_reader.c"), str(out / "offset.c")]
    subprocess.run(["cc", *flags, headers, *sources, "-o", str(out / "reader.so")], check=True)
    return ctypes.CDLL(str(out / "reader.so"))


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(f"loom-c-{os.getpid()}", 64 << 20)
    yield arena
    arena.destroy()
    arena.close()


@pytest.fixture
def reader(arena: Arena, library: ctypes.CDLL) -> Iterator[Reader]:
    reader = Reader(library, arena.name)
    yield reader
    reader.close()


def blocks(arena: Arena) -> int:
    arena.collect()
    return arena.stats().blocks


def test_it_takes_part_and_leaves(arena: Arena, library: ctypes.CDLL) -> None:
    for _ in range(3):
        one, two = Reader(library, arena.name), Reader(library, arena.name)
        assert [row.index for row in arena.participants()] == [0, one.participant, two.participant] == [0, 1, 2]
        assert all(row.alive and row.pid == os.getpid() for row in arena.participants())
        assert {row.start_time for row in arena.participants()} == {_native.start_time(os.getpid())}
        one.close()
        two.close()
        assert [row.alive for row in arena.participants()] == [True, False, False]
        arena.sweep()
        assert arena.stats().participants == 1


def test_it_holds_what_it_accepted_until_it_lets_go(arena: Arena, reader: Reader) -> None:
    data = os.urandom(100_000)
    reference, copied = arena.send(data, reader.participant)
    assert copied
    view = reader.take(reference)
    assert view.bytes() == data
    assert (blocks(arena), arena.stats().in_flight) == (1, 0)  # by its bit alone: the sender has no view of it
    filler = [arena.lease(100_000) for _ in range(20)]  # space that was free is used again; this was not
    for block in filler:
        memoryview(block)[:] = bytes(100_000)
    assert view.bytes() == data
    filler.clear()
    del block
    reader.release(view)
    assert blocks(arena) == 0
    reader.release(view)  # a second time: nothing
    assert arena.stats().references_accepted == 1


def test_two_references_to_one_block_are_one_hold(arena: Arena, reader: Reader) -> None:
    block = arena.lease(1 << 16)
    memoryview(block)[:] = os.urandom(1 << 16)
    data = bytes(block)
    whole = reader.take(arena.send(block, reader.participant)[0])
    part = reader.take(arena.send(memoryview(block)[1000:5000], None)[0])
    block.release()
    assert (whole.bytes(), part.bytes()) == (data, data[1000:5000])
    reader.release(whole)
    assert blocks(arena) == 1
    assert part.bytes() == data[1000:5000]
    reader.release(part)
    assert blocks(arena) == 0


def test_a_stale_reference_changes_nothing(arena: Arena, reader: Reader) -> None:
    reference, _ = arena.send(b"x" * 5000, reader.participant)
    for field, value in enumerate(reference):
        for other in (value + 1, value - 1, value + (1 << 32), 2**53 - 1, 2**64 - 1):
            hostile = (*reference[:field], other & (2**64 - 1), *reference[field + 1 :])
            if (field, other) == (4, value - 1):
                continue  # fewer bytes than were sent are no harm
            assert reader.accept(hostile) == _native.STALE, (field, other)
    assert (blocks(arena), arena.stats().in_flight) == (1, 1)
    view = reader.take(reference)
    assert reader.accept(reference) == _native.STALE  # taken
    reader.release(view)
    assert blocks(arena) == 0

    recalled, _ = arena.send(b"x" * 5000, reader.participant)
    assert arena.recall(recalled)
    foreign, _ = arena.send(b"x" * 5000, arena.participant)
    assert reader.accept(recalled) == reader.accept(foreign) == _native.STALE
    arena.accept(foreign).release()
    assert blocks(arena) == 0


def test_it_reads_what_a_dead_owner_left(arena: Arena, reader: Reader) -> None:
    """The owner's segment is orphaned under the reader's hold, and goes with it."""
    data = os.urandom(50_000)
    owner = Arena.attach(arena.name)
    held, _ = owner.send(data, reader.participant)
    view = reader.take(held)
    in_flight, _ = owner.send(data[::-1], reader.participant)
    owner._handle.abandon()  # as if it had been killed
    arena.reap(owner.participant, revoke=False)
    assert view.bytes() == data
    late = reader.take(in_flight)
    assert late.bytes() == data[::-1]
    assert arena.stats().orphaned == 1
    reader.release(view)
    reader.release(late)
    arena.sweep()
    stats = arena.stats()
    assert (stats.orphaned, stats.blocks, stats.participants) == (0, 0, 2)


def test_it_reads_what_was_spilled(library: ctypes.CDLL, tmp_path: Path) -> None:
    """Its file is not in /dev/shm: the control file names the folder."""
    arena = Arena.create(f"loom-c-spill-{os.getpid()}", 1 << 20, FullPolicy("spill", 1.0, str(tmp_path)))
    reader = Reader(library, arena.name)
    full = arena.lease(1 << 20)
    data = os.urandom(100_000)
    view = reader.take(arena.send(data, reader.participant)[0])
    assert (view.bytes(), arena.stats().spilled_blocks) == (data, 1)
    assert len(os.listdir(arena.policy.spill)) == 1
    reader.release(view)
    arena.collect()
    assert os.listdir(arena.policy.spill) == []
    full.release()
    reader.close()
    arena.destroy()
    arena.close()
    assert os.listdir(tmp_path) == []


def test_what_was_on_its_way_when_it_left_is_its_senders_again(arena: Arena, library: ctypes.CDLL) -> None:
    reader = Reader(library, arena.name)
    arena.send(b"x" * 5000, reader.participant)
    reader.close()
    assert arena.stats().in_flight == 1
    arena.sweep()
    assert (arena.stats().in_flight, blocks(arena), arena.stats().participants) == (0, 0, 1)


def test_no_arena_no_reader(library: ctypes.CDLL) -> None:
    memory = (ctypes.c_uint64 * 64)()
    assert library.arena_open(memory, f"loom-none-{os.getpid()}".encode()) == _native.NOT_FOUND
    assert library.arena_open(memory, b"../etc/passwd") == _native.USAGE
    assert library.arena_open(memory, b"") == _native.USAGE
    assert library.arena_open(memory, b"x" * 97) == _native.USAGE
