"""The supervisor with children in memory: what it does between a death and a stop, in every order it can happen.

The children are real to it: a `Child` of another kind, which starts and stops in a few turns of the event loop.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.actor.death import OVERTAKEN, Death
from loom.errors import ActorNotFound, ChildError
from loom.supervise import supervisor as module
from loom.supervise.child import Child
from loom.supervise.spec import BackoffSpec, ChildSpec, SupervisorSpec
from loom.supervise.supervisor import Supervisor

KILLED = Death("abnormal", "killed", how="signal")
REFUSED = Death("start_failed", "cannot be made", how="start_failed")


class MemoryChild(Child):
    """Has a "process" while `is_alive`. Starting and stopping take `turns` turns of the loop."""

    def __init__(self, name: str, restart: Any = "permanent", turns: int = 2) -> None:
        self.name = name
        self.restart = restart
        self.turns = turns
        self.is_alive = False
        self.fails = 0
        self.hangs = False
        self.above: Supervisor | None = None
        self.log: list[str] = []

    async def start(self) -> Death | None:
        assert not self.is_alive, "two processes of one child"
        self.incarnation += 1
        mine = self.incarnation
        self.set_state("starting")
        self.log.append(f"start {self.name}")
        self.is_alive = True
        for _ in range(self.turns):
            await asyncio.sleep(0)
        while self.hangs and self.is_starting(mine):
            await asyncio.sleep(0)
        if not self.is_starting(mine):
            return OVERTAKEN
        if self.fails:
            self.fails -= 1
            self.is_alive = False
            self.last = REFUSED
            self.set_state("restarting")
            return REFUSED
        self.set_state("running")
        return None

    async def _stop(self, reason: str) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.is_alive = False
        self.log.append(f"stop {self.name}")
        self.set_state("stopped")

    def die(self, death: Death = KILLED) -> None:
        """As a killed process does: whether it is noticed is a matter of the state."""
        if self.state == "running":
            self.is_alive = False
            self.last = death
            self.set_state("restarting")
            assert self.above is not None
            self.above.child_ended(self, death)


class Tree:
    """One supervisor with children "a", "b", "c" ... and what became of it."""

    def __init__(self, rules: SupervisorSpec, *children: MemoryChild) -> None:
        self.ended: list[Death] = []
        self.log: list[str] = []
        self.supervisor = Supervisor(rules, "sup", lambda _, death: self.ended.append(death))
        self.kids = {child.name: child for child in children}
        for child in children:
            child.above, child.log = self.supervisor, self.log
            self.supervisor.add_planned(child)

    async def settle(self) -> None:
        """Let everything happen that can happen by itself."""
        for _ in range(300):
            await asyncio.sleep(0)

    def states(self) -> dict[str, str]:
        return {child.name: child.state for child in self.supervisor.children}


class Clock:
    """A monotonic clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("strategy", ["rest_for_one", "one_for_all"])
def test_one_that_dies_while_its_siblings_are_being_stopped_costs_nobody_the_restart(strategy: Any, after: int) -> None:
    """The death of "b" comes while the restart for that of "a" still stops "c" and "d"; "a" comes back all the same."""

    async def live() -> None:
        kids = [MemoryChild(name) for name in "abcd"]
        tree = Tree(SupervisorSpec(strategy=strategy, max_restarts=10), *kids)
        assert await tree.supervisor.start() is None
        kids[0].die()
        for _ in range(after):
            await asyncio.sleep(0)
        kids[1].die()
        await tree.settle()
        assert set(tree.states().values()) == {"running"}

    asyncio.run(live())


# --- intensity, on a clock of our own ----------------------------------------------------------------------------


