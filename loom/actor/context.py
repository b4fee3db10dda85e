"""Context: what `self.ctx` offers to an actor's code."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from loom.errors import UsageError
from loom.wire.envelope import Envelope

if TYPE_CHECKING:
    from loom.actor.actor import Actor
    from loom.actor.links import Links
    from loom.actor.monitor import Hooks, Monitor
    from loom.actor.ref import ActorRef
    from loom.actor.snapshot import Snapshots

current: ContextVar[Envelope | None] = ContextVar("loom_message", default=None)
"""The message being handled; each async handler sees its own."""


class Context:
    """An actor's view of itself, of the message it is handling, and of its node."""

    def __init__(
        self,
        name: str,
        incarnation: int,
        links: Links,
        node: Any,
        stop: Callable[[str], None],
        progress: Callable[[], None],
    ) -> None:
        self.name = name
        """The actor's name on its node."""
        self.incarnation = incarnation
        """1 for the first process to bear the name, one more for each restart."""
        self.snapshots: Snapshots | None = None
        self.snapshot_version = 0
        """In `restore`: the `snapshot_version` of the class that took the snapshot. 0: there was none."""
        self._links = links
        self._node = node
        self._stop = stop
        self._progress = progress
        self._is_cancelled: Callable[[Envelope], bool] = lambda header: False
        self._hooks: Hooks | None = None
        self.actor: Actor | None = None
        """The actor itself, from the moment that it is made."""

    @property
    def ref(self) -> ActorRef:
        """A reference to this actor, to be sent to others."""
        found: ActorRef = self._node.reference(self.name)
        return found

    @property
    def request(self) -> Envelope:
        """The header of the message being handled. Raises: UsageError (L1008) outside of a handler."""
        message = current.get()
        if message is None:
            raise UsageError("ctx.request: no message is being handled; use it inside a handler")
        return message

    @property
    def sender(self) -> ActorRef | None:
        """The actor that sent the message being handled, None when a client did."""
        name = self.request.sender
        return self._node.reference(name) if name else None

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting, on `loom.clock.monotonic`; None when it has not said."""
        return self.request.deadline or None

    @property
    def cancelled(self) -> bool:
        """Whether the caller of the message being handled has given it up, or its deadline has passed.

        For handlers that run long without an `await`, which nothing can interrupt: look now and then, and return. It
        looks into the mailbox, so it notices while the handler runs.
        """
        return self._is_cancelled(self.request)

    def spawn(self, actor: Any, *args: Any, name: str | None = None, **kwargs: Any) -> ActorRef:
        """Start another actor under the node's root supervisor. As `Node.spawn`."""
        found: ActorRef = self._node.spawn(actor, *args, name=name, **kwargs)
        return found

    def lookup(self, name: str) -> ActorRef:
        """A reference to an actor of this node. Raises: ActorNotFound (L1003)."""
        found: ActorRef = self._node.lookup(name)
        return found

    def save(self) -> None:
        """Take a snapshot of this actor's state now; it has been saved when this returns.

        Raises: UsageError (L1008) when the class has no `snapshot`, or the actor has not started yet; StoreError
        (L3004); NotSendable (L1004); what `snapshot` raises. The last good snapshot stays then.
        """
        if self.snapshots is None:
            raise UsageError("ctx.save(): define snapshot() and restore() first, and save when the actor has started")
        self.snapshots.save()

    def monitor(self, ref: ActorRef | str) -> Monitor:
        """Have `on_down` called for each death of another actor, whichever incarnation; for one that is dead, at once.

        Returns: what `demonitor` takes, once the node has taken note: no death from now on is missed.
        """
        return self.hooks.monitor(_name(ref))

    def demonitor(self, monitor: Monitor) -> None:
        """Monitor no more: `on_down` is not called for it again."""
        self.hooks.demonitor(monitor)

    def link(self, ref: ActorRef | str) -> None:
        """Tie this incarnation and the other actor's present one together: when one ends, so does the other.

        An abnormal end kills the other with the same cause; being stopped stops it, in its own shutdown time; a normal
        end leaves it alone. A class with `trap = True` is told of any of these through `on_exit_signal`, and lives on.
        An actor that starts or restarts is linked when it is up; one that is dead, or unknown, gives "noproc" at once.
        """
        self._node.link(self.name, self.incarnation, _name(ref), self._traps())

    def unlink(self, ref: ActorRef | str) -> None:
        """Undo `link`, whoever of the two made it; no exit signal of the other comes any more."""
        self._node.unlink(self.name, _name(ref))

    @property
    def hooks(self) -> Hooks:
        """What calls this actor's hooks; the runtime's, not for an actor's code."""
        if self._hooks is None:
            from loom.actor.monitor import Hooks

            assert self.actor is not None
            self._hooks = Hooks(self.actor, self._links)
        return self._hooks

    def _traps(self) -> bool:
        return getattr(self.actor, "trap", False) is True

    def stop(self, reason: str = "normal") -> None:
        """End this actor after the message being handled: `on_stop(reason)` runs, then the process exits with 0.

        Whether it comes back is its restart type's business: a permanent child, as `spawn` makes them, does, and that
        counts as a restart; a transient one (`ChildSpec(restart="transient")`) does not.
        """
        self._stop(reason)

    def progress(self) -> None:
        """Say that a long handler, or a long start, gets on: its watchdog begins to count anew.

        Any thread may call it; it costs one write to shared memory. Without `watchdog_s` or `start_s` nobody looks.
        """
        self._progress()


def _name(ref: ActorRef | str) -> str:
    return ref if isinstance(ref, str) else ref.name
