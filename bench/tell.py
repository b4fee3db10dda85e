"""Tell: how many one-way messages a second one sender gets through one actor.

Batches of 20,000, timed until the receiver has had the last: Loom's sender then asks the actor how many it has seen,
pyzmq's peer answers one last message with its count. Rival: PUSH and PULL over ipc without high-water marks, two small
frames. Loom's mailbox is bounded, the rival's is not. 1 batch a turn, after one that is not counted. A sample is a
batch, so p99 is the slowest one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from bench import peers, rival
from bench.actors import Subject, home
from bench.ask import FRAMES
from bench.question import Line, Question, Turn, expect, rates


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    size, count = (2000, 1) if quick else (20_000, 1)
    with home() as node, rival.zmq_peer(peers.count_zmq, zmq.PUSH) as (socket, control):
        subject = node.spawn(Subject)
        told = {"Loom": 0, "pyzmq": 0}

        def loom_batch() -> None:
            tell = subject.note.tell
            for number in range(size):
                tell(number)
            told["Loom"] += size
            expect("messages that Loom's actor had", subject.noted().result(), told["Loom"])

        def pyzmq_batch() -> None:
            for _ in range(size):
                socket.send_multipart(FRAMES)
            told["pyzmq"] += size
            socket.send_multipart([peers.ASK_COUNT, b""])
            expect("messages that pyzmq's peer had", control.recv(), told["pyzmq"])

        yield {
            "Loom": lambda: rates(loom_batch, size, count),
            "pyzmq": lambda: rates(pyzmq_batch, size, count),
        }


QUESTION = Question(
    "tell", (Line("tell", "tells a second, one sender", "Loom", ("pyzmq",), "k/s", ">= 1 M/s"),), contest
)
