"""Spin: how long it pays to look for a message before going to sleep.

Going to sleep and being woken costs some 5 us when both ends share a core, and ten times that when an idle core has to
be woken. So whoever expects an answer soon looks for it for a while first; but only as long as that keeps succeeding:
each failure halves the time, and when it is used up it is tried anew after a while. With one core nobody spins.
"""

from __future__ import annotations

import os

LONGEST_NS = 50_000
FIRST_NS = 20_000
LEAST_NS = 3_000
PAUSE = 64
"""Waits without spinning before it is tried anew."""


class Spin:
    """The present length of one waiter's looking, nanoseconds: `ns`. Tell it how each look went with `was`."""

    __slots__ = ("_pause", "ns")

    def __init__(self) -> None:
        self.ns = FIRST_NS if len(os.sched_getaffinity(0)) > 1 else 0
        self._pause = 0

    def was(self, is_found: bool) -> None:
        """A look of `ns` found something, or did not."""
        if is_found:
            self.ns = min(LONGEST_NS, self.ns * 2)
        else:
            self.ns >>= 1
            if self.ns < LEAST_NS:
                self.ns, self._pause = 0, PAUSE

    def rested(self) -> None:
        """A wait without a look."""
        if self._pause:
            self._pause -= 1
            if not self._pause:
                self.ns = FIRST_NS
