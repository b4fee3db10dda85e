"""Links: whoever is tied together ends together, with the same cause; or is told of it, when it traps exits."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loom
from loom import ChildSpec, SupervisorSpec
from loom.errors import ActorDied, LoomError

MANY = SupervisorSpec(max_restarts=100_000, within_s=3600)


class Linked(loom.Actor):
    def __init__(self, *names: str, log: str = "") -> None:
        self.log = log
        for name in names:
            self.ctx.link(name)

    def pid(self) -> int:
        return os.getpid()

    def link(self, ref: Any) -> None:
        self.ctx.link(ref)

    def unlink(self, ref: Any) -> None:
        self.ctx.unlink(ref)

    def leave(self) -> None:
        self.ctx.stop()

    def exit(self, code: int) -> None:
        raise SystemExit(code)

    def nap(self, s: float) -> None:
        time.sleep(s)

    def on_stop(self, reason: str) -> None:
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{self.ctx.name} {reason}\n")


class Trapping(Linked):
    trap = True

    def __init__(self, *names: str) -> None:
        self.told: list[loom.Down] = []
        super().__init__(*names)

    def on_exit_signal(self, down: loom.Down) -> None:
        self.told.append(down)

    def seen(self) -> list[tuple[str, str]]:
        return [(down.ref.name, down.reason) for down in self.told]

    def last(self) -> loom.Down:
        return self.told[-1]


class AsyncTrapping(Trapping):
    async def on_exit_signal(self, down: loom.Down) -> None:  # type: ignore[override]
        self.told.append(down)


@pytest.fixture(scope="module")
def node(runtime_folder: Path) -> Iterator[loom.Node]:
    with loom.Node(supervisor=MANY) as node:
        yield node


@pytest.fixture
def start(node: loom.Node) -> Iterator[Any]:
    """Starts temporary actors, which stay dead when they die; returns references to them, once they run."""
    names: list[str] = []

    def start(name: str, *args: Any, actor: Any = Linked, restart: Any = "temporary", **keys: Any) -> Any:
        names.append(name)
        log = {"log": str(keys.pop("log"))} if "log" in keys else {}
        spec = ChildSpec(actor, args=args, kwargs=log, name=name, restart=restart, **keys)
        return node.supervisor().start_child(spec)

    yield start
    for name in names:
        try:
            node.stop(name)
        except LoomError:
            pass


def kill(ref: Any) -> None:
    os.kill(ref.pid().result(timeout_s=20), signal.SIGKILL)


def names(node: loom.Node) -> set[str]:
    return {row.name for row in node.supervisor().children()}


@pytest.mark.parametrize("who_links", ["a", "b"])
def test_an_abnormal_death_kills_the_linked_other_with_the_same_cause(
    node: loom.Node, start: Any, until: Any, who_links: str
) -> None:
    """Whoever of the two made the link."""
    a, b = start("a"), start("b")
    one, other = (a, b) if who_links == "a" else (b, a)
    one.link(other).result(timeout_s=20)
    assert node.stats().links == 1
    with node.monitor(b) as downs:
        busy = b.nap(600.0)
        kill(a)
        down = downs.get(20)
        assert (down.reason, down.cause.kind) == ("signal", "abnormal")
        assert down.cause.text == "killed by its link to 'a': killed by SIGKILL"
        with pytest.raises(ActorDied, match="killed by its link to 'a': killed by SIGKILL"):
            busy.result(timeout_s=20)
    assert until(lambda: not names(node))
    assert node.stats().links == 0


def test_the_cause_goes_through_a_chain(node: loom.Node, start: Any, until: Any) -> None:
    refs = [start(f"c{number}") for number in range(5)]
    for one, other in itertools.pairwise(refs):
        one.link(other).result(timeout_s=20)
    monitors = [node.monitor(ref) for ref in refs]
    refs[2].exit.tell(7)
    downs = [monitor.get(20) for monitor in monitors]
    assert {down.reason for down in downs} == {"exit"}
    assert all(down.cause.text.endswith("exit code 7") for down in downs)
    for monitor in monitors:
        monitor.close()
    assert until(lambda: not names(node))


def test_a_normal_end_does_not(node: loom.Node, start: Any, until: Any) -> None:
    a, b = start("a"), start("b")
    a.link(b).result(timeout_s=20)
    pid = b.pid().result(timeout_s=20)
    a.leave.tell()
    assert until(lambda: names(node) == {"b"})
    assert b.pid().result(timeout_s=20) == pid
    assert node.stats().links == 0


def test_being_stopped_stops_the_linked_other_in_its_own_time(
    node: loom.Node, start: Any, until: Any, tmp_path: Path
) -> None:
    """OTP's exit reason "shutdown" is not normal: it goes through links. Here the other gets to run its on_stop."""
    log = tmp_path / "log"
    a, b = start("a"), start("b", log=log, restart="transient")
    a.link(b).result(timeout_s=20)
    with node.monitor(b) as downs:
        node.stop(a)
        down = downs.get(20)
    assert (down.reason, down.cause.kind) == ("stopped", "shutdown")
    assert log.read_text() == "b shutdown\n"
    assert until(lambda: [row.state for row in node.supervisor().children()] == ["stopped"])  # transient: left


