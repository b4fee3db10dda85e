"""Memory: what one more idle process costs.

Eight actors that have answered one call each, read once they are idle: PSS of /proc/PID/smaps_rollup, in which a page
that many processes share counts for each of them in proportion. Rival: eight children of multiprocessing's fork server
with the same imports (NumPy, zmq), idle after one reply; it has no event loop, no ZeroMQ context and no mailbox. The
eight of one kind are gone before those of the other start; node, zygote and fork server are there all the time. A turn
is one reading of eight processes, no warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as counter

from bench import rival
from bench.actors import Subject, home
from bench.question import Line, Question, Turn
from loom.node.stats import pss_bytes

PROCESSES = 8
SETTLE_S = 0.3


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    with home() as node:
        rival.warm_up()
        numbers = counter()

        def loom_memory() -> list[float]:
            subjects = [node.spawn(Subject, name=f"subject-{next(numbers)}") for _ in range(PROCESSES)]
            pids = [subject.pid().result(timeout_s=60) for subject in subjects]
            found = read(pids)
            for subject in subjects:
                node.stop(subject)
            return found

        def forkserver() -> list[float]:
            children = [rival.first_reply() for _ in range(PROCESSES)]
            try:
                return read([process.pid or 0 for process, _ in children])
            finally:
                for child in children:
                    rival.end(*child)

        yield {"Loom": loom_memory, "forkserver": forkserver}


def read(pids: list[int]) -> list[float]:
    """PSS of each process in bytes, all read in one go after a pause. Raises: RuntimeError when one cannot be read."""
    time.sleep(SETTLE_S)
    found = [float(pss_bytes(pid)) for pid in pids]
    if 0.0 in found:
        raise RuntimeError("PSS of a process cannot be read: expected Linux 4.14 or later with /proc/PID/smaps_rollup")
    return found


QUESTION = Question(
    "memory", (Line("memory", "memory an actor (PSS)", "Loom", ("forkserver",), "MB", "<= 5 MB"),), contest
)
