"""Loom: actors that are processes, a supervisor tree that restarts them, tensors that pass between them uncopied.

    import loom

    class Counter(loom.Actor):
        def __init__(self):
            self.n = 0
        def add(self, by):
            self.n += by
            return self.n

    with loom.Node() as node:
        counter = node.spawn(Counter, name="counter")
        print(counter.add(3).result(timeout_s=5))

How the house is laid out, each layer importing only those before it: errors, clock, telemetry; arena (shared memory
over native/); wire (envelope and codecs); actor (what runs in an actor's process, and references to it); supervise
(restart policy, processes); node (config, the node process, clients); edges (demo); cli.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loom import arena, errors
    from loom.actor.actor import Actor, Ignore
    from loom.actor.monitor import Down, Monitor
    from loom.actor.ref import ActorRef
    from loom.actor.reply import Reply
    from loom.node.client import Client, Node, connect
    from loom.node.supervisor_ref import SupervisorRef
    from loom.supervise.spec import BackoffSpec, ChildSpec, LimitsSpec, MailboxSpec, SnapshotSpec, SupervisorSpec

__version__ = "0.1.0"

_HOMES = {
    "Actor": "loom.actor.actor",
    "ActorRef": "loom.actor.ref",
    "BackoffSpec": "loom.supervise.spec",
    "ChildSpec": "loom.supervise.spec",
    "Client": "loom.node.client",
    "Down": "loom.actor.monitor",
    "Ignore": "loom.actor.actor",
    "LimitsSpec": "loom.supervise.spec",
    "MailboxSpec": "loom.supervise.spec",
    "Monitor": "loom.actor.monitor",
    "Node": "loom.node.client",
    "Reply": "loom.actor.reply",
    "SnapshotSpec": "loom.supervise.spec",
    "SupervisorRef": "loom.node.supervisor_ref",
    "SupervisorSpec": "loom.supervise.spec",
    "connect": "loom.node.client",
}

__all__ = [
    "Actor",
    "ActorRef",
    "BackoffSpec",
    "ChildSpec",
    "Client",
    "Down",
    "Ignore",
    "LimitsSpec",
    "MailboxSpec",
    "Monitor",
    "Node",
    "Reply",
    "SnapshotSpec",
    "SupervisorRef",
    "SupervisorSpec",
    "arena",
    "connect",
    "errors",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that a short command does not pay for all of them."""
    import importlib

    if name in ("arena", "errors"):
        return importlib.import_module(f"loom.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'loom' has no attribute {name!r}")
    found = getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
