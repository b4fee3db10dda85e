"""What could be mistaken for a living process, or kill one by mistake: reused pids, zombies, threads that end."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.actor.address import is_alive, open_pidfd, start_time_of
from loom.actor.procfs import stat_of
from loom.errors import ActorDied, LoomError, NodeNotFound
from loom.node import folder
from loom.supervise import orphans

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
TRIES = 400
"""Times that a pid is asked for again: on a busy machine somebody else may get it first."""

can_choose_pids = pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="pids cannot be chosen here")


class Worker(loom.Actor):
    def pid(self) -> int:
        return os.getpid()

    def nap(self) -> None:
        time.sleep(600)

    def spawn_from_a_thread_that_ends(self, name: str) -> int:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(self.ctx.spawn(Worker, name=name)))
        thread.start()
        thread.join()
        pid: int = found[0].pid().result(timeout_s=10)
        return pid


@pytest.fixture
def node() -> Iterator[loom.Node]:
    children = (loom.ChildSpec(Worker, name="worker"), loom.ChildSpec(Worker, name="brief", restart="temporary"))
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=100_000, within_s=60, children=children)) as node:
        yield node


def next_pid(pid: int) -> None:
    """The next process to be forked shall get that pid, if nobody forks in between."""
    LAST_PID.write_text(str(pid - 1))


def bystander(pid: int) -> subprocess.Popen[bytes]:
    """A process that has nothing to do with any node, with the pid of one that is gone."""
    for _ in range(TRIES):
        next_pid(pid)
        found = subprocess.Popen(["sleep", "600"])
        if found.pid == pid:
            return found
        found.kill()
        found.wait()
    pytest.skip(f"pid {pid} was not to be had")


# --- Reused pids ---


@can_choose_pids
def test_a_reused_pid_is_not_the_process_that_had_it() -> None:
    first = subprocess.Popen(["sleep", "600"])
    pid, start_time = first.pid, start_time_of(first.pid)
    assert is_alive(pid, start_time)
    first.kill()
    first.wait()
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # start times are told in ticks
    second = bystander(pid)
    try:
        assert stat_of(pid).state in "RS"
        assert not is_alive(pid, start_time)
        assert open_pidfd(pid, start_time) is None
        again = open_pidfd(pid, start_time_of(pid))
        assert again is not None
        os.close(again)
        assert orphans.kill_tree(pid, os.getpid() + 1) == 0  # not below whom it was seen
        assert second.poll() is None
    finally:
        second.kill()
        second.wait()


@can_choose_pids
def test_a_bystander_with_a_dead_actors_pid_is_nobodys_business(node: loom.Node, until: Callable[..., Any]) -> None:
    worker, brief = node.lookup("worker"), node.lookup("brief")
    pid = brief.pid().result(timeout_s=10)
    held = loom.arena.current().participants()
    assert [one.alive for one in held if one.pid == pid] == [True]
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: stat_of(pid).state == "X")
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))
    innocent = bystander(pid)
    try:
        for _ in range(3):
            with pytest.raises(LoomError):
                brief.pid().result(timeout_s=10)
        other = worker.pid().result(timeout_s=10)
        os.kill(other, signal.SIGKILL)  # a death, and so a sweep
        assert until(lambda: ask(worker) not in (None, other))
        assert not any(one.alive for one in loom.arena.current().participants() if one.pid == pid)
        node.close()
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


@can_choose_pids
def test_a_replacement_with_the_pid_of_the_dead_is_another_incarnation(
    node: loom.Node, until: Callable[..., Any]
) -> None:
    worker = node.lookup("worker")
    for _ in range(TRIES // 4):
        pid = worker.pid().result(timeout_s=10)
        before = start_time_of(pid), node.stats().actors[0].incarnation
        pending = worker.nap()
        assert until(lambda: node.stats().actors[0].since_s > 0.05)  # then it is surely the nap
        next_pid(pid - 1)  # the zygote forks twice
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorDied, match="killed by SIGKILL") as caught:
            pending.result(timeout_s=10)
        assert caught.value.started is True
        now = until(lambda: ask(worker))
        if now == pid:
            assert start_time_of(pid) > before[0]
            assert node.stats().actors[0].incarnation == before[1] + 1
            assert worker.pid().result(timeout_s=10) == pid
            return
    pytest.skip("no replacement got the pid of the dead")


def ask(ref: Any) -> int | None:
    try:
        pid: int = ref.pid().result(timeout_s=20)
    except ActorDied:
        return None
    return pid


def test_a_node_whose_pid_somebody_else_has_is_not_running(node: loom.Node) -> None:
    (facts,) = (one for one in folder.running() if one.pid == node.pid)
    path = folder.base() / "ghost"
    path.mkdir()
    try:
        (path / "facts").write_bytes(folder.msgspec.json.encode({**_plain(facts), "name": "ghost", "start_time": 1}))
        with pytest.raises(NodeNotFound, match="no node is running at 'ghost'"):
            loom.connect("ghost")
    finally:
        (path / "facts").unlink()
        path.rmdir()


def _plain(facts: folder.Facts) -> dict[str, Any]:
    found: dict[str, Any] = folder.msgspec.to_builtins(facts)
    return found


# --- Zombies ---


def test_a_zombie_is_dead(node: loom.Node, until: Callable[..., Any]) -> None:
    """A stopped node reaps nobody, so its actor stays a zombie for as long as the test likes."""
    worker = node.lookup("worker")
    pid = worker.pid().result(timeout_s=10)
    start_time = start_time_of(pid)
    pending = worker.nap()
    assert until(lambda: node.stats().actors[0].since_s > 0.05)  # then it is surely the nap
    os.kill(node.pid, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: stat_of(pid).state == "Z")
        assert start_time_of(pid) == start_time
        assert not is_alive(pid, start_time)
        assert not any(one.alive for one in loom.arena.current().participants() if one.pid == pid)
        pidfd = open_pidfd(pid, start_time)
        assert pidfd is not None
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(10_000)
        os.close(pidfd)
        assert not pending.done()  # the node is to say how it died
    finally:
        os.kill(node.pid, signal.SIGCONT)
    with pytest.raises(ActorDied, match="killed by SIGKILL"):
        pending.result(timeout_s=10)
    assert until(lambda: ask(worker))
    assert until(lambda: stat_of(pid).state == "X")


def test_a_node_that_is_a_zombie_is_not_running(until: Callable[..., Any]) -> None:
    """Its program has not looked after it yet."""
    node = loom.Node("undead")
    try:
        os.kill(node.pid, signal.SIGKILL)
        assert until(lambda: stat_of(node.pid).state == "Z")
        assert "undead" not in [facts.name for facts in folder.running()]
        with pytest.raises(NodeNotFound, match="no node is running at 'undead'"):
            loom.connect("undead")
    finally:
        node.close()


# --- Threads that end ---

PARENT_DEATH = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
armed, arms = os.pipe()
def fork():
    if os.fork() == 0:
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
        os.write(1, b"%d\\n" % os.getpid())
        os.write(arms, b"!")
        time.sleep(600)
    os.read(armed, 1)
thread = threading.Thread(target=fork)
thread.start()
thread.join()
sys.stdin.read()
"""


