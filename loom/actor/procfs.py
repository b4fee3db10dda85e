"""What /proc tells of a process, read in one go each."""

from __future__ import annotations

import os
from typing import NamedTuple

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """Some of /proc/PID/stat. `state` is a letter: "R" runs, "S" sleeps, "D" cannot be disturbed, "T" and "t" is
    stopped, "Z" is dead and not reaped, "X" is gone. `start_time` in clock ticks since boot. A zombie has them all.
    """

    state: str = "X"
    parent: int = 0
    cpu_s: float = 0.0
    start_time: int = 0


def stat_of(pid: int | str) -> Stat:
    """The present one of a process; state "X" and zeros when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()  # from field 3 on: the name before it may hold anything
        cpu_s = (int(words[11]) + int(words[12])) / _TICKS_A_SECOND
        return Stat(words[0].decode(), int(words[1]), cpu_s, int(words[19]))
    except (OSError, ValueError, IndexError):
        return Stat()


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is no file's and no shared memory, pages shared since a fork counted in full. Cheap."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            words = file.read().split()
        return (int(words[1]) - int(words[2])) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def own_bytes(pid: int) -> int:
    """The same with shared pages counted in part, and what is swapped out. The kernel walks all pages for it."""
    found = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith((b"Pss_Anon:", b"SwapPss:")):
                    found += int(line.split()[1]) * 1024
    except OSError:
        return 0
    return found
