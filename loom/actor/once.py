"""Once: which calls with a dedup key this incarnation has run, and how they ended.

A call that is sent again with the same key, because its caller does not know what became of the first, does not run
again: it joins the first while that is under way, and gets its outcome afterwards. The table is bounded, forgets the
oldest outcome first, and dies with the incarnation: a call that is retried over a restart may run once in each.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from loom.wire.codec import Body
from loom.wire.envelope import Envelope

if TYPE_CHECKING:
    from loom.actor.answers import Message

KEPT = 10_000
"""Outcomes that are remembered."""

KEPT_BYTES = 64 * 1024
"""The largest outcome that is remembered; of a larger one it is only remembered that there was one."""


class Outcome(NamedTuple):
    """How a call ended: the kind of its answer, and the answer; None when it was too large to be kept."""

    kind: str
    body: Body | None


class Once:
    """The table of one incarnation. A key is one of a method: the same key for another method is another call."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, str], list[Message]] = {}
        self._ended: OrderedDict[tuple[str, str], Outcome] = OrderedDict()

    def outcome(self, header: Envelope) -> Outcome | None:
        """How the call with this key has ended; None when it has not, or was never made."""
        return self._ended.get((header.name, header.dedup))

    def joins(self, message: Message) -> bool:
        """Whether the call with this key is under way; then this one will end with it. If not, it is from now on."""
        key = message.header.name, message.header.dedup
        waiting = self._under_way.get(key)
        if waiting is None:
            self._under_way[key] = []
            return False
        waiting.append(message)
        return True

    def ended(self, header: Envelope, kind: str, body: Body) -> list[Message]:
        """The call has ended. Returns: those that joined it, which end like it."""
        key = header.name, header.dedup
        joined = self._under_way.pop(key, None)
        if joined is None:  # it is one of those that joined
            return []
        fits = not body.buffers and body.size_bytes <= KEPT_BYTES
        self._ended[key] = Outcome(kind, body if fits else None)
        while len(self._ended) > KEPT:
            self._ended.popitem(last=False)
        return joined

    def forget(self, header: Envelope) -> None:
        """The call did not take effect: the next with its key is run."""
        self._ended.pop((header.name, header.dedup), None)

    def leave(self) -> list[Message]:
        """The actor ends: those that had joined a call that will not end."""
        joined = [message for waiting in self._under_way.values() for message in waiting]
        self._under_way.clear()
        return joined
