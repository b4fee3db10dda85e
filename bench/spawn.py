"""Spawn: how long until a new actor has answered its first call.

Loom: `node.spawn(...)`, one call, its answer. Rival: a Process and a Pipe from multiprocessing's fork server, which has
NumPy, zmq and the child's own function imported already; one object there, one back. An actor imports the module of its
class itself. Ending them is not timed. 5 of each a turn, one after another, after one that is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count as counter
from time import perf_counter_ns

from bench import rival
from bench.actors import Subject, home
from bench.question import Line, Question, Turn, expect


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    count = 3 if quick else 5

    def turn(once: Callable[[], float]) -> list[float]:
        return [once() for _ in range(count + 1)][1:]

    with home() as node:
        rival.warm_up()
        numbers = counter()

        def loom_spawn() -> float:
            began = perf_counter_ns()
            subject = node.spawn(Subject, name=f"subject-{next(numbers)}")
            answer = subject.echo(7).result(timeout_s=60)
            took = perf_counter_ns() - began
            expect("the first reply", answer, 7)
            node.stop(subject)
            return took / 1e9

        def forkserver() -> float:
            began = perf_counter_ns()
            child = rival.first_reply()
            took = perf_counter_ns() - began
            rival.end(*child)
            return took / 1e9

        yield {"Loom": lambda: turn(loom_spawn), "forkserver": lambda: turn(forkserver)}


QUESTION = Question(
    "spawn", (Line("spawn", "spawn to first reply", "Loom", ("forkserver",), "ms", "<= 5 ms"),), contest
)
