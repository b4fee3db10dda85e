"""Actor: the class that programs subclass, and the table of methods that others may call.

An actor's code runs in a process of its own, on one thread, one message at a time. `async def` handlers interleave at
their awaits; a generator handler is a stream, and other messages run between its items.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loom.actor.context import Context
    from loom.actor.monitor import Down

HOOKS = frozenset(
    (
        "on_start",
        "on_stop",
        "on_event",
        "on_down",
        "on_exit_signal",
        "snapshot",
        "restore",
        "snapshot_version",
        "ctx",
        "topics",
        "trap",
    )
)
"""Names that are the runtime's: never called by a message."""


class Ignore(Exception):
    """Raised by an actor's `__init__` or `on_start` that does not want to run: `raise loom.Ignore("no work today")`.

    That is no failure. The child keeps its row, without a process, until restart_child; a temporary one is forgotten.
    """


class Actor:
    """Base of all actors. Every public method of a subclass can be called from elsewhere.

    `self.ctx` is there already in `__init__`, which runs in the actor's own process. An exception in `__init__` or
    `on_start` is a failed start; one in a handler goes to the caller, and the actor lives on.

    A subclass may define `snapshot(self) -> object` and `restore(self, state)`: then its state is saved and given back
    to the next incarnation, between `__init__` and `on_start`. loom/actor/snapshot.py has the promises.
    """

    ctx: Context

    trap: bool = False
    """Whether an end of a linked actor is told to `on_exit_signal` instead of ending this one, too. A class's own."""

    def on_start(self) -> Awaitable[None] | None:
        """Called once, before the first message. May be `async`."""
        return None

    def on_stop(self, reason: str) -> Awaitable[None] | None:
        """Called once after the last message, when the actor is asked to stop. May be `async`.

        `reason`: "shutdown" (its supervisor stops it), "normal" (it asked to stop itself).
        """
        return None

    def on_down(self, down: Down) -> Awaitable[None] | None:
        """Called for each death of what `ctx.monitor` monitors, between messages, ahead of those that wait.

        May be `async`. An exception in it is logged, and the actor lives on.
        """
        return None

    def on_exit_signal(self, down: Down) -> Awaitable[None] | None:
        """Called when a linked actor ends, in whatever way, if this class says `trap = True`. As on_down."""
        return None


def methods_of(cls: type) -> frozenset[str]:
    """Names of the public methods of an actor class."""
    return frozenset(
        name for name in dir(cls) if not name.startswith("_") and name not in HOOKS and _callable(cls, name)
    )


def _callable(cls: type, name: str) -> bool:
    return callable(inspect.getattr_static(cls, name, None)) or isinstance(
        inspect.getattr_static(cls, name, None), (staticmethod, classmethod)
    )


def table_of(actor: Any) -> dict[str, Any]:
    """Public method name -> bound method of `actor`: looked up once, not at every message."""
    return {name: getattr(actor, name) for name in methods_of(type(actor))}
