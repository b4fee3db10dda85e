"""OTP's supervisor_SUITE, the part about deaths: who restarts, with whom, and when a supervisor gives up.

On real processes. Test names are the suite's; supervisor_suite.md says of every case of it where it is, or why it does
not apply.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loom
from loom import BackoffSpec, ChildSpec, SupervisorSpec
from loom.errors import ActorDied, ActorNotFound, LoomError, NodeDown, StartFailed


class Kid(loom.Actor):
    """Starts as the file `flag` says when there is one: "ignore", "fail" or "hang"; each start is noted in `starts`."""

    def __init__(self, flag: str = "", starts: str = "") -> None:
        if starts:
            with open(starts, "a") as file:
                file.write(f"{self.ctx.name}\n")
        how = Path(flag).read_text() if flag and Path(flag).exists() else ""
        if how == "ignore":
            raise loom.Ignore("not today")
        if how == "fail":
            raise RuntimeError("cannot be made")
        if how == "hang":
            time.sleep(600)

    def pid(self) -> int:
        return os.getpid()

    def leave(self) -> None:
        self.ctx.stop()

    def leave_as(self, reason: str) -> None:
        self.ctx.stop(reason)

    def exit(self, code: int) -> None:
        raise SystemExit(code)


Supervise = Callable[..., loom.SupervisorRef]


@pytest.fixture(scope="module")
def node(runtime_folder: Path) -> Iterator[loom.Node]:
    with loom.Node(supervisor=SupervisorSpec(max_restarts=100_000, within_s=60)) as node:
        yield node


@pytest.fixture
def supervise(node: loom.Node) -> Iterator[Supervise]:
    """A supervisor "sup" of the test's own, with these children. It is temporary: when it gives up, it is gone."""

    def start(*children: ChildSpec, restart: Any = "temporary", **rules: Any) -> loom.SupervisorRef:
        spec = SupervisorSpec(**{"max_restarts": 2, "within_s": 3600, "children": children, **rules})
        return node.supervise(spec, name="sup", restart=restart)

    yield start
    try:
        node.stop("sup")
    except (ActorNotFound, ActorDied):
        pass


def kid(name: str, flag: Path | str = "", starts: Path | str = "", **keys: Any) -> ChildSpec:
    return ChildSpec(Kid, kwargs={"flag": str(flag), "starts": str(starts)}, name=name, **keys)


def states(sup: loom.SupervisorRef) -> dict[str, str]:
    return {child.name: child.state for child in sup.children()}


def pids(sup: loom.SupervisorRef) -> dict[str, int]:
    return {child.name: child.pid for child in sup.children()}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def is_gone(sup: loom.SupervisorRef) -> bool:
    try:
        sup.children()
    except (ActorDied, ActorNotFound):
        return True
    return False


def all_run_anew(sup: loom.SupervisorRef, names: str, before: dict[str, int]) -> bool:
    """Whether exactly `names` have other processes than before, and all run."""
    now = sup.children()
    return all(row.state == "running" and (row.pid != before[row.name]) == (row.name in names) for row in now)


# --- permanent, transient, temporary -----------------------------------------------------------------------------


