"""Arena, hand-over: what it costs to call an actor with a float64 array, by its size.

One question a size, from 1 KiB to 256 MiB; 1 GiB only when asked for. `-shared`: the array lives in the arena already,
and the handler touches one element; beside it an empty call to the same actor. From 32 KiB on only a reference travels,
so the figure should not grow any more. `-copied`: an ordinary array, its first element new at every call and given
back; beside it `np.copyto` of the same array into memory that has been touched before, and multiprocessing.Pipe's
`send_bytes` of it, with the first element as its answer. Below 32 KiB a buffer rides in the message itself; a memcpy
of so little takes no time, and the rival to look at is the Pipe.

Calls a turn: 100 without a copy; with one 100 down to 2, so many that 320 MiB are copied; Pipe 64 MiB, at least one.
A tenth of that, and of copies at least one, is not counted. A size for which /dev/shm (4 times the array and 64 MiB) or
memory (10 times) is short is skipped. From 256 MiB on only one round in three is played.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count as counter

import numpy as np

import loom
from bench import peers, rival, room
from bench.actors import Subject, home
from bench.question import Line, Question, Turn, expect, times

MIB = 2**20

SIZES = {
    "1KiB": 2**10,
    "32KiB": 32 * 2**10,
    "1MiB": MIB,
    "16MiB": 16 * MIB,
    "64MiB": 64 * MIB,
    "256MiB": 256 * MIB,
    "1GiB": 1024 * MIB,
}


@contextmanager
def contest(size_bytes: int, quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone of one size set up."""
    most = 20 if quick else 100
    copies = max(2, min(most, 320 * MIB // size_bytes // (4 if quick else 1)))
    sends = max(1, min(most, 64 * MIB // size_bytes))
    arena_mib = 4 * size_bytes // MIB + 64
    room.need(arena_mib * MIB, 10 * size_bytes)
    with home(f"{arena_mib}MiB") as node, rival.peer(peers.first_of_pipe) as pipe:
        subject = node.spawn(Subject)
        source = np.ones(size_bytes // 8)
        warm = np.zeros(size_bytes // 8)
        shared = loom.arena.share(source)
        numbers = counter(2)

        def empty() -> None:
            subject.nothing().result()

        def in_arena() -> None:
            expect("the first element of the shared array", subject.first(shared).result(), 1.0)

        def fresh(send: Callable[[], float]) -> None:
            source[0] = number = float(next(numbers))
            expect("the first element", send(), number)

        def copied() -> float:
            return float(subject.first(source).result())

        def memcpy() -> float:
            np.copyto(warm, source)
            return float(warm[0])

        def pipe_() -> float:
            pipe.send_bytes(source.data.cast("B"))
            return float(pipe.recv())

        yield {
            "empty call": lambda: times(empty, most, most // 10),
            "Loom, in the arena": lambda: times(in_arena, most, most // 10),
            "Loom, copied": lambda: times(partial(fresh, copied), copies, max(1, copies // 10)),
            "warm memcpy": lambda: times(partial(fresh, memcpy), copies, max(1, copies // 10)),
            "Pipe": lambda: times(partial(fresh, pipe_), sends, sends // 10),
        }


def question(name: str, size_bytes: int) -> Question:
    """The question of one size. The goals are those of arrays so large that the call is not the whole cost."""
    title, key = f"arena: hand over {name}", f"arena-hand-{name}"
    unit = "us" if size_bytes <= MIB else "ms"
    shared_goal = "<= 1.2 x an empty call" if size_bytes >= MIB else ""
    copied_goal = "<= 1.2 x warm memcpy" if size_bytes >= 64 * MIB else ""
    return Question(
        key,
        (
            Line(f"{key}-shared", f"{title}, in it already", "Loom, in the arena", ("empty call",), "us", shared_goal),
            Line(f"{key}-copied", f"{title}, copied in", "Loom, copied", ("warm memcpy", "Pipe"), unit, copied_goal),
        ),
        partial(contest, size_bytes),
        by_default=size_bytes <= 256 * MIB,
        one_round_in=1 if size_bytes <= 64 * MIB else 3,
    )


QUESTIONS = tuple(question(name, size_bytes) for name, size_bytes in SIZES.items())
