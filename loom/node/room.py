"""Room: the rules for what a node does when its arena is full, the same in a config file and in `loom.Node(...)`.

arena_full = "wait"      # until the message's deadline; for arena_wait_s when it has none: then ArenaFull
arena_full = "raise"     # ArenaFull at once
arena_full = "spill"     # to files below the folder arena_spill, for as long as somebody holds the bytes

Whoever waits does nothing else meanwhile: a thread that runs an event loop holds up all that runs on it. A program for
which that is wrong chooses "raise", or gives its calls short deadlines.
"""

from __future__ import annotations

import os
from pathlib import Path

from loom.arena.policy import FULL, FullPolicy
from loom.supervise.spec import SpecError, nearest, show

LONGEST_WAIT_S = 86_400.0

PATH_BYTES = 900
"""Of the control file's room for the path; the rest is for the name that the arena's own folder gets in it."""


def full_policy(full: object, wait_s: object, spill: object, folder: Path) -> FullPolicy:
    """What was written, None for nothing, as a policy. A relative `spill` is relative to `folder`.

    Raises: ConfigError (L1001), a SpecError for the fields arena_full, arena_wait_s and arena_spill of a node.
    """
    if full is None:
        full = "wait"
    if full not in FULL:
        known = "'wait', 'raise' or 'spill'"
        raise SpecError("Node", "arena_full", known, show(full), nearest(full, FULL, f"write {known}"))
    if wait_s is not None and full == "raise":
        remedy = "leave it out: arena_full = 'raise' never waits"
        raise SpecError("Node", "arena_wait_s", "nothing", show(wait_s), remedy)
    if spill is not None and full != "spill":
        remedy = "add arena_full = 'spill', or leave it out"
        raise SpecError("Node", "arena_spill", f"nothing, with arena_full = {full!r}", show(spill), remedy)
    if full == "spill" and spill is None:
        remedy = "name one in arena_spill, on a disk with room for what memory cannot hold"
        raise SpecError("Node", "arena_full", "'spill' together with a folder", "no folder", remedy)
    chosen = FullPolicy(full)
    return FullPolicy(
        full=chosen.full,
        wait_s=chosen.wait_s if wait_s is None else _seconds(wait_s),
        spill="" if spill is None else _path(spill, folder),
    )


def check_spill(spill: str) -> None:
    """See that a node can spill there. Does nothing for "". Raises: as `full_policy`."""
    if not spill:
        return
    expected = "a folder that can be written to"
    if not os.path.isdir(spill):
        got = f"{spill!r}, which is {'a file' if os.path.exists(spill) else 'not there'}"
        raise SpecError("Node", "arena_spill", expected, got, "create it, or mend the path")
    if not os.access(spill, os.R_OK | os.W_OK | os.X_OK):
        got = f"{spill!r}, permission denied"
        raise SpecError("Node", "arena_spill", expected, got, f"let user {os.getuid()} write there, or name another")


def _seconds(wait_s: object) -> float:
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 <= wait_s <= LONGEST_WAIT_S:
        expected = f"a number of seconds from 0 to {LONGEST_WAIT_S:g}"
        raise SpecError("Node", "arena_wait_s", expected, show(wait_s), "write it as in arena_wait_s = 2.5")
    return float(wait_s)


def _path(spill: object, folder: Path) -> str:
    if isinstance(spill, Path):
        spill = str(spill)
    if not isinstance(spill, str) or not spill or "\0" in spill:
        raise SpecError("Node", "arena_spill", "a folder", show(spill), "write its name as a string")
    full = str((folder / spill).resolve())
    if len(os.fsencode(full)) > PATH_BYTES:
        got = f"{len(os.fsencode(full))} bytes: {show(full)}"
        raise SpecError("Node", "arena_spill", f"a path of at most {PATH_BYTES} bytes", got, "choose a shorter one")
    return full
