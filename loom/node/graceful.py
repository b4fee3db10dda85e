"""Graceful: the node's verbs that change what runs without losing what is under way: drain, upgrade."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from loom.clock import monotonic
from loom.errors import UsageError
from loom.node.site import Site
from loom.supervise.child import ActorChild
from loom.supervise.settle import Left, settled
from loom.supervise.upgrade import upgrade

ALLOWED = frozenset(
    ("info", "stats", "tree", "arena", "stack", "obituary", "shutdown", "drain", "which_children", "count_children")
)
"""What clients may still ask of a node that is draining."""


class GracefulVerbs:
    """Verbs of the node. loom/wire/PROTOCOL.md lists them."""

    def __init__(self, site: Site, refuse_clients: Callable[[frozenset[str]], None], shut_down: Callable[[str], None]):
        self._site = site
        self._refuse_clients = refuse_clients
        self._shut_down = shut_down
        self._drain: asyncio.Task[Left] | None = None
        self._left = Left({}, {})
        self._news = asyncio.Event()
        self._watchers = 0
        self._upgrading: set[str] = set()
        self._tasks: set[asyncio.Future[None]] = set()

    async def drain(self, timeout_s: float | None = None) -> AsyncIterator[dict[str, Any]]:
        """A stream of {left, actors, is_done}: clients are refused, what is there is finished, then the node stops.

        After `timeout_s` the node stops all the same, and what is left then ends as any stop ends it.
        """
        started = monotonic()
        if self._drain is None:
            self._site.is_draining = True
            self._refuse_clients(ALLOWED)
            self._drain = asyncio.get_running_loop().create_task(self._settle(timeout_s))
        self._watchers += 1
        try:
            while not self._drain.done():
                self._news.clear()
                yield self._report(started, is_done=False)
                await self._news.wait()
            yield self._report(started, is_done=True)
        finally:
            self._watchers -= 1
            if self._drain.done():
                self._shut_down(self._why())

    async def _settle(self, timeout_s: float | None) -> Left:
        try:
            return await settled(self._actors, timeout_s, what="drain", progress=self._note)
        finally:
            asyncio.get_running_loop().call_soon(self._finished)

    def _finished(self) -> None:
        self._news.set()
        if not self._watchers:  # else the last of them, when it has been told
            self._shut_down(self._why())

    def _note(self, left: Left) -> None:
        self._left = left
        self._news.set()

    def _why(self) -> str:
        left = self._left.total
        return "drained" if not left else f"asked to drain, with {left} messages left when the time was over"

    def _report(self, started: float, *, is_done: bool) -> dict[str, Any]:
        left = self._left
        return {"left": left.total, "actors": left.by_name, "is_done": is_done, "took_s": monotonic() - started}

    def _actors(self) -> list[ActorChild]:
        return [child for child in self._site.registry if isinstance(child, ActorChild)]

    async def upgrade(
        self,
        name: str,
        target: str = "",
        pickled: bytes = b"",
        path: list[str] | None = None,
        timeout_s: float = 30.0,
    ) -> list[str]:
        """Give an actor, or one after the other the members of a group, a new class: "module:Class", or a pickle of it.

        With neither the class is imported anew. Returns the names of those upgraded, when the new ones run.
        """
        registry = self._site.registry
        members = registry.members(name)
        for member in members:
            child = registry.actor(member)
            if member in self._upgrading:
                raise UsageError(f"{member!r} is being upgraded: wait until that is done")
            order = child.order
            if not (target or pickled or order.target) and _is_by_value(order.replacement or order.pickled):
                raise UsageError(f"the class of {member!r} came with its code, not by name: give the new class")
            changes: dict[str, Any] = {"path": path} if path else {}
            if target or pickled:
                changes |= {"target": target, "replacement": pickled}
            self._upgrading.add(member)
            try:
                # Once begun it goes on, whoever waits for it: half an upgrade is none.
                task = asyncio.ensure_future(upgrade(child, msgspec.structs.replace(order, **changes), timeout_s))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.shield(task)
            finally:
                self._upgrading.discard(member)
        return members


def _is_by_value(pickled: bytes) -> bool:
    """Whether a pickle carries the code of a class, rather than its name (loom/wire/codec.py, dumps)."""
    return b"cloudpickle" in pickled
