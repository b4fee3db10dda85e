"""A node whose shared memory is full, with each policy; and what it spilled, when anybody is killed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loom
from loom.errors import ArenaFull, CallTimeout, NodeDown, RemoteError

MIB = 1 << 20
GENEROUS_S = 60.0
MANY = loom.SupervisorSpec(max_restarts=1000, within_s=60)

Until = Callable[..., Any]


class Holder(loom.Actor):
    """Keeps what it is sent, and fills the arena when it is asked to."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def fill(self, size_bytes: int) -> None:
        self.kept.append(loom.arena.empty(size_bytes, np.uint8))

    def keep(self, array: np.ndarray) -> int:
        self.kept.append(array)
        return int(array.sum())

    def total(self, array: np.ndarray) -> int:
        return int(array.sum())

    def sums(self) -> list[int]:
        return [int(array.sum()) for array in self.kept]

    def make(self, count: int) -> np.ndarray:
        return np.arange(count)

    def shared(self, count: int) -> np.ndarray:
        return loom.arena.share(np.arange(count))

    def drop(self) -> None:
        self.kept.clear()

    def collect(self) -> None:
        loom.arena.current().collect()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "spill"
    folder.mkdir()
    yield folder
    assert os.listdir(folder) == []


def spilling(folder: Path, **how: Any) -> loom.Node:
    return loom.Node(arena="4MiB", arena_full="spill", arena_spill=folder, supervisor=MANY, **how)


