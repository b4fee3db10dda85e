"""One process's part in its node's arena: lease blocks, send references to them, accept those of others.

A block lives while anyone holds it: a view in any process, or a reference in flight. The last hold to end frees it; its
owner notices when it next leases or collects. Nothing here waits for other processes but `lease` and `send`, for room.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from loom import _native
from loom.arena.failure import failure, full
from loom.arena.stats import ArenaStats, BlockInfo, Participant, SegmentInfo
from loom.clock import monotonic
from loom.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Reference: TypeAlias = tuple[int, ...]
"""(segment, block, generation, offset, size, sender, token, token_generation): all in [0, 2**53)."""

_FIRST_PAUSE_S = 0.0002
_LONGEST_PAUSE_S = 0.005


class Arena:
    """A handle on one arena. It belongs to the process that opened it: a forked child must attach anew."""

    __slots__ = ("_handle", "budget_bytes", "name", "participant")

    def __init__(self, handle: _native.Handle) -> None:
        self._handle = handle
        self.name: str = handle.name
        self.participant: int = handle.participant
        """This process's index, 0 for the node."""
        self.budget_bytes: int = handle.budget_bytes

    @classmethod
    def create(cls, name: str, budget_bytes: int) -> Arena:
        """Make the arena `name` and become its participant 0, the node.

        `budget_bytes` bounds the data of all segments; it is reserved as it is needed, not now.
        Raises: StartFailed (L3001) when the name is taken or the system refuses; ArenaFull (L3003) when /dev/shm has no
            room for the control file; UsageError (L1008) for a bad name or budget.
        """
        if not 0 < budget_bytes < 2**53:
            raise UsageError(f"expected an arena budget between 1 and 2**53 bytes, got {budget_bytes}")
        try:
            return cls(_native.create(name, budget_bytes))
        except _native.Error as error:
            raise failure(error, f"create arena {name!r}") from None

    @classmethod
    def attach(cls, name: str) -> Arena:
        """Take part in the arena `name`.

        Raises: NodeNotFound (L1007) when there is none; ProtocolError (L2006) when its file is of another version,
            damaged or another user's; ArenaFull (L3003) when every participant slot is taken.
        """
        try:
            return cls(_native.attach(name))
        except _native.Error as error:
            raise failure(error, f"attach to arena {name!r}") from None

    def lease(self, size_bytes: int, timeout_s: float = 1.0) -> _native.Block:
        """Reserve one block; it belongs to this process until sent or released.

        Returns: a writable Block, shape (size_bytes,), uint8, 64-byte aligned; its bytes are whatever was there before.
        Raises: ArenaFull (L3003) when no block is freed within timeout_s.
        Source: native/include/loom_arena.h, "Leases".
        """
        try:
            block = self._handle.lease(size_bytes)
            if isinstance(block, int):
                block = self._wait_for_block(size_bytes, timeout_s)
            return block
        except _native.Error as error:
            raise failure(error, f"lease {size_bytes} bytes") from None
        except OverflowError:
            raise UsageError(f"expected a size in [0, 2**64) bytes, got {size_bytes}") from None

    def send(
        self, data: Buffer | list[bytes], receiver: int | None = None, timeout_s: float = 1.0
    ) -> tuple[Reference, bool]:
        """Make a reference to the bytes of `data` for one message.

        `data` is any contiguous buffer, or a list of bytes to be sent as one. When a buffer lies in a block that this
        process holds, the reference is to that range; otherwise its bytes are copied into a block that lives by the
        reference alone. By convention memory that was sent is not written any more. `receiver`: a participant index, or
        None for whoever gets the message.
        Returns: (reference, copied).
        Raises: ArenaFull (L3003) when no room is found within timeout_s; StaleReference (L2009) when nobody takes part
            under the receiver's index; BufferError when `data` is not contiguous.
        """
        try:
            sent = self._handle.send(data, _native.ANY if receiver is None else receiver)
            if isinstance(sent, int):
                sent = self._wait_to_send(data, receiver, timeout_s)
            return sent
        except _native.Error as error:
            raise failure(error, f"send to participant {receiver}") from None
        except OverflowError:
            raise UsageError(f"expected a participant index, got {receiver}") from None

    def recall(self, ref: Reference) -> bool:
        """Take back a reference of ours whose message was never sent. False when it was accepted or revoked already."""
        try:
            return self._handle.recall(ref)
        except _native.Error as error:
            raise failure(error, "recall a reference") from None

    def accept(self, ref: Sequence[int]) -> _native.Block:
        """Take over a reference that came in a message.

        Returns: a read-only Block over exactly the bytes sent, shape (size,), uint8.
        Raises: StaleReference (L2009) when it is used up, revoked, not for us, out of bounds, or no reference at all.
        """
        try:
            return self._handle.accept(ref)
        except _native.Error as error:
            raise failure(error, f"accept reference {ref!r}") from None

    def holds(self, data: Buffer) -> bool:
        """Whether this memory lies in a block that this process holds, so that sending it copies nothing."""
        return self._handle.holds(data)

    def count_copied(self, size_bytes: int) -> None:
        """Add to this participant's `bytes_copied`: buffer bytes that went inline instead of by reference."""
        try:
            self._handle.count_copied(size_bytes)
        except _native.Error as error:
            raise failure(error, "count copied bytes") from None

    def collect(self) -> None:
        """Reclaim resolved references and freed blocks now, and give back segments that idled for 10 s.

        A process that neither leases nor sends should call this now and then: the hold behind a delivered reference
        ends when its sender looks, and a segment that others are short of is given back when its owner looks.
        """
        try:
            self._handle.collect()
        except _native.Error as error:
            raise failure(error, "collect") from None

    def trim(self) -> int:
        """Give back every own segment without a block in use. Returns: data bytes given back."""
        try:
            return self._handle.trim()
        except _native.Error as error:
            raise failure(error, "trim") from None

    def reap(self, participant: int, revoke: bool = True) -> int:
        """Node only: undo what a dead participant left: its holds, references, segments, and its slot.

        With revoke=False its references in flight stay valid for their receivers, and while any is left so do its slot
        and the blocks they refer to; call again, or let `sweep` do it. A participant whose process lives is left
        alone: the slot has a new user. Repeating a reap is safe.
        Returns: references still in flight, always 0 with revoke=True.
        """
        try:
            return self._handle.reap(participant, revoke)
        except _native.Error as error:
            if error.args[0] == _native.ALIVE:
                return 0
            raise failure(error, f"reap participant {participant}") from None

    def sweep(self) -> None:
        """Node only: reap all dead or closed participants, revoking nothing; remove orphaned segments nobody holds."""
        try:
            self._handle.sweep()
        except _native.Error as error:
            raise failure(error, "sweep") from None

    def participants(self) -> list[Participant]:
        """Everybody in the participants table, dead ones that were not reaped included."""
        try:
            return [Participant(*row) for row in self._handle.participants()]
        except _native.Error as error:
            raise failure(error, "list participants") from None

    def stats(self) -> ArenaStats:
        """One reading of the shared tables. It walks all of them: for people and dashboards, not for every message."""
        try:
            return ArenaStats(*self._handle.stats())
        except _native.Error as error:
            raise failure(error, "read stats") from None

    def segments(self) -> list[SegmentInfo]:
        """Every segment, by index, with whatever the table says of it. For people: no snapshot, see the header."""
        try:
            return [SegmentInfo.of(row) for row in self._handle.segments()]
        except _native.Error as error:
            raise failure(error, "list segments") from None

    def blocks(self, segment: int | None = None) -> list[BlockInfo]:
        """Every block that somebody holds, of one segment or of all; none of one that is gone or damaged.

        A segment has at most 8192 of them: whoever must not be held up asks segment by segment.
        Raises: UsageError (L1008) when there can be no such segment.
        Source: native/include/loom_arena.h, `loom_arena_blocks`.
        """
        try:
            which = [row[0] for row in self._handle.segments()] if segment is None else [segment]
            return [BlockInfo(*row) for index in which for row in self._handle.blocks(index)]
        except _native.Error as error:
            raise failure(error, "list blocks") from None
        except OverflowError:
            raise UsageError(f"expected a segment in [0, {_native.SEGMENTS}), got {segment}") from None

    def in_flight(self) -> dict[int, int]:
        """References that were sent and not accepted yet, by the participant that sent them."""
        try:
            return dict(self._handle.in_flight())
        except _native.Error as error:
            raise failure(error, "list references in flight") from None

    def close(self) -> None:
        """Leave the arena; a second call does nothing. Live views keep their memory, and the slot, to their end."""
        self._handle.close()

    def destroy(self) -> None:
        """Node only: unlink everything of this arena. Mappings last as long as their views."""
        try:
            self._handle.destroy()
        except _native.Error as error:
            raise failure(error, f"destroy arena {self.name!r}") from None

    def __repr__(self) -> str:
        state = ", closed" if self._handle.closed else ""
        return f"<Arena {self.name!r} participant {self.participant}{state}>"

    def _wait_for_block(self, size_bytes: int, timeout_s: float) -> _native.Block:
        pause_s, deadline = _FIRST_PAUSE_S, monotonic() + timeout_s
        while True:
            block = self._handle.lease(size_bytes)
            if not isinstance(block, int):
                return block
            if size_bytes > self.budget_bytes or monotonic() >= deadline:
                raise full(self.name, size_bytes, timeout_s, block, self.stats())
            pause_s = _pause(pause_s, deadline)

    def _wait_to_send(
        self, data: Buffer | list[bytes], receiver: int | None, timeout_s: float
    ) -> tuple[Reference, bool]:
        pause_s, deadline = _FIRST_PAUSE_S, monotonic() + timeout_s
        while True:
            sent = self._handle.send(data, _native.ANY if receiver is None else receiver)
            if not isinstance(sent, int):
                return sent
            size_bytes = sum(map(len, data)) if isinstance(data, list) else memoryview(data).nbytes
            if size_bytes > self.budget_bytes or monotonic() >= deadline:
                raise full(self.name, size_bytes, timeout_s, sent, self.stats())
            pause_s = _pause(pause_s, deadline)


def _pause(pause_s: float, deadline: float) -> float:
    """Sleep, at most to the deadline; the next pause is twice as long. Freed blocks wake nobody (see the header)."""
    time.sleep(max(0.0, min(pause_s, deadline - monotonic())))
    return min(pause_s * 2, _LONGEST_PAUSE_S)


def destroy_files(name: str) -> int:
    """Unlink all files of a dead arena. Returns: how many there were."""
    try:
        return _native.destroy_files(name)
    except _native.Error as error:
        raise failure(error, f"remove the files of arena {name!r}") from None
