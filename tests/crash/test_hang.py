"""Actors that hang in every way there is: each is told for what it is, with its stack, killed and restarted."""

from __future__ import annotations

import asyncio
import ctypes
import os
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
from loom.errors import ActorDied, StartFailed

WATCHDOG_S = 0.4


class Sticky(loom.Actor):
    def pid(self) -> int:
        return os.getpid()

    def where_it_sticks(self) -> None:
        while True:
            time.sleep(0.01)

    def spin(self) -> None:
        while True:
            pass

    async def block_the_loop(self) -> None:
        await asyncio.sleep(0)
        time.sleep(600)

    def hold_the_gil(self) -> None:
        ctypes.PyDLL(None).sleep(600)

    def hold_the_gil_elsewhere(self) -> None:
        threading.Thread(target=ctypes.PyDLL(None).sleep, args=(600,), daemon=True).start()

    def items(self) -> Iterator[int]:
        yield 1
        time.sleep(600)

    async def wait(self, s: float) -> str:
        await asyncio.sleep(s)
        return "waited"

    def work(self, steps: int, step_s: float) -> str:
        for _ in range(steps):
            time.sleep(step_s)
            self.ctx.progress()
        return "done"


class Starts(loom.Actor):
    """Starts at once, or not before there is a file of that name."""

    def __init__(self, marker: str) -> None:
        while not Path(marker).exists():
            time.sleep(0.01)

    def pid(self) -> int:
        return os.getpid()


def watched(watchdog_s: float) -> loom.Node:
    child = loom.ChildSpec(Sticky, name="sticky", watchdog_s=watchdog_s)
    return loom.Node(supervisor=loom.SupervisorSpec(max_restarts=100, within_s=3600, children=(child,)))


@pytest.fixture
def node() -> Iterator[loom.Node]:
    with watched(WATCHDOG_S) as node:
        yield node


def cause_of(reply: Any) -> str:
    with pytest.raises(ActorDied) as caught:
        reply.result(timeout_s=60)
    return caught.value.cause


@pytest.mark.parametrize(
    ("method", "expected", "in_stack"),
    [
        ("where_it_sticks", "hang: stuck handler: it ran without ctx.progress() for", "where_it_sticks"),
        ("spin", "hang: stuck handler: it ran without ctx.progress() for", "spin"),
        ("block_the_loop", "hang: blocked event loop: it did nothing else for", "block_the_loop"),
        ("hold_the_gil", "hang: GIL held in C: no Python thread could run for", "hold_the_gil"),
    ],
)
def test_each_kind_is_told_with_its_stack_and_the_actor_comes_back(
    node: loom.Node, method: str, expected: str, in_stack: str
) -> None:
    sticky = node.lookup("sticky")
    pid = sticky.pid().result(timeout_s=10)
    cause = cause_of(getattr(sticky, method)())
    assert cause.startswith(expected)
    assert f"(watchdog_s = {WATCHDOG_S})" in cause
    head, _, stack = cause.partition("--- stack ---")
    assert f"{in_stack} ({__file__}:" in stack
    assert "receive.py" not in stack
    assert sticky.pid().result(timeout_s=10) != pid
    (actor,) = node.stats().actors
    assert actor.last_death == head.strip()
    assert (actor.incarnation, node.stats().restart_count) == (2, 1)


def test_a_stream_whose_item_does_not_come(node: loom.Node) -> None:
    items = iter(node.lookup("sticky").items())
    assert next(items) == 1
    with pytest.raises(ActorDied, match="hang: stuck handler"):
        next(items)


def test_a_gil_that_another_thread_holds_is_not_blamed_on_the_loop(node: loom.Node) -> None:
    sticky = node.lookup("sticky")
    sticky.hold_the_gil_elsewhere.tell()
    assert cause_of(sticky.wait(600.0)).startswith("hang: GIL held in C")


def test_a_monitor_is_told_of_the_hang_with_its_stack(node: loom.Node) -> None:
    sticky = node.lookup("sticky")
    with node.monitor(sticky) as downs:
        sticky.hold_the_gil.tell()
        down = next(iter(downs))
    assert (down.reason, down.cause.how, down.cause.kind, down.cause.signal) == ("hang", "hang", "abnormal", 9)
    assert down.cause.text.startswith("hang: GIL held in C")
    assert "hold_the_gil" in down.cause.stack
    assert "sleep" in down.cause.stack  # the calls into C are there, too


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_stopped_process(node: loom.Node, is_idle: bool, until: Callable[..., Any]) -> None:
    sticky = node.lookup("sticky")
    pid = sticky.pid().result(timeout_s=10)
    reply = None if is_idle else sticky.wait(600.0)
    os.kill(pid, signal.SIGSTOP)
    if reply is not None:
        assert cause_of(reply).startswith("hang: stopped process: it stood still in state T (SIGSTOP, or a debugger)")
    assert until(lambda: node.stats().actors[0].last_death.startswith("hang: stopped process"))
    assert sticky.pid().result(timeout_s=10) != pid


