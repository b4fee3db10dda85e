"""Restart: how long from the SIGKILL of an actor's process to the first reply of its replacement.

Loom: `kill -9`, then the same call again and again, ActorDied answered by asking at once, until the answer comes from
another process than the killed one. Nobody but the supervisor does anything about the death. Rival: a child of
multiprocessing's fork server, whose parent does the supervisor's work: waits on the child's sentinel, starts another,
and asks it. 5 kills a turn, one after another, after one that is not counted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from time import perf_counter_ns

from bench import rival
from bench.actors import Subject, home
from bench.question import Line, Question, Turn
from loom.errors import ActorDied


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    count = 3 if quick else 5

    def turn(once: Callable[[], float]) -> list[float]:
        return [once() for _ in range(count + 1)][1:]

    with home() as node:
        rival.warm_up()
        subject = node.spawn(Subject)
        child = rival.first_reply()

        def loom_restart() -> float:
            killed = replacement = subject.pid().result(timeout_s=60)
            began = perf_counter_ns()
            os.kill(killed, signal.SIGKILL)
            while replacement == killed:
                try:
                    replacement = subject.pid().result(timeout_s=60)
                except ActorDied:
                    continue
            return (perf_counter_ns() - began) / 1e9

        def forkserver() -> float:
            nonlocal child
            process, control = child
            began = perf_counter_ns()
            process.kill()
            wait([process.sentinel])
            child = rival.first_reply()
            took = perf_counter_ns() - began
            rival.end(process, control)
            return took / 1e9

        try:
            yield {"Loom": lambda: turn(loom_restart), "forkserver, by hand": lambda: turn(forkserver)}
        finally:
            rival.end(*child)


QUESTION = Question(
    "restart",
    (Line("restart", "SIGKILL to the replacement's reply", "Loom", ("forkserver, by hand",), "ms", "<= 20 ms"),),
    contest,
)