def test_a_parent_death_signal_is_about_the_thread_that_forked(until: Callable[..., Any]) -> None:
    """Why there is something to take care of: the process lives on, its thread has ended, and the child is killed."""
    program = subprocess.Popen([sys.executable, "-c", PARENT_DEATH], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdin is not None
    try:
        pid = int(program.stdout.readline())
        assert until(lambda: stat_of(pid).state in "ZX")
        assert program.poll() is None
    finally:
        program.stdin.close()
        program.wait()
        program.stdout.close()


def test_nodes_and_actors_outlive_the_threads_that_started_them(until: Callable[..., Any]) -> None:
    nodes: list[loom.Node] = []
    refs: list[Any] = []
    for work in (
        lambda: nodes.append(loom.Node(supervisor=loom.SupervisorSpec(max_restarts=100))),
        lambda: refs.append(nodes[0].spawn(Worker, name="worker")),
    ):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with nodes[0] as node:
        pid = refs[0].pid().result(timeout_s=10)
        below = refs[0].spawn_from_a_thread_that_ends("below").result(timeout_s=10)
        zygote = zygote_of(node.pid, {pid, below})
        os.kill(zygote, signal.SIGKILL)
        assert until(lambda: stat_of(zygote).state in "ZX")
        after = node.spawn(Worker, name="after").pid().result(timeout_s=20)
        assert [node.lookup(name).pid().result(timeout_s=10) for name in ("worker", "below", "after")] == [
            pid,
            below,
            after,
        ]
        assert node.stats().restart_count == 0


def test_a_spawn_that_the_zygote_takes_to_its_grave_ends(node: loom.Node) -> None:
    """Whoever waits for an actor that never came to be is told so."""
    actors = {node.lookup(name).pid().result(timeout_s=10) for name in ("worker", "brief")}
    zygote = zygote_of(node.pid, actors)
    os.kill(zygote, signal.SIGSTOP)
    ref = node.spawn(Worker, name="never")
    reply = ref.pid.options(timeout_s=20)
    thread = threading.Timer(0.5, os.kill, (zygote, signal.SIGKILL))
    thread.start()
    with pytest.raises(ActorDied, match="died before it said hello"):
        reply().result(timeout_s=20)
    thread.join()
    assert node.spawn(Worker, name="never").pid().result(timeout_s=20) > 0


def zygote_of(node_pid: int, actors: set[int]) -> int:
    (found,) = set(orphans.children_of(node_pid)) - actors
    return found


def test_actors_are_children_of_the_nodes_main_thread(node: loom.Node) -> None:
    """Of the one thread that ends only with the node; a thread that sends them the signal must not be another."""
    pids = {node.lookup(name).pid().result(timeout_s=10) for name in ("worker", "brief")}
    threads = [int(tid) for tid in os.listdir(f"/proc/{node.pid}/task")]
    assert len(threads) > 1
    by_thread = {
        tid: set(map(int, Path(f"/proc/{node.pid}/task/{tid}/children").read_text().split())) for tid in threads
    }
    assert pids <= by_thread.pop(node.pid)
    assert not any(by_thread.values())


def test_an_actor_ends_with_its_node_however_early(until: Callable[..., Any]) -> None:
    """The signal is armed after the actor has become the node's child, and the parent is looked at once more."""
    signal_of = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(2, ctypes.byref(signal_of)) == 0  # PR_GET_PDEATHSIG: this process has none
    for _ in range(5):
        node = loom.Node()
        refs = [node.spawn(Worker) for _ in range(4)]
        os.kill(node.pid, signal.SIGKILL)  # as they start
        cookie = loom.arena.current().name.rpartition("-")[2]
        assert until(lambda cookie=cookie: not _carriers(cookie))
        node.close()
        assert refs


def _carriers(cookie: str) -> list[int]:
    from loom.supervise import sweep

    return sweep.processes_of(cookie)
