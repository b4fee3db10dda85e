"""OTP's supervisor_SUITE, the part about starting, stopping and managing children, on real processes.

Test names are the suite's; supervisor_suite.md says of every case of it where it is, or why it does not apply.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loom
from loom import ChildSpec, SupervisorSpec
from loom.errors import ActorDied, ActorNotFound, ChildError, ConfigError, NameTaken, StartFailed


class Kid(loom.Actor):
    """Starts as the file `flag` says when there is one: "fail", "ignore" or "hang"."""

    def __init__(self, *args: Any, flag: str = "", log: str = "", stop_s: float = 0.0) -> None:
        self.seen, self.log, self.stop_s = args, log, stop_s
        how = Path(flag).read_text() if flag and Path(flag).exists() else ""
        if how == "ignore":
            raise loom.Ignore("not today")
        if how == "fail":
            raise RuntimeError("cannot be made")
        if how == "hang":
            time.sleep(600)

    def pid(self) -> int:
        return os.getpid()

    def args(self) -> tuple[Any, ...]:
        return self.seen

    def nap(self, s: float) -> None:
        time.sleep(s)

    def on_stop(self, reason: str) -> None:
        time.sleep(self.stop_s)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{self.ctx.name} {reason}\n")


Supervise = Callable[..., loom.SupervisorRef]


@pytest.fixture(scope="module")
def node(runtime_folder: Path) -> Iterator[loom.Node]:
    with loom.Node(supervisor=SupervisorSpec(max_restarts=100_000, within_s=60)) as node:
        yield node


@pytest.fixture
def supervise(node: loom.Node) -> Iterator[Supervise]:
    """A supervisor "sup" of the test's own, with these children."""

    def start(*children: ChildSpec, restart: Any = "temporary", **rules: Any) -> loom.SupervisorRef:
        spec = SupervisorSpec(**{"max_restarts": 2, "within_s": 3600, "children": children, **rules})
        return node.supervise(spec, name="sup", restart=restart)

    yield start
    try:
        node.stop("sup")
    except (ActorNotFound, ActorDied):
        pass


def kid(name: str, **keys: Any) -> ChildSpec:
    kwargs = {key: str(keys.pop(key)) for key in ("flag", "log") if key in keys}
    return ChildSpec(Kid, kwargs=kwargs, name=name, **keys)


def states(sup: loom.SupervisorRef) -> dict[str, str]:
    return {child.name: child.state for child in sup.children()}


def counts(sup: loom.SupervisorRef) -> tuple[int, ...]:
    count = sup.count()
    return count.specs, count.active, count.supervisors, count.workers


def pid(ref: Any) -> int:
    found: int = ref.pid().result(timeout_s=20)
    return found


