"""The process's own arena: set by the actor's entry point or the client, used by whoever makes or sends an array."""

from __future__ import annotations

from loom.arena.arena import Arena
from loom.errors import UsageError

_used: list[Arena] = []


def use(arena: Arena | None) -> None:
    """Make `arena` the one that `current` returns; None forgets all of them."""
    if arena is None:
        _used.clear()
    else:
        _used.append(arena)


def forget(arena: Arena | None) -> None:
    """Use `arena` no longer, but the one that was in use before it. Does nothing when it is not in use."""
    _used[:] = [one for one in _used if one is not arena]


def current() -> Arena:
    """The process's arena.

    Raises: UsageError (L1008) outside an actor and without a connection to a node.
    """
    if not _used:
        raise UsageError(
            "this process takes part in no arena: call this inside an actor, or after loom.Node() or loom.connect(), "
            "or pass arena="
        )
    return _used[-1]
