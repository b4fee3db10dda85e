"""Monitors under fire: each death is told once, with its cause, and nothing of a monitor is left when it is over."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

import loom
from loom import ChildSpec, SupervisorSpec
from loom.errors import CallTimeout, NodeDown, UsageError

MANY = SupervisorSpec(max_restarts=100_000, within_s=3600)


class Worker(loom.Actor):
    def __init__(self, flag: str = "") -> None:
        if flag and Path(flag).exists():
            raise RuntimeError("cannot be made today")

    def pid(self) -> int:
        return os.getpid()

    def echo(self, value: Any) -> Any:
        return value

    def leave(self) -> None:
        self.ctx.stop()

    def exit(self, code: int) -> None:
        raise SystemExit(code)

    def nap(self, s: float) -> None:
        time.sleep(s)

    def take(self, size_bytes: int) -> None:
        held = bytearray()
        while len(held) < size_bytes:
            held += b"x" * 1024**2
            time.sleep(0.002)


class BadEnd(Worker):
    def on_stop(self, reason: str) -> None:
        raise ValueError("cannot end well")


class Watcher(Worker):
    """Monitors others from within."""

    def __init__(self, *names: str) -> None:
        self.downs: list[loom.Down] = []
        self.monitors = {name: self.ctx.monitor(name) for name in names}

    def watch(self, ref: Any) -> None:
        self.monitors[ref.name] = self.ctx.monitor(ref)

    def unwatch(self, name: str) -> None:
        self.ctx.demonitor(self.monitors.pop(name))

    def on_down(self, down: loom.Down) -> None:
        self.downs.append(down)
        if down.reason == "noproc":
            raise ValueError("which is logged, and no more")

    def seen(self) -> list[tuple[str, str, int]]:
        return [(down.ref.name, down.reason, down.incarnation) for down in self.downs]


class AsyncWatcher(Watcher):
    async def on_down(self, down: loom.Down) -> None:  # type: ignore[override]
        await asyncio.sleep(0.01)
        self.downs.append(down)


@pytest.fixture(scope="module")
def node(runtime_folder: Path) -> Iterator[loom.Node]:
    with loom.Node("watched", supervisor=MANY) as node:
        yield node


@pytest.fixture
def spawn(node: loom.Node) -> Iterator[Any]:
    refs: list[Any] = []

    def spawn(actor: Any = Worker, *args: Any, **keys: Any) -> Any:
        refs.append(node.spawn(actor, *args, **keys))
        return refs[-1]

    yield spawn
    for ref in refs:
        try:
            node.stop(ref)
        except loom.errors.LoomError:
            pass


def pid(ref: Any) -> int:
    for _ in range(100):
        try:
            found: int = ref.pid().result(timeout_s=20)
            return found
        except loom.errors.ActorDied:
            continue
    raise AssertionError("it never came back")


def kill(ref: Any) -> int:
    found = pid(ref)
    os.kill(found, signal.SIGKILL)
    return found


# --- what a Down tells -------------------------------------------------------------------------------------------


def test_a_down_for_each_death_with_its_cause(node: loom.Node, spawn: Any) -> None:
    worker = spawn(name="worker")
    with node.monitor(worker) as downs:
        kill(worker)
        down = downs.get(timeout_s=20)
        assert down.ref == worker
        assert (down.reason, down.incarnation) == ("signal", 1)
        assert (down.cause.signal, down.cause.exit_code, down.cause.text) == (9, None, "killed by SIGKILL")
        pid(worker)
        worker.exit.tell(3)
        down = next(iter(downs))
        assert (down.reason, down.cause.exit_code, down.incarnation) == ("exit", 3, 2)
        pid(worker)
        worker.leave.tell()
        assert [(down.reason, down.incarnation) for down in [downs.get(20)]] == [("normal", 3)]
        pid(worker)
        node.stop(worker)
        last = list(downs)  # it ends with the name
        assert [(down.reason, down.cause.kind) for down in last] == [("stopped", "shutdown")]


def test_a_down_carries_the_remote_traceback(node: loom.Node, spawn: Any, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    spec = SupervisorSpec(max_restarts=1, children=(ChildSpec(Worker, args=(str(flag),), name="frail"),))
    node.supervise(spec, name="sup", restart="temporary")
    frail = node.lookup("frail")
    with node.monitor("frail") as downs:
        flag.touch()
        kill(frail)
        first, second = itertools.islice(downs, 2)
    assert (first.reason, second.reason) == ("signal", "start_failed")
    assert "RuntimeError: cannot be made today" in second.cause.traceback
    assert "Traceback" in second.cause.traceback
    bad = spawn(BadEnd)
    with node.monitor(bad) as downs:
        bad.leave.tell()
        down = downs.get(20)
    assert (down.reason, down.cause.exit_code) == ("exception", 1)
    assert "ValueError: cannot end well" in down.cause.traceback


def test_a_down_tells_a_hang_with_its_stack(node: loom.Node) -> None:
    node.supervisor().start_child(ChildSpec(Worker, name="stuck", watchdog_s=0.5))
    stuck = node.lookup("stuck")
    with node.monitor(stuck) as downs:
        stuck.nap.tell(600.0)
        down = downs.get(60)
    assert (down.reason, down.cause.signal) == ("hang", 9)
    assert "nap" in down.cause.stack
    node.stop(stuck)


def test_a_down_tells_which_limit_was_exceeded(node: loom.Node) -> None:
    limits = loom.LimitsSpec(memory_bytes=96 * 1024**2)
    node.supervisor().start_child(ChildSpec(Worker, name="greedy", limits=limits))
    greedy = node.lookup("greedy")
    with node.monitor(greedy) as downs:
        greedy.take.tell(500 * 1024**2)
        down = downs.get(60)
    assert (down.reason, down.cause.signal) == ("memory_limit", 9)
    assert down.cause.text.startswith("memory limit: ")
    node.stop(greedy)


def test_the_dead_and_the_unknown_answer_at_once(node: loom.Node, spawn: Any) -> None:
    downs = list(node.monitor("nobody"))
    assert [(down.ref.name, down.reason, down.incarnation) for down in downs] == [("nobody", "noproc", 0)]
    worker = spawn(name="late")
    kill(worker)
    pid(worker)
    node.stop(worker)
    (down,) = node.monitor(worker)  # remembered, though nobody bears the name
    assert (down.reason, down.incarnation) == ("stopped", 2)
    sup = node.supervisor()
    sup.start_child(ChildSpec(Worker, name="row", restart="transient"))
    sup.stop_child("row")
    with node.monitor("row") as monitor:  # stopped, and its row is still there
        assert monitor.get(20).reason == "stopped"
        sup.restart_child("row")
        kill(node.lookup("row"))
        assert monitor.get(20).reason == "signal"
        node.stop("row")
        assert [down.reason for down in monitor][-1:] in (["stopped"], [])  # or it was just between two incarnations


def test_one_that_waits_to_be_restarted_is_told_at_once(node: loom.Node, until: Any) -> None:
    spec = SupervisorSpec(
        max_restarts=5, backoff=loom.BackoffSpec(base_s=600, cap_s=600), children=(ChildSpec(Worker, name="slow"),)
    )
    sup = node.supervise(spec, name="sup2")
    kill(node.lookup("slow"))
    assert until(lambda: sup.children()[0].state == "restarting")
    with node.monitor("slow") as downs:
        assert downs.get(20).cause.text == "killed by SIGKILL"
        with pytest.raises(CallTimeout):
            downs.get(0.05)
    node.stop("sup2")


def test_a_supervisor_and_a_group_can_be_monitored(node: loom.Node, until: Any) -> None:
    children = (ChildSpec(Worker, name="m", instances=2, restart="temporary"), ChildSpec(Worker, name="n"))
    sup = node.supervise(SupervisorSpec(max_restarts=0, children=children), name="sup3", restart="temporary")
    with node.monitor("m") as members, node.monitor(sup) as downs:
        kill(node.lookup("m.1"))
        assert members.get(20).ref.name == "m.1"
        kill(node.lookup("n"))
        down = downs.get(20)
        assert (down.ref.name, down.reason, down.cause.kind) == ("sup3", "signal", "shutdown")
        assert "gave up" in down.cause.text
        assert [(down.ref.name, down.reason) for down in members] == [("m.0", "stopped")]


# --- nothing lost, nothing left ----------------------------------------------------------------------------------


def test_no_down_is_lost_under_load(node: loom.Node, spawn: Any) -> None:
    """Kill again and again, under load, with several monitors: each sees every incarnation die, in order, once."""
    worker = spawn(name="target")
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                worker.echo(b"x" * 1000).result(timeout_s=30)
            except loom.errors.ActorDied:
                pass

    askers = [threading.Thread(target=ask) for _ in range(2)]
    monitors = [node.monitor(worker) for _ in range(5)]
    for asker in askers:
        asker.start()
    killed = []
    while len(killed) < 25:
        found = pid(worker)
        try:
            os.kill(found, signal.SIGKILL)
            killed.append(found)
        except ProcessLookupError:
            continue
    stop.set()
    for asker in askers:
        asker.join()
    deaths = {row.incarnation - 1 for row in node.stats().actors if row.name == "target" and pid(worker)}.pop()
    for monitor in monitors:
        assert [monitor.get(20).incarnation for _ in range(deaths)] == list(range(1, deaths + 1))
        monitor.close()


def test_a_death_right_after_the_monitor_is_made_is_seen(node: loom.Node, spawn: Any) -> None:
    worker = spawn(name="quick")
    for _ in range(20):
        found = pid(worker)
        with node.monitor(worker) as downs:
            os.kill(found, signal.SIGKILL)
            assert downs.get(20).reason == "signal"


def test_thousands_of_monitors_leave_nothing(node: loom.Node, spawn: Any, until: Any) -> None:
    worker = spawn(name="popular")
    pid(worker)
    before = node.stats().monitors
    for _ in range(1500):
        node.monitor(worker).close()
    monitors = [node.monitor(worker) for _ in range(500)]
    assert node.stats().monitors == before + 500
    kill(worker)
    for monitor in monitors:
        assert monitor.get(30).reason == "signal"
        monitor.close()
    assert until(lambda: node.stats().monitors == before)


CLIENT = """
import sys, time, loom
client = loom.connect("watched")
monitors = [client.monitor("orphaned") for _ in range(20)]
print("ready", flush=True)
time.sleep(600)
"""


def test_monitors_of_a_client_that_dies_are_found(node: loom.Node, spawn: Any, until: Any) -> None:
    worker = spawn(name="orphaned")
    pid(worker)
    before = node.stats().monitors
    client = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    assert node.stats().monitors == before + 20
    client.kill()
    client.wait()
    client.stdout.close()
    assert until(lambda: node.stats().monitors == before, within_s=40)
    kill(worker)
    pid(worker)


def test_the_nodes_death_ends_a_monitor() -> None:
    node = loom.Node()
    node.spawn(Worker, name="w")
    with node.monitor("w") as downs:
        os.kill(node.pid, signal.SIGKILL)
        with pytest.raises(NodeDown):
            list(downs)
    node.close()


def test_a_monitor_in_an_event_loop(node: loom.Node, spawn: Any) -> None:
    worker = spawn(name="awaited")
    pid(worker)

    async def watch() -> list[str]:
        found = []
        async with node.monitor(worker) as downs:
            worker.exit.tell(4)
            async for down in downs:
                found.append(down.reason)
                if len(found) == 2:
                    break
                await worker.pid()
                worker.leave.tell()
        return found

    assert asyncio.run(watch()) == ["exit", "normal"]


# --- from within an actor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Watcher, AsyncWatcher])
def test_an_actor_monitors_others(node: loom.Node, spawn: Any, until: Any, kind: Any) -> None:
    worker, watcher = spawn(name="watched-one"), spawn(kind, "watched-one", "ghost", name="watcher")
    assert until(lambda: watcher.seen().result(timeout_s=20)[:1] == [("ghost", "noproc", 0)] or kind is AsyncWatcher)
    pid(watcher)
    kill(worker)
    assert until(lambda: ("watched-one", "signal", 1) in watcher.seen().result(timeout_s=20))
    pid(worker)
    watcher.unwatch("watched-one").result(timeout_s=20)
    kill(worker)
    pid(worker)
    assert ("watched-one", "signal", 2) not in watcher.seen().result(timeout_s=20)
    with pytest.raises(loom.errors.RemoteError, match="KeyError"):
        watcher.unwatch("watched-one").result(timeout_s=20)
    watcher.watch(worker).result(timeout_s=20)
    kill(worker)
    assert until(lambda: ("watched-one", "signal", 3) in watcher.seen().result(timeout_s=20))
    assert UsageError.code == "L1008"


def test_monitors_of_an_actor_that_dies_are_found(node: loom.Node, spawn: Any, until: Any) -> None:
    spawn(name="seen")
    before = node.stats().monitors
    watcher = spawn(Watcher, "seen", name="brief-watcher")
    pid(watcher)
    assert node.stats().monitors == before + 1
    for _ in range(3):
        kill(watcher)
        pid(watcher)
    assert until(lambda: node.stats().monitors == before + 1, within_s=40)


# --- from another language ---------------------------------------------------------------------------------------


def test_a_monitor_in_another_language(node: loom.Node, spawn: Any) -> None:
    worker = spawn(name="foreign")
    found = pid(worker)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(node.endpoint)

    def receive() -> Any:
        while True:
            assert socket.poll(20_000)
            frames = socket.recv_multipart()
            header = msgpack.unpackb(frames[0])
            if header["kind"] != "ping":
                return header["kind"], header["body"] if "body" in header else msgpack.unpackb(frames[1])

    socket.send(msgpack.packb({"id": 1, "kind": "call", "name": "monitor", "body": [["foreign"]]}))
    assert receive() == ("item", {"monitoring": ["foreign"]})
    os.kill(found, signal.SIGKILL)
    kind, news = receive()
    assert (kind, news["name"], news["reason"], news["incarnation"]) == ("item", "foreign", "signal", 1)
    assert news["cause"]["signal"] == 9
    node.stop(worker)
    assert receive()[1]["reason"] == "stopped"
    assert receive() == ("end", None)
    socket.close()
    context.term()
