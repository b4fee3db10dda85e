"""Logging for Loom's own processes: the standard library's, one line an event, to standard error.

Emitting is all the lower layers do; who collects is decided above. `LOOM_LOG` sets the level (debug, info, warning,
error; default warning). Lines read `2026-01-31 12:00:00.123 alpha/index[4711] warning restarted after SIGKILL`.
"""

from __future__ import annotations

import logging
import os
import sys

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
