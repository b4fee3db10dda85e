"""Verbs: what a client and an actor alike can ask of their node.

Each is one call to the node's own mailbox; the node never unpickles what it is given here, so a class that cannot be
imported fails in its own process, not in the node's.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from loom.actor.actor import Actor, methods_of
from loom.actor.links import Links
from loom.actor.ref import ActorRef
from loom.errors import UsageError
from loom.wire import codec


class Verbs:
    """The node's verbs, over one process's links to it."""

    def __init__(self, links: Links) -> None:
        self.links = links

    def reference(self, name: str, methods: frozenset[str] | None = None) -> ActorRef:
        """A reference to a name, without asking whether anyone bears it."""
        return ActorRef(self.links.target(name), methods)

    def spawn(self, actor: type[Actor], *args: Any, name: str | None = None, **kwargs: Any) -> ActorRef:
        """Start an actor under the root supervisor and return at once; `__init__` runs in its own process.

        `name`: unique on the node; a free one is made from the class's name when it is not given. An actor that
        fails to start is not tried again: calls to it raise ActorDied with the cause.
        Raises: NameTaken (L1002), NotSendable (L1004), UsageError (L1008), StartFailed (L3001).
        """
        if not (isinstance(actor, type) and issubclass(actor, Actor)):
            raise UsageError(f"spawn: expected a subclass of loom.Actor, got {actor!r}")
        pickled = codec.dumps_order(actor, args, kwargs)
        base = actor.__name__.lower()
        chosen = self.links.ask_node("spawn", name, base, pickled, search_path()).result()
        return self.reference(str(chosen), methods_of(actor))

    def lookup(self, name: str) -> ActorRef:
        """A reference to an actor of this node, or a pool. Raises: ActorNotFound (L1003), naming the nearest name."""
        if str(self.links.ask_node("lookup", name).result()) != name:  # a member of the pool that bears the name
            self.links.learn_pool(name).result()
        return self.reference(name)

    def link(self, name: str, incarnation: int, other: str, trap: bool) -> None:
        """Link an incarnation of an actor to another actor. See Context.link."""
        self.links.ask_node("link", name, incarnation, other, trap).result()

    def unlink(self, name: str, other: str) -> None:
        """Undo a link."""
        self.links.ask_node("unlink", name, other).result()

    def stop_child(self, name: str) -> None:
        """Stop a child for good, in its shutdown time; returns when it is gone. Raises: ActorNotFound (L1003)."""
        self.links.ask_node("stop_child", name).result()


def search_path() -> list[str]:
    """Where this process finds its modules; the actor looks in the same places."""
    return [os.path.abspath(entry or ".") for entry in sys.path]
