"""Dead letters: the last messages of this node that were not run to their end, and who wants to hear of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from loom.actor.dead_letter import KEPT, DeadLetter
from loom.telemetry import Throttle, log


class DeadLetters:
    """A bounded memory of them: the oldest go first. `total` counts all there have been.

    `subscribers` are called with each one as it comes: it is here that a bus can have them published.
    """

    def __init__(self) -> None:
        self.total = 0
        self.subscribers: list[Callable[[DeadLetter], None]] = []
        self._kept: deque[DeadLetter] = deque(maxlen=KEPT)
        self._throttle = Throttle()

    def add(self, one: DeadLetter) -> None:
        """Keep one."""
        self.total += 1
        self._kept.append(one)
        if self._throttle.allows(one.actor):
            sender = one.sender or "a client"
            more = self._throttle.more(one.actor)
            log.warning(
                "dead letter: %s to %s.%s from %s: %s%s", one.kind, one.actor, one.method, sender, one.reason, more
            )
        for subscriber in list(self.subscribers):
            try:
                subscriber(one)
            except Exception as error:  # a subscriber's error is not the next one's
                log.error("a subscriber to dead letters raised: %r", error)

    def last(self, limit: int) -> list[DeadLetter]:
        """The last `limit` of them, oldest first."""
        return list(self._kept)[-limit:] if limit > 0 else []