def test_unlink(node: loom.Node, start: Any, until: Any) -> None:
    a, b = start("a"), start("b")
    a.link(b).result(timeout_s=20)
    b.unlink(a).result(timeout_s=20)  # not the one that made it
    assert node.stats().links == 0
    kill(a)
    assert until(lambda: names(node) == {"b"})
    assert b.pid().result(timeout_s=20) > 0


@pytest.mark.parametrize("kind", [Trapping, AsyncTrapping])
def test_one_that_traps_exits_is_told_and_lives_on(node: loom.Node, start: Any, until: Any, kind: Any) -> None:
    trapping = start("t", actor=kind)
    pid = trapping.pid().result(timeout_s=20)
    ends = {"killed": kill, "left": lambda ref: ref.leave.tell(), "stopped": node.stop}
    reasons = []
    for name, end in ends.items():
        other = start(name)
        trapping.link(other).result(timeout_s=20)
        end(other)
        assert until(lambda name=name: name in dict(trapping.seen().result(timeout_s=20)))
        reasons.append(trapping.seen().result(timeout_s=20)[-1])
    assert reasons == [("killed", "signal"), ("left", "normal"), ("stopped", "stopped")]
    assert trapping.pid().result(timeout_s=20) == pid
    frail = start("frail")
    frail.link(trapping).result(timeout_s=20)  # the other one made this link
    frail.exit.tell(5)
    assert until(lambda: trapping.seen().result(timeout_s=20)[-1] == ("frail", "exit"))
    assert trapping.last().result(timeout_s=20).cause.exit_code == 5
    assert node.stats().links == 0


def test_one_that_traps_exits_does_not_save_the_other(node: loom.Node, start: Any, until: Any) -> None:
    trapping, other = start("t", actor=Trapping), start("o")
    trapping.link(other).result(timeout_s=20)
    kill(trapping)
    assert until(lambda: not names(node))


def test_a_link_to_nobody_is_noproc(node: loom.Node, start: Any, until: Any) -> None:
    a = start("a")
    with node.monitor(a) as downs:
        a.link.tell("nobody")
        down = downs.get(20)
    assert (down.reason, down.cause.text) == ("noproc", "killed by its link to 'nobody': there is no such actor")
    trapping = start("t", actor=Trapping)
    gone = start("gone")
    kill(gone)
    assert until(lambda: names(node) == {"t"})
    trapping.link(gone).result(timeout_s=20)
    assert until(lambda: trapping.seen().result(timeout_s=20) == [("gone", "noproc")])
    assert trapping.last().result(timeout_s=20).cause.text == "killed by SIGKILL"


def test_links_made_in_the_start(node: loom.Node, start: Any, until: Any) -> None:
    """In `__init__`, to one that traps, to one that does not; and again by the next incarnation."""
    base = start("base")
    kid = start("kid", "base", restart="permanent")
    trapping = start("t", "base", actor=Trapping)
    assert node.stats().links == 2
    before = kid.pid().result(timeout_s=20)
    again = None
    kill(base)
    assert until(lambda: trapping.seen().result(timeout_s=20) == [("base", "signal")])
    again = start("base")
    assert until(lambda: any(row.name == "kid" and row.state == "running" for row in node.supervisor().children()))
    assert again is not None
    assert _pid(kid) != before
    assert until(lambda: node.stats().links == 1)


def _pid(ref: Any) -> int:
    for _ in range(100):
        try:
            found: int = ref.pid().result(timeout_s=20)
            return found
        except ActorDied:
            continue
    raise AssertionError("it never came back")


def test_a_link_to_one_that_restarts_waits_for_it(node: loom.Node, until: Any) -> None:
    rules = SupervisorSpec(
        max_restarts=100,
        backoff=loom.BackoffSpec(base_s=0.3, factor=1),
        children=(ChildSpec(Linked, name="slow"), ChildSpec(Linked, name="fast")),
    )
    node.supervise(rules, name="sup")
    slow, fast = node.lookup("slow"), node.lookup("fast")
    first = fast.pid().result(timeout_s=20)
    kill(slow)
    assert until(lambda: node.supervisor("sup").children()[0].state == "restarting")
    fast.link("slow").result(timeout_s=20)
    assert until(lambda: node.stats().links == 1)
    assert fast.pid().result(timeout_s=20) == first
    kill(slow)
    assert until(lambda: _pid(fast) != first)
    node.stop("sup")


def test_links_under_fire_leave_nothing(node: loom.Node, until: Any) -> None:
    """Permanent actors, each linked to the one before it in its start, shot at random: all are back, each link once."""
    children = tuple(
        ChildSpec(Linked, args=(f"f{number - 1}",) if number else (), name=f"f{number}") for number in range(6)
    )
    node.supervise(SupervisorSpec("rest_for_one", max_restarts=100_000, within_s=3600, children=children), name="sup")
    chance = random.Random(4)
    for _ in range(20):
        ref = node.lookup(f"f{chance.randrange(6)}")
        try:
            os.kill(ref.pid().result(timeout_s=30), signal.SIGKILL)
        except (ActorDied, ProcessLookupError):
            continue
    sup = node.supervisor("sup")
    assert until(lambda: {row.state for row in sup.children()} == {"running"}, within_s=30)
    assert until(lambda: node.stats().links == 5, within_s=30)
    node.stop("sup")
    assert node.stats().links == 0
