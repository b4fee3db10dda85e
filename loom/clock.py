"""The two clocks: `monotonic` decides, `wall` is only ever shown.

Deadlines, windows and ages use CLOCK_MONOTONIC, which every process of one machine shares and no operator can set.
"""

from __future__ import annotations

import time

monotonic = time.monotonic
"""Seconds since an arbitrary point, the same point for every process of this boot."""

wall = time.time
"""Seconds since the Unix epoch: for people and logs, never for decisions."""