ENDS: dict[str, Callable[[Any], None]] = {
    "normal": lambda ref: ref.leave.tell(),
    "abnormal": lambda ref: ref.exit.tell(3),
    "killed": lambda ref: kill(ref.pid().result(timeout_s=20)),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_restart_type(node: loom.Node, supervise: Supervise, until: Any, restart: str, end: str) -> None:
    """permanent_normal, transient_normal, temporary_normal, permanent_abnormal, transient_abnormal, temporary_abnormal:
    which of them come back.
    """
    sup = supervise(kid("one", restart=restart), kid("two"))
    before = pids(sup)
    ENDS[end](node.lookup("one"))
    assert until(lambda: not is_alive(before["one"]))
    if restart == "permanent" or (restart == "transient" and end != "normal"):
        assert until(lambda: all_run_anew(sup, "one", before))
    elif restart == "transient":
        assert until(lambda: states(sup) == {"one": "stopped", "two": "running"})
        assert sup.restart_child("one") is not None
    else:
        assert until(lambda: states(sup) == {"two": "running"})
    assert pids(sup)["two"] == before["two"]


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_shutdown(supervise: Supervise, until: Any, restart: str) -> None:
    """permanent_shutdown, transient_shutdown, temporary_shutdown: a supervisor that gives up ends as "shutdown"."""
    below = ChildSpec(SupervisorSpec(max_restarts=0, children=(kid("deep"),)), name="below", restart=restart)  # type: ignore[arg-type]
    sup = supervise(below, kid("two"))
    deep = loom.SupervisorRef(sup._links, "below").children()[0].pid
    kill(deep)
    if restart == "permanent":
        assert until(lambda: _pid_of("deep", sup) not in (0, deep))
        assert until(lambda: states(sup) == {"below": "running", "two": "running"})
    elif restart == "transient":
        assert until(lambda: states(sup) == {"below": "stopped", "two": "running"})
        assert "gave up" in sup.children()[0].last_death
    else:
        assert until(lambda: states(sup) == {"two": "running"})


def _pid_of(name: str, sup: loom.SupervisorRef) -> int:
    try:
        return next((row.pid for row in loom.SupervisorRef(sup._links, "below").children() if row.name == name), 0)
    except LoomError:
        return 0


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_temporary_bystander(supervise: Supervise, until: Any, strategy: str) -> None:
    """A temporary child that is stopped with a sibling is not started again, and forgotten."""
    sup = supervise(kid("one"), kid("two", restart="temporary"), strategy=strategy)
    before = pids(sup)
    kill(before["one"])
    assert until(lambda: states(sup) == {"one": "running"} and pids(sup)["one"] != before["one"])
    assert not is_alive(before["two"])


# --- strategies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "dies", "restarted"),
    [
        ("one_for_one", "b", "b"),
        ("one_for_all", "b", "abc"),
        ("rest_for_one", "b", "bc"),
        ("rest_for_one", "a", "abc"),
        ("rest_for_one", "c", "c"),
    ],
)
def test_strategy(supervise: Supervise, until: Any, tmp_path: Path, strategy: str, dies: str, restarted: str) -> None:
    """one_for_one, one_for_all, rest_for_one."""
    starts = tmp_path / "starts"
    sup = supervise(*(kid(name, starts=starts) for name in "abc"), strategy=strategy)
    before = pids(sup)
    starts.write_text("")
    kill(before[dies])
    assert until(lambda: all_run_anew(sup, restarted, before))
    assert starts.read_text().split() == list(restarted)  # in start order, once each


def test_simple_one_for_one(supervise: Supervise, until: Any) -> None:
    sup = supervise(kid("s"), strategy="simple_one_for_one")
    one, two = sup.start_child(), sup.start_child()
    assert isinstance(one, loom.ActorRef)
    assert isinstance(two, loom.ActorRef)
    before = pids(sup)
    kill(before[one.name])
    assert until(lambda: all_run_anew(sup, one.name, before))


def test_simple_one_for_one_shutdown(node: loom.Node, supervise: Supervise, until: Any) -> None:
    """A transient child of a template that ends normally is forgotten."""
    sup = supervise(kid("s", restart="transient"), strategy="simple_one_for_one")
    one, two = sup.start_child(), sup.start_child()
    assert isinstance(one, loom.ActorRef)
    assert isinstance(two, loom.ActorRef)
    one.leave.tell()
    assert until(lambda: states(sup) == {two.name: "running"})


def test_simple_one_for_one_extra(supervise: Supervise, until: Any, tmp_path: Path) -> None:
    """A restarted child is made with the arguments that came with its own start."""
    starts = tmp_path / "starts"
    sup = supervise(ChildSpec(Kid, name="s"), strategy="simple_one_for_one")
    one = sup.start_child("", starts=str(starts))
    assert isinstance(one, loom.ActorRef)
    before = pids(sup)
    kill(before[one.name])
    assert until(lambda: all_run_anew(sup, one.name, before))
    assert starts.read_text() == f"{one.name}\n{one.name}\n"


