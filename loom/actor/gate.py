"""Gate: one process's way into one incarnation's mailbox, and its account of what it sent there.

Each message is let in through shared memory before it is handed to the socket, in one atomic step that says whether
there is room and whether that incarnation still lives (native/include/loom_mailbox.h). What was let in and has not
begun is remembered here, in order, so that when the incarnation dies each of those messages can be named: as a dead
letter, or to be handed on to the next.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from loom import _native
from loom.actor import board as rows
from loom.actor.address import Address
from loom.actor.board import Board
from loom.wire.codec import Body
from loom.wire.envelope import Envelope

TRIM = 64
"""How many messages are remembered before a look at how many of them have begun."""


class Sent(NamedTuple):
    """A message that was let in. `body` is None where nobody would send it again."""

    header: Envelope
    body: Body | None


class Gate:
    """The gate of one mailbox, for one sending process. Not thread-safe: its channel's lock is held.

    `keeps` says whether the bodies are remembered, too: for a mailbox whose content is handed on.
    """

    __slots__ = ("_admit", "_gone", "_native", "_row", "_sent", "_term", "_trim_at", "keeps", "ticket")

    def __init__(self, native: _native.Gate, address: Address, ticket: int) -> None:
        self.ticket = ticket
        self.keeps = address.on_death == "hand_on"
        self._native = native
        self._admit = native.admit
        self._row = address.row
        self._term = address.term
        self._sent: deque[Any] = deque()  # headers, or (header, body): no more than needed, at every message
        self._gone = 0
        self._trim_at = TRIM

    @classmethod
    def open(cls, board: Board | None, address: Address, pid: int, start_time: int) -> Gate | None:
        """The gate of the mailbox at `address`; None where there is none, or no slot of the ledger is free."""
        if board is None or not address.term or address.row < 0:
            return None
        owner = pid << 32 | start_time & 0xFFFFFFFF
        code, ticket = board.gate.open(address.row, address.term, owner)
        # A stale one is no error here: nothing will be let in, which is how the sender learns of it.
        return cls(board.gate, address, ticket) if code in (rows.OPEN, rows.STALE) else None

    def admit(self) -> int:
        """Have one message let in: OPEN, FULL or STALE."""
        return self._admit(self._row, self._term, self.ticket, 0)

    def remember(self, header: Envelope, body: Body) -> None:
        """A message was let in and handed to the socket."""
        sent = self._sent
        sent.append((header, body) if self.keeps else header)
        if len(sent) >= self._trim_at:
            self.trim()

    def trim(self) -> None:
        """Forget what has begun."""
        begun = self._native.begun(self._row, self.ticket)
        self._forget(begun)
        self._trim_at = max(TRIM, 2 * len(self._sent))

    def _forget(self, begun: int) -> None:
        sent = self._sent
        while self._gone < begun and sent:
            sent.popleft()
            self._gone += 1

    def unbegun(self, begun: int) -> list[Sent]:
        """What had not begun when `begun` messages had: the end of this account."""
        self._forget(begun)
        found = [Sent(*one) if self.keeps else Sent(one, None) for one in self._sent]
        self._sent.clear()
        return found

    @property
    def is_settled(self) -> bool:
        """Whether nothing is remembered."""
        return not self._sent

    def close(self) -> None:
        """Give the slot in the ledger back."""
        if self.ticket:
            self._native.release(self._row, self.ticket)
            self.ticket = 0
