"""Site: one node's tree of supervisors and actors, and the verbs that others may ask of it.

The verbs are the public methods of `Service`: the node's own mailbox runs them like any actor's. They answer in plain
data, so that a client in any language can use them.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loom.actor import board as rows
from loom.actor.address import Address
from loom.actor.board import Board
from loom.actor.child import Order
from loom.actor.dead_letter import DeadLetter
from loom.actor.death import Death
from loom.actor.snapshot import Keeping
from loom.arena import Arena
from loom.clock import monotonic
from loom.errors import StartFailed, UsageError
from loom.node.dead_letters import DeadLetters
from loom.node.holdings import Tally
from loom.node.monitors import Monitors
from loom.node.plan import ActorPlan, Plan, SupervisorPlan
from loom.node.pools import Pools
from loom.node.registry import Registry, gone
from loom.supervise import stack
from loom.supervise.child import ActorChild, Child
from loom.supervise.launcher import Launcher
from loom.supervise.limits import Limiter
from loom.supervise.orphans import Orphans
from loom.supervise.spec import RESERVED_NAMES, check_name
from loom.supervise.supervisor import Supervisor

_T = TypeVar("_T")


class Site:
    """What the children of one node share: zygote, board, arena, folder and names."""

    def __init__(
        self,
        launcher: Launcher,
        board: Board,
        arena: Arena,
        folder: Path,
        address: Address,
        cookie: str,
        keeping: Keeping,
    ) -> None:
        self.launcher = launcher
        self.board = board
        self.arena = arena
        self.folder = folder
        self.address = address
        self.cookie = cookie
        self.keeping = keeping
        self.is_draining = False
        self.registry = Registry()
        self.limiter = Limiter(cookie, lambda: (os.getpid(), launcher.pid))
        self.monitors = Monitors(self.registry)
        self.orphans = Orphans(cookie, lambda: launcher.pid)
        self.dead_letters = DeadLetters()
        self.pools = Pools(self)
        self._unsettled: dict[str, dict[int, tuple[int, int]]] = {}
        self._free_rows = list(range(rows.ROWS - 1, 0, -1))  # row 0 is the node's own
        self._tasks: set[asyncio.Task[Any]] = set()

    def take_row(self) -> int:
        """A free row of the status board. Raises: StartFailed (L3001) when there is none left."""
        if not self._free_rows:
            raise StartFailed(f"a node has room for {rows.ROWS - 1} actors: stop some, or start another node")
        row = self._free_rows.pop()
        try:
            self.board.reserve(row)
        except StartFailed:
            self._free_rows.append(row)
            raise
        return row

    def free_row(self, row: int) -> None:
        """Take a row back; it is used again as late as possible."""
        self.board.words[row * rows.WORDS + rows.STATE] = rows.FREE
        self._free_rows.insert(0, row)

    async def surely(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Do what was asked for to its end, even if whoever asked, and waits, gives up: no child is left half-way."""
        task = asyncio.get_running_loop().create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    def build(self, plan: SupervisorPlan, on_exit: Callable[[Supervisor, Death], None]) -> Supervisor:
        """The supervisor that a plan describes, with all its children, none of them started.

        Raises: NameTaken (L1002), StartFailed (L3001).
        """
        supervisor = Supervisor(plan, plan.name, on_exit)
        supervisor.restart = plan.restart
        supervisor.significant = plan.significant
        supervisor.on_forget = self.forget
        supervisor.on_revive = self.revive
        supervisor.on_death = self.mourn
        self.registry.add(supervisor)
        try:
            for child in () if supervisor.is_simple else plan.children:
                for one in self.make(child, supervisor):
                    supervisor.add_planned(one)
        except BaseException:
            self.forget(supervisor)
            raise
        return supervisor

    def make(self, plan: Plan, supervisor: Supervisor) -> list[Child]:
        """The children that a plan describes, registered and not started: one, or the members of a group.

        Raises: NameTaken (L1002), StartFailed (L3001); then there is none of them.
        """
        if isinstance(plan, SupervisorPlan):
            return [self.build(plan, supervisor.child_ended)]
        if isinstance(plan, ActorPlan):
            return [self.make_actor(plan, supervisor)]
        self.registry.add_group(plan.name, tuple(member.name for member in plan.members))
        made: list[Child] = []
        try:
            for member in plan.members:
                made.append(self.make_actor(member, supervisor))
        except BaseException:
            for child in made:
                self.forget(child)
            self.registry.remove_group(plan.name)
            raise
        try:
            self.pools.add(plan, supervisor)
        except BaseException:
            for child in made:
                self.forget(child)
            raise
        return made

    def order_of(self, plan: ActorPlan) -> Order:
        """What an actor of that plan is made from; each start fills in what is its own."""
        return Order(
            name=plan.name,
            incarnation=0,
            endpoint="",
            row=0,
            node=self.address,
            arena=self.arena.name,
            cookie=self.cookie,
            pickled=plan.pickled,
            target=plan.target,
            further=plan.further,
            path=list(plan.path),
            capacity=plan.mailbox.capacity,
            policy=plan.mailbox.policy,
            watchdog_s=plan.watchdog_s,
            start_s=plan.start_s,
            limits=plan.limits,
            keeping=msgspec.structs.replace(self.keeping, cadence=plan.snapshot, is_fresh=plan.is_fresh),
        )

    async def try_out(self, plan: ActorPlan) -> Death | None:
        """Whether the class of a plan can be imported, in a process of its own: None, or how that failed."""
        order = self.order_of(plan)
        trial = ActorChild(self, plan.name, order, plan.restart, plan.shutdown_s, lambda child, death: None)
        try:
            return await trial.try_out(trial.order)
        finally:
            self.free_row(trial.board_row)

    def make_actor(self, plan: ActorPlan, supervisor: Supervisor) -> ActorChild:
        """The child that a plan describes, registered and not started. Raises: NameTaken (L1002), StartFailed."""
        order = self.order_of(plan)
        child = ActorChild(
            self, plan.name, order, plan.restart, plan.shutdown_s, supervisor.child_ended, plan.mailbox.on_death
        )
        child.significant = plan.significant
        try:
            self.registry.add(child)
        except BaseException:
            self.free_row(child.board_row)
            raise
        return child

    def bury(self, one: DeadLetter) -> None:
        """Keep a dead letter; one that no actor has counted is counted as its actor's."""
        self.dead_letters.add(one)
        child = None if one.is_counted else self.registry.remembered(one.actor)
        if isinstance(child, ActorChild) and child.has_row:
            self.board.words[child.board_row * rows.WORDS + rows.UNDELIVERED] += 1

    def settle(self) -> None:
        """One round of looking for what dead senders let in and never sent."""
        self._unsettled = {
            child.name: found
            for child in self.registry
            if isinstance(child, ActorChild) and (found := child.settle(self._unsettled.get(child.name, {})))
        }

    def forget(self, child: Child) -> None:
        """A child that will not start again: free its name and row, and those of everything below it."""
        if isinstance(child, Supervisor):
            for below in child.children:
                self.forget(below)
        elif isinstance(child, ActorChild):
            child.forget()
        self.registry.remove(child)
        self._pool_changed(child)
        self.monitors.forgotten(child.name)

    def _pool_changed(self, child: Child) -> None:
        group = self.registry.group_of(child.name)
        if self.registry.has_group(group):
            self.pools.changed(group)
        elif group:
            self.pools.remove(group)

    def revive(self, child: Child) -> None:
        """A child that was forgotten may start again. Raises: NameTaken (L1002), StartFailed (L3001)."""
        self.registry.add_again(child)
        self._pool_changed(child)
        try:
            if isinstance(child, Supervisor):
                child.children = []
                for below in child.planned:
                    self.revive(below)
                    child.children.append(below)
            elif isinstance(child, ActorChild):
                child.revive()
        except BaseException:
            for below in child.children if isinstance(child, Supervisor) else ():
                self.forget(below)
            self.registry.remove(child)
            raise

    def mourn(self, child: Child, death: Death) -> None:
        """A child has died, or could not start: tell those who want to know."""
        self.monitors.died(child, death)


