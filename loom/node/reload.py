"""Reload: turn the tree that runs into the one of a new plan, or change nothing.

Every class that is to run is first imported in a process of its own. Then the steps of loom/node/diff.py are done one
after the other; when one fails, those before it are undone, last first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from loom.actor.death import OVERTAKEN, Death
from loom.errors import LoomError, StartFailed, UsageError
from loom.node.diff import Change, diff, groups, members
from loom.node.plan import ActorPlan, SupervisorPlan
from loom.node.site import Site
from loom.supervise.child import ActorChild, Child
from loom.supervise.supervisor import Supervisor
from loom.supervise.upgrade import upgrade
from loom.telemetry import log

FINISH_S = 30.0
"""How long an actor that is replaced may take to finish its messages; after that nothing is changed."""

_decoder = msgspec.msgpack.Decoder(SupervisorPlan)
_Undo = Callable[[], Awaitable[None]]


class ReloadVerbs:
    """The node's verbs `config` and `reload`. `facts`: what `config` tells beside the plan."""

    def __init__(self, site: Site, plan: SupervisorPlan, facts: dict[str, Any]) -> None:
        self._site = site
        self._plan = plan
        self._facts = facts
        self._undo: list[_Undo] = []
        self._turn = asyncio.Lock()
        self._version = 1

    def config(self) -> dict[str, Any]:
        """Where the node's config came from: {file, search, arena_bytes, state, version}."""
        return {**self._facts, "version": self._version}

    async def reload(self, plan: bytes, apply: bool = False, version: int | None = None) -> dict[str, Any]:
        """The steps to a new plan, {changes, version}; with `apply` they have been done.

        `version`: of the plan that the steps were shown for; another one since then is L1008.
        """
        new = _decoder.decode(plan)
        async with self._turn:
            if version is not None and version != self._version:
                raise UsageError("the node's config was reloaded by somebody else meanwhile: look at the plan again")
            changes = diff(self._plan, new)
            if apply and changes:
                # Once begun it goes on, whoever waits for it.
                await asyncio.shield(asyncio.ensure_future(self._apply(new, changes)))
            return {
                "changes": [{**msgspec.to_builtins(change), "text": str(change)} for change in changes],
                "version": self._version,
            }

    async def _apply(self, new: SupervisorPlan, changes: list[Change]) -> None:
        await self._try_out(new, changes)
        self._undo = []
        try:
            for change in changes:
                if change.what != "move":
                    await self._do(change, _plans(self._plan), _plans(new))
        except BaseException as error:
            for undo in reversed(self._undo):
                try:
                    await undo()
                except LoomError as problem:
                    log.error("reload: a step could not be undone: %s", problem)
            self._regroup(self._plan)
            if isinstance(error, LoomError):
                error.args = (f"nothing was changed: {error.args[0]}", *error.args[1:])
            raise
        self._plan = new
        self._version += 1
        self._regroup(new)

    def _regroup(self, plan: SupervisorPlan) -> None:
        """Order and groups as the plan has them."""
        for one in _plans(plan).values():
            if isinstance(one, SupervisorPlan):
                above = self._site.registry.remembered(one.name)
                if not isinstance(above, Supervisor):  # deleted by hand
                    continue
                place = {child.name: at for at, child in enumerate(members(one))}
                above.children.sort(key=lambda child: place.get(child.name, len(place)))
                above.planned.sort(key=lambda child: place.get(child.name, len(place)))
        self._site.registry.set_groups(groups(plan))

    async def _try_out(self, new: SupervisorPlan, changes: list[Change]) -> None:
        """Import the class of every actor that is to run. Raises: StartFailed (L3001)."""
        plans = _plans(new)
        for change in changes:
            if change.what not in ("add", "replace"):
                continue
            for plan in _actors(plans[change.name]):
                death = await self._site.try_out(plan)
                if death is not None:
                    raise StartFailed(
                        _failure(f"nothing was changed: {plan.name!r} cannot be made: {death.text}", death)
                    )

    async def _do(self, change: Change, old: dict[str, Any], new: dict[str, Any]) -> None:
        name = change.name
        if change.what == "remove":
            above = self._supervisor(change.supervisor)
            await self._remove(above, name)
            self._undo.append(lambda: self._add(above, old[name]))
        elif change.what == "add":
            above = self._supervisor(change.supervisor)
            await self._add(above, new[name])
            self._undo.append(lambda: self._remove(above, name))
        else:
            child = self._site.registry.find(name)
            await self._turn_into(child, new[name], replace=change.what == "replace")
            self._undo.append(lambda: self._turn_into(child, old[name], replace=change.what == "replace"))

    async def _turn_into(self, child: Child, plan: ActorPlan | SupervisorPlan, *, replace: bool) -> None:
        if isinstance(child, Supervisor):
            assert isinstance(plan, SupervisorPlan)
            child.rules = plan
        elif isinstance(child, ActorChild):
            assert isinstance(plan, ActorPlan)
            if replace:
                await self._replace(child, plan)
            child.shutdown_s = plan.shutdown_s
        child.restart, child.significant = plan.restart, plan.significant

    async def _replace(self, child: ActorChild, plan: ActorPlan) -> None:
        """Make an actor in another way; one that does not run, as it failed or was stopped, is simply made anew."""
        order = self._site.order_of(plan)
        if child.state == "running":
            await upgrade(child, order, FINISH_S)
            return
        child.round += 1
        await child.stop("reload")
        child.order = order
        death = await child.start()
        if death is not None and death is not OVERTAKEN:
            child.set_state("stopped")
            raise StartFailed(_failure(f"{child.name!r} failed to start: {death.text}", death))

    async def _remove(self, above: Supervisor, name: str) -> None:
        child = next((one for one in above.children if one.name == name), None)
        above.planned[:] = [one for one in above.planned if one.name != name]
        if child is not None:
            await above.remove_child(child)

    async def _add(self, above: Supervisor, plan: ActorPlan | SupervisorPlan) -> None:
        for child in self._site.make(plan, above):
            above.add(child)
            death = await above.start_child(child)
            if death is not None:
                raise StartFailed(_failure(f"{child.name!r} failed to start: {death.text}", death))
            above.planned.append(child)

    def _supervisor(self, name: str) -> Supervisor:
        found = self._site.registry.find(name)
        assert isinstance(found, Supervisor)
        return found


def _plans(plan: SupervisorPlan) -> dict[str, ActorPlan | SupervisorPlan]:
    """Everything in a plan by its name, itself included."""
    found: dict[str, ActorPlan | SupervisorPlan] = {plan.name: plan}
    for child in members(plan):
        found |= _plans(child) if isinstance(child, SupervisorPlan) else {child.name: child}
    return found


def _actors(plan: ActorPlan | SupervisorPlan) -> list[ActorPlan]:
    return (
        [one for one in _plans(plan).values() if isinstance(one, ActorPlan)]
        if isinstance(plan, SupervisorPlan)
        else [plan]
    )


def _failure(text: str, death: Death) -> str:
    return f"{text}\n--- remote traceback ---\n{death.traceback.rstrip()}" if death.traceback else text
