"""Settle: how the node finds out that actors have nothing left to do.

All actors are asked how much they have left, and the status board says how many messages wait, wherever they do, and
how many were ever accepted. When nothing is left, and a second round finds the last figure unchanged, nobody handed
anything to anybody in between. An actor that does not answer, stopped or stuck, has something left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from loom.clock import monotonic
from loom.supervise.child import ActorChild
from loom.supervise.policy import ALIVE

ROUND_S = (0.01, 0.2)
"""How long to wait between rounds, at first and at most."""

ANSWER_S = 0.5
"""How long a round waits for an answer; a later one asks again."""


class Left(msgspec.Struct, frozen=True):
    """One round: messages left by actor, only where there are any; and who was ever sent how many."""

    by_name: dict[str, int]
    received: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_name.values())


async def settled(
    children: Callable[[], Iterable[ActorChild]],
    timeout_s: float | None,
    *,
    what: str = "left",
    progress: Callable[[Left], None] = lambda left: None,
) -> Left:
    """Wait until the actors have nothing left, for `timeout_s` at most; the last round. `what`: the question asked."""
    until = None if timeout_s is None else monotonic() + timeout_s
    pause_s, most_s = ROUND_S
    before: Left | None = None
    while True:
        left = await _round(list(children()), what)
        progress(left)
        if not left.by_name and before == left:
            return left
        before = left
        if until is not None and monotonic() >= until:
            return left
        await asyncio.sleep(pause_s)
        pause_s = min(most_s, 1.5 * pause_s) if left.by_name else ROUND_S[0]


async def _round(children: list[ActorChild], what: str) -> Left:
    alive = [child for child in children if child.state in ALIVE or child.state == "restarting"]
    questions = {child: child.process.ask(what) for child in alive if child.process is not None}
    if questions:
        await asyncio.wait(questions.values(), timeout=ANSWER_S)
    by_name, received = {}, {}
    for child in alive:
        question = questions.get(child)
        reading = child.reading()
        received[child.name] = reading.received
        if question is not None and question.done() and not question.cancelled():
            left = max(int(question.result()["left"]), reading.depth)  # with what is on its way
        else:
            left = max(1, reading.depth + reading.running)  # starting, stuck or stopped: it has itself left to do
        if left:
            by_name[child.name] = left
    return Left(by_name, received)
