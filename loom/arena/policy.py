"""What the processes of a node do when its arena has no room."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Full: TypeAlias = Literal["wait", "raise", "spill"]

FULL: tuple[Full, ...] = ("wait", "raise", "spill")
"""By number: `enum loom_full` in native/include/loom_arena.h."""


class FullPolicy(msgspec.Struct, frozen=True):
    """The node writes it into the control file, where everybody who takes part finds it.

    - "wait": for room, until the message's deadline, or for `wait_s` when it has none; then ArenaFull.
    - "raise": ArenaFull at once.
    - "spill": the bytes go to a file below the folder `spill`, and are mapped from it like any others: slower, and gone
      as soon as nobody holds them. ArenaFull when that disk is full too. `wait_s` is then for what a disk does not
      help, too many references in flight.
    """

    full: Full = "wait"
    wait_s: float = 1.0
    spill: str = ""
    """An absolute path; "" unless `full` is "spill"."""
