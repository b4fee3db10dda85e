"""What an arena says about itself."""

from __future__ import annotations

import msgspec


class ArenaStats(msgspec.Struct, frozen=True):
    """One reading of the shared tables. Sizes in bytes; the counters only grow while the arena lives.

    A block counts as in use until its owner has looked; `Arena.collect` in the owner looks.
    Fields and order are those of `loom_stats` in native/include/loom_arena.h.
    """

    budget_bytes: int
    """What all data parts together may take."""
    reserved_bytes: int
    """What they take now in memory, used or kept warm."""
    control_bytes: int
    """Bookkeeping on top of that."""
    in_use_bytes: int
    """Of blocks that somebody holds, spilled ones too."""
    segments: int
    orphaned: int
    """Segments whose owner is gone while others still hold blocks in them."""
    blocks: int
    in_flight: int
    """References sent and not accepted yet."""
    participants: int
    bytes_shared: int
    """Sent by reference, nothing copied."""
    bytes_copied: int
    """Copied into the arena by a send, or carried inline in a message (`Arena.count_copied`)."""
    references_sent: int
    references_accepted: int
    leases: int
    free_bytes: int
    """Left in /dev/shm."""
    spilled_blocks: int
    """Those of `blocks` that lie in the spill folder now."""
    spilled_bytes: int
    spill_reserved_bytes: int
    """What the files there take."""
    spill_free_bytes: int
    """Left on the disk of the spill folder, 0 without one."""
    blocks_spilled: int
    """Since the start."""
    bytes_spilled: int
    reclaimed_bytes: int
    """Of those blocks."""
    reclaimed_blocks: int
    """That were free once the node had taken back what a participant that died, or left, still held of them."""
    reclaimed_references: int
    """In flight from such a participant, or to it, and revoked by the node."""
    reclaimed_segments: int
    """Of such owners, removed by the node."""

    @property
    def warm_bytes(self) -> int:
        """Reserved in memory and not in use: the next lease finds it at no cost."""
        return max(0, self.reserved_bytes - (self.in_use_bytes - self.spilled_bytes))


class Participant(msgspec.Struct, frozen=True):
    """A process that takes part; (pid, start_time) names it for the life of this boot."""

    index: int
    pid: int
    start_time: int
    """Clock ticks since boot, field 22 of /proc/PID/stat."""
    alive: bool
    """The process lives and has not closed its arena."""


_SEGMENT_STATES = ("free", "creating", "live", "orphaned", "closing")
"""By number: `enum loom_segment_state` in native/include/loom_arena.h."""


class SegmentInfo(msgspec.Struct, frozen=True):
    """One segment, as its row in the shared table says."""

    index: int
    state: str
    """creating, live, orphaned (its owner is gone, somebody holds a block) or closing; damaged: none of these."""
    owner: int
    """The participant that allocates in it; the node's 0 for an orphan."""
    sequence: int
    """Its file is /dev/shm/<arena>.<sequence>, or <sequence> in the spill folder; 0 while there is none."""
    size_bytes: int
    """Of its data part."""
    spilled: bool = False
    """Its file is in the spill folder."""

    @classmethod
    def of(cls, row: tuple[int, int, int, int, int, bool]) -> SegmentInfo:
        """From the core's numbers."""
        index, state, owner, sequence, size_bytes, spilled = row
        known = _SEGMENT_STATES[state] if state < len(_SEGMENT_STATES) else "damaged"
        return cls(index, known, owner, sequence, size_bytes, spilled)


class BlockInfo(msgspec.Struct, frozen=True):
    """One block that somebody holds."""

    segment: int
    index: int
    owner: int
    """The participant whose segment it lies in."""
    size_bytes: int
    generation: int
    """Of the lease; rises with each lease in the arena."""
    age_s: float
    """Since the lease, some 10 ms more or less."""
    holders: tuple[int, ...]
    """Participants with a view of it, or with a reference to it in flight."""


def human(size_bytes: int) -> str:
    """A size for an error text: '64.0 MiB'."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
