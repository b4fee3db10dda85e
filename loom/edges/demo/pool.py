"""Pool: the daemons of one kind, and the calls that are under way on each.

A call goes to the daemon with the least to do. When a daemon dies, whatever was under way on it is asked again, of
whoever has the least to do by then: the supervisor sees to it that the dead one comes back.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from loom import ActorRef, Node
from loom.errors import ActorDied, StaleReference
from loom.node.stats import Tree

DEPTH: Final = 2
"""Calls under way on one daemon: one that it works on, and one to go on with."""

ACCIDENTS: Final = 4
"""Daemons that one call may lose, beyond those that we kill, before it is taken for what kills them."""

MOST_KILLS: Final = 8
"""Of one kind of daemon, in one run."""

_FIRST_DELAY_S: Final = 0.003
_NEXT_DELAY_S: Final = 0.001


@dataclass(slots=True)
class Daemon:
    """One daemon, whichever process it is now. `files`, `busy_s`: what it has done; `busy_s` is CPU time."""

    name: str
    ref: ActorRef
    under_way: int = 0
    files: int = 0
    busy_s: float = 0.0


class Pool:
    """The daemons of one kind. Its methods belong to one event loop.

    `kill`: kill some of them while they work.
    """

    def __init__(self, node: Node, names: Sequence[str], *, kill: bool = False) -> None:
        self.daemons = [Daemon(name, node.lookup(name)) for name in names]
        self.kills = 0
        self._node = node
        self._kill = kill
        self._room = asyncio.Semaphore(DEPTH * len(names))
        self._doomed: set[int] = set()
        self._asked = 0
        self._left = 0
        self._killed: set[tuple[str, int]] = set()
        self._killers: set[asyncio.Task[None]] = set()
        self._usual_s = _FIRST_DELAY_S

    def expect(self, calls: int) -> None:
        """Say how many chunks will be asked for, so that the kills, if any, can be spread over them."""
        self._left = calls
        if self._kill and calls:
            wanted = min(MOST_KILLS, max(1, calls // 8))
            # One comes early, for it takes a daemon that is at work, and in the end there may be none.
            self._doomed = {random.randrange((calls + 1) // 2), *random.sample(range(calls), wanted - 1)}

    async def chunk(self, method: str, *args: Any, files: int) -> Any:
        """Ask for one chunk, of that many files."""
        doomed = self._asked in self._doomed
        self._asked += 1
        value, self._usual_s = await self._ask(method, args, files, doomed)
        self._left -= 1
        return value

    async def ask(self, method: str, *args: Any) -> Any:
        """Ask any daemon for something that is no chunk, and that nobody is killed over."""
        value, _ = await self._ask(method, args, 0, False)
        return value

    async def each(self, method: str, *args: Any) -> None:
        """Ask every daemon; one that dies meanwhile is not asked again."""

        async def one(daemon: Daemon) -> None:
            daemon.under_way += 1
            try:
                daemon.busy_s += (await getattr(daemon.ref, method)(*args))[1]
            except ActorDied:
                pass
            finally:
                daemon.under_way -= 1

        await asyncio.gather(*(one(daemon) for daemon in self.daemons))

    async def settle(self) -> None:
        """Return when no kill is pending any more."""
        await asyncio.gather(*self._killers)

    async def _ask(self, method: str, args: tuple[Any, ...], files: int, doomed: bool) -> tuple[Any, float]:
        async with self._room:
            losses = 0
            while True:
                daemon = min(self.daemons, key=lambda one: one.under_way)
                daemon.under_way += 1
                try:
                    reply = getattr(daemon.ref, method)(*args)
                    if doomed:
                        self._send_killer(daemon)
                        doomed = False
                    value, busy_s = await reply
                except (ActorDied, StaleReference):  # stale: it died with the answer on its way
                    losses += 1
                    if losses > ACCIDENTS + self.kills:
                        raise
                    continue
                finally:
                    daemon.under_way -= 1
                daemon.files += files
                daemon.busy_s += busy_s
                return value, busy_s

    # --- kills ---

    def _send_killer(self, daemon: Daemon) -> None:
        killer = asyncio.create_task(self._strike(daemon, random.uniform(0, self._usual_s)))
        self._killers.add(killer)
        killer.add_done_callback(self._killers.discard)

    async def _strike(self, daemon: Daemon, delay_s: float) -> None:
        """SIGKILL the daemon in a moment; if it is idle by then, the first that is not."""
        await asyncio.sleep(delay_s)
        while self._left:
            for victim in (daemon, *self.daemons):
                if victim.under_way and self._strike_now(victim):
                    self.kills += 1
                    return
            await asyncio.sleep(_NEXT_DELAY_S)

    def _strike_now(self, daemon: Daemon) -> bool:
        pid = _pids(self._node.tree()).get(daemon.name, 0)
        if not pid or (daemon.name, pid) in self._killed:
            return False
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            # The node still has it under that pid: so the descriptor is not of a process that came after it.
            if _pids(self._node.tree()).get(daemon.name) != pid:
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        self._killed.add((daemon.name, pid))
        return True


def _pids(tree: Tree) -> dict[str, int]:
    """Name -> pid of every actor of a tree that runs."""
    found = {tree.name: tree.pid} if tree.kind == "actor" and tree.state == "running" else {}
    for child in tree.children:
        found |= _pids(child)
    return found