@pytest.mark.parametrize("late_s", [0.0, 0.001])
@pytest.mark.parametrize("max_restarts", [0, 1, 3])
def test_the_edge_of_the_window_under_a_wall_clock_jump(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, max_restarts: int, late_s: float
) -> None:
    """max_restarts deaths at one moment survive. One more exactly within_s later escalates, a moment after it does not;
    meanwhile the wall clock jumps by years, to and fro.
    """
    import time

    jumps = iter([1e9, 5.0, 2e9, 0.0] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr("loom.clock.wall", time.time)

    async def live() -> None:
        tree = Tree(SupervisorSpec(max_restarts=max_restarts, within_s=5), MemoryChild("a"))
        assert await tree.supervisor.start() is None
        for _ in range(max_restarts):
            tree.kids["a"].die()
            await tree.settle()
        assert tree.states() == {"a": "running"}
        assert tree.ended == []
        clock.now += 5 + late_s
        tree.kids["a"].die()
        await tree.settle()
        if late_s and max_restarts:
            assert tree.states() == {"a": "running"}
        else:
            assert tree.states() == {"a": "stopped"}
            assert f"more than {max_restarts} restart" in tree.ended[0].text
        await tree.supervisor.stop()

    asyncio.run(live())


def test_decisions_know_no_wall_clock() -> None:
    """Nothing in supervision reads a clock that an operator can set."""
    folder = Path(module.__file__).parent
    for path in folder.glob("*.py"):
        assert not re.search(r"\bwall\b|time\.time\b|datetime", path.read_text()), path


# --- restart loops -----------------------------------------------------------------------------------------------


def test_a_stop_in_a_restart_loop_is_honoured(clock: Clock) -> None:
    async def live() -> None:
        tree = Tree(SupervisorSpec(max_restarts=10**6, within_s=5), MemoryChild("a"), MemoryChild("b"))
        await tree.supervisor.start()
        tree.kids["a"].fails = 10**6
        tree.kids["a"].die()
        await tree.settle()
        assert tree.log.count("start a") > 5
        await tree.supervisor.stop_child(tree.kids["a"])
        assert tree.states() == {"a": "stopped", "b": "running"}
        seen = len(tree.log)
        await tree.settle()
        assert len(tree.log) == seen
        await tree.supervisor.stop()
        await tree.settle()
        assert tree.states() == {"a": "stopped", "b": "stopped"}

    asyncio.run(live())


def test_a_hanging_restart_keeps_nobody_waiting(clock: Clock) -> None:
    async def live() -> None:
        kids = [MemoryChild(name) for name in "abc"]
        tree = Tree(SupervisorSpec("rest_for_one", max_restarts=10, within_s=5), *kids)
        await tree.supervisor.start()
        tree.kids["b"].hangs = True
        tree.kids["a"].die()
        await tree.settle()
        assert tree.states() == {"a": "running", "b": "starting", "c": "restarting"}
        tree.kids["a"].die()  # the sibling before it dies again: the group restart begins anew
        await tree.settle()
        assert tree.log.count("start b") == 3
        await tree.supervisor.stop()
        assert set(tree.states().values()) == {"stopped"}
        assert not any(kid.is_alive for kid in kids)

    asyncio.run(live())


def test_old_news_of_a_child_are_not_taken_for_new(clock: Clock) -> None:
    """It dies, and is stopped and restarted by hand before the supervisor comes to look at its inbox."""

    async def live() -> None:
        tree = Tree(SupervisorSpec(max_restarts=0, within_s=5), MemoryChild("a", turns=0))
        await tree.supervisor.start()
        tree.kids["a"].die()
        await tree.supervisor.stop_child(tree.kids["a"])
        assert await tree.supervisor.restart_child(tree.kids["a"]) is None
        await tree.settle()
        assert tree.states() == {"a": "running"}
        assert tree.ended == []
        await tree.supervisor.stop()

    asyncio.run(live())


@pytest.mark.parametrize("name", ["b", "c"])
def test_a_child_stopped_by_hand_while_its_group_is_stopped_stays_down(clock: Clock, name: str) -> None:
    """c is stopped first, then b, slowly; what is asked for meanwhile comes after the restart that is under way."""

    async def live() -> None:
        kids = [MemoryChild("a"), MemoryChild("b", turns=30), MemoryChild("c")]
        tree = Tree(SupervisorSpec("one_for_all", max_restarts=5, within_s=5), *kids)
        await tree.supervisor.start()
        tree.kids["a"].die()
        for _ in range(15):
            await asyncio.sleep(0)
        assert tree.states() == {"a": "restarting", "b": "stopping", "c": "stopped"}
        await tree.supervisor.stop_child(tree.kids[name])
        await tree.settle()
        assert tree.states() == {"a": "running", "b": "running", "c": "running", name: "stopped"}
        await tree.supervisor.stop()

    asyncio.run(live())


def test_a_supervisor_that_is_stopped_while_it_gives_up_does_not_come_back(clock: Clock) -> None:
    async def live() -> None:
        tree = Tree(SupervisorSpec(max_restarts=0, within_s=5), MemoryChild("a"), MemoryChild("b", turns=20))
        await tree.supervisor.start()
        tree.kids["a"].die()
        for _ in range(5):
            await asyncio.sleep(0)
        assert tree.supervisor.state == "stopping"
        await tree.supervisor.stop()
        await tree.settle()
        assert tree.supervisor.state == "stopped"
        assert tree.ended == []

    asyncio.run(live())


# --- in any order ------------------------------------------------------------------------------------------------


steps = st.lists(
    st.tuples(st.sampled_from(("die", "end", "fail", "stop", "restart", "delete", "wait", "late")), st.integers(0, 3)),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    strategy=st.sampled_from(("one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one")),
    restarts=st.lists(st.sampled_from(("permanent", "transient", "temporary")), min_size=4, max_size=4),
    steps=steps,
    max_restarts=st.sampled_from((2, 10**6)),
)
def test_whatever_happens_in_whatever_order(
    strategy: Any, restarts: list[Any], steps: list[tuple[str, int]], max_restarts: int
) -> None:
    """Deaths, failed starts and what people ask for, at any moment. Never two processes of one child; when it is quiet,
    every row is running or stopped, and has a process or has none; what was stopped last, by hand, is stopped; after
    the supervisor's stop nothing lives, and nothing rises again.
    """
    children = (ChildSpec("m:A"),) if strategy == "simple_one_for_one" else ()
    rules = SupervisorSpec(strategy, max_restarts, 3600, children, backoff=BackoffSpec(base_s=0))
    kids = [
        MemoryChild(name, restart, turns=at) for at, (name, restart) in enumerate(zip("abcd", restarts, strict=True))
    ]

    async def quietly(asked: Any) -> None:
        try:
            await asked
        except (ChildError, ActorNotFound):
            pass

    async def live() -> None:
        tree = Tree(rules, *kids)
        supervisor = tree.supervisor
        assert await supervisor.start() is None
        asked: list[asyncio.Task[None]] = []
        for what, number in steps:
            kid = kids[number]
            if what == "die":
                kid.die()
            elif what == "end":
                kid.die(Death("normal", "ended", how="normal"))
            elif what == "fail":
                kid.fails = 1
            elif what == "wait":
                await tree.settle()
                quiet(tree)
            elif what == "late":
                await asyncio.sleep(0)
            elif what == "delete":
                try:
                    supervisor.delete_child(kid)
                except (ChildError, ActorNotFound):
                    pass
            else:
                verb = supervisor.stop_child if what == "stop" else supervisor.restart_child
                asked.append(asyncio.ensure_future(quietly(verb(kid))))
        await asyncio.gather(*asked)
        await tree.settle()
        quiet(tree)
        if not tree.ended:
            for kid in list(supervisor.children):
                assert isinstance(kid, MemoryChild)
                await supervisor.stop_child(kid)
                assert kid.state == "stopped"
                await tree.settle()
                assert kid.state == "stopped"
        await supervisor.stop()
        await tree.settle()
        assert not any(kid.is_alive for kid in kids)
        assert {kid.state for kid in kids} == {"stopped"}

    asyncio.run(live())


def quiet(tree: Tree) -> None:
    """What holds whenever nothing is under way."""
    for child in tree.supervisor.children:
        assert isinstance(child, MemoryChild)
        assert child.state in ("running", "stopped")
        assert child.is_alive == (child.state == "running")
        if tree.ended:
            assert child.state == "stopped"
    for kid in tree.kids.values():
        if kid not in tree.supervisor.children:
            assert not kid.is_alive
