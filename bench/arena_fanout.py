"""Arena, fan-out: one tensor of 64 MiB to eight readers.

The tensor lives in the arena (`loom.arena.share`, once); all eight actors are asked at once, and each adds up one
element of every page of it. Beside it: an empty call to all eight at once; the same sum in the caller, without any
call; and the tensor down eight multiprocessing Pipes, one after another, whose readers take the same sum and answer.
The figure is the time for all eight answers divided by eight. The reading itself is in it: what the hand-over costs is
the figure less the sum and the empty call, as far as the cores let eight readers run side by side.

`arena-fanout-copied` is no time, but how many bytes are copied for one fan-out: what `arena.stats().bytes_copied` grew
by, for the Pipes what went in (it comes out of the kernel by a second copy). A turn is 10 fan-outs, after 2 that are
not counted, and one through the Pipes; one round in three is played.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

import loom
from bench import peers, rival, room
from bench.actors import Subject, home
from bench.question import Line, Question, Turn, expect, times

READERS = 8
MIB = 2**20
SIZE_BYTES = 64 * MIB


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    count, warm_up = (3, 1) if quick else (10, 2)
    room.need(2 * SIZE_BYTES, (2 * READERS + 4) * SIZE_BYTES)
    with home("256MiB") as node, ExitStack() as stack:
        pipes = [stack.enter_context(rival.peer(peers.sum_pages_of_pipe)) for _ in range(READERS)]
        subjects = [node.spawn(Subject, name=f"reader-{number}") for number in range(READERS)]
        source = np.arange(SIZE_BYTES // 8, dtype=np.float64)
        shared = loom.arena.share(source)
        total = peers.sum_pages(source)
        arena = loom.arena.current()

        def fan_out() -> None:
            replies = [subject.sum_pages(shared) for subject in subjects]
            expect("the sums of the readers", [reply.result() for reply in replies], [total] * READERS)

        def empty() -> None:
            replies = [subject.nothing() for subject in subjects]
            for reply in replies:
                reply.result()

        def alone() -> None:
            for _ in range(READERS):
                expect("the sum", peers.sum_pages(source), total)

        def pipe_() -> None:
            for pipe in pipes:
                pipe.send_bytes(source.data.cast("B"))
            expect("the sums of the peers", [pipe.recv() for pipe in pipes], [total] * READERS)

        def copied() -> list[float]:
            before = arena.stats().bytes_copied
            fan_out()
            return [float(arena.stats().bytes_copied - before)]

        def each(act: Callable[[], None], count: int, warm_up: int) -> list[float]:
            return [seconds / READERS for seconds in times(act, count, warm_up)]

        yield {
            "Loom": lambda: each(fan_out, count, warm_up),
            "empty calls": lambda: each(empty, count, warm_up),
            "sum, no call": lambda: each(alone, count, warm_up),
            "Pipe": lambda: each(pipe_, 1, 0),
            "Loom, bytes": copied,
            "Pipe, bytes": lambda: [float(READERS * source.nbytes)],
        }


QUESTION = Question(
    "arena-fanout",
    (
        Line(
            "arena-fanout",
            "arena: 64 MiB to 8 readers, each",
            "Loom",
            ("empty calls", "sum, no call", "Pipe"),
            "us",
            "",
        ),
        Line(
            "arena-fanout-copied",
            "arena: 64 MiB to 8 readers, copied",
            "Loom, bytes",
            ("Pipe, bytes",),
            "MB",
            "no further copy",
        ),
    ),
    contest,
    one_round_in=3,
)