def test_simple_one_for_one_restart_ignore(supervise: Supervise, until: Any, tmp_path: Path) -> None:
    """A restart that the child ignores is no failure; under a template its row goes."""
    flag = tmp_path / "flag"
    sup = supervise(kid("s", flag), strategy="simple_one_for_one", max_restarts=1)
    one, two = sup.start_child(), sup.start_child()
    assert isinstance(one, loom.ActorRef)
    assert isinstance(two, loom.ActorRef)
    flag.write_text("ignore")
    kill(pids(sup)[one.name])
    assert until(lambda: states(sup) == {two.name: "running"})


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one"])
def test_escalation(supervise: Supervise, until: Any, strategy: str) -> None:
    """one_for_one_escalation, one_for_all_escalation, rest_for_one_escalation, simple_one_for_one_escalation."""
    if strategy == "simple_one_for_one":
        sup = supervise(kid("s"), strategy=strategy, max_restarts=1)
        sup.start_child()
        sup.start_child()
    else:
        sup = supervise(kid("a"), kid("b"), strategy=strategy, max_restarts=1)
    before = pids(sup)
    first = next(iter(before))
    kill(before[first])
    second = until(lambda: next((pid for pid in [pids(sup)[first]] if pid not in (0, before[first])), 0))
    assert until(lambda: set(states(sup).values()) == {"running"})
    last = pids(sup)
    kill(second)
    assert until(lambda: is_gone(sup))
    assert not any(map(is_alive, {*before.values(), *last.values()}))
    with pytest.raises(ActorDied, match=r"gave up: more than 1 restart in 3600 s.*killed by SIGKILL"):
        sup.children()


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_other_child_fails_restart(supervise: Supervise, until: Any, tmp_path: Path, strategy: str) -> None:
    """one_for_all_other_child_fails_restart, rest_for_one_other_child_fails_restart: a group restart in which another
    child fails to start is tried again, the failures counting.
    """
    flag, starts = tmp_path / "flag", tmp_path / "starts"
    sup = supervise(
        kid("a", starts=starts), kid("b", flag, starts), strategy=strategy, max_restarts=100, backoff=SLOWLY
    )
    before = pids(sup)
    flag.write_text("fail")
    starts.write_text("")
    kill(before["a"])
    assert until(lambda: starts.read_text().split().count("b") >= 3)
    flag.unlink()
    assert until(lambda: all_run_anew(sup, "ab", before))
    firsts = starts.read_text().split().count("a")
    assert (firsts == 1) if strategy == "rest_for_one" else (firsts >= 3)  # one_for_all begins with "a" each time


SLOWLY = BackoffSpec(base_s=0.05, factor=1)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_other_child_fails_restart_for_good(supervise: Supervise, until: Any, tmp_path: Path, strategy: str) -> None:
    flag = tmp_path / "flag"
    sup = supervise(kid("a"), kid("b", flag), strategy=strategy, max_restarts=3)
    before = pids(sup)
    flag.write_text("fail")
    kill(before["a"])
    assert until(lambda: is_gone(sup))
    with pytest.raises(ActorDied, match=r"(?s)gave up.*cannot be made"):
        sup.children()
    assert not any(map(is_alive, before.values()))


def test_multiple_restarts(supervise: Supervise, until: Any) -> None:
    """Exactly max_restarts restarts survive, and one more escalates."""
    sup = supervise(kid("one"), kid("two"), max_restarts=3, within_s=3600)
    for _ in range(3):
        before = pids(sup)
        kill(before["one"])
        assert until(lambda before=before: all_run_anew(sup, "one", before))
    kill(pids(sup)["one"])
    assert until(lambda: is_gone(sup))


def test_the_window_slides(supervise: Supervise, until: Any) -> None:
    """Restarts that are older than within_s count no more. What is at its very edge, the policy's tests say."""
    sup = supervise(kid("one"), max_restarts=1, within_s=0.3)
    for _ in range(4):
        before = pids(sup)
        kill(before["one"])
        assert until(lambda before=before: all_run_anew(sup, "one", before))
        time.sleep(0.35)  # that much time has to pass: the only clock here is the real one
    assert not is_gone(sup)


def test_escalation_up_the_tree_ends_the_node(until: Any) -> None:
    inner = SupervisorSpec(max_restarts=0, children=(ChildSpec(Kid, name="deep"),))
    middle = SupervisorSpec(max_restarts=0, children=(ChildSpec(inner, name="inner"),))
    node = loom.Node(supervisor=SupervisorSpec(max_restarts=0, children=(ChildSpec(middle, name="middle"),)))
    try:
        deep = node.lookup("deep")
        kill(deep.pid().result(timeout_s=20))
        assert until(lambda: node._process.poll() is not None)
        assert node._process.returncode == 1
        with pytest.raises(NodeDown, match=r"'root' gave up.*'middle'.*'inner' gave up.*'deep': killed by SIGKILL"):
            deep.pid().result(timeout_s=20)
    finally:
        node.close()


# --- restart loops, and stops in them ----------------------------------------------------------------------------


