"""Kill a process at every named step of the arena's core, reap it, and count: nothing may be left, nobody disturbed.

The steps are the core's own list (LOOM_STEPS in native/include/loom_arena.h); each marks an instant between two changes
that other processes can see. A child lives through everything a participant does and is killed with SIGKILL at the
step's first, and in a second run at a later, occurrence.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from loom import _native
from loom.arena import Arena, ArenaStats, FullPolicy, destroy_files

NODE_ONLY = {step for step in _native.steps() if step.split("_")[0] in ("CREATE", "REAP", "DESTROY")}

POLICIES = ("wait", "spill")
"""With the second nothing fits into memory: every segment is a file in a folder."""

OWNER = """
import json, sys
from loom import _native
from loom.arena import Arena
name, step, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
if step: _native.crash_at(step, nth)
Arena.attach(name).close()                 # a life with nothing in it
arena = Arena.attach(name)
def out(*numbers): print(json.dumps(numbers), flush=True)
kept = arena.lease(300_000)
memoryview(kept)[:] = b"k" * 300_000
out(*arena.send(kept, 0)[0])
sys.stdin.readline()                       # the node holds the block now
out(*arena.send(b"f" * 5000)[0])           # stays in flight
brief = arena.lease(10)
out(*arena.send(brief, 0)[0])
sys.stdin.readline()                       # the node held it, and let go
brief.release()                            # nobody holds it: the bitmap is scanned to the end
lost, _ = arena.send(b"r" * 100)
arena.recall(lost)
arena.lease(10 << 20).release()            # a second segment, given back
arena.trim()
kept.release()                             # the node still holds it
arena.collect()
arena.close()
"""

READER = """
import json, sys
from loom import _native
from loom.arena import Arena
name, step, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
if step: _native.crash_at(step, nth)
arena = Arena.attach(name)
print(json.dumps([arena.participant]), flush=True)
blocks = [arena.accept(json.loads(line)) for line in (sys.stdin.readline(), sys.stdin.readline())]
assert bytes(blocks[0]) == b"s" * 200_000
onward, _ = arena.send(blocks[0])
print(json.dumps(onward), flush=True)
print(json.dumps(arena.send(b"own")[0]), flush=True)
for block in blocks: block.release()
arena.close()
"""


@pytest.fixture(params=POLICIES)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    name = f"loom-kill-{os.getpid()}"
    spills = request.param == "spill"
    node = Arena.create(name, 1, FullPolicy("spill", 1.0, str(tmp_path))) if spills else Arena.create(name, 64 << 20)
    yield node
    assert not spills or os.listdir(node.policy.spill) == []
    node.destroy()
    node.close()
    gc.collect()
    assert destroy_files(node.name) == 0
    assert not list(Path("/dev/shm").glob(f"{node.name}*"))
    assert os.listdir(tmp_path) == []


def child(program: str, node: Arena, step: str, nth: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, node.name, step, str(nth)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def numbers(process: subprocess.Popen[str]) -> list[int] | None:
    line = pipe(process.stdout).readline()
    return json.loads(line) if line else None


def pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None
    return end


def tell(process: subprocess.Popen[str], line: str) -> None:
    try:
        pipe(process.stdin).write(line + "\n")
        pipe(process.stdin).flush()
    except BrokenPipeError:
        pass  # killed before it read this


def finish(process: subprocess.Popen[str]) -> bool:
    """Wait for the end. Returns: True when it was killed at the step, False when it never came there."""
    try:
        pipe(process.stdin).close()
    except BrokenPipeError:
        pass
    code = process.wait()
    pipe(process.stdout).close()
    assert code in (0, -signal.SIGKILL)
    return code != 0


def reaped(node: Arena, pid: int) -> ArenaStats:
    for row in node.participants():
        if row.pid == pid:
            assert not row.alive
            assert node.reap(row.index) == 0
            assert node.reap(row.index) == 0
    node.collect()
    node.sweep()
    return node.stats()


def counts(node: Arena) -> tuple[int, ...]:
    node.collect()
    node.trim()
    node.sweep()
    stats = node.stats()
    fds = len(os.listdir("/proc/self/fd"))
    files = len(list(Path("/dev/shm").glob(f"{node.name}*")))
    files += len(os.listdir(node.policy.spill)) if node.policy.spill else 0
    return (stats.participants, stats.segments, stats.blocks, stats.in_use_bytes, stats.in_flight, fds, files)


def owner_dies(node: Arena, step: str, nth: int) -> bool:
    before = counts(node)
    process = child(OWNER, node, step, nth)
    first = numbers(process)
    block = node.accept(first) if first else None
    tell(process, "go")
    second = numbers(process)
    third = numbers(process)
    if third:
        node.accept(third).release()
    tell(process, "go on")
    killed = finish(process)
    flight = node.accept(second) if second else None
    stats = reaped(node, process.pid)
    assert stats.participants == 1
    assert stats.in_flight == 0
    assert stats.blocks == (block is not None) + (flight is not None)
    assert block is None or bytes(block) == b"k" * 300_000
    assert flight is None or bytes(flight) == b"f" * 5000
    del block, flight
    assert counts(node) == before
    return killed


def reader_dies(node: Arena, step: str, nth: int) -> bool:
    before = counts(node)
    mine = node.lease(200_000)
    memoryview(mine)[:] = b"s" * 200_000
    process = child(READER, node, step, nth)
    index = numbers(process)
    if index:
        tell(process, json.dumps(node.send(mine, index[0])[0]))
        tell(process, json.dumps(node.send(b"second", index[0])[0]))
    onward = numbers(process)
    block = node.accept(onward) if onward else None
    killed = finish(process)
    stats = reaped(node, process.pid)
    assert stats.participants == 1
    assert stats.in_flight == 0
    assert stats.blocks == 1
    assert bytes(mine) == b"s" * 200_000
    assert block is None or bytes(block) == b"s" * 200_000
    del mine, block
    assert counts(node) == before
    return killed


OWNER_STEPS = [step for step in _native.steps() if step not in NODE_ONLY and not step.startswith("ACCEPT_")]
READER_STEPS = [
    step
    for step in _native.steps()
    if step.split("_")[0] in ("CLAIM", "ACCEPT", "SEND", "TOKEN", "LEASE", "CLOSE")
    or step in ("RELEASE_BEGUN", "RELEASE_CLEARED")
]


@pytest.mark.parametrize("step", OWNER_STEPS)
def test_an_owner_killed_at(node: Arena, step: str) -> None:
    assert owner_dies(node, step, 1), "the owner never came to this step"
    owner_dies(node, step, 2)


@pytest.mark.parametrize("step", READER_STEPS)
def test_a_reader_killed_at(node: Arena, step: str) -> None:
    # A step that waits for the parent's part comes or not, as the two run: so more than one try.
    assert any(reader_dies(node, step, 1) for _ in range(20)), "the reader never came to this step"
    reader_dies(node, step, 2)


def test_every_step_is_killed_at_somewhere() -> None:
    """The node's own steps are in test_arena_node_kill.py."""
    assert set(OWNER_STEPS) | set(READER_STEPS) | NODE_ONLY == set(_native.steps())


