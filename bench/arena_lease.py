"""Arena, lease: what it costs to have a block of shared memory and to give it back.

Loom: `Arena.lease(size).release()` and, as programs do it, `loom.arena.empty` of that size and dropping the array; the
block is warm, as the same one was freed just before. Rival: `multiprocessing.shared_memory.SharedMemory` of that size,
created, closed and unlinked, resource tracker included. Nobody touches the bytes: for the rival that would add a page
fault for every page, each time. 64 KiB and 1 MiB; 1,000 of Loom's and 100 of the rival's a turn, after a tenth of that
which is not counted. The call of the Python function that is timed, some 0.1 us, is in the figures of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory

import numpy as np

import loom
from bench.actors import home
from bench.question import Line, Question, Turn, expect, times

SIZES = {"64KiB": 64 * 2**10, "1MiB": 2**20}


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    count = 200 if quick else 1000
    with home("64MiB"):
        turns: dict[str, Turn] = {}
        for name, size in SIZES.items():
            turns |= contestants(name, size, count)
        yield turns


def contestants(name: str, size_bytes: int, count: int) -> dict[str, Turn]:
    """Those of one size."""
    arena = loom.arena.current()

    def lease() -> None:
        arena.lease(size_bytes).release()

    def empty() -> None:
        loom.arena.empty(size_bytes, np.uint8)

    def shared_memory() -> None:
        memory = SharedMemory(create=True, size=size_bytes)
        memory.close()
        memory.unlink()

    block = arena.lease(size_bytes)
    expect("the size of a block", memoryview(block).nbytes, size_bytes)
    block.release()
    return {
        f"lease {name}": lambda: times(lease, count, count // 10),
        f"empty {name}": lambda: times(empty, count, count // 10),
        f"SharedMemory {name}": lambda: times(shared_memory, count // 10, count // 100),
    }


QUESTION = Question(
    "arena-lease",
    tuple(
        Line(f"arena-{kind}-{name}", f"{title}, {name}", f"{kind} {name}", (f"SharedMemory {name}",), "us", goal)
        for name in SIZES
        for kind, title, goal in (
            ("lease", "arena: lease and release a warm block", "<= 5 us"),
            ("empty", "arena: empty() and drop the array", "<= 5 us"),
        )
    ),
    contest,
)
