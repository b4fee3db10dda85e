"""Shared memory: blocks and tensors that live outside any one process.

- `arena.py`    Arena: lease, send, accept, reap; one per process, opened after the fork
- `tensor.py`   empty, share: NumPy arrays that live in the arena
- `default.py`  use, forget, current: the process's own arena
- `stats.py`    ArenaStats, Participant, SegmentInfo, BlockInfo: what an arena says about itself
- `failure.py`  from the core's return codes to `loom.errors`

The layout, the ownership rules and the memory order are in native/include/loom_arena.h.
"""

from loom._native import Block
from loom.arena.arena import Arena, Reference, destroy_files
from loom.arena.default import current, forget, use
from loom.arena.stats import ArenaStats, BlockInfo, Participant, SegmentInfo
from loom.arena.tensor import empty, share

__all__ = [
    "Arena",
    "ArenaStats",
    "Block",
    "BlockInfo",
    "Participant",
    "Reference",
    "SegmentInfo",
    "current",
    "destroy_files",
    "empty",
    "forget",
    "share",
    "use",
]
