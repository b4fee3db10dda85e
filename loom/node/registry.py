"""Registry: every name of a node, and what bears it."""

from __future__ import annotations

import difflib
import itertools
from collections import deque
from collections.abc import Iterator

from loom.errors import ActorDied, ActorNotFound, NameTaken
from loom.supervise.child import ActorChild, Child
from loom.supervise.spec import NAME_MAX_CHARS, ROOT

REMEMBERED = 64
"""Names of the dead that are remembered, for callers that still have a reference to them."""


class Registry:
    """Names are unique on a node, whatever supervisor a child stands under."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._groups: dict[str, deque[str]] = {}
        self._group_of: dict[str, str] = {}
        self._dead: dict[str, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def add(self, child: Child) -> None:
        """Give a child its name. Raises: NameTaken (L1002)."""
        if child.name in self._children or child.name in self._groups:
            raise NameTaken(f"the name {child.name!r} is taken on this node: choose another, or stop that child first")
        self._children[child.name] = child
        self._dead.pop(child.name, None)

    def add_again(self, child: Child) -> None:
        """Give a child that was removed its name back, and its place in its group. Raises: NameTaken (L1002)."""
        self.add(child)
        group = self._group_of.get(child.name)
        if group is not None:
            self._groups.setdefault(group, deque()).append(child.name)

    def add_group(self, name: str, members: tuple[str, ...]) -> None:
        """One name for several children: each lookup of it gives the next of them."""
        if name in self._children or name in self._groups:
            raise NameTaken(f"the name {name!r} is taken on this node: choose another, or stop that child first")
        self._groups[name] = deque(members)
        self._group_of.update(dict.fromkeys(members, name))

    def join_group(self, member: str, group: str) -> None:
        """One more child that the group's name stands for."""
        self._groups.setdefault(group, deque()).append(member)
        self._group_of[member] = group

    def leave_group(self, member: str) -> None:
        """A child that the group's name does not stand for any more, though it is still there."""
        group = self._group_of.pop(member, "")
        if member in self._groups.get(group, ()):
            self._groups[group].remove(member)

    def group_of(self, member: str) -> str:
        """The group that a child belongs, or belonged, to; "" for none."""
        return self._group_of.get(member, "")

    def has_group(self, name: str) -> bool:
        """Whether there is a group with that name."""
        return name in self._groups

    def set_groups(self, groups: dict[str, tuple[str, ...]]) -> None:
        """The groups of the node's plan, as they are from now on; those of other children stay."""
        planned = {name for names in groups.values() for name in names}
        for group in {self._group_of[name] for name in planned if name in self._group_of} | groups.keys():
            self._groups.pop(group, None)
        for group, names in groups.items():
            self._groups[group] = deque(name for name in names if name in self._children)
            self._group_of.update(dict.fromkeys(names, group))

    def remove_group(self, name: str) -> None:
        """Forget a group that could not be made."""
        self._groups.pop(name, None)

    def remove(self, child: Child) -> None:
        """Take the name back, remembering how its bearer ended."""
        if self._children.get(child.name) is child:
            del self._children[child.name]
            self._dead[child.name] = child
            while len(self._dead) > REMEMBERED:
                del self._dead[next(iter(self._dead))]
        for name, members in list(self._groups.items()):
            if child.name in members:
                members.remove(child.name)
                if not members:
                    del self._groups[name]

    def is_taken(self, name: str) -> bool:
        """Whether a child or a group bears the name, or was the last to do so."""
        return name in self._children or name in self._groups or name in self._dead

    def members_of(self, name: str) -> list[str]:
        """The names that a name stands for: a group's members, else itself, known or not."""
        return sorted(self._groups[name]) if name in self._groups else [name]

    def free_name(self, base: str) -> str:
        """`base`, or `base-2`, `base-3` ...: the first that is free."""
        for name in itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2))):
            if name not in self._children and name not in self._groups:
                return name
        raise AssertionError

    def member(self, name: str) -> str:
        """The child that `name` means now: itself, or the next of its group. Raises: ActorNotFound (L1003)."""
        if name in self._children or name in self._dead:
            return name
        if name in self._groups:
            members = self._groups[name]
            members.rotate(-1)
            return members[-1]
        raise self._not_found(name)

    def members(self, name: str) -> list[str]:
        """All children that `name` means: itself, or its whole group. Raises: ActorNotFound (L1003)."""
        return sorted(self._groups[name]) if name in self._groups else [self.member(name)]

    def find(self, name: str) -> Child:
        """The child with that name. Raises: ActorNotFound (L1003); ActorDied (L2001) when it had one that died."""
        child = self._children.get(name)
        if child is not None:
            return child
        dead = self._dead.get(name)
        if dead is not None:
            raise gone(dead)
        raise self._not_found(name)

    def bears(self, child: Child) -> bool:
        """Whether the child bears its name now."""
        return self._children.get(child.name) is child

    def remembered(self, name: str) -> Child | None:
        """The child that bears the name, or was the last to do so."""
        return self._children.get(name) or self._dead.get(name)

    def actor(self, name: str) -> ActorChild:
        """The actor with that name. Raises: as `find`; ActorNotFound when it is a supervisor."""
        child = self.find(name)
        if not isinstance(child, ActorChild):
            raise ActorNotFound(f"{name!r} is a supervisor, which takes no calls: name one of its children")
        return child

    def _not_found(self, name: str) -> ActorNotFound:
        name = name[:NAME_MAX_CHARS]  # a stranger's text: neither the search nor the answer may grow with it
        names = [one for one in (*self._children, *self._groups) if one != ROOT]
        near = difflib.get_close_matches(name, names, 1)
        if near:
            return ActorNotFound(f"no actor named {name!r} on this node: did you mean {near[0]!r}?")
        known = ", ".join(sorted(names)[:8]) or "none"
        return ActorNotFound(f"no actor named {name!r} on this node; it has {known}{', ...' if len(names) > 8 else ''}")


def gone(child: Child) -> ActorDied:
    """The error for a call to a child that will not come back by itself."""
    what = f"{'actor' if isinstance(child, ActorChild) else 'supervisor'} {child.name!r}"
    death = child.last
    if death is None:
        return ActorDied(f"{what} is stopped, or has not started yet", started=False, cause="stopped")
    cause = f"{death.text}\n--- remote traceback ---\n{death.traceback.rstrip()}" if death.traceback else death.text
    return ActorDied(f"{what} is gone: {cause}", started=False, cause=cause)
