"""Start: how long a program waits from nothing at all to its first answer.

Loom: `loom.Node()`, one actor, one call, its answer; that is two new interpreters, node and zygote, and a fork. Rival:
`multiprocessing.Pool(1)` with the spawn method, one new interpreter that imports NumPy and zmq, and one task's result.
The program itself has everything imported. Ending them is not timed. One of each a turn, nothing kept from one to the
next; one of each before the first round is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from time import perf_counter_ns

from bench import peers
from bench.actors import Subject, home
from bench.question import Line, Question, Turn, expect

SPAWN = get_context("spawn")


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone has been run once, so that files are in the page cache."""
    loom_start()
    pool_start()
    yield {"Loom": lambda: [loom_start()], "Pool(1), spawn": lambda: [pool_start()]}


def loom_start() -> float:
    """Seconds until a new node's first actor has answered."""
    began = perf_counter_ns()
    with home() as node:
        answer = node.spawn(Subject).echo(7).result(timeout_s=60)
        took = perf_counter_ns() - began
    expect("the first reply", answer, 7)
    return took / 1e9


def pool_start() -> float:
    """Seconds until a new pool's first task is done."""
    began = perf_counter_ns()
    with SPAWN.Pool(1) as pool:
        answer = pool.apply_async(peers.add_one, (6,)).get(timeout=60)
        took = perf_counter_ns() - began
        pool.terminate()
        pool.join()
    expect("the first result", answer, 7)
    return took / 1e9


QUESTION = Question(
    "start", (Line("start", "start to first reply", "Loom", ("Pool(1), spawn",), "s", "<= 0.3 s"),), contest
)