def test_count_restarting_children(supervise: Supervise, until: Any, tmp_path: Path) -> None:
    """A child that waits to be restarted is no active one, keeps its row, and can be stopped, not restarted."""
    flag = tmp_path / "flag"
    sup = supervise(kid("a", flag), kid("b"), max_restarts=1000, backoff=BackoffSpec(base_s=600, cap_s=600))
    kill(pids(sup)["a"])
    assert until(lambda: states(sup) == {"a": "restarting", "b": "running"})
    count = sup.count()
    assert (count.specs, count.active, count.workers) == (2, 1, 2)
    for verb in (sup.restart_child, sup.delete_child):
        with pytest.raises(loom.errors.ChildError) as caught:
            verb("a")
        assert caught.value.reason == "restarting"
    sup.stop_child("a")
    assert states(sup) == {"a": "stopped", "b": "running"}
    sup.restart_child("a")
    assert states(sup) == {"a": "running", "b": "running"}


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one"])
@pytest.mark.parametrize("how", ["fail", "hang"])
def test_hanging_restart_loop(
    node: loom.Node, supervise: Supervise, until: Any, tmp_path: Path, strategy: str, how: str
) -> None:
    """hanging_restart_loop, hanging_restart_loop_rest_for_one, hanging_restart_loop_simple: a child whose restarts fail
    again and again, or never end, keeps nobody from stopping it, its siblings, or its supervisor; and then it is over.
    """
    flag, starts = tmp_path / "flag", tmp_path / "starts"
    children = [kid("a", flag, starts)] if strategy == "simple_one_for_one" else [kid("a", flag, starts), kid("b")]
    sup = supervise(*children, strategy=strategy, max_restarts=100_000, within_s=3600)
    name = "a"
    if strategy == "simple_one_for_one":
        started = sup.start_child()
        assert isinstance(started, loom.ActorRef)
        name = started.name
    flag.write_text(how)
    starts.write_text("")
    kill(pids(sup)[name])
    assert until(lambda: len(starts.read_text().split()) >= (3 if how == "fail" else 1))
    sup.stop_child(name)
    assert states(sup).get(name, "stopped") == "stopped"
    starts.write_text("")
    if strategy != "simple_one_for_one":
        flag.unlink()
        sup.restart_child(name)
        flag.write_text(how)
        kill(pids(sup)[name])
        assert until(lambda: len(starts.read_text().split()) >= (3 if how == "fail" else 2))
    node.stop("sup")
    assert is_gone(sup)
    done = starts.read_text()
    flag.write_text("fail")
    assert sup.name not in [row.name for row in node.supervisor().children()]
    assert starts.read_text() == done  # nothing rises again


def test_nothing_rises_again_after_a_stop(supervise: Supervise, until: Any, tmp_path: Path) -> None:
    """Stop a child the moment it has died, again and again: whichever comes first, in the end it is stopped."""
    starts = tmp_path / "starts"
    sup = supervise(kid("a", starts=starts), kid("b"), max_restarts=100_000)
    for _ in range(30):
        kill(pids(sup)["a"])
        sup.stop_child("a")
        seen = starts.read_text()
        assert states(sup) == {"a": "stopped", "b": "running"}
        sup.count()
        assert starts.read_text() == seen
        assert sup.restart_child("a") is not None
    sup.stop_child("a")
    assert states(sup) == {"a": "stopped", "b": "running"}


def test_a_stop_in_a_group_restart_is_honoured(supervise: Supervise, until: Any, tmp_path: Path) -> None:
    """The group waits out its backoff; a child that is stopped meanwhile stays down, the others come back."""
    sup = supervise(
        kid("a"), kid("b"), kid("c"), strategy="one_for_all", max_restarts=9, backoff=BackoffSpec(base_s=0.5)
    )
    before = pids(sup)
    kill(before["a"])
    assert until(lambda: set(states(sup).values()) == {"restarting"})
    sup.stop_child("b")
    assert until(lambda: states(sup) == {"a": "running", "b": "stopped", "c": "running"})


def test_child_unlink(supervise: Supervise, until: Any) -> None:
    """The supervisor notices a death by the kernel's word alone, whatever the child did to its own end of things."""
    sup = supervise(ChildSpec(Recluse, name="one"))
    before = pids(sup)
    loom.actor.verbs.Verbs(sup._links).reference("one").close_all.tell()
    assert until(lambda: all_run_anew(sup, "one", before) and True)


class Recluse(Kid):
    def close_all(self) -> None:
        os.closerange(3, 100)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_hanging_start_is_stopped_with_its_supervisor(node: loom.Node, supervise: Supervise, tmp_path: Path) -> None:
    """The first start hangs: the program that waits for it is told, and nothing is left."""
    import threading

    flag, starts = tmp_path / "flag", tmp_path / "starts"
    flag.write_text("hang")
    failures: list[Exception] = []

    def start() -> None:
        try:
            supervise(kid("a"), kid("b", flag, starts, shutdown_s="infinity"))
        except StartFailed as error:
            failures.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    while not starts.exists():
        time.sleep(0.005)
    node.stop("sup")
    thread.join(30)
    assert not thread.is_alive()
    assert "stopped while it started" in str(failures[0])
