"""OTP's supervisor_SUITE, the part about significant children and auto_shutdown, on real processes.

Test names are the suite's; supervisor_suite.md says of every case of it where it is, or why it does not apply.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loom
from loom import ChildSpec, SupervisorSpec
from loom.errors import ActorDied, ActorNotFound, ConfigError


class Kid(loom.Actor):
    def pid(self) -> int:
        return os.getpid()

    def leave(self) -> None:
        self.ctx.stop()


Supervise = Callable[..., loom.SupervisorRef]


@pytest.fixture(scope="module")
def node(runtime_folder: Path) -> Iterator[loom.Node]:
    with loom.Node(supervisor=SupervisorSpec(max_restarts=100_000, within_s=60)) as node:
        yield node


@pytest.fixture
def supervise(node: loom.Node) -> Iterator[Supervise]:
    def start(auto_shutdown: str, *children: ChildSpec, **rules: Any) -> loom.SupervisorRef:
        rules = {"max_restarts": 9, "children": children, "auto_shutdown": auto_shutdown, **rules}
        return node.supervise(SupervisorSpec(**rules), name="sup", restart="temporary")

    yield start
    try:
        node.stop("sup")
    except (ActorNotFound, ActorDied):
        pass


def kid(name: str, restart: Any = "temporary", significant: bool = True) -> ChildSpec:
    return ChildSpec(Kid, name=name, restart=restart, significant=significant)


def states(sup: loom.SupervisorRef) -> dict[str, str]:
    return {child.name: child.state for child in sup.children()}


def kill(sup: loom.SupervisorRef, name: str) -> int:
    pid = next(child.pid for child in sup.children() if child.name == name)
    os.kill(pid, signal.SIGKILL)
    return pid


def is_gone(sup: loom.SupervisorRef) -> bool:
    try:
        sup.children()
    except (ActorDied, ActorNotFound):
        return True
    return False


def has_lost(sup: loom.SupervisorRef, name: str) -> bool:
    try:
        return name not in states(sup)
    except (ActorDied, ActorNotFound):
        return True


@pytest.mark.parametrize("restart", ["temporary", "transient"])
@pytest.mark.parametrize("auto_shutdown", ["never", "any", "all"])
def test_nonsignificant(node: loom.Node, supervise: Supervise, until: Any, auto_shutdown: str, restart: str) -> None:
    """nonsignificant_temporary, nonsignificant_transient: their ends end nobody."""
    sup = supervise(auto_shutdown, kid("a", restart, False), kid("b", restart, False))
    node.lookup("a").leave.tell()
    assert until(lambda: states(sup).get("a", "stopped") == "stopped")
    node.lookup("b").leave.tell()
    assert until(lambda: set(states(sup).values()) <= {"stopped"})


@pytest.mark.parametrize("end", ["leave", "kill"])
def test_significant_temporary(node: loom.Node, supervise: Supervise, until: Any, end: str) -> None:
    """Under "any" the first that ends, in whatever way, ends the supervisor; under "all" the last."""
    for auto_shutdown in ("any", "all"):
        sup = supervise(auto_shutdown, kid("a"), kid("b"), kid("c", "permanent", False))
        for name in ("a", "b") if auto_shutdown == "all" else ("a",):
            assert not is_gone(sup)
            if end == "leave":
                node.lookup(name).leave.tell()
            else:
                kill(sup, name)
            assert until(lambda sup=sup, name=name: has_lost(sup, name))
        assert until(lambda sup=sup: is_gone(sup))
        with pytest.raises(ActorDied, match="has shut itself down: its significant child"):
            sup.children()


def test_significant_transient(node: loom.Node, supervise: Supervise, until: Any) -> None:
    """An abnormal end is restarted, and is no end; a normal one is."""
    sup = supervise("any", kid("a", "transient"), kid("c", "permanent", False))
    before = kill(sup, "a")
    assert until(lambda: sup.children()[0].pid not in (0, before))
    node.lookup("a").leave.tell()
    assert until(lambda: is_gone(sup))
    sup = supervise("all", kid("a", "transient"), kid("b", "transient"), kid("c", "permanent", False))
    node.lookup("a").leave.tell()
    assert until(lambda: states(sup)["a"] == "stopped")
    before = kill(sup, "b")
    assert until(lambda: sup.children()[1].pid not in (0, before))
    assert until(lambda: states(sup) == {"a": "stopped", "b": "running", "c": "running"})
    node.lookup("b").leave.tell()
    assert until(lambda: is_gone(sup))


@pytest.mark.parametrize("auto_shutdown", ["any", "all"])
def test_significant_simple(supervise: Supervise, until: Any, auto_shutdown: str) -> None:
    sup = supervise(auto_shutdown, kid("s"), strategy="simple_one_for_one")
    first, second = sup.start_child(), sup.start_child()
    assert isinstance(first, loom.ActorRef)
    assert isinstance(second, loom.ActorRef)
    kill(sup, first.name)
    if auto_shutdown == "all":
        assert until(lambda: states(sup) == {second.name: "running"})
        kill(sup, second.name)
    assert until(lambda: is_gone(sup))


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_significant_bystander(supervise: Supervise, until: Any, strategy: str) -> None:
    """A significant child that is stopped with a sibling, or by hand, has not ended by itself."""
    sup = supervise("any", kid("a", "permanent", False), kid("b"), kid("c", "transient"), strategy=strategy)
    before = kill(sup, "a")
    assert until(lambda: states(sup) == {"a": "running", "c": "running"} and sup.children()[0].pid != before)
    sup.stop_child("c")
    assert states(sup) == {"a": "running", "c": "stopped"}


def test_significant_escalation(node: loom.Node, supervise: Supervise, until: Any) -> None:
    """A supervisor that is itself significant, and shuts itself down, ends the one above it."""
    inner = SupervisorSpec(auto_shutdown="any", children=(kid("deep"),))
    below = ChildSpec(inner, name="inner", restart="transient", significant=True)
    sup = supervise("any", below, kid("other", "permanent", False))
    node.lookup("deep").leave.tell()
    assert until(lambda: is_gone(sup))
    assert "sup" not in [row.name for row in node.supervisor().children()]


def test_a_significant_child_is_refused_where_it_makes_no_sense(supervise: Supervise) -> None:
    with pytest.raises(ConfigError, match="significant: expected false, as restart is 'permanent'"):
        kid("a", "permanent")
    with pytest.raises(ConfigError, match="significant: expected false, as the supervisor's auto_shutdown is 'never'"):
        SupervisorSpec(children=(kid("a"),))
    sup = supervise("never")
    with pytest.raises(ConfigError, match="auto_shutdown is 'never'"):
        sup.start_child(kid("a"))
    with pytest.raises(ConfigError, match="auto_shutdown is 'never'"):
        sup.start_described({"actor": "m:A", "restart": "temporary", "significant": True})
    assert sup.children() == ()


@pytest.mark.parametrize(("end", "code"), [("leave", 0), ("kill", 1)])
def test_the_root_that_shuts_itself_down_ends_the_node(until: Any, end: str, code: int) -> None:
    """Work that is done is exit code 0; a significant child that was killed has not done it."""
    with loom.Node(supervisor=SupervisorSpec(auto_shutdown="any", children=(kid("job"),))) as node:
        job = node.lookup("job")
        pid = job.pid().result(timeout_s=20)
        if end == "leave":
            job.leave.tell()
        else:
            os.kill(pid, signal.SIGKILL)
        assert until(lambda: node._process.poll() is not None)
        assert node._process.returncode == code
        with pytest.raises(loom.errors.NodeDown, match="'root' has shut itself down: its significant child 'job'"):
            node.stats()
