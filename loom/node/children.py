"""Children at run time: the node's verbs for any of its supervisors, the root included.

The verbs and their errors are those of OTP's supervisor module: `terminate_child` leaves the row, for `restart_child`
or `delete_child`. A child is described to `start_child` by the map that a config file has for it, by a plan (what
Python peers send, for classes that only they can name), or, where the supervisor has a template, by further arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loom.actor.death import OVERTAKEN, Death
from loom.errors import ActorNotFound, ChildError, ConfigError, StartFailed, UsageError
from loom.node.plan import ActorPlan, GroupPlan, Plan, SupervisorPlan, child_plan
from loom.node.site import Site
from loom.node.stats import ChildInfo
from loom.supervise.child import ActorChild, Child
from loom.supervise.policy import ALIVE
from loom.supervise.spec import check_name, check_significant
from loom.supervise.supervisor import Supervisor
from loom.wire import codec

_plans: msgspec.msgpack.Decoder[Plan] = msgspec.msgpack.Decoder(Plan)


class ChildVerbs:
    """The node's verbs about the children of its supervisors. loom/wire/PROTOCOL.md lists them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._made = 0

    async def start_child(
        self, supervisor: str, child: dict[str, Any] | bytes, path: list[str] | None = None
    ) -> dict[str, Any]:
        """Add a child at the end and start it: {name, kind, state}, with state "stopped" when it did not want to."""
        above = self._supervisor(supervisor)
        if above.is_simple:
            text = f"supervisor {supervisor!r} makes its children from a template: give arguments, not a child spec"
            raise ChildError(text, reason="simple_one_for_one")
        plan = self._plan(above, child, path)
        above.check_running()
        if isinstance(plan, GroupPlan):
            for member in plan.members:
                self._check_absent(above, member.name)
        self._check_absent(above, plan.name)
        made = self._site.make(plan, above)
        await self._site.surely(self._start(above, made))
        return {"name": plan.name, **_outcome(made[0])}

    async def start_from_template(
        self,
        supervisor: str,
        args: list[Any] | bytes = (),  # type: ignore[assignment]
        kwargs: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Start one more child of a simple_one_for_one, `args` behind the template's own: as start_child."""
        above = self._supervisor(supervisor)
        template = _template(above)
        further = args if isinstance(args, bytes) else codec.dumps_order(None, tuple(args), dict(kwargs or {}))
        above.check_running()
        is_fresh = name is None
        if name is None:
            name = self._free_name(template.name)
        check_name("start_child", "name", name)
        self._check_absent(above, name)
        template = msgspec.structs.replace(template, name=name, further=further, is_fresh=is_fresh)
        made = self._site.make(template, above)
        await self._site.surely(self._start(above, made))
        return {"name": name, **_outcome(made[0])}

    async def terminate_child(self, supervisor: str, name: str) -> None:
        """Stop a child, or a whole group, in its shutdown time; the row stays, unless the child is temporary."""
        above = self._supervisor(supervisor)
        for child in reversed(self._members(above, name)):
            await self._site.surely(above.stop_child(child))

    async def restart_child(self, supervisor: str, name: str) -> dict[str, Any]:
        """Start a child that is stopped: as start_child."""
        above = self._supervisor(supervisor)
        children = self._members(above, name)
        for child in children:
            _check_started(child, await self._site.surely(above.restart_child(child)))
        return {"name": name, **_outcome(children[0])}

    async def delete_child(self, supervisor: str, name: str) -> None:
        """Forget a child that is stopped."""
        above = self._supervisor(supervisor)
        for child in reversed(self._members(above, name)):
            above.delete_child(child)

    def which_children(self, supervisor: str) -> list[dict[str, Any]]:
        """Every row, in start order: see ChildInfo."""
        found: list[dict[str, Any]] = msgspec.to_builtins([_info(one) for one in self._supervisor(supervisor).children])
        return found

    def count_children(self, supervisor: str) -> dict[str, int]:
        """How many: {specs, active, supervisors, workers}."""
        above = self._supervisor(supervisor)
        supervisors = sum(isinstance(child, Supervisor) for child in above.children)
        return {
            "specs": 1 if above.is_simple else len(above.children),
            "active": sum(child.state in ALIVE for child in above.children),
            "supervisors": supervisors,
            "workers": len(above.children) - supervisors,
        }

    def _supervisor(self, name: str) -> Supervisor:
        child = self._site.registry.find(name)
        if not isinstance(child, Supervisor):
            raise ActorNotFound(f"{name!r} is an actor, not a supervisor: name the supervisor that it stands under")
        return child

    def _members(self, above: Supervisor, name: str) -> list[Child]:
        """The children here that the name means: one, or those of a group. Raises: ActorNotFound (L1003)."""
        names = self._site.registry.members_of(name)
        found = [child for child in above.children if child.name in names]
        if not found:
            known = ", ".join(child.name for child in above.children[:8]) or "none"
            raise ActorNotFound(f"supervisor {above.name!r} has no child {name[:64]!r}; it has {known}")
        return found

    def _check_absent(self, above: Supervisor, name: str) -> None:
        """Raises: ChildError (L1010) when a child of that name is here; elsewhere, making it says NameTaken (L1002)."""
        here = next((child for child in above.children if child.name == name), None)
        if here is not None and here.state == "stopped":
            text = (
                f"supervisor {above.name!r} has a child {name!r}, which is stopped: restart_child, or delete it first"
            )
            raise ChildError(text, reason="already_present")
        if here is not None:
            text = f"supervisor {above.name!r} has a child {name!r}, which is {here.state}: choose another name"
            raise ChildError(text, reason="already_started")

    def _plan(self, above: Supervisor, child: dict[str, Any] | bytes, path: list[str] | None) -> Plan:
        if isinstance(child, bytes):
            try:
                plan = _plans.decode(child)
            except msgspec.MsgspecError as error:
                raise ConfigError(f"start_child: this is no plan: {error}") from None
            if isinstance(plan, SupervisorPlan) and not plan.name:
                plan = msgspec.structs.replace(plan, name=self._site.registry.free_name("supervisor"))
        else:
            from loom.node.config import read_child

            assert isinstance(above.rules, SupervisorPlan)
            plan = child_plan(read_child(child), above.rules.path if path is None else path)
        first = plan.members[0] if isinstance(plan, GroupPlan) else plan
        check_significant(above.rules.auto_shutdown, first.significant)
        return plan

    def _free_name(self, base: str) -> str:
        """A name that no child of a template has had: `session-1`, `session-2` ..."""
        while True:
            self._made += 1
            name = f"{base[:50]}-{self._made}"
            if not self._site.registry.is_taken(name):
                return name

    async def _start(self, above: Supervisor, made: Sequence[Child]) -> None:
        """Start what was made, in order; when one fails, those before it are stopped, and none is kept."""
        for child in made:
            above.add(child)
        for at, child in enumerate(made):
            death = await above.start_child(child)
            if death is not None and death is not OVERTAKEN:
                for other in reversed([*made[:at], *made[at + 1 :]]):
                    if other in above.children:
                        await above.remove_child(other)
            _check_started(child, death)


def _template(above: Supervisor) -> ActorPlan:
    rules = above.rules
    if not above.is_simple or not isinstance(rules, SupervisorPlan):
        raise UsageError(f"supervisor {above.name!r} is {rules.strategy}: expected a child spec, got arguments for one")
    (template,) = rules.children
    assert isinstance(template, ActorPlan)
    return template


def _check_started(child: Child, death: Death | None) -> None:
    """Raises: StartFailed (L3001) with the remote traceback when its start came to nothing."""
    if death is not None and child.state != "running":  # else a sibling's death had it restarted meanwhile
        trace = f"\n--- remote traceback ---\n{death.traceback.rstrip()}" if death.traceback else ""
        raise StartFailed(f"child {child.name!r}: {death.text}{trace}")


def _outcome(child: Child) -> dict[str, Any]:
    return {"kind": _kind(child), "state": child.state}


def _kind(child: Child) -> str:
    return "supervisor" if isinstance(child, Supervisor) else "actor"


def _info(child: Child) -> ChildInfo:
    return ChildInfo(
        name=child.name,
        kind=_kind(child),
        state=child.state,
        restart=child.restart,
        significant=child.significant,
        pid=child.address.pid if isinstance(child, ActorChild) and child.address else 0,
        incarnation=child.incarnation,
        last_death=child.last.text if child.last else "",
    )