def spilled(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*/*")]


def full_of(node: loom.Node) -> Any:
    holder = node.spawn(Holder, name="holder")
    holder.fill(4 * MIB).result(timeout_s=GENEROUS_S)
    return holder


NUMBERS = np.arange(100_000)  # 800 kB
SUM = int(NUMBERS.sum())


# --- wait, raise ------------------------------------------------------------------------------------------------------


def test_raise_is_at_once_for_caller_and_actor() -> None:
    with loom.Node(arena="4MiB", arena_full="raise") as node:
        holder = full_of(node)
        deadline_s = time.monotonic() + GENEROUS_S
        with pytest.raises(ArenaFull, match=r"L3003 .* \(waited 0 s\)"):
            holder.total.options(timeout_s=GENEROUS_S)(NUMBERS)
        with pytest.raises(ArenaFull):
            loom.arena.share(NUMBERS)
        with pytest.raises(RemoteError, match=r"ArenaFull.*waited 0 s"):
            holder.shared(100_000).result(timeout_s=GENEROUS_S)
        assert time.monotonic() < deadline_s  # nobody waited for a deadline
        holder.drop().result(timeout_s=GENEROUS_S)
        assert holder.total(np.arange(3)).result(timeout_s=GENEROUS_S) == 3


def test_wait_is_until_the_deadline_of_the_call() -> None:
    with loom.Node(arena="4MiB", arena_wait_s=3600) as node:
        holder = full_of(node)
        start = time.monotonic()
        with pytest.raises(ArenaFull, match=r"waited 0\.3 s"):
            holder.total.options(timeout_s=0.3)(NUMBERS)
        assert time.monotonic() - start >= 0.3
        # One without a deadline waits: it is sent once the other thread has made room.
        waits = threading.Event()
        real = time.sleep

        def sleep(seconds: float) -> None:
            waits.set()
            real(seconds)

        def make_room() -> None:
            waits.wait(GENEROUS_S)
            holder.drop.tell()

        thread = threading.Thread(target=make_room)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "sleep", sleep)
            reply = holder.total(NUMBERS)
        assert waits.is_set()
        assert reply.result(timeout_s=GENEROUS_S) == SUM
        thread.join()


def test_an_answer_waits_no_longer_than_its_call() -> None:
    with loom.Node(arena="4MiB", arena_wait_s=3600) as node:
        full_of(node)
        maker = node.spawn(Holder, name="maker")
        with pytest.raises((CallTimeout, RemoteError), match=r"before its deadline|ArenaFull"):  # whichever is first
            maker.make.options(timeout_s=0.3)(100_000).result()
        assert maker.sums().result(timeout_s=GENEROUS_S) == []  # it waits for room no more


# --- spill ------------------------------------------------------------------------------------------------------------


def test_spilled_arrays_arrive_both_ways_and_go(folder: Path, until: Until) -> None:
    with spilling(folder) as node:
        holder, maker = full_of(node), node.spawn(Holder, name="maker")
        assert holder.keep(NUMBERS).result(timeout_s=GENEROUS_S) == SUM
        made = maker.make(200_000).result(timeout_s=GENEROUS_S)
        shared = maker.shared(150_000).result(timeout_s=GENEROUS_S)
        assert not made.flags.writeable
        assert (int(made.sum()), int(shared.sum())) == (19999900000, 11249925000)
        report = node.arena()
        assert report.policy.full == "spill"
        assert Path(report.policy.spill).parent == folder
        assert report.stats.spilled_blocks == 3
        assert len(spilled(folder)) == sum(one.spilled for one in report.segments) == 2  # ours, and the maker's
        assert report.stats.bytes_spilled == report.stats.spilled_bytes == 450_000 * 8
        text = subprocess.run(
            [sys.executable, "-P", "-m", "loom.cli.main", "arena", "--node", node.endpoint],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert f"when full: spill to {folder}" in text
        assert "3.4 MiB there now in 3 blocks, since the start 3.4 MiB in 3 blocks" in text
        assert " spilled " in text
        del made, shared
        gc.collect()
        maker.collect().result(timeout_s=GENEROUS_S)
        assert until(lambda: len(spilled(folder)) == 1)  # the one that is kept
        holder.drop().result(timeout_s=GENEROUS_S)
        loom.arena.current().collect()
        assert until(lambda: spilled(folder) == [])
        assert node.arena().stats.spilled_blocks == 0


@pytest.mark.parametrize("dies", ["sender", "receiver"])
def test_a_killed_actor_leaves_nothing_spilled(folder: Path, until: Until, dies: str) -> None:
    with spilling(folder) as node:
        full_of(node)
        sender, receiver = node.spawn(Holder, name="sender"), node.spawn(Holder, name="receiver")
        array = sender.shared(100_000).result(timeout_s=GENEROUS_S)
        assert receiver.keep(array).result(timeout_s=GENEROUS_S) == SUM
        pids = {actor.name: actor.pid for actor in node.stats().actors}
        os.kill(pids[dies], signal.SIGKILL)
        until(lambda: {one.name: one.pid for one in node.stats().actors}[dies] not in (0, pids[dies]))
        assert np.array_equal(array, NUMBERS)
        if dies == "sender":
            assert receiver.sums().result(timeout_s=GENEROUS_S) == [SUM]
            receiver.drop().result(timeout_s=GENEROUS_S)
        del array
        gc.collect()
        if dies == "receiver":
            sender.collect().result(timeout_s=GENEROUS_S)
        assert until(lambda: spilled(folder) == [])
        if dies == "sender":
            assert until(lambda: node.stats().arena.reclaimed_segments > 0)


def test_a_killed_node_leaves_nothing_spilled(folder: Path, until: Until) -> None:
    node = spilling(folder)
    full_of(node)
    maker = node.spawn(Holder, name="maker")
    array = maker.shared(100_000).result(timeout_s=GENEROUS_S)
    ours = loom.arena.share(NUMBERS)
    assert len(spilled(folder)) == 2
    os.kill(node.pid, signal.SIGKILL)
    assert until(lambda: os.listdir(folder) == [])  # by the zygote
    assert np.array_equal(array, NUMBERS)
    ours += 1
    assert int(ours.sum()) == SUM + len(ours)
    with pytest.raises(NodeDown):
        node.stats()
    del array, ours
    node.close()


def test_the_next_start_clears_what_was_spilled(folder: Path, until: Until) -> None:
    """Node and zygote die together; then the control file goes as well, as it does with a reboot."""
    first = spilling(folder)
    full_of(first)
    ours = loom.arena.share(NUMBERS)
    name = first.arena().name
    children = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
    actors = {actor.pid for actor in first.stats().actors}
    (zygote,) = (one for one in children if one not in actors)
    os.kill(zygote, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    os.kill(zygote, signal.SIGKILL)
    first._process.wait()
    assert len(spilled(folder)) == 1
    for path in Path("/dev/shm").glob(f"{name}.*"):
        path.unlink()
    with spilling(folder):
        assert until(lambda: len(os.listdir(folder)) == 1)
        assert spilled(folder) == []
    assert np.array_equal(ours, NUMBERS)
    del ours
    first.close()


PROGRAM = """
import sys, numpy as np, loom
node = loom.Node(arena="4MiB", arena_full="spill", arena_spill=sys.argv[1])
held = [loom.arena.empty(4 << 20, np.uint8), loom.arena.share(np.arange(100_000))]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_programs_end_leaves_nothing_spilled(folder: Path, until: Until, how: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    assert len(spilled(folder)) == 1
    if how == "killed":
        program.kill()
    program.stdin.close()
    assert program.wait() == (-signal.SIGKILL if how == "killed" else 0)
    program.stdout.close()
    assert until(lambda: os.listdir(folder) == [])


def test_two_nodes_share_a_folder(folder: Path, until: Until) -> None:
    with spilling(folder) as one:
        full_of(one)
        array = loom.arena.share(NUMBERS)
        with spilling(folder) as two:
            full_of(two)
            other = two.spawn(Holder, name="maker").shared(100_000).result(timeout_s=GENEROUS_S)
            assert len(os.listdir(folder)) == len(spilled(folder)) == 2
            os.kill(two.pid, signal.SIGKILL)
            assert until(lambda: len(os.listdir(folder)) == 1)
            assert np.array_equal(other, array)
        assert one.spawn(Holder, name="reader").total(array).result(timeout_s=GENEROUS_S) == SUM
        del array, other


def test_who_spills_may_have_less_memory_than_its_budget(folder: Path) -> None:
    with pytest.raises(ArenaFull, match="set a smaller 'arena'"):
        loom.Node(arena="1000000GiB")
    with loom.Node(arena="1000000GiB", arena_full="spill", arena_spill=folder) as node:
        assert node.spawn(Holder).total(NUMBERS).result(timeout_s=GENEROUS_S) == SUM
