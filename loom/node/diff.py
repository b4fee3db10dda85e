"""Diff: what a new plan changes of the one that runs. Pure, and by name: a child that keeps name and supervisor stays.

    add       a child that was not there, or stood elsewhere: started in its place of the order
    remove    one that is gone, or stands elsewhere: stopped and forgotten; what it saved stays
    replace   an actor that is made in another way: a new process, which is given the state of the old one
    adjust    what only its supervisor needs to know (restart, shutdown_s, significant, a supervisor's rules, a
              template): nothing restarts
    move      the order among siblings: nothing restarts

What was started at run time is in no plan, and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from loom.node.plan import ActorPlan, GroupPlan, Plan, SupervisorPlan

IN_PLACE = ("restart", "shutdown_s", "significant")
"""Fields of an actor that are its supervisor's business alone."""

_OF_ACTOR = tuple(field for field in ActorPlan.__struct_fields__ if field not in (*IN_PLACE, "name"))
_OF_SUPERVISOR = tuple(field for field in SupervisorPlan.__struct_fields__ if field not in ("name", "children", "path"))


class Change(msgspec.Struct, frozen=True):
    """One step. `fields`: what differs, for "replace" and "adjust"."""

    what: Literal["add", "remove", "replace", "adjust", "move"]
    name: str
    supervisor: str
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        changed = f" ({', '.join(self.fields)})" if self.fields else ""
        return f"{self.what:<8} {self.name}{changed}" + (f" under {self.supervisor}" if self.supervisor else "")


def members(plan: SupervisorPlan) -> Iterator[ActorPlan | SupervisorPlan]:
    """The children of a supervisor in start order, groups taken apart."""
    if plan.strategy == "simple_one_for_one":
        return
    for child in plan.children:
        if isinstance(child, GroupPlan):
            yield from child.members
        else:
            yield child


def groups(plan: SupervisorPlan) -> dict[str, tuple[str, ...]]:
    """Every group below a plan, and its members' names."""
    found: dict[str, tuple[str, ...]] = {}
    for child in plan.children:
        if isinstance(child, GroupPlan):
            found[child.name] = tuple(member.name for member in child.members)
        elif isinstance(child, SupervisorPlan):
            found |= groups(child)
    return found


def diff(old: SupervisorPlan, new: SupervisorPlan) -> list[Change]:
    """What turns `old` into `new`; both are plans of the supervisor of one name. In the order in which to do it.

    Removals come last, for they cannot fail; those of a name that is then given to another child come first.
    """
    removed, others = _diff(old, new)
    added = {change.name for change in others if change.what == "add"}
    first = [change for change in removed if change.name in added]
    return [*first, *others, *(change for change in removed if change not in first)]


def _diff(old: SupervisorPlan, new: SupervisorPlan) -> tuple[list[Change], list[Change]]:
    """The removals, last started first, and everything else."""
    here = new.name
    before = {child.name: child for child in members(old)}
    after = {child.name: child for child in members(new)}
    removed = [
        Change("remove", name, here)
        for name, child in reversed(before.items())
        if name not in after or not _is_same_kind(child, after[name])
    ]
    gone = {change.name for change in removed}
    others: list[Change] = []
    fields = _differing(old, new, _OF_SUPERVISOR)
    if new.strategy == "simple_one_for_one" and old.children != new.children:
        fields = (*fields, "template")
    if fields:
        others.append(Change("adjust", here, "", fields))
    for name, child in after.items():
        was = before.get(name)
        if was is None or name in gone:
            others.append(Change("add", name, here))
        elif isinstance(child, SupervisorPlan):
            assert isinstance(was, SupervisorPlan)
            below, rest = _diff(was, child)
            removed = [*below, *removed]
            others += rest
        elif made := _differing(was, child, _OF_ACTOR):
            others.append(Change("replace", name, here, (*made, *_differing(was, child, IN_PLACE))))
        elif adjusted := _differing(was, child, IN_PLACE):
            others.append(Change("adjust", name, here, adjusted))
    others += [Change("move", name, here) for name in _moved(list(before), list(after), gone)]
    return removed, others


def _is_same_kind(old: Plan, new: Plan) -> bool:
    """Whether the one can become the other; a supervisor whose children come from a template cannot become another."""
    if isinstance(old, SupervisorPlan) and isinstance(new, SupervisorPlan):
        simple = "simple_one_for_one"
        return (old.strategy == simple) == (new.strategy == simple)
    return type(old) is type(new)


def _differing(old: msgspec.Struct, new: msgspec.Struct, fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(field for field in fields if getattr(old, field) != getattr(new, field))


def _moved(before: list[str], after: list[str], gone: set[str]) -> list[str]:
    """Those that stay, and whose moving explains the new order."""
    kept = set(before) & set(after) - gone
    was = [name for name in before if name in kept]
    now = [name for name in after if name in kept]
    moved = []
    for name in now:
        if was and was[0] == name:
            was.pop(0)
        else:
            moved.append(name)
            was.remove(name)
    return moved
