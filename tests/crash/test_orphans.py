"""What an actor has started dies with it, in whatever way it was started and the actor ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.actor.procfs import stat_of


class Parent(loom.Actor):
    """Starts processes, and tells their pids."""

    def pid(self) -> int:
        return os.getpid()

    def plain(self) -> list[int]:
        return [subprocess.Popen(["sleep", "600"]).pid]

    def session(self) -> list[int]:
        return [subprocess.Popen(["sleep", "600"], start_new_session=True).pid]

    def daemon(self, does_exec: bool) -> list[int]:
        """Forked twice, in a session of its own, as daemons are: a child of the node already now."""
        told, tells = os.pipe()
        between = os.fork()
        if between == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(tells, f"{os.getpid()}\n".encode())
                if does_exec:
                    os.execvp("sleep", ["sleep", "600"])
                time.sleep(600)
            os._exit(0)
        os.waitpid(between, 0)
        os.close(tells)
        with os.fdopen(told) as file:
            return [int(file.readline())]

    def tree(self) -> list[int]:
        """A shell in a session of its own, with a daemon and a child below it."""
        script = "setsid sleep 600 & echo $!; sleep 600 & echo $!; echo $$; sleep 600 <&-"
        shell = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE, text=True)
        assert shell.stdout is not None
        return [int(shell.stdout.readline()) for _ in range(3)]

    def bare(self) -> list[int]:
        """Without an environment, below one that has it."""
        shell = subprocess.Popen(["sh", "-c", "env -i sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        assert shell.stdout is not None
        return [int(shell.stdout.readline()), shell.pid]

    def leave(self) -> None:
        self.ctx.stop()

    def crash(self) -> None:
        os._exit(3)


KINDS: list[tuple[str, tuple[Any, ...]]] = [
    ("plain", ()),
    ("session", ()),
    ("daemon", (True,)),
    ("daemon", (False,)),
    ("tree", ()),
    ("bare", ()),
]


def is_alive(pid: int) -> bool:
    return stat_of(pid).state not in "ZX"


@pytest.fixture
def node() -> Iterator[loom.Node]:
    children = (loom.ChildSpec(Parent, name="parent"), loom.ChildSpec(Parent, name="other"))
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=100, within_s=600, children=children)) as node:
        yield node


@pytest.mark.parametrize("how", ["kill", "crash", "leave", "stop"])
def test_all_that_an_actor_started_dies_with_it(node: loom.Node, how: str, until: Callable[..., Any]) -> None:
    parent, other = node.lookup("parent"), node.lookup("other")
    pids = [pid for kind, args in KINDS for pid in getattr(parent, kind)(*args).result(timeout_s=20)]
    spared = [pid for kind, args in KINDS for pid in getattr(other, kind)(*args).result(timeout_s=20)]
    assert all(map(is_alive, pids))
    pid = parent.pid().result(timeout_s=10)
    if how == "kill":
        os.kill(pid, signal.SIGKILL)
    elif how == "stop":
        node.stop("parent")
    else:
        getattr(parent, how).tell()
    assert until(lambda: not is_alive(pid) and not any(map(is_alive, pids)))
    assert all(map(is_alive, spared))
    node.stop("other")
    assert until(lambda: not any(map(is_alive, spared)))
    assert until(lambda: not zombies_of(node.pid))


def zombies_of(pid: int) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if stat_of(child).state == "Z"]


def test_a_daemon_outlives_other_actors_and_the_next_incarnation_keeps_its_own(
    node: loom.Node, until: Callable[..., Any]
) -> None:
    parent = node.lookup("parent")
    (first,) = parent.daemon(False).result(timeout_s=10)
    os.kill(node.lookup("other").pid().result(timeout_s=10), signal.SIGKILL)
    assert until(lambda: node.stats().restart_count == 1)
    assert is_alive(first)
    os.kill(parent.pid().result(timeout_s=10), signal.SIGKILL)
    assert until(lambda: not is_alive(first))
    (second,) = parent.daemon(False).result(timeout_s=20)
    node.stop("other")
    assert is_alive(second)


def test_what_hides_its_environment_ends_with_the_node(until: Callable[..., Any], tmp_path: Path) -> None:
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=100)) as node:
        hides = node.spawn(Hides)
        pid = hides.hide().result(timeout_s=10)
        assert is_alive(pid)
    assert until(lambda: not is_alive(pid))


class Hides(loom.Actor):
    def hide(self) -> int:
        command = ["sh", "-c", "env -i setsid sleep 600 >/dev/null & echo $!"]
        return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
