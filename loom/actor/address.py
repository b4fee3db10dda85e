"""Where one incarnation of an actor lives, and whether it is still the same process."""

from __future__ import annotations

import errno
import os

import msgspec

from loom.actor.procfs import stat_of


class Address(msgspec.Struct, frozen=True, gc=False):
    """One incarnation: its mailbox and its process.

    `start_time` is field 22 of /proc/PID/stat (clock ticks since boot): pid and start time together are never reused.
    `row` is its line on the status board, `participant` its number in the arena (-1: none). `term` is the number of its
    mailbox, 0 for one without a gate (the node's own); `policy` says what a full one does, `on_death` what becomes of
    its content.
    """

    name: str
    endpoint: str
    pid: int
    start_time: int
    incarnation: int
    row: int = -1
    participant: int = -1
    term: int = 0
    policy: str = "wait"
    on_death: str = "dead_letter"


def start_time_of(pid: int | str = "self") -> int:
    """Start time of a process in clock ticks since boot, 0 when there is no such process. Zombies still have one."""
    return stat_of(pid).start_time


def is_alive(pid: int, start_time: int) -> bool:
    """Whether exactly that process runs; one that is dead and not yet reaped does not."""
    found = stat_of(pid)
    return found.start_time == start_time and found.state not in "ZX"


def open_pidfd(pid: int, start_time: int) -> int | None:
    """A pidfd for exactly that process, None when it is gone; becomes readable when the process dies.

    Raises: OSError when the system has no descriptor left, which says nothing about the process.

    The start time is read after the pidfd is open, so a reused pid is never taken for the process that had it before.
    """
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # no pid at all
            return None
        raise
    if start_time_of(pid) != start_time:
        os.close(fd)
        return None
    return fd
