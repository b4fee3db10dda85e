"""SupervisorRef: a program's hold on one supervisor of a node, to change its children while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from loom.actor.ref import ActorRef
from loom.actor.verbs import Verbs, search_path
from loom.errors import UsageError
from loom.node.plan import SupervisorPlan, child_plan
from loom.node.stats import ChildCount, ChildInfo
from loom.supervise.spec import ChildSpec
from loom.wire import codec

if TYPE_CHECKING:
    from loom.actor.links import Links


class SupervisorRef:
    """A supervisor by its name: what `node.supervise(spec)` and `node.supervisor(name)` give.

    Children are named, by a str or by a reference. The calls wait until what they ask for is done, and raise
    ActorNotFound (L1003) when there is no such child, or no such supervisor any more; ChildError (L1010), whose
    `reason` is OTP's word, when the child or the supervisor is in no state for it; NodeDown (L2008).
    """

    def __init__(self, links: Links, name: str) -> None:
        self.name = name
        self._links = links

    def start_child(self, *args: Any, name: str | None = None, **kwargs: Any) -> ActorRef | SupervisorRef | None:
        """Add a child and start it: `start_child(ChildSpec(Index, args=(64,), name="index"))`.

        Under simple_one_for_one: `start_child(*args, name=None, **kwargs)`, which come behind the template's own.
        Returns: a reference, once the child runs; None when it did not want to start (loom.Ignore).
        Raises: StartFailed (L3001) with the remote traceback, and the child is not kept; NameTaken (L1002);
            ConfigError (L1001); ChildError (L1010): "already_started", "already_present", "not_running".
        """
        if len(args) == 1 and isinstance(args[0], ChildSpec):
            if kwargs or name is not None:
                raise UsageError("start_child(ChildSpec(...)): name and kwargs belong in the ChildSpec")
            return self._start_spec(args[0])
        return self._reference(self.start_from_template(args, kwargs, name))

    def start_from_template(self, args: Sequence[Any], kwargs: dict[str, Any], name: str | None) -> dict[str, Any]:
        """Start one more child of a simple_one_for_one: {name, kind, state}. Raises: as start_child."""
        found: dict[str, Any] = self._ask(
            "start_from_template", codec.dumps_order(None, tuple(args), kwargs), None, name
        )
        return found

    def start_described(self, child: dict[str, Any]) -> dict[str, Any]:
        """Start a child given as a config file's [[supervisor.child]]: {name, kind, state}. Raises: as start_child."""
        found: dict[str, Any] = self._ask("start_child", child)
        return found

    def stop_child(self, child: Any) -> None:
        """Stop a child in its shutdown time; returns when it is gone. Its row stays for `restart_child`.

        Not the row of a temporary child, nor of one made from a template. A child that is stopped already is fine.
        """
        self._ask("terminate_child", _name(child))

    def restart_child(self, child: Any) -> ActorRef | SupervisorRef | None:
        """Start a child that is stopped; as start_child. Raises: ChildError: "running", "restarting"; StartFailed."""
        return self._reference(self._ask("restart_child", _name(child)))

    def delete_child(self, child: Any) -> None:
        """Forget a child that is stopped, and free its name. Raises: ChildError: "running", "restarting"."""
        self._ask("delete_child", _name(child))

    def children(self) -> tuple[ChildInfo, ...]:
        """Every child, in start order."""
        return msgspec.convert(self._ask("which_children"), tuple[ChildInfo, ...])

    def count(self) -> ChildCount:
        """How many children there are, and how many have a process."""
        return msgspec.convert(self._ask("count_children"), ChildCount)

    def __repr__(self) -> str:
        return f"<loom.SupervisorRef {self.name!r}>"

    def _start_spec(self, spec: ChildSpec) -> ActorRef | SupervisorRef | None:
        plan = child_plan(spec, search_path())
        return self._reference(self._ask("start_child", msgspec.msgpack.encode(plan)))

    def _reference(self, started: dict[str, Any]) -> ActorRef | SupervisorRef | None:
        if started["kind"] == "supervisor":
            return SupervisorRef(self._links, started["name"])
        return Verbs(self._links).reference(started["name"]) if started["state"] != "stopped" else None

    def _ask(self, verb: str, *args: Any) -> Any:
        return self._links.ask_node(verb, self.name, *args).result()


def add_supervisor(links: Links, plan: SupervisorPlan) -> SupervisorRef:
    """Have the root start one more supervisor; a free name is found for a plan that has none."""
    started = links.ask_node("start_child", "root", msgspec.msgpack.encode(plan)).result()
    return SupervisorRef(links, started["name"])


def _name(child: Any) -> str:
    name = child if isinstance(child, str) else getattr(child, "name", None)
    if not isinstance(name, str):
        raise UsageError(f"expected a child's name, or a reference to it, got {child!r}")
    return name
