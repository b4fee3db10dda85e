"""`loom-node stack`, and what the commands say of actors and nodes that hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import loom
from loom.errors import ActorDied, ActorNotFound


class Sleeper(loom.Actor):
    def pid(self) -> int:
        return os.getpid()

    def doze_off(self) -> None:
        time.sleep(600)


@pytest.fixture
def node() -> Iterator[loom.Node]:
    children = (
        loom.ChildSpec(Sleeper, name="watched", watchdog_s=0.3),
        loom.ChildSpec(Sleeper, name="free", shutdown_s="brutal_kill"),
    )
    with loom.Node("hangs", supervisor=loom.SupervisorSpec(max_restarts=10, children=children)) as node:
        yield node


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "loom.cli.main", *words, "--node", "hangs"]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_stack(node: loom.Node) -> None:
    free = node.lookup("free")
    pid = free.pid().result(timeout_s=10)
    reply = free.doze_off()
    while node.stats().actors[1].since_s == 0:
        time.sleep(0.01)
    done = command("stack", "free")
    assert done.returncode == 0, done.stderr
    head, frame = done.stdout.splitlines()
    assert head == f'Thread {pid} "MainThread" (idle), innermost call first'
    assert frame.strip().startswith(f"Sleeper.doze_off ({__file__}:")
    done = command("stack", "free", "--json")
    found = json.loads(done.stdout)
    assert found["pid"] == pid
    assert [one["name"].rpartition(".")[2] for one in found["threads"][0]["frames"]] == ["doze_off"]
    assert str(node.stack(free)) == "\n".join([head, frame])
    node.stop("free")
    with pytest.raises(ActorDied):
        reply.result(timeout_s=10)


def test_a_stack_of_nobody(node: loom.Node) -> None:
    done = command("stack", "fre")
    assert (done.returncode, done.stderr) == (
        1,
        "loom-node: L1003 no actor named 'fre' on this node: did you mean 'free'?\n",
    )
    with pytest.raises(ActorNotFound):
        node.stack("nobody")


def test_ps_shows_the_hang(node: loom.Node) -> None:
    with pytest.raises(ActorDied, match="stuck handler"):
        node.lookup("watched").doze_off().result(timeout_s=60)
    done = command("ps")
    assert "  hang: stuck handler: it ran without ctx.progress() for" in done.stdout
    (watched, _) = json.loads(command("ps", "--json").stdout)["actors"]
    assert "(watchdog_s = 0.3)" in watched["last_death"]
    assert watched["slow"] == 1


@pytest.mark.parametrize("words", [["ps"], ["tree"], ["stack", "free"], ["call", "free.pid"], ["stop"]])
def test_a_stopped_node_is_told_from_a_slow_one(node: loom.Node, words: list[str]) -> None:
    os.kill(node.pid, signal.SIGSTOP)
    try:
        done = command(*words, "--answer-s", "0.3")
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"loom-node: L2002 node 'hangs' (pid {node.pid}) does not answer within 0.3 s: "
        f"it is stopped (SIGSTOP, or a debugger): 'kill -CONT {node.pid}' lets it go on\n"
    )
    assert node.lookup("free").pid().result(timeout_s=10) > 0
