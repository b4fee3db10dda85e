"""What a node tells of itself: frozen structs, the same whether asked by a program or by `loom-node --json`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loom.arena import ArenaStats
from loom.supervise.child import Restarted


class ActorStats(msgspec.Struct, frozen=True):
    """One actor. `since_s`: how long the present message has been running, 0.0 when idle; `depth`: messages waiting;
    `slow`: messages that the watchdog found slow; `memory_warnings`: times that it exceeded `memory_soft_bytes`.

    The sum that the counters make, and what each means: loom.actor.board.Row.
    """

    name: str
    state: str
    pid: int
    incarnation: int
    depth: int
    since_s: float
    received: int
    processed: int
    failed: int
    rejected: int
    expired: int
    dead_lettered: int
    running: int
    slow: int = 0
    memory_warnings: int = 0
    cancelled: int = 0
    dropped: int = 0
    moved: int = 0
    handed_on: int = 0
    refused: int = 0
    last_death: str = ""

    @property
    def unaccounted(self) -> int:
        """Messages accepted that neither wait nor run and are in no counter: 0 whenever the actor is at rest."""
        ended = self.processed + self.failed + self.rejected + self.expired + self.cancelled + self.dropped
        return self.received - ended - self.moved - self.handed_on - self.dead_lettered - self.depth - self.running

    @property
    def pss_bytes(self) -> int:
        """Memory of the process, shared pages counted in proportion (PSS), bytes; 0 when it cannot be read."""
        return pss_bytes(self.pid)


class DrainReport(msgspec.Struct, frozen=True):
    """How far a node's draining is. `left`: messages; `actors`: how many of them in which; `took_s` so far."""

    left: int
    actors: dict[str, int]
    is_done: bool
    took_s: float


class NodeStats(msgspec.Struct, frozen=True):
    """The node, its actors, its arena, and the last restarts of each actor."""

    name: str
    pid: int
    endpoint: str
    uptime_s: float
    actors: tuple[ActorStats, ...]
    arena: ArenaStats
    restarts: tuple[Restarted, ...]
    restart_count: int
    monitors: int = 0
    links: int = 0


class Tree(msgspec.Struct, frozen=True):
    """A supervisor or an actor, and what stands under it. `str()` draws it with lines."""

    name: str
    kind: str
    state: str
    children: tuple[Tree, ...] = ()
    strategy: str = ""
    restart: str = ""
    pid: int = 0
    incarnation: int = 0

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def label(self) -> str:
        """One line about it."""
        if self.kind == "supervisor":
            return f"{self.name} ({self.strategy}) {self.state}"
        return f"{self.name} {self.state} pid {self.pid or '-'} incarnation {self.incarnation} {self.restart}"

    def _lines(self) -> Iterator[str]:
        yield self.label()
        for child in self.children:
            last = child is self.children[-1]
            for number, line in enumerate(child._lines()):
                yield (("└── " if last else "├── ") if number == 0 else ("    " if last else "│   ")) + line


class ChildInfo(msgspec.Struct, frozen=True):
    """One row of a supervisor. `pid` is 0 while it has no process, and for a supervisor.

    state: "starting", "running", "stopping", "restarting" (it is to get a process) or "stopped" (it keeps its row).
    """

    name: str
    kind: str
    state: str
    restart: str
    significant: bool = False
    pid: int = 0
    incarnation: int = 0
    last_death: str = ""


class ChildCount(msgspec.Struct, frozen=True):
    """How many children: `specs` rows (1 for a template), `active` of them with a process, `supervisors`, `workers`."""

    specs: int
    active: int
    supervisors: int
    workers: int


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process, bytes; 0 when it cannot be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
