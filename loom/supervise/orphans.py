"""Orphans: what an actor started and left behind, ended when the actor ends, and reaped.

A process whose parent dies becomes the child of the nearest subreaper above it: the node. So at an actor's death all
that it started hangs below children of the node, however it was started, with or without `setsid`, forked once or
twice. To whom such a child belongs says a tag in its environment: every incarnation has one of its own.

The tag has to be there in a process that was forked and has not called exec, too, whose /proc/PID/environ shows what
the zygote was started with. So the zygote starts with a blank of TAG_BYTES, and an actor writes its tag over it, in
place (loom/actor/tag.py). What clears its environment is out of reach, until the node ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from loom.actor.procfs import stat_of
from loom.actor.tag import tag_of
from loom.supervise import process, stack

AGAIN_S = 0.05
"""How soon after a kill is looked again: what the killed had started itself comes up only then."""


class Orphans:
    """Of one node. `zygote`: gives the pid of its zygote."""

    def __init__(self, cookie: str, zygote: Callable[[], int]) -> None:
        self.living: set[str] = set()
        """The tags of the incarnations that live, or are about to."""
        self._cookie = cookie
        self._zygote = zygote
        self._again: asyncio.TimerHandle | None = None

    def sweep(self) -> int:
        """Kill what dead actors have left, and reap what is dead; how many were killed. Cheap when there is none."""
        killed = 0
        me = os.getpid()
        for pid in set(children_of(me)) - process.held - stack.under_way - {self._zygote()}:
            if stat_of(pid).state == "Z":
                _reap(pid)
                continue
            tag = tag_of(pid, self._cookie)
            if tag and tag not in self.living:
                killed += kill_tree(pid, me)
        if killed and self._again is None:
            self._again = asyncio.get_running_loop().call_later(AGAIN_S, self._sweep_again)
        return killed

    def _sweep_again(self) -> None:
        self._again = None
        self.sweep()


def end_children() -> None:
    """Kill and reap all that is below this process, what hid its environment included: the node ends."""
    me = os.getpid()
    while children := children_of(me):
        for pid in children:
            kill_tree(pid, me)
            _reap(pid, wait=True)


def children_of(pid: int) -> list[int]:
    """The children of a process, of all its threads; empty when it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def kill_tree(root: int, parent: int) -> int:
    """SIGKILL a child of `parent` and all below it; how many. A pid that somebody else has by now is not hit.

    All are held by pidfds before the first is killed: then those below would no longer be found below it.
    """
    pidfds = []
    for pid, above in _tree(root, parent):
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        pidfds.append(pidfd)
        if stat_of(pid).parent != above:  # looked at after the opening: a reused pid has another parent
            os.close(pidfds.pop())
    for pidfd in pidfds:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            pass
        os.close(pidfd)
    return len(pidfds)


def _tree(root: int, parent: int) -> list[tuple[int, int]]:
    """A process and all below it, each with its parent."""
    found = [(root, parent)]
    for pid, _ in found:  # it grows while it is walked
        found += [(below, pid) for below in children_of(pid)]
    return found


def _reap(pid: int, *, wait: bool = False) -> None:
    try:
        os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:
        pass