def is_alive(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def reason_of(act: Callable[[], Any]) -> str:
    with pytest.raises(ChildError) as caught:
        act()
    assert str(caught.value).startswith("L1010 ")
    return caught.value.reason


# --- starting ----------------------------------------------------------------------------------------------------


def test_sup_start_normal(node: loom.Node, supervise: Supervise) -> None:
    sup = supervise()
    assert counts(sup) == (0, 0, 0, 0)
    node.stop("sup")
    with pytest.raises(ActorDied, match="supervisor 'sup' is gone: stopped"):
        sup.count()


def test_sup_start_ignore_child(supervise: Supervise, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.write_text("ignore")
    sup = supervise()
    assert sup.start_child(kid("one", flag=flag)) is None
    two = sup.start_child(kid("two"))
    assert isinstance(two, loom.ActorRef)
    rows = sup.children()
    assert [(row.name, row.state, row.pid) for row in rows] == [("one", "stopped", 0), ("two", "running", pid(two))]
    assert rows[0].last_death == "did not want to start: not today"
    assert counts(sup) == (2, 1, 0, 2)
    with pytest.raises(ActorDied, match="not today"):
        sup._links.target("one").call("pid", (), {}, loom.actor.target.Options()).result(timeout_s=10)
    flag.unlink()
    one = sup.restart_child("one")
    assert isinstance(one, loom.ActorRef)
    assert is_alive(pid(one))


def test_sup_start_ignore_temporary_child(supervise: Supervise, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.write_text("ignore")
    sup = supervise(kid("one", flag=flag, restart="temporary"), kid("two", restart="temporary"))
    assert states(sup) == {"two": "running"}
    assert counts(sup) == (1, 1, 0, 1)


def test_sup_start_ignore_temporary_child_start_child(supervise: Supervise, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.write_text("ignore")
    sup = supervise()
    assert sup.start_child(kid("one", flag=flag, restart="temporary")) is None
    assert sup.start_child(kid("two", restart="temporary")) is not None
    assert states(sup) == {"two": "running"}


@pytest.mark.parametrize("restart", ["temporary", "permanent"])
def test_sup_start_ignore_start_child_simple(supervise: Supervise, tmp_path: Path, restart: str) -> None:
    flag = tmp_path / "flag"
    flag.write_text("ignore")
    sup = supervise(kid("one", flag=flag, restart=restart), strategy="simple_one_for_one")
    assert sup.start_child() is None
    flag.unlink()
    two = sup.start_child()
    assert isinstance(two, loom.ActorRef)
    assert states(sup) == {two.name: "running"}
    assert counts(sup) == (1, 1, 0, 1)


def test_sup_start_fail(supervise: Supervise, node: loom.Node, tmp_path: Path) -> None:
    """A later child that cannot start stops those before it, last first, and the start has failed."""
    flag, log = tmp_path / "flag", tmp_path / "log"
    flag.write_text("fail")
    with pytest.raises(StartFailed, match=r"(?s)child 'three' failed to start: RuntimeError.*Traceback"):
        supervise(kid("one", log=log), kid("two", log=log), kid("three", flag=flag), kid("four"))
    assert log.read_text() == "two shutdown\none shutdown\n"
    with pytest.raises((ActorDied, ActorNotFound)):
        node.lookup("one")
    assert "sup" not in [row.name for row in node.supervisor().children()]


def test_sup_start_child_returns_error(supervise: Supervise, node: loom.Node, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.write_text("fail")
    sup = supervise(kid("zero"))
    with pytest.raises(StartFailed, match=r"(?s)'one'.*cannot be made.*Traceback"):
        sup.start_child(kid("one", flag=flag))
    assert states(sup) == {"zero": "running"}
    flag.unlink()
    assert sup.start_child(kid("one", flag=flag)) is not None  # the name is free again


def test_sup_start_restart_child_returns_error(supervise: Supervise, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    sup = supervise(kid("one", flag=flag))
    sup.stop_child("one")
    flag.write_text("fail")
    with pytest.raises(StartFailed, match="cannot be made"):
        sup.restart_child("one")
    assert states(sup) == {"one": "stopped"}
    flag.unlink()
    assert sup.restart_child("one") is not None


def test_sup_start_child_returns_error_simple(supervise: Supervise, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.write_text("fail")
    sup = supervise(kid("one", flag=flag), strategy="simple_one_for_one")
    with pytest.raises(StartFailed, match="cannot be made"):
        sup.start_child()
    assert sup.children() == ()


def test_sup_start_map_defaults() -> None:
    child, rules = ChildSpec(Kid), SupervisorSpec()
    assert (child.name, child.restart, child.shutdown_s, child.significant) == ("kid", "permanent", 5.0, False)
    assert ChildSpec(rules, name="below").shutdown_s == "infinity"
    assert (rules.strategy, rules.max_restarts, rules.within_s, rules.auto_shutdown) == ("one_for_one", 1, 5.0, "never")


def test_child_specs(supervise: Supervise) -> None:
    """What a spec refuses, it refuses before anything starts; what the node gets from others, it checks as well."""
    for wrong in (
        {"restart": "forever"},
        {"shutdown_s": -100},
        {"shutdown_s": "soon"},
        {"significant": True},
        {"name": "a b"},
    ):
        with pytest.raises(ConfigError):
            ChildSpec(Kid, **wrong)
    sup = supervise()
    for described in ({"name": "x"}, {"actor": 5}, {"actor": "m:A", "silly": 1}, {"actor": "m:A", "restart": "x"}, 7):
        with pytest.raises(ConfigError, match="expected"):
            sup.start_described(described)  # type: ignore[arg-type]
    assert sup.children() == ()


def test_sup_flags() -> None:
    for wrong in (
        {"strategy": "none_for_one"},
        {"max_restarts": -1},
        {"within_s": 0},
        {"auto_shutdown": "sometimes"},
        {"strategy": "simple_one_for_one"},
    ):
        with pytest.raises(ConfigError):
            SupervisorSpec(**wrong)


# --- stopping ----------------------------------------------------------------------------------------------------


def test_sup_stop_infinity(node: loom.Node, supervise: Supervise, tmp_path: Path) -> None:
    log = tmp_path / "log"
    slow = ChildSpec(Kid, kwargs={"log": str(log), "stop_s": 0.5}, name="slow", shutdown_s="infinity")
    below = ChildSpec(SupervisorSpec(children=(kid("deep", log=log),)), name="below", shutdown_s="infinity")
    supervise(slow, below)
    node.stop("sup")
    assert log.read_text() == "deep shutdown\nslow shutdown\n"


def test_sup_stop_timeout(node: loom.Node, supervise: Supervise, tmp_path: Path) -> None:
    log = tmp_path / "log"
    supervise(kid("one", log=log, shutdown_s=60), kid("two", log=log, shutdown_s=0.2))
    busy = node.lookup("two").nap(600.0)
    assert pid(node.lookup("one"))
    while next(row for row in node.stats().actors if row.name == "two").since_s < 0.01:
        pass
    node.stop("sup")
    with pytest.raises(ActorDied, match="did not stop in its shutdown time"):
        busy.result(timeout_s=20)
    assert log.read_text() == "one shutdown\n"


def test_sup_stop_timeout_dynamic(node: loom.Node, supervise: Supervise, tmp_path: Path) -> None:
    """Children of a template stop all at once: together they take as long as one, and each its own time at most."""
    sup = supervise(kid("one", shutdown_s=0.2), strategy="simple_one_for_one")
    kids = [sup.start_child() for _ in range(5)]
    busy = [one.nap(600.0) for one in kids]  # type: ignore[union-attr]
    while any(row.since_s < 0.01 for row in node.stats().actors if row.name.startswith("one")):
        pass
    node.stop("sup")
    for reply in busy:
        with pytest.raises(ActorDied, match="did not stop in its shutdown time"):
            reply.result(timeout_s=20)


@pytest.mark.parametrize("strategy", ["one_for_one", "simple_one_for_one"])
def test_sup_stop_brutal_kill(node: loom.Node, supervise: Supervise, tmp_path: Path, strategy: str) -> None:
    log = tmp_path / "log"
    if strategy == "one_for_one":
        supervise(kid("one", log=log), kid("two", log=log, shutdown_s="brutal_kill"))
        expected = "one shutdown\n"
    else:
        sup = supervise(kid("two", log=log, shutdown_s="brutal_kill"), strategy=strategy)
        sup.start_child()
        sup.start_child()
        expected = ""
    node.stop("sup")
    assert (log.read_text() if log.exists() else "") == expected


def test_sup_stop_race(node: loom.Node, supervise: Supervise, until: Any) -> None:
    """Children die while their supervisor stops them: nobody is restarted, and the stop ends."""
    for _ in range(5):
        sup = supervise(*(kid(f"k{number}") for number in range(8)), max_restarts=1000)
        pids = [child.pid for child in sup.children()]
        for one in pids[::2]:
            os.kill(one, signal.SIGKILL)
        node.stop("sup")
        assert until(lambda pids=pids: not any(map(is_alive, pids)))
        with pytest.raises((ActorDied, ActorNotFound)):
            node.lookup("k0")


class Slow(Kid):
    def on_start(self) -> None:
        time.sleep(0.3)


def test_who_gives_up_waiting_leaves_no_child_half_way(node: loom.Node, supervise: Supervise, until: Any) -> None:
    """What was asked for is done to its end, whether or not anybody waits for it."""
    import msgspec

    from loom.node.plan import child_plan

    sup = supervise()
    for name in ("a", "b"):
        child = ChildSpec(Slow, kwargs={"stop_s": 0.3}, name=name)
        asked = node._links.ask_node("start_child", "sup", msgspec.msgpack.encode(child_plan(child, sys.path)))
        assert until(lambda name=name: states(sup).get(name) == "starting")
        asked.cancel()
        assert until(lambda name=name: states(sup)[name] == "running")
    for verb, words in (("terminate_child", ("sup", "a")), ("stop_child", ("b",))):
        asked = node._links.ask_node(verb, *words)
        assert until(lambda words=words: states(sup)[words[-1]] == "stopping")
        asked.cancel()
    assert until(lambda: states(sup) == {"a": "stopped"})
    asked = node._links.ask_node("restart_child", "sup", "a")
    assert until(lambda: states(sup) == {"a": "starting"})
    asked.cancel()
    assert until(lambda: states(sup) == {"a": "running"})


class Sulky(Kid):
    def on_stop(self, reason: str) -> None:
        raise SystemExit(3)


def test_sup_stop_non_shutdown_exit_dynamic(node: loom.Node, supervise: Supervise) -> None:
    """Children that end otherwise than they were asked to hold up nobody, and are not restarted."""
    sup = supervise(ChildSpec(Sulky, name="sulky"), strategy="simple_one_for_one")
    for _ in range(5):
        sup.start_child()
    pids = [row.pid for row in sup.children()]
    node.stop("sup")
    assert not any(map(is_alive, pids))


def test_faulty_application_shutdown() -> None:
    """A node is stopped whose children end badly as it stops them: it ends as it was asked to."""
    children = (ChildSpec(Sulky, name="one"), ChildSpec(Kid, name="two"))
    with loom.Node(supervisor=SupervisorSpec(max_restarts=0, children=children)) as node:
        pids = [row.pid for row in node.supervisor().children()]
    assert node._process.returncode == 0
    assert not any(map(is_alive, pids))


# --- children at run time ----------------------------------------------------------------------------------------


def test_child_adm(node: loom.Node, supervise: Supervise) -> None:
    sup = supervise(kid("one"))
    first = sup.children()[0].pid
    assert sup.stop_child("one") is None
    assert not is_alive(first)
    assert states(sup) == {"one": "stopped"}
    sup.stop_child("one")  # again, which is fine
    assert counts(sup) == (1, 0, 0, 1)
    assert reason_of(lambda: sup.start_child(kid("one"))) == "already_present"
    one = sup.restart_child("one")
    assert pid(one) != first
    assert reason_of(lambda: sup.restart_child("one")) == "running"
    assert reason_of(lambda: sup.delete_child("one")) == "running"
    assert reason_of(lambda: sup.start_child(kid("one"))) == "already_started"
    sup.stop_child(one)
    sup.delete_child(one)
    assert sup.children() == ()
    for verb in (sup.stop_child, sup.restart_child, sup.delete_child):
        with pytest.raises(ActorNotFound, match="no child 'one'"):
            verb("one")
    assert pid(sup.start_child(kid("one"))) > 0
    with pytest.raises(NameTaken):  # under another supervisor
        node.supervisor().start_child(kid("one"))


def test_child_adm_simple(supervise: Supervise) -> None:
    sup = supervise(ChildSpec(Kid, args=("db",), name="session"), strategy="simple_one_for_one")
    assert sup.children() == ()
    alice, bob = sup.start_child("alice"), sup.start_child("bob", name="bob")
    assert alice is not None
    assert bob is not None
    assert alice.args().result(timeout_s=20) == ("db", "alice")
    assert (bob.name, bob.args().result(timeout_s=20)) == ("bob", ("db", "bob"))
    assert counts(sup) == (1, 2, 0, 2)
    assert reason_of(lambda: sup.restart_child(alice)) == "simple_one_for_one"
    assert reason_of(lambda: sup.delete_child(alice)) == "simple_one_for_one"
    assert reason_of(lambda: sup.start_child(kid("other"))) == "simple_one_for_one"
    sup.stop_child(alice)
    assert states(sup) == {"bob": "running"}  # the row goes with the process
    with pytest.raises(ActorNotFound):
        sup.stop_child(alice)


def test_extra_return(supervise: Supervise) -> None:
    """A new process for each start: what a reference was given for one child finds its successor."""
    sup = supervise(kid("one"))
    (row,) = sup.children()
    sup.stop_child("one")
    again = sup.restart_child("one")
    assert again is not None
    assert again.name == "one"
    assert pid(again) != row.pid
    assert sup.children()[0].incarnation == row.incarnation + 1


def test_which_children(supervise: Supervise) -> None:
    below = SupervisorSpec(children=(kid("deep"),))
    sup = supervise(kid("one"), ChildSpec(below, name="below"), kid("three", restart="transient"))
    rows = [(row.name, row.kind, row.state, row.restart) for row in sup.children()]
    assert rows == [
        ("one", "actor", "running", "permanent"),
        ("below", "supervisor", "running", "permanent"),
        ("three", "actor", "running", "transient"),
    ]


def test_which_children_simple_one_for_one(supervise: Supervise) -> None:
    sup = supervise(kid("one", restart="temporary"), strategy="simple_one_for_one")
    refs = [sup.start_child(), sup.start_child(), sup.start_child()]
    assert {row.name: row.pid for row in sup.children()} == {ref.name: pid(ref) for ref in refs if ref is not None}


def test_count_children(supervise: Supervise) -> None:
    sup = supervise(kid("one"), kid("two", restart="temporary"))
    assert counts(sup) == (2, 2, 0, 2)
    sup.stop_child("one")
    assert counts(sup) == (2, 1, 0, 2)
    sup.stop_child("two")
    assert counts(sup) == (1, 0, 0, 1)


def test_count_children_supervisor(supervise: Supervise) -> None:
    below = ChildSpec(SupervisorSpec(children=(kid("deep"),)), name="below")
    sup = supervise(below, kid("one"))
    assert counts(sup) == (2, 2, 1, 1)
    sup.stop_child("below")
    assert counts(sup) == (2, 1, 1, 1)
    assert isinstance(sup.restart_child("below"), loom.SupervisorRef)
    assert counts(sup) == (2, 2, 1, 1)


def test_tree(node: loom.Node, supervise: Supervise) -> None:
    """Supervisors below supervisors, added, stopped, restarted and removed while all runs."""
    sup = supervise()
    below = sup.start_child(ChildSpec(SupervisorSpec(children=(kid("deep"),)), name="below"))
    assert isinstance(below, loom.SupervisorRef)
    below.start_child(kid("deeper"))
    assert [one.name for one in below.children()] == ["deep", "deeper"]
    before = {one.name: one.pid for one in below.children()}
    sup.stop_child("below")
    assert not any(map(is_alive, before.values()))
    with pytest.raises(ChildError) as caught:
        below.start_child(kid("late"))
    assert caught.value.reason == "not_running"
    sup.restart_child("below")
    assert [one.name for one in below.children()] == ["deep"]  # its spec's children: as OTP's init gives them
    assert pid(node.lookup("deep")) != before["deep"]
    node.stop("below")
    assert sup.children() == ()


def test_a_restarted_supervisor_has_the_children_of_its_spec_again(supervise: Supervise, until: Any) -> None:
    below_spec = SupervisorSpec(
        max_restarts=0, children=(kid("a"), kid("b", restart="temporary"), kid("c", restart="transient"))
    )
    sup = supervise(ChildSpec(below_spec, name="below"), max_restarts=5)
    below = loom.SupervisorRef(sup._links, "below")
    below.stop_child("b")
    below.stop_child("c")
    below.delete_child("c")
    below.start_child(kid("d"))
    assert list(states(below)) == ["a", "d"]
    os.kill(below.children()[0].pid, signal.SIGKILL)
    assert until(lambda: states(sup) == {"below": "running"} and list(states(below)) == ["a", "b", "c"])
    assert set(states(below).values()) == {"running"}


def test_order_of_children(node: loom.Node, supervise: Supervise, tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = ["one", "two", "three", "four"]
    sup = supervise(*(kid(name, log=log) for name in names[:3]), strategy="rest_for_one")
    sup.start_child(kid("four", log=log))
    assert [row.name for row in sup.children()] == names
    before = [row.pid for row in sup.children()]
    assert before == sorted(before)  # started one after the other
    node.stop("sup")
    assert [line.split()[0] for line in log.read_text().splitlines()] == names[::-1]


def test_scale_start_stop_many_children(node: loom.Node, supervise: Supervise) -> None:
    sup = supervise(kid("many", restart="temporary"), strategy="simple_one_for_one")
    refs = [sup.start_child(number) for number in range(60)]
    assert counts(sup) == (1, 60, 0, 60)
    pids = [row.pid for row in sup.children()]
    for ref in refs[::2]:
        sup.stop_child(ref)
    assert counts(sup) == (1, 30, 0, 30)
    assert refs[1] is not None
    assert refs[1].args().result(timeout_s=20) == (1,)
    node.stop("sup")
    assert not any(map(is_alive, pids))


def test_simple_one_for_one_scale_many_temporary_children(supervise: Supervise, until: Any) -> None:
    sup = supervise(kid("brief", restart="temporary"), strategy="simple_one_for_one", max_restarts=0)
    for _ in range(30):
        sup.start_child()
    for row in sup.children():
        os.kill(row.pid, signal.SIGKILL)
    assert until(lambda: counts(sup) == (1, 0, 0, 0))


def test_do_not_save_start_parameters_for_temporary_children(node: loom.Node, supervise: Supervise) -> None:
    """Nothing of a temporary child is kept when it is gone: its name, its row of the status board, its arguments."""
    sup = supervise()
    before = _memory_of(node.pid)
    for number in range(24):
        child = ChildSpec(Kid, args=(b"x" * 8 * 1024**2,), name=f"big{number}", restart="temporary")
        sup.stop_child(sup.start_child(child))
    assert sup.children() == ()
    assert not [actor for actor in node.stats().actors if actor.name.startswith("big")]
    with pytest.raises(ActorNotFound):
        sup.restart_child("big1")
    assert _memory_of(node.pid) < before + 96 * 1024**2  # half of what they were given


def _memory_of(pid: int) -> int:
    """Anonymous memory of a process, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_a_group_is_started_stopped_and_restarted_as_one(node: loom.Node, supervise: Supervise) -> None:
    sup = supervise()
    assert sup.start_child(ChildSpec(Kid, name="w", instances=3)) is not None
    assert list(states(sup)) == ["w.0", "w.1", "w.2"]
    assert node.lookup("w").name == "w"
    assert reason_of(lambda: sup.start_child(ChildSpec(Kid, name="w", instances=3))) == "already_started"
    sup.stop_child("w")
    assert set(states(sup).values()) == {"stopped"}
    sup.restart_child("w")
    assert set(states(sup).values()) == {"running"}
