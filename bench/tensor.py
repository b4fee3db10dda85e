"""Tensor: what it costs to call an actor with 64 MiB of float64, of which the handler touches one element.

`tensor-shared`: the array lives in the arena already (`loom.arena.share`, once), and only a reference travels; beside
it an empty call to the same actor. `tensor-copied`: an ordinary NumPy array as the argument, which Loom copies into
shared memory and hands over; beside it `np.copyto` of the same array into memory that has been touched before, and
multiprocessing.Pipe's `send_bytes` of it, with the first element as its answer. The ordinary array's first element is
new at every call and comes back. A turn is 100 calls without a copy and 5 with one, after 10 and 1 that are not
counted. The first filling of fresh shared memory, many times as slow, falls to the warm-up; only when the actor has not
let go of the last array yet as the next is sent does another block have to be filled, and such a call stands in the
p99.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count as counter

import numpy as np

import loom
from bench import peers, rival
from bench.actors import Subject, home
from bench.question import Line, Question, Turn, expect, times

ITEMS = 64 * 2**20 // 8


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up. /dev/shm has to have room for a few tensors."""
    small, small_warm_up, big, big_warm_up = (20, 5, 2, 1) if quick else (100, 10, 5, 1)
    with home("512MiB") as node, rival.peer(peers.first_of_pipe) as pipe:
        subject = node.spawn(Subject)
        source = np.ones(ITEMS)
        warm = np.zeros(ITEMS)
        shared = loom.arena.share(source)
        numbers = counter(2)

        def empty() -> None:
            subject.nothing().result()

        def in_arena() -> None:
            expect("the first element of the shared array", subject.first(shared).result(), 1.0)

        def fresh(send: Callable[[], float]) -> None:
            source[0] = number = float(next(numbers))
            expect("the first element", send(), number)

        def memcpy() -> float:
            np.copyto(warm, source)
            return float(warm[0])

        def pipe_() -> float:
            pipe.send_bytes(source.data.cast("B"))
            return float(pipe.recv())

        def copied() -> float:
            return float(subject.first(source).result())

        yield {
            "Loom, empty call": lambda: times(empty, small, small_warm_up),
            "Loom, in the arena": lambda: times(in_arena, small, small_warm_up),
            "Loom, copied": lambda: times(lambda: fresh(copied), big, big_warm_up),
            "warm memcpy": lambda: times(lambda: fresh(memcpy), big, big_warm_up),
            "Pipe": lambda: times(lambda: fresh(pipe_), big, big_warm_up),
        }


QUESTION = Question(
    "tensor",
    (
        Line(
            "tensor-shared",
            "64 MiB tensor, in the arena already",
            "Loom, in the arena",
            ("Loom, empty call",),
            "us",
            "<= 1.2 x an empty call",
        ),
        Line(
            "tensor-copied",
            "64 MiB tensor, copied in and handed over",
            "Loom, copied",
            ("warm memcpy", "Pipe"),
            "ms",
            "<= 1.2 x warm memcpy",
        ),
    ),
    contest,
)
