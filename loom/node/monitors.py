"""Monitors and links: who on a node is told of whose death.

Every death passes through `Monitors.died`, in the node's one thread, as the node reaps the process: so none is missed
and none is told twice. A monitor is by name, and lasts over restarts. A link is between two incarnations.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from loom.actor.death import Death
from loom.errors import MailboxFull
from loom.node.registry import Registry
from loom.supervise.child import ActorChild, Child
from loom.supervise.policy import ALIVE

WAITING_MAX = 10_000
"""Deaths that may wait for a consumer that does not read; then its monitor ends with an error, behind them."""

NOPROC = Death("abnormal", "there is no such actor", how="noproc")


class _Watcher:
    """One monitor. `open`: names that somebody bears. `news`: what its consumer has not been told yet, deaths and names
    that nobody bears any more. `is_overrun`: there were too many deaths to keep.
    """

    def __init__(self, names: list[str]) -> None:
        self.open = set(names)
        self.is_overrun = False
        self.news: asyncio.Queue[dict[str, Any] | str] = asyncio.Queue()


class Monitors:
    """All monitors and links of a node."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._watchers: dict[str, set[_Watcher]] = {}
        self._links: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: set[tuple[str, int, str]] = set()

    def count(self) -> dict[str, int]:
        """How many there are: {monitors, links}."""
        watchers = {watcher for each in self._watchers.values() for watcher in each}
        return {"monitors": len(watchers), "links": sum(map(len, self._links.values())) // 2}

    # --- what happens ---

    def died(self, child: Child, death: Death) -> None:
        """An incarnation has ended, or could not be started."""
        news = _news(child.name, death, child.incarnation)
        for watcher in self._watchers.get(child.name, ()):
            if watcher.news.qsize() < WAITING_MAX:
                watcher.news.put_nowait(news)
            else:
                watcher.is_overrun = True
        for name in self._links.pop(child.name, ()):
            self._links[name].discard(child.name)
            self._drop_if_empty(name)
            self._signal(name, news, death)

    def forgotten(self, name: str) -> None:
        """Nobody bears the name any more: what monitors it has heard all there is to hear."""
        for watcher in self._watchers.get(name, ()):
            watcher.news.put_nowait(name)

    # --- what is asked ---

    async def monitor(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """A stream: first {monitoring: [name, ...]}, then {name, reason, cause, incarnation} for each death."""
        names = self._registry.members_of(name)
        watcher = _Watcher(names)
        for one in names:
            self._watchers.setdefault(one, set()).add(watcher)
            self._tell_the_past(watcher, one)
        try:
            yield {"monitoring": names}
            while watcher.open or not watcher.news.empty():
                if watcher.is_overrun and watcher.news.empty():
                    raise MailboxFull(f"more than {WAITING_MAX} deaths of {name!r} were not read: monitor it anew")
                news = await watcher.news.get()
                if isinstance(news, str):
                    watcher.open.discard(news)
                else:
                    yield news
        finally:
            for one in names:
                self._watchers[one].discard(watcher)
                if not self._watchers[one]:
                    del self._watchers[one]

    def _tell_the_past(self, watcher: _Watcher, name: str) -> None:
        """What is dead already is told at once; what nobody bears any more, or ever did, ends there."""
        child = self._registry.remembered(name)
        if child is None:
            watcher.news.put_nowait(_news(name, NOPROC, 0))
        elif child.state not in ALIVE:
            watcher.news.put_nowait(_news(name, child.last or NOPROC, child.incarnation))
        if child is None or not self._registry.bears(child):
            watcher.open.discard(name)

    def link(self, name: str, incarnation: int, other: str, trap: bool = False) -> None:
        """Link that incarnation of `name` to the present one of `other`, or to its next while it starts or restarts."""
        child = self._registry.remembered(other)
        if name == other:
            return
        if isinstance(child, ActorChild) and child.address is None and child.state in ("starting", "restarting"):
            key = name, incarnation, other
            if key not in self._pending:
                self._pending.add(key)
                task = asyncio.get_running_loop().create_task(self._link_later(key, child, trap))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return
        self._link_now(name, incarnation, other, trap)

    def unlink(self, name: str, other: str) -> None:
        """Undo a link, made or in the making."""
        self._pending = {key for key in self._pending if (key[0], key[2]) != (name, other)}
        for one, two in ((name, other), (other, name)):
            if one in self._links:
                self._links[one].discard(two)
                self._drop_if_empty(one)

    # --- links ---

    async def _link_later(self, key: tuple[str, int, str], child: ActorChild, trap: bool) -> None:
        await child.resolve()
        if key in self._pending:
            self._pending.discard(key)
            self._link_now(*key, trap)

    def _link_now(self, name: str, incarnation: int, other: str, trap: bool) -> None:
        mine, child = self._registry.remembered(name), self._registry.remembered(other)
        if not isinstance(mine, ActorChild) or mine.incarnation != incarnation or mine.state not in ALIVE:
            return  # the one that wanted the link is dead itself
        if isinstance(child, ActorChild) and child.address is not None:
            self._links.setdefault(name, set()).add(other)
            self._links.setdefault(other, set()).add(name)
            return
        death = child.last if child is not None and child.last is not None else NOPROC
        death = msgspec.structs.replace(death, kind="abnormal", how="noproc")
        self._signal(name, _news(other, death, child.incarnation if child is not None else 0), death, trap)

    def _signal(self, name: str, news: dict[str, Any], death: Death, trap: bool = False) -> None:
        child = self._registry.remembered(name)
        if isinstance(child, ActorChild):
            child.exit_signal(news, death, trap)

    def _drop_if_empty(self, name: str) -> None:
        if not self._links[name]:
            del self._links[name]


class MonitorVerbs:
    """What others may ask for. loom/wire/PROTOCOL.md lists these verbs."""

    def __init__(self, monitors: Monitors) -> None:
        self._monitors = monitors

    def monitor(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """A stream of the deaths of that name: see Monitors.monitor."""
        return self._monitors.monitor(name)

    def link(self, name: str, incarnation: int, other: str, trap: bool = False) -> None:
        """Link an incarnation of `name` to `other`; `trap`: it is told how that one ends, and does not end with it."""
        self._monitors.link(name, incarnation, other, trap)

    def unlink(self, name: str, other: str) -> None:
        """Undo a link, whoever of the two made it."""
        self._monitors.unlink(name, other)


def _news(name: str, death: Death, incarnation: int) -> dict[str, Any]:
    cause = msgspec.structs.asdict(death)
    return {"name": name, "reason": death.how, "cause": cause, "incarnation": incarnation}
