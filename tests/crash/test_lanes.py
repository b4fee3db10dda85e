"""Lanes: what becomes of them when either end dies, and that nobody sleeps through a message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.actor.line import LaneLine, SocketLine, bells_of
from loom.errors import ActorDied


class Echo(loom.Actor):
    def __init__(self) -> None:
        self.told: list[int] = []

    def echo(self, value: Any) -> Any:
        return value

    async def later(self, value: Any) -> Any:
        return value

    def tell(self, value: int) -> None:
        self.told.append(value)

    def heard(self) -> list[int]:
        return self.told

    def pid(self) -> int:
        return os.getpid()

    def relay(self, other: Any, n: int) -> int:
        return sum(other.echo(k).result(timeout_s=30) for k in range(n))

    def flood(self, other: Any, n: int) -> None:
        for k in range(n):
            other.tell.tell(k)


def line_of(ref: loom.ActorRef) -> Any:
    channel = ref._target._channel
    assert channel is not None
    return channel._line


def remains(ref: loom.ActorRef) -> list[str]:
    """Files of an actor's mailbox, bells and inbox."""
    address = ref._target._channel.address  # type: ignore[union-attr]
    path = Path(bells_of(address.endpoint))
    found = [one.name for one in path.parent.iterdir() if one.name == path.name or one.name.startswith(f"{path.name}.")]
    arena = ref._target.links.arena
    assert arena is not None
    return [*found, *(one.name for one in Path("/dev/shm").glob(f"{arena.name}.{path.name}.inbox"))]


def test_processes_of_a_node_use_lanes() -> None:
    with loom.Node() as node:
        echo = node.spawn(Echo)
        assert echo.echo(1).result(timeout_s=30) == 1
        assert isinstance(line_of(echo), LaneLine)
        assert len(remains(echo)) == 4  # socket, bell, this process's bell, inbox


def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_LANES", "off")
    with loom.Node() as node:
        echo = node.spawn(Echo)
        assert echo.echo(1).result(timeout_s=30) == 1
        assert isinstance(line_of(echo), SocketLine)
        assert len(remains(echo)) == 1


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 4097, 16_000, 33_000, 1_000_000])
def test_any_size_goes_through_one(size: int) -> None:
    with loom.Node() as node:
        echo = node.spawn(Echo)
        for value in (b"x" * size, "x" * size, [b"x" * size, {"a": "y" * size}]):
            assert echo.echo(value).result(timeout_s=30) == value
            assert echo.later(value).result(timeout_s=30) == value


def test_nothing_is_left_of_a_killed_actors_lanes(until: Any) -> None:
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=10, within_s=60)) as node:
        echo = node.spawn(Echo)
        pid = echo.pid().result(timeout_s=30)
        before = remains(echo)
        assert len(before) == 4
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: node.stats().actors[0].pid not in (0, pid))
        assert echo.pid().result(timeout_s=30) != pid
        after = remains(echo)
        assert not set(before) & set(after)
        folder = Path(bells_of(echo._target._channel.address.endpoint)).parent  # type: ignore[union-attr]
        assert not [one for one in before if (folder / one).exists() or Path("/dev/shm", one).exists()]


def test_more_than_a_lane_holds_is_sent_though_nobody_waits_for_it(until: Any) -> None:
    """5,000 tells are ten times what a lane holds; the program does not touch Loom while they go."""
    with loom.Node(supervisor=loom.SupervisorSpec(children=())) as node:
        sup = node.supervise(
            loom.SupervisorSpec(children=(loom.ChildSpec(Echo, name="e", mailbox=loom.MailboxSpec(capacity=10_000)),)),
            name="s",
        )
        assert sup is not None
        echo = node.lookup("e")
        for number in range(5000):
            echo.tell.tell(number)
        assert echo.heard().result(timeout_s=60) == list(range(5000))
        assert until(lambda: all(thread.name != "loom-pump" for thread in threading.enumerate()))


def test_actors_flood_one_another_and_keep_the_order() -> None:
    with loom.Node() as node:
        senders = [node.spawn(Echo) for _ in range(3)]
        sink = node.spawn(Echo)
        done = [sender.flood(sink, 3000) for sender in senders]
        for one in done:
            one.result(timeout_s=60)
        heard = sink.heard().result(timeout_s=60)
        while len(heard) < 9000:
            heard = sink.heard().result(timeout_s=60)
        assert sorted(heard) == sorted(list(range(3000)) * 3)


def test_many_threads_share_one_lane() -> None:
    with loom.Node() as node:
        echo = node.spawn(Echo)
        wrong: list[Any] = []

        def ask(k: int) -> None:
            for n in range(300):
                method = echo.echo if n % 2 else echo.later
                if method((k, n)).result(timeout_s=60) != (k, n):
                    wrong.append((k, n))

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_asks_between_actors() -> None:
    with loom.Node() as node:
        one, other = node.spawn(Echo), node.spawn(Echo)
        assert one.relay(other, 500).result(timeout_s=60) == sum(range(500))


def test_a_killed_client_is_no_burden(until: Any, tmp_path: Path) -> None:
    """Its lane is the next one's who gets its place in the arena, and answers to it are nobody's."""
    program = textwrap.dedent("""
        import os, signal, sys
        import loom
        client = loom.connect(sys.argv[1])
        echo = client.lookup("echo")
        echo.echo(1).result()
        replies = [echo.echo("x" * 3000) for _ in range(40)]
        for k in range(100):
            echo.tell.tell(k)
        echo.echo(2).result()  # all of them have arrived
        replies = [echo.echo("x" * 3000) for _ in range(5)]
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    script = tmp_path / "client.py"
    script.write_text(program)
    with loom.Node() as node:
        echo = node.spawn(Echo, name="echo")
        endpoint = node.address if hasattr(node, "address") else node._links.node.address.endpoint
        for turn in range(1, 4):
            done = subprocess.run([sys.executable, script, endpoint], timeout=120, check=False)
            assert done.returncode == -signal.SIGKILL
            assert until(lambda turn=turn: len(echo.heard().result(timeout_s=30)) == 100 * turn)  # type: ignore[misc]
        assert until(lambda: node.stats().actors[0].depth == 0)


def test_an_actor_that_dies_with_a_full_lane_ends_every_ask() -> None:
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=50, within_s=60)) as node:
        echo = node.spawn(Echo)
        for _ in range(5):
            pid = echo.pid().result(timeout_s=30)
            os.kill(pid, signal.SIGSTOP)
            asks = [echo.echo("x" * 2000) for _ in range(100)]
            os.kill(pid, signal.SIGKILL)
            for ask in asks:
                try:
                    assert ask.result(timeout_s=60) == "x" * 2000
                except ActorDied:
                    pass
