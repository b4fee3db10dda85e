"""The process's own arena: set by the actor's entry point or the client, used by whoever makes or sends an array."""

from __future__ import annotations

from loom.arena.arena import Arena
from loom.errors import UsageError

_current: Arena | None = None


def use(arena: Arena | None) -> None:
    """Make `arena` the one that `current` returns; None forgets it."""
    global _current
    _current = arena


def current() -> Arena:
    """The process's arena.

    Raises: UsageError (L1008) outside an actor and without a connection to a node.
    """
    if _current is None:
        raise UsageError(
            "this process takes part in no arena: call this inside an actor, or after loom.Node() or loom.connect(), "
            "or pass arena="
        )
    return _current
