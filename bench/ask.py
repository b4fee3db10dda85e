"""Ask: how long until a call has its answer.

One caller, one call at a time; the argument and the answer are one small int. Loom: `ref.echo(7).result()` on a plain
thread, to a sync handler and to an async one. Rivals: a DEALER and a ROUTER over ipc, both blocking, two small frames
there and back; and multiprocessing.Pipe carrying the same int. 1,000 calls a turn, after 100 that are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from bench import peers, rival
from bench.actors import Subject, home
from bench.question import Line, Question, Turn, expect, times

FRAMES = [b"h" * 32, b"b" * 8]
"""A header and a body, smaller than Loom's."""


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    count, warm_up = (200, 20) if quick else (1000, 100)
    with (
        home() as node,
        rival.zmq_peer(peers.echo_zmq, zmq.DEALER) as (socket, _),
        rival.peer(peers.echo_pipe) as pipe,
    ):
        subject = node.spawn(Subject)

        def loom_sync() -> object:
            return subject.echo(7).result()

        def loom_async() -> object:
            return subject.echo_async(7).result()

        def pyzmq() -> object:
            socket.send_multipart(FRAMES)
            return socket.recv_multipart()

        def pipe_() -> object:
            pipe.send(7)
            return pipe.recv()

        for act, answer in ((loom_sync, 7), (loom_async, 7), (pyzmq, FRAMES), (pipe_, 7)):
            expect(act.__name__, act(), answer)
        yield {
            "Loom": lambda: times(loom_sync, count, warm_up),
            "pyzmq": lambda: times(pyzmq, count, warm_up),
            "Loom, async handler": lambda: times(loom_async, count, warm_up),
            "Pipe": lambda: times(pipe_, count, warm_up),
        }


GOAL = "<= 0.5 x raw pyzmq"

QUESTION = Question(
    "ask",
    (
        Line("ask", "ask round trip", "Loom", ("pyzmq", "Pipe"), "us", GOAL),
        Line("ask-async", "ask round trip, async handler", "Loom, async handler", ("pyzmq", "Pipe"), "us", GOAL),
    ),
    contest,
)
