"""Pools: the groups of children that bear one name, how messages are spread over them, and how many there are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from loom.actor import board as rows
from loom.clock import monotonic
from loom.errors import ActorNotFound, ConfigError, StartFailed
from loom.node.plan import ActorPlan, GroupPlan
from loom.supervise.child import ActorChild
from loom.supervise.spec import INSTANCES_MAX

if TYPE_CHECKING:
    from loom.node.site import Site
    from loom.supervise.supervisor import Supervisor

DRAIN_S = 5.0
"""How long a member that is to go may take over what it has, before it is stopped all the same."""


class PoolState:
    """One pool. `row`: its own line on the status board, whose word INCARNATION counts changes of its members."""

    def __init__(self, plan: GroupPlan, supervisor: Supervisor, row: int) -> None:
        self.plan = plan
        self.supervisor = supervisor
        self.row = row
        self.is_resizing = asyncio.Lock()


class Pools:
    """All pools of a node."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._pools: dict[str, PoolState] = {}

    def add(self, plan: GroupPlan, supervisor: Supervisor) -> None:
        """A group of children is there. Raises: StartFailed (L3001)."""
        self._pools[plan.name] = PoolState(plan, supervisor, self._site.take_row())
        self.changed(plan.name)

    def remove(self, name: str) -> None:
        """Its last member is gone."""
        pool = self._pools.pop(name, None)
        if pool is not None:
            self._site.free_row(pool.row)

    def changed(self, name: str) -> None:
        """Its members are others now: senders ask who when they next send."""
        pool = self._pools.get(name)
        if pool is not None:
            self._site.board.words[pool.row * rows.WORDS + rows.INCARNATION] += 1

    def describe(self, name: str) -> dict[str, Any]:
        """How it spreads messages, and over whom. Raises: ActorNotFound (L1003)."""
        pool = self._find(name)
        version = self._site.board.words[pool.row * rows.WORDS + rows.INCARNATION]
        members = self._members(name)
        return {
            "routing": pool.plan.routing,
            "row": pool.row,
            "version": version,
            "names": [child.name for child in members],
            "rows": [child.board_row for child in members],
        }

    async def resize(self, name: str, instances: int) -> list[str]:
        """Start or stop members until there are `instances`; the names of those there are.

        One that is to go gets nothing new, and DRAIN_S for what it has. Raises: ActorNotFound (L1003), ConfigError
        (L1001), StartFailed (L3001) when a new member does not start; those before it stay.
        """
        pool = self._find(name)
        if not isinstance(instances, int) or not 1 <= instances <= INSTANCES_MAX:
            raise ConfigError(f"resize {name!r}: expected 1 to {INSTANCES_MAX} instances, got {instances!r}")
        async with pool.is_resizing:
            members = self._members(name)
            for child in reversed(members[instances:]):
                self._site.registry.leave_group(child.name)
                self.changed(name)
                until = monotonic() + DRAIN_S
                while child.reading().depth + child.reading().running and monotonic() < until:
                    await asyncio.sleep(0.01)
                await pool.supervisor.remove_child(child)
            taken = {child.name for child in members}
            for number in range(INSTANCES_MAX):
                if len(taken) >= instances:
                    break
                new = f"{name}.{number}"
                if new not in taken:
                    taken.add(new)
                    await self._start(pool, msgspec.structs.replace(pool.plan.members[0], name=new))
        return [child.name for child in self._members(name)]

    async def _start(self, pool: PoolState, plan: ActorPlan) -> None:
        child = self._site.make_actor(plan, pool.supervisor)
        pool.supervisor.add(child)
        death = await pool.supervisor.start_child(child)
        if death is not None:
            raise StartFailed(f"member {plan.name!r} of pool {pool.plan.name!r} did not start: {death.text}")
        self._site.registry.join_group(plan.name, pool.plan.name)
        self.changed(pool.plan.name)

    def _find(self, name: str) -> PoolState:
        pool = self._pools.get(name)
        if pool is None:
            raise ActorNotFound(f"no pool named {name!r} on this node: a pool is a child with instances > 1")
        return pool

    def _members(self, name: str) -> list[ActorChild]:
        registry = self._site.registry
        names = sorted(registry.members(name), key=lambda one: (len(one), one))
        return [child for one in names if isinstance(child := registry.find(one), ActorChild)]