class Service:
    """The node's verbs. Names are the protocol's: loom/wire/PROTOCOL.md lists them."""

    def __init__(self, site: Site, name: str, root: Supervisor, shut_down: Callable[[str], None]) -> None:
        self._site = site
        self._name = name
        self._root = root
        self._shut_down = shut_down
        self._started = monotonic()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def resolve(self, name: str) -> dict[str, Any]:
        """Address of the present incarnation of `name`, waiting while it starts or restarts."""
        registry = self._site.registry
        child = registry.actor(registry.member(name))
        address = await child.resolve()
        if address is None:
            raise gone(child)
        return msgspec.structs.asdict(address)

    async def obituary(self, name: str, incarnation: int, ticket: int = 0) -> dict[str, Any]:
        """How that incarnation died: {cause, last_id, begun}; `begun`: how many messages with that ticket had begun."""
        child = self._site.registry.remembered(name)
        found = await child.obituary(incarnation) if isinstance(child, ActorChild) else None
        if found is None:
            return {"cause": "cause unknown, it is too long ago"}
        cause = found.death.text
        if found.death.traceback:
            cause = f"{cause}\n--- remote traceback ---\n{found.death.traceback.rstrip()}"
        if found.death.stack:
            cause = f"{cause}\n--- stack ---\n{found.death.stack.rstrip()}"
        return {"cause": cause, "last_id": found.last_id, "begun": found.begun.get(ticket, -1)}

    def kill_call(self, name: str, incarnation: int, call_id: int, after_s: float) -> None:
        """Kill that incarnation in `after_s` seconds, if it is then still running that message."""
        child = self._site.registry.actor(name)
        why = f"a call that its caller had cancelled did not end within {after_s:g} s"
        asyncio.get_running_loop().call_later(max(0.0, after_s), child.kill_call, incarnation, call_id, why)

    def bury(self, letters: list[tuple[Any, ...]]) -> None:
        """Keep these dead letters; those that no actor has counted are counted here."""
        for values in letters:
            self._site.bury(DeadLetter(*values))

    def dead_letters(self, limit: int = 100) -> dict[str, Any]:
        """The last dead letters, oldest first, and how many there have been: {total, letters}."""
        kept = self._site.dead_letters
        return {"total": kept.total, "letters": [msgspec.to_builtins(one) for one in kept.last(limit)]}

    def pool(self, name: str) -> dict[str, Any]:
        """Of the group with that name: {routing, row, version, names, rows}."""
        return self._site.pools.describe(name)

    async def resize(self, name: str, instances: int) -> list[str]:
        """Start or stop members of a group until there are that many; returns their names."""
        return await self._site.pools.resize(name, instances)

    def lookup(self, name: str) -> str:
        """The name of the actor that `name` means now: itself, or the next member of its group."""
        member = self._site.registry.member(name)
        return self._site.registry.actor(member).name

    async def spawn(self, name: str | None, base: str, pickled: bytes, path: list[str]) -> str:
        """Start an actor under the root supervisor; returns its name before it has started."""
        registry = self._site.registry
        chosen = registry.free_name(_plain(base)) if name is None else name
        check_name("spawn", "name", chosen)
        plan = ActorPlan(chosen, "", pickled, tuple(path), is_fresh=name is None)
        self._root.check_running()
        child = self._site.make_actor(plan, self._root)
        self._root.add(child)
        task = asyncio.get_running_loop().create_task(self._root.start_child(child))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return chosen

    async def stop_child(self, name: str) -> None:
        """Stop an actor, a supervisor or a whole group for good; returns when it is gone."""
        for member in reversed(self._site.registry.members(name)):
            child = self._site.registry.find(member)
            if child is self._root:
                raise UsageError(f"{member!r} is the node's first supervisor: shutdown ends it, and the node with it")
            for supervisor in self._supervisors(self._root):
                if child in supervisor.children:
                    await self._site.surely(supervisor.remove_child(child))
                    break

    def _supervisors(self, top: Supervisor) -> list[Supervisor]:
        found = [top]
        for child in top.children:
            if isinstance(child, Supervisor):
                found += self._supervisors(child)
        return found

    def info(self) -> dict[str, Any]:
        """Who the node is: {name, pid, endpoint, arena, state, uptime_s}."""
        return {
            "name": self._name,
            "pid": os.getpid(),
            "endpoint": self._site.address.endpoint,
            "arena": self._site.arena.name,
            "state": self._site.keeping.folder,
            "uptime_s": monotonic() - self._started,
        }

    def stats(self) -> dict[str, Any]:
        """Figures of the node, of every actor, of the arena, and the last restarts."""
        actors = [self._actor(child) for child in self._site.registry if isinstance(child, ActorChild)]
        restarts = [
            msgspec.to_builtins(one)
            for child in self._site.registry
            if isinstance(child, ActorChild)
            for one in child.restarts
        ]
        return {
            **self.info(),
            "actors": actors,
            "arena": msgspec.to_builtins(self._site.arena.stats()),
            "restarts": restarts,
            **self._site.monitors.count(),
            "restart_count": sum(one.restart_count for one in self._supervisors(self._root)),
        }

    async def arena(self) -> dict[str, Any]:
        """Who has what of the shared memory: figures, segments, and each process's holdings."""
        arena = self._site.arena
        segments = arena.segments()
        tally = Tally(segments)
        for segment in segments:
            tally.add(arena.blocks(segment.index))
            await asyncio.sleep(0)  # a segment may have thousands of blocks, the arena a thousand segments
        actors = (child for child in self._site.registry if isinstance(child, ActorChild))
        names = {child.address.pid: child.name for child in actors if child.address}
        report = tally.report(arena.name, arena.policy, arena.stats(), arena.participants(), arena.in_flight(), names)
        found: dict[str, Any] = msgspec.to_builtins(report)
        return found

    async def stack(self, name: str) -> dict[str, Any]:
        """What the threads of an actor are at: {pid, threads, error}."""
        child = self._site.registry.actor(name)
        if child.address is None:
            raise gone(child)
        found: dict[str, Any] = msgspec.to_builtins(await stack.capture(child.address.pid))
        return found

    def _actor(self, child: ActorChild) -> dict[str, Any]:
        reading = msgspec.to_builtins(child.reading())
        return {
            "name": child.name,
            **reading,
            "state": child.state,
            "pid": child.address.pid if child.address else 0,
            "incarnation": child.incarnation,
            "last_death": child.last.text if child.last else "",
        }

    def tree(self) -> dict[str, Any]:
        """The supervisors and actors as nested maps, in start order."""
        return self._branch(self._root)

    def _branch(self, child: Child) -> dict[str, Any]:
        if isinstance(child, Supervisor):
            return {
                "name": child.name,
                "kind": "supervisor",
                "state": child.state,
                "strategy": child.rules.strategy,
                "children": [self._branch(below) for below in child.children],
            }
        assert isinstance(child, ActorChild)
        return {
            "name": child.name,
            "kind": "actor",
            "state": child.state,
            "pid": child.address.pid if child.address else 0,
            "incarnation": child.incarnation,
            "restart": child.restart,
        }

    def shutdown(self, reason: str = "asked to") -> None:
        """Stop every actor in order, then the node itself; returns at once."""
        self._shut_down(reason)


def _plain(base: str) -> str:
    """A class's name as a valid and not too long name of an actor."""
    found = re.sub(r"[^A-Za-z0-9_-]+", "_", base)[:40]
    return "actor" if found in ("", *RESERVED_NAMES) else found
