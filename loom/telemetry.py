"""Logging for Loom's own processes: the standard library's, one line an event, to standard error.

Emitting is all the lower layers do; who collects is decided above. `LOOM_LOG` sets the level (debug, info, warning,
error; default warning). Lines read `2026-01-31 12:00:00.123 alpha/index[4711] warning restarted after SIGKILL`.
"""

from __future__ import annotations

import logging
import os
import sys
from time import monotonic

log = logging.getLogger("loom")
"""The one logger of the package; silent until `setup` is called, as a library's should be."""

log.addHandler(logging.NullHandler())


def setup(who: str, level: str | None = None) -> None:
    """Send this process's log lines to standard error, each naming `who` (for example "alpha/index").

    Called by the processes that Loom itself starts; a program that only uses Loom configures logging as it likes.
    """
    chosen = (level or os.environ.get("LOOM_LOG") or "warning").upper()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(
            f"%(asctime)s.%(msecs)03d {who}[%(process)d] %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
        )
    )
    log.handlers[:] = [handler]
    log.setLevel(chosen if chosen in logging.getLevelNamesMapping() else "WARNING")
    log.propagate = False


class Throttle:
    """Keeps a flood of like events from becoming a flood of log lines: `burst` in every `period_s` for each kind."""

    def __init__(self, burst: int = 5, period_s: float = 10.0) -> None:
        self._burst = burst
        self._period_s = period_s
        self._kinds: dict[str, tuple[float, int]] = {}

    def allows(self, kind: str) -> bool:
        """Whether this one may be logged."""
        now = monotonic()
        since, count = self._kinds.get(kind, (now, 0))
        if now - since >= self._period_s:
            since, count = now, 0
        self._kinds[kind] = since, count + 1
        return count < self._burst

    def more(self, kind: str) -> str:
        """What to add to the last line that is allowed: that there may be more."""
        _, count = self._kinds.get(kind, (0.0, 0))
        return f" (more of these within {self._period_s:g} s are not logged)" if count == self._burst else ""
