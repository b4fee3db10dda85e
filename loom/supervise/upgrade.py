"""Upgrade: a running actor gets another class, in a new process, with its state and with nobody's message lost.

    try out  a process imports the new class, and ends; when it cannot, nothing has happened
    hold     who would send to it waits; what has been sent already arrives, and is run by the old class
    finish   when nothing is left, the old one takes a snapshot and runs nothing more
    stop     with the reason "upgrade", in its shutdown time
    start    the new class, which is given the snapshot between __init__ and on_start
    let go   who waited is sent to the new one

When the old one does not come to rest in time, or cannot save its state, it goes on as if nothing had happened. When
the new one fails to start, the old class starts again, with the state that it had: whatever fails, the actor is there.
"""

from __future__ import annotations

import asyncio

from loom.actor.child import Order
from loom.actor.death import OVERTAKEN, Death
from loom.clock import monotonic
from loom.errors import StartFailed, UpgradeFailed
from loom.supervise.child import ActorChild
from loom.supervise.settle import settled


async def upgrade(child: ActorChild, order: Order, timeout_s: float) -> None:
    """Replace what `child` is made from by `order`. `timeout_s`: how long the old one may take to come to rest.

    Raises: UpgradeFailed (L2010), and the old one runs; StartFailed (L3001) with the remote traceback when the new one
        failed to start, and the old one runs again.
    """
    await child.started()
    if child.state != "running":
        raise UpgradeFailed(f"actor {child.name!r} is {child.state}: only one that runs can be upgraded")
    trial = await child.try_out(order)
    if trial is not None:
        raise StartFailed(_text(f"the new {child.name!r} cannot be made, and the old one goes on: {trial.text}", trial))
    incarnation = child.incarnation
    child.hold()
    try:
        await _finish(child, incarnation, timeout_s)
        child.round += 1  # its supervisor is not to mind
        await child.stop("upgrade")
        old, child.order = child.order, order
        death = await _start(child)
        if death is None:
            return
        child.order = old
        again = await _start(child)
        text = f"the new {child.name!r} failed to start, and the old one runs again: {death.text}"
        if again is not None:
            text = f"neither the new {child.name!r} could be started ({death.text}) nor the old one again: {again.text}"
            child.fail_start(again)
        raise StartFailed(_text(text, death))
    finally:
        child.let_go()


async def _finish(child: ActorChild, incarnation: int, timeout_s: float) -> None:
    """The old one has nothing left, has saved its state, and runs nothing more. Raises: UpgradeFailed (L2010)."""
    until = monotonic() + timeout_s
    while True:
        left = await settled(lambda: [child], max(0.0, until - monotonic()))
        if child.state != "running" or child.incarnation != incarnation or child.process is None:
            raise UpgradeFailed(f"actor {child.name!r} ended before it could be upgraded: try again")
        if left.by_name:
            raise UpgradeFailed(
                f"actor {child.name!r} has {left.total} messages left after {timeout_s:g} s, and goes on: "
                "upgrade it when it has less to do, or give it more time"
            )
        answer = await _asked(child, "finish")
        if answer is None:
            raise UpgradeFailed(f"actor {child.name!r} ended before it could be upgraded: try again")
        if answer["error"]:
            raise UpgradeFailed(f"actor {child.name!r} goes on as it was: {answer['error']}")
        if not answer["left"]:
            return


async def _asked(child: ActorChild, what: str) -> dict[str, object] | None:
    process = child.process
    if process is None:
        return None
    answer = process.ask(what)
    await asyncio.wait([answer])
    return None if answer.cancelled() else answer.result()  # cancelled: it died


def _text(text: str, death: Death) -> str:
    return f"{text}\n--- remote traceback ---\n{death.traceback.rstrip()}" if death.traceback else text


async def _start(child: ActorChild) -> Death | None:
    """As ActorChild.start; a start that somebody else overtook is somebody else's."""
    death = await child.start()
    return None if death is OVERTAKEN else death
