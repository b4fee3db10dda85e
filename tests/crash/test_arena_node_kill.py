"""Kill the node at every named step of the arena's core that it comes to: who holds blocks reads on, and nothing stays.

What a node leaves is cleared by the zygote, or by the next start: both call `destroy_files` for an arena that they know
by name, and the next start `clear_spill` for folders that nothing names any more. That is what is done here.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from loom import _native
from loom.arena import Arena, FullPolicy, clear_spill, destroy_files
from loom.errors import ArenaFull, LoomError, StartFailed

NODE = """
import json, os, sys
from loom import _native
from loom.arena import Arena, FullPolicy
name, folder, step, nth = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
if step: _native.crash_at(step, nth)
def out(*numbers): print(json.dumps(numbers), flush=True)
def dies(work):                            # a participant that dies
    pid = os.fork()
    if not pid:
        if step: _native.crash_at(step, 10**9)
        held = work(Arena.attach(name))
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
arena = Arena.create(name, 1, FullPolicy("spill", 1.0, folder)) if folder else Arena.create(name, 64 << 20)
out(arena.participant)
survivor, = json.loads(sys.stdin.readline())
block = arena.lease(300_000)
memoryview(block)[:] = b"n" * 300_000
out(*arena.send(block, survivor)[0])
taken = arena.accept(json.loads(sys.stdin.readline()))
onward, _ = arena.send(taken, survivor)
out(*onward)
sys.stdin.readline()                       # the survivor holds both
taken.release()
lost, _ = arena.send(b"r" * 100)
arena.recall(lost)
dies(lambda dead: [dead.lease(10_000), dead.send(b"f" * 5000), dead.send(b"g" * 5000, survivor)])
dies(lambda dead: [dead.accept(arena_sent)] if (arena_sent := dead.send(b"own")[0]) else [])
for row in arena.participants():
    if not row.alive: arena.reap(row.index, revoke=True)
arena.sweep()
block.release()
arena.lease(10 << 20).release()
arena.trim()
arena.collect()
out(arena.stats().participants)
arena.destroy()
arena.close()
out(0)
"""


class Place(NamedTuple):
    """Where one arena lies; `spill` is "" when that is memory alone."""

    name: str
    spill: str


@pytest.fixture(params=("memory", "spill"))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    before = len(os.listdir("/proc/self/fd"))
    name = f"loom-node-kill-{os.getpid()}"
    yield Place(name, str(tmp_path) if request.param == "spill" else "")
    gc.collect()
    assert not list(Path("/dev/shm").glob(f"{name}*"))
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


def numbers(process: subprocess.Popen[str]) -> list[int]:
    """A line of the node's; [] when it is dead."""
    line = pipe(process.stdout).readline()
    found: list[int] = json.loads(line) if line else []
    return found


def tell(process: subprocess.Popen[str], *said: int) -> None:
    try:
        pipe(process.stdin).write(json.dumps(said) + "\n")
        pipe(process.stdin).flush()
    except BrokenPipeError:
        pass


def pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None
    return end


def node_dies(place: Place, step: str, nth: int) -> bool:
    """One life of a node with a survivor beside it. Returns: whether it was killed at the step."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODE, place.name, place.spill, step, str(nth)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    survivor = Arena.attach(place.name) if numbers(process) else None
    if survivor is not None:
        hold_on(survivor, process)
    try:
        pipe(process.stdin).close()
    except BrokenPipeError:
        pass
    code = process.wait()
    pipe(process.stdout).close()
    assert code in (0, -signal.SIGKILL)
    clear(place)
    if survivor is not None:
        survivor.close()
    return code != 0


def hold_on(survivor: Arena, process: subprocess.Popen[str]) -> None:
    """Take the node's block, give it one of ours, see it die, and see that all of them are as they were."""
    tell(process, survivor.participant)
    first = numbers(process)
    taken = survivor.accept(first) if first else None
    own = survivor.lease(200_000)
    memoryview(own)[:] = b"s" * 200_000
    tell(process, *survivor.send(own, 0)[0])
    onward = numbers(process)
    again = survivor.accept(onward) if onward else None
    tell(process, 1)
    while numbers(process):
        pass
    assert taken is None or bytes(taken) == b"n" * 300_000
    assert again is None or bytes(again) == bytes(own) == b"s" * 200_000
    clear(Place(survivor.name, str(Path(survivor.policy.spill).parent) if survivor.policy.spill else ""))
    assert taken is None or bytes(taken) == b"n" * 300_000  # mapped until it is let go
    memoryview(own)[:] = b"t" * 200_000
    assert again is None or bytes(again) == b"t" * 200_000
    try:  # in vain, or in memory that is its own from now on: either way it says so and leaves nothing
        survivor.lease(40 << 20, timeout_s=0).release()
    except (ArenaFull, StartFailed):
        pass
    survivor.collect()


def clear(place: Place) -> None:
    """As the zygote, or the next start, does."""
    known = Path(f"/dev/shm/{place.name}.ctl").exists()
    destroy_files(place.name)
    assert destroy_files(place.name) == 0
    if place.spill:
        assert not known or not Path(f"{place.spill}/{place.name}.spill").exists()  # the control file named it
        clear_spill(place.spill)
        assert clear_spill(place.spill) == 0


def steps_of(place: Place) -> set[str]:
    """The steps that a node comes to in such a life."""
    foreign = {"CLAIM_TAKEN"}  # node's row 0 is never contended for
    return set(_native.steps()) - foreign - (set() if place.spill else {"CREATE_FOLDER"})


@pytest.mark.parametrize("step", _native.steps())
def test_the_node_killed_at(place: Place, step: str) -> None:
    came = node_dies(place, step, 1)
    assert came == (step in steps_of(place))
    node_dies(place, step, 2)
    node_dies(place, step, 5)


def test_nobody_killed(place: Place) -> None:
    assert not node_dies(place, "", 0)


def test_a_node_killed_while_it_starts_is_no_obstacle(place: Place) -> None:
    """What is left of it before it has a control file is in the way of nobody."""
    for step in ("CREATE_FOLDER", "CREATE_LINKED"):
        node_dies(place, step, 1)
    policy = FullPolicy("spill", 1.0, place.spill) if place.spill else FullPolicy()
    arena = Arena.create(place.name, 1 << 20, policy)
    arena.lease(10).release()
    arena.destroy()
    arena.close()


def test_another_arena_is_not_touched(place: Place) -> None:
    """Two nodes: one is killed and cleared away at each step of its end, the other never notices."""
    policy = FullPolicy("spill", 1.0, place.spill) if place.spill else FullPolicy()
    other = Arena.create(f"{place.name}-other", 1 << 20, policy)
    held = [other.lease(1 << 20), *([other.lease(5000)] if place.spill else [])]
    for block in held:
        memoryview(block)[:] = b"o" * block.size_bytes
    reference, _ = other.send(held[-1])
    for step in ("REAP_BITS", "DESTROY_SPILL", "DESTROY_SEGMENTS", "DESTROY_CONTROL"):
        node_dies(place, step, 1)
    assert all(bytes(block) == b"o" * block.size_bytes for block in held)
    late = Arena.attach(other.name)
    taken = late.accept(reference)
    assert bytes(taken) == bytes(held[-1])
    with pytest.raises(LoomError):
        Arena.attach(place.name)
    taken.release()
    late.close()
    held.clear()
    del block
    other.destroy()
    other.close()
