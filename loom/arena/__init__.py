"""Shared memory: blocks and tensors that live outside any one process.

- `arena.py`    Arena: lease, send, accept, reap; one per process, opened after the fork
- `tensor.py`   empty, share: NumPy arrays that live in the arena
- `default.py`  use, forget, current: the process's own arena
- `policy.py`   FullPolicy: what to do when there is no room
- `stats.py`    ArenaStats, Participant, SegmentInfo, BlockInfo: what an arena says about itself
- `failure.py`  from the core's return codes to `loom.errors`

The layout, the ownership rules and the memory order are in native/include/loom_arena.h.
"""

from loom._native import Block
from loom.arena.arena import Arena, Reference, clear_spill, destroy_files
from loom.arena.default import current, forget, use
from loom.arena.policy import FullPolicy
from loom.arena.stats import ArenaStats, BlockInfo, Participant, SegmentInfo
from loom.arena.tensor import empty, share

__all__ = [
    "Arena",
    "ArenaStats",
    "Block",
    "BlockInfo",
    "FullPolicy",
    "Participant",
    "Reference",
    "SegmentInfo",
    "clear_spill",
    "current",
    "destroy_files",
    "empty",
    "forget",
    "share",
    "use",
]