def test_nobody_killed(node: Arena) -> None:
    assert not owner_dies(node, "", 0)
    assert not reader_dies(node, "", 0)
    stats = node.stats()
    assert stats.blocks_spilled == (stats.leases if node.policy.spill else 0)
    assert stats.leases > 0


STORM = """
import random, sys
from loom.arena import Arena
from loom.errors import LoomError
arena = Arena.attach(sys.argv[1])
print("[]", flush=True)
held, dice = [], random.Random(int(sys.argv[2]))
while True:
    try:
        if dice.random() < 0.5:
            held.append(arena.lease(dice.choice((100, 5000, 700_000)), timeout_s=0))
        else:
            reference, _ = arena.send(bytes(dice.choice((10, 70_000))), timeout_s=0)
            held.append(arena.accept(reference))
    except LoomError:
        held.clear()
    while len(held) > dice.randrange(40):
        held.pop(dice.randrange(len(held)))
    if dice.random() < 0.01:
        arena.trim()
"""


@pytest.mark.parametrize("seed", range(8))
def test_killed_anywhere_in_a_storm(node: Arena, seed: int) -> None:
    """Three processes at full speed, killed at an instant nobody chose, while the node reads the tables."""
    before = counts(node)
    processes = [child(STORM, node, str(seed * 3 + i), 0) for i in range(3)]
    for process in processes:
        assert numbers(process) == []
    for process in processes:
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            node.stats()
        process.kill()
        assert finish(process)
        stats = reaped(node, process.pid)
        assert stats.reserved_bytes <= 2 * node.budget_bytes
    assert counts(node) == before