def test_a_stop_shorter_than_the_limit_is_none() -> None:
    with watched(4.0) as node:
        sticky = node.lookup("sticky")
        pid = sticky.pid().result(timeout_s=10)
        for _ in range(4):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(pid, signal.SIGCONT)
            assert sticky.pid().result(timeout_s=10) == pid
        assert node.stats().actors[0].incarnation == 1


def test_slow_handlers_are_told_and_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with watched(1.0) as node:
        sticky = node.lookup("sticky")
        pid = sticky.pid().result(timeout_s=10)
        assert sticky.work(30, 0.05).result(timeout_s=60) == "done"
        assert sticky.wait(2.5).result(timeout_s=60) == "waited"
        assert sticky.pid().result(timeout_s=10) == pid
        (actor,) = node.stats().actors
        assert (actor.slow, actor.incarnation) == (1, 1)
    assert "sticky: slow: a message has been running for" in capfd.readouterr().err


def test_without_a_watchdog_there_is_no_heartbeat() -> None:
    child = loom.ChildSpec(Sticky, name="sticky")
    with loom.Node(supervisor=loom.SupervisorSpec(children=(child,))) as node:
        sticky = node.lookup("sticky")
        pid = sticky.pid().result(timeout_s=10)
        threads = [Path(f"/proc/{pid}/task/{tid}/comm").read_text() for tid in os.listdir(f"/proc/{pid}/task")]
        assert len([name for name in threads if name.startswith("loom:")]) == 1  # and no heartbeat beside it
        assert sticky.work(2, 0.1).result(timeout_s=10) == "done"


def test_a_start_that_hangs_fails(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    child = loom.ChildSpec(Starts, args=(str(marker),), name="starts", start_s=0.3)
    with pytest.raises(StartFailed, match=r"stuck start: __init__ and on_start were not done for .*start_s = 0.3"):
        loom.Node(supervisor=loom.SupervisorSpec(children=(child,)))
    marker.touch()
    with loom.Node(supervisor=loom.SupervisorSpec(children=(child,), max_restarts=100, within_s=600)) as node:
        starts = node.lookup("starts")
        pid = starts.pid().result(timeout_s=10)
        marker.unlink()
        os.kill(pid, signal.SIGKILL)
        while not node.stats().actors[0].last_death.startswith("died while it started: hang: stuck start"):
            time.sleep(0.01)
        marker.touch()
        while (now := _ask(starts)) is None:
            pass
        assert now != pid


def _ask(ref: Any) -> int | None:
    try:
        pid: int = ref.pid().result(timeout_s=20)
    except ActorDied:
        return None
    return pid


def test_an_idle_watched_actor_wakes_up_once_a_second_at_most(node: loom.Node) -> None:
    sticky = node.lookup("sticky")
    pid = sticky.pid().result(timeout_s=10)

    def switches() -> int:
        """Times that threads of it have gone to sleep of their own will. Its ZeroMQ threads have nothing to do."""
        return sum(
            int(line.split()[1])
            for tid in os.listdir(f"/proc/{pid}/task")
            for line in Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )

    time.sleep(1.5)  # what the call left to do
    before, began_s = switches(), time.monotonic()
    time.sleep(5)
    count = switches() - before
    assert count <= time.monotonic() - began_s + 1


def test_the_stack_without_py_spy_comes_from_the_actor_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Python without py-spy beside it: links to it in a folder of its own."""
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    code = (
        "import sys\n"
        "import loom\n"
        "from loom.supervise import stack\n"
        "class Stuck(loom.Actor):\n"
        "    def forever(self):\n"
        "        import time\n"
        "        time.sleep(600)\n"
        "child = loom.ChildSpec(Stuck, name='stuck', watchdog_s=0.3)\n"
        "with loom.Node(supervisor=loom.SupervisorSpec(children=(child,), max_restarts=10)) as node:\n"
        "    try:\n"
        "        node.lookup('stuck').forever().result(timeout_s=60)\n"
        "    except loom.errors.ActorDied as error:\n"
        "        print(error.cause)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    site = [path for path in sys.path if path]
    home = str(Path(loom.__file__).parent.parent)
    environ = {**os.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join([home, *site])}
    done = subprocess.run([str(python), str(script)], capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "hang: stuck handler" in done.stdout
    assert "most recent call first" in done.stdout
    assert "in forever" in done.stdout
