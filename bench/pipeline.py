"""Pipeline: how many calls a second when the caller does not wait for one before it sends the next.

Batches of 5,000: all are sent, then all answers are collected. Loom: 5,000 replies, then `.result()` of each. Rival: a
DEALER and a ROUTER over ipc without high-water marks, two small frames; bursts of 50, and after each the answers that
are there, so that its queues do not grow beyond need. 2 batches a turn, after one that is not counted. A sample is a
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

BURST = 50


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    size, count = (1000, 1) if quick else (5000, 2)
    with home() as node, rival.zmq_peer(peers.echo_zmq, zmq.DEALER) as (socket, _):
        subject = node.spawn(Subject)

        def loom_batch() -> None:
            replies = [subject.echo(number) for number in range(size)]
            expect("the sum of Loom's answers", sum(reply.result() for reply in replies), size * (size - 1) // 2)

        def pyzmq_batch() -> None:
            waiting = 0
            for _ in range(size // BURST):
                for _ in range(BURST):
                    socket.send_multipart(FRAMES)
                waiting += BURST
                try:
                    while waiting:
                        socket.recv_multipart(zmq.NOBLOCK)
                        waiting -= 1
                except zmq.Again:
                    pass
            for _ in range(waiting):
                socket.recv_multipart()

        yield {
            "Loom": lambda: rates(loom_batch, size, count),
            "pyzmq": lambda: rates(pyzmq_batch, size, count),
        }


QUESTION = Question(
    "pipeline", (Line("pipeline", "pipelined asks a second", "Loom", ("pyzmq",), "k/s", ">= 300 k/s"),), contest
)
