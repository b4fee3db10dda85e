"""Plan: a supervisor tree as it travels to the node process: names and pickles instead of classes.

The node builds its tree from it and never imports a user's module: that happens in the actor's own process.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loom.actor.snapshot import Cadence
from loom.supervise.spec import (
    ROOT,
    AutoShutdown,
    BackoffSpec,
    ChildSpec,
    LimitsSpec,
    MailboxSpec,
    Restart,
    Routing,
    Shutdown,
    Strategy,
    SupervisorSpec,
)
from loom.wire import codec


class ActorPlan(msgspec.Struct, frozen=True, tag="actor"):
    """One actor. `target` is "module:Class", "" when the class is in `pickled`, a pickle of (class, args, kwargs).

    `further`: of a child made from a template, a pickle of (None, args, kwargs) that come on top.
    """

    name: str
    target: str
    pickled: bytes
    path: tuple[str, ...]
    restart: Restart = "permanent"
    shutdown_s: Shutdown = 5.0
    mailbox: MailboxSpec = MailboxSpec()
    watchdog_s: float | None = None
    start_s: float | None = None
    significant: bool = False
    further: bytes = b""
    limits: LimitsSpec = LimitsSpec()
    snapshot: Cadence = Cadence()
    is_fresh: bool = False
    """Whether it begins with nothing, whatever was saved under its name."""


class GroupPlan(msgspec.Struct, frozen=True, tag="group"):
    """Several actors with one name (`instances`)."""

    name: str
    members: tuple[ActorPlan, ...]
    routing: Routing = "round_robin"


class SupervisorPlan(msgspec.Struct, frozen=True, tag="supervisor"):
    """One supervisor and all below it; its own fields are what the restart policy wants to know (policy.Rules).

    `path`: where actors that are added at run time find their modules, when nobody says otherwise.
    """

    name: str
    strategy: Strategy = "one_for_one"
    max_restarts: int = 1
    within_s: float = 5.0
    auto_shutdown: AutoShutdown = "never"
    backoff: BackoffSpec = msgspec.field(default_factory=BackoffSpec)
    children: tuple[ActorPlan | GroupPlan | SupervisorPlan, ...] = ()
    restart: Restart = "permanent"
    significant: bool = False
    path: tuple[str, ...] = ()


Plan = ActorPlan | GroupPlan | SupervisorPlan


def plan_of(
    spec: SupervisorSpec,
    path: Sequence[str],
    name: str = ROOT,
    restart: Restart = "permanent",
    significant: bool = False,
) -> SupervisorPlan:
    """A spec with classes -> a plan that can travel. `path`: where the actors find their modules.

    Raises: NotSendable (L1004) when a class or an argument cannot be pickled.
    """
    return SupervisorPlan(
        name=name,
        strategy=spec.strategy,
        max_restarts=spec.max_restarts,
        within_s=spec.within_s,
        auto_shutdown=spec.auto_shutdown,
        backoff=spec.backoff,
        children=tuple(child_plan(child, path) for child in spec.children),
        restart=restart,
        significant=significant,
        path=tuple(path),
    )


def child_plan(child: ChildSpec, path: Sequence[str]) -> Plan:
    """One child, as plan_of. Raises: NotSendable (L1004)."""
    if isinstance(child.actor, SupervisorSpec):
        return plan_of(child.actor, path, child.name, child.restart, child.significant)
    target = child.actor if isinstance(child.actor, str) else ""
    cls = None if isinstance(child.actor, str) else child.actor
    pickled = codec.dumps_order(cls, child.args, child.kwargs)
    plans = tuple(
        ActorPlan(
            name,
            target,
            pickled,
            tuple(path),
            child.restart,
            child.shutdown_s,
            child.mailbox,
            child.watchdog_s,
            child.start_s,
            child.significant,
            limits=child.limits,
            snapshot=_cadence(child),
        )
        for name in child.members
    )
    return plans[0] if child.instances == 1 else GroupPlan(child.name, plans, child.routing)


def _cadence(child: ChildSpec) -> Cadence:
    spec = child.snapshot
    return Cadence(spec.every_messages, spec.every_s, spec.at_stop)
