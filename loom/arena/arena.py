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
from loom.arena.policy import FULL, FullPolicy
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

    __slots__ = ("_handle", "budget_bytes", "name", "participant", "policy")

    def __init__(self, handle: _native.Handle) -> None:
        self._handle = handle
        self.name: str = handle.name
        self.participant: int = handle.participant
        """This process's index, 0 for the node."""
        self.budget_bytes: int = handle.budget_bytes
        self.policy = FullPolicy(FULL[handle.full], handle.wait_s, handle.spill)
        """What happens when there is no room; its `spill` is the folder of this arena's own files."""

    @classmethod
    def create(cls, name: str, budget_bytes: int, policy: FullPolicy = FullPolicy()) -> Arena:  # noqa: B008 (frozen)
        """Make the arena `name` and become its participant 0, the node.

        `budget_bytes` bounds the data of all segments in memory; it is reserved as it is needed, not now. `policy` says
        what everybody does when there is no room.
        Raises: StartFailed (L3001) when the name is taken or the system refuses, or the spill folder cannot be used;
            ArenaFull (L3003) when /dev/shm has no room for the control file; UsageError (L1008) for a bad name, budget
            or policy.
        """
        if not 0 < budget_bytes < 2**53:
            raise UsageError(f"expected an arena budget between 1 and 2**53 bytes, got {budget_bytes}")
        try:
            return cls(
                _native.create(name, budget_bytes, FULL.index(policy.full), round(policy.wait_s * 1e9), policy.spill)
            )
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

    def lease(self, size_bytes: int, timeout_s: float | None = None) -> _native.Block:
        """Reserve one block; it belongs to this process until sent or released.

        When there is no room the node's policy says what happens; `timeout_s`, if given, how long to wait.
        Returns: a writable Block, shape (size_bytes,), uint8, 64-byte aligned; its bytes are whatever was there before.
        Raises: ArenaFull (L3003) when there is no room in that time.
        Source: native/include/loom_arena.h, "Leases".
        """
        try:
            block = self._handle.lease(size_bytes)
            if isinstance(block, int):
                block = self._wait_for_block(size_bytes, block, timeout_s)
            return block
        except _native.Error as error:
            raise failure(error, f"lease {size_bytes} bytes") from None
        except OverflowError:
            raise UsageError(f"expected a size in [0, 2**64) bytes, got {size_bytes}") from None

    def send(
        self,
        data: Buffer | list[bytes],
        receiver: int | None = None,
        timeout_s: float | None = None,
        deadline: float = 0.0,
    ) -> tuple[Reference, bool]:
        """Make a reference to the bytes of `data` for one message.

        `data` is any contiguous buffer, or a list of bytes to be sent as one. When a buffer lies in a block that this
        process holds, the reference is to that range; otherwise its bytes are copied into a block that lives by the
        reference alone. By convention memory that was sent is not written any more. `receiver`: a participant index, or
        None for whoever gets the message. When there is no room the node's policy says what happens; `deadline`: that
        of the message, monotonic seconds, 0 for none; `timeout_s`, if given, how long to wait whatever the policy.
        Returns: (reference, copied).
        Raises: ArenaFull (L3003) when there is no room in that time; StaleReference (L2009) when nobody takes part
            under the receiver's index; BufferError when `data` is not contiguous.
        """
        try:
            sent = self._handle.send(data, _native.ANY if receiver is None else receiver)
            if isinstance(sent, int):
                sent = self._wait_to_send(data, receiver, sent, timeout_s, deadline)
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

    def collect(self) -> int:
        """Reclaim resolved references and freed blocks now, and give back segments that idled for 10 s.

        A process that neither leases nor sends should call this now and then: the hold behind a delivered reference
        ends when its sender looks, and a segment that others are short of is given back when its owner looks.
        Returns: own references in flight, and own blocks that are spilled: what is worth another look soon.
        """
        try:
            return self._handle.collect()
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

    def _wait_for_block(self, size_bytes: int, code: int, timeout_s: float | None) -> _native.Block:
        start = monotonic()
        pause_s, until = _FIRST_PAUSE_S, self._until(start, code, timeout_s, 0.0)
        while (now := monotonic()) < until and not self._is_hopeless(size_bytes, code):
            pause_s = _pause(pause_s, until - now)
            block = self._handle.lease(size_bytes)
            if not isinstance(block, int):
                return block
            code = block
        raise full(self.name, size_bytes, monotonic() - start, code, self.stats(), self.policy)

    def _wait_to_send(
        self, data: Buffer | list[bytes], receiver: int | None, code: int, timeout_s: float | None, deadline: float
    ) -> tuple[Reference, bool]:
        start = monotonic()
        size_bytes = sum(map(len, data)) if isinstance(data, list) else memoryview(data).nbytes
        pause_s, until = _FIRST_PAUSE_S, self._until(start, code, timeout_s, deadline)
        while (now := monotonic()) < until and not self._is_hopeless(size_bytes, code):
            pause_s = _pause(pause_s, until - now)
            sent = self._handle.send(data, _native.ANY if receiver is None else receiver)
            if not isinstance(sent, int):
                return sent
            code = sent
        raise full(self.name, size_bytes, monotonic() - start, code, self.stats(), self.policy)

    def _until(self, start: float, code: int, timeout_s: float | None, deadline: float) -> float:
        """Until when there may be another try, monotonic seconds."""
        if timeout_s is not None:
            return start + timeout_s
        policy = self.policy
        if policy.full == "raise" or (policy.full == "spill" and code == _native.FULL):
            return 0.0
        return deadline or start + policy.wait_s

    def _is_hopeless(self, size_bytes: int, code: int) -> bool:
        """Whether no wait can help: it is more than the budget."""
        return code == _native.FULL and size_bytes > self.budget_bytes


def _pause(pause_s: float, left_s: float) -> float:
    """Sleep, at most for `left_s`; the next pause is twice as long. Freed blocks wake nobody (see the header)."""
    time.sleep(min(pause_s, left_s))
    return min(pause_s * 2, _LONGEST_PAUSE_S)


def destroy_files(name: str) -> int:
    """Unlink all files of a dead arena, those it spilled too. Returns: how many there were."""
    try:
        return _native.destroy_files(name)
    except _native.Error as error:
        raise failure(error, f"remove the files of arena {name!r}") from None


def clear_spill(folder: str) -> int:
    """Remove what this user's dead arenas left in a folder they spilled to. Returns: how many there were.

    For what `destroy_files` cannot know of any more: after a reboot /dev/shm is empty, and a disk is not.
    Raises: StartFailed (L3001) when the folder cannot be read.
    """
    try:
        return _native.clear_spill(folder)
    except _native.Error as error:
        raise failure(error, f"look for spilled files in {folder!r}") from None
