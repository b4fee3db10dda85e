"""Dead letter: what is kept of a message that was not run to its end, or whose answer found nobody.

Whoever sees a message die writes one and sends it to the node, which keeps the last ones (loom/node/dead_letters.py).
The counters of the status board are exact; this is the story behind the last of them.
"""

from __future__ import annotations

import msgspec

from loom.clock import wall
from loom.wire.envelope import Envelope

KEPT = 1000
"""Dead letters that a node keeps, and the most that one report carries."""


class DeadLetter(msgspec.Struct, frozen=True):
    """`actor` and `method`: whom it was for; `sender`: an actor's name, "" for a client. `time_s`: seconds since 1970.

    `size_bytes` is that of the arguments as far as it is known, else 0.
    """

    actor: str
    method: str
    sender: str
    kind: str
    id: int
    reason: str
    time_s: float
    size_bytes: int = 0
    is_counted: bool = True
    """Whether its end is in the actor's counters already."""


def letter(header: Envelope, actor: str, reason: str, size_bytes: int = 0) -> DeadLetter:
    """The dead letter of a message. `size_bytes`: 0 for what its header knows."""
    size_bytes = size_bytes or len(header.body) + sum(place[4] for place in header.buffers if place and len(place) > 4)
    short = reason if len(reason) <= 400 else reason[:400] + "..."
    return DeadLetter(
        actor, header.name[:64], header.sender[:64], header.kind[:16], header.id, short, wall(), size_bytes
    )
