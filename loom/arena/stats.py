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
    """What they take now, used or kept warm."""
    control_bytes: int
    """Bookkeeping on top of that."""
    in_use_bytes: int
    """Of blocks that somebody holds."""
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
    """Its file is /dev/shm/<arena>.<sequence>; 0 while there is none."""
    size_bytes: int
    """Of its data part."""

    @classmethod
    def of(cls, row: tuple[int, int, int, int, int]) -> SegmentInfo:
        """From the core's numbers."""
        index, state, owner, sequence, size_bytes = row
        known = _SEGMENT_STATES[state] if state < len(_SEGMENT_STATES) else "damaged"
        return cls(index, known, owner, sequence, size_bytes)


class BlockInfo(msgspec.Struct, frozen=True):
    """One block that somebody holds. The layout has no time in it, so its age is not known."""

    segment: int
    index: int
    owner: int
    """The participant whose segment it lies in."""
    size_bytes: int
    generation: int
    """Of the lease; rises with each lease in the arena, so the lowest has been held for longest."""
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
