"""Children at run time from a shell and from a program that has only ZeroMQ and MessagePack."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

import loom
from loom import ChildSpec, SupervisorSpec

MODULE = """
import loom

class Kid(loom.Actor):
    def __init__(self, *args, **kwargs):
        if args == ("fail",):
            raise RuntimeError("cannot be made")
        if args == ("ignore",):
            raise loom.Ignore("not today")
        self.seen = [list(args), kwargs]

    def args(self):
        return self.seen
"""


@pytest.fixture(scope="module")
def node(runtime_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[loom.Node]:
    folder = tmp_path_factory.mktemp("kids")
    (folder / "kids.py").write_text(MODULE)
    sys.path.append(str(folder))
    sessions = SupervisorSpec("simple_one_for_one", children=(ChildSpec("kids:Kid", args=("db",), name="session"),))
    spec = SupervisorSpec(max_restarts=100, children=(ChildSpec(sessions, name="sessions"),))
    with loom.Node("kids", supervisor=spec) as node:
        yield node
    sys.path.remove(str(folder))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loom", "child", *words, "--node", "kids"], capture_output=True, text=True, timeout=120
    )


def as_json(*words: str, code: int = 0) -> Any:
    done = run(*words, "--json")
    assert (done.returncode, done.stderr) == (code, ""), done
    return json.loads(done.stdout)


def test_the_life_of_a_child_from_a_shell(node: loom.Node) -> None:
    done = run("start", "root", "64", "deep=true", "--actor", "kids:Kid", "--name", "one", "--restart", "transient")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert node.lookup("one").args().result(timeout_s=20) == [[64], {"deep": True}]
    assert [row["name"] for row in as_json("list")["children"]] == ["sessions", "one"]
    assert as_json("count") == {"specs": 2, "active": 2, "supervisors": 1, "workers": 1}
    assert as_json("stop", "root", "one") == {"supervisor": "root", "stopped": "one"}
    lines = run("list").stdout.splitlines()
    assert lines[0].split()[:3] == ["NAME", "KIND", "STATE"]
    assert lines[2].split()[:6] == ["one", "actor", "stopped", "-", "1", "transient"]
    wrong = as_json("start", "root", "--actor", "kids:Kid", "--name", "one", code=1)
    assert wrong["error"]["code"] == "L1010"
    assert as_json("restart", "root", "one")["state"] == "running"
    assert run("delete", "root", "one").stderr == (
        "loom-node: L1010 delete_child of 'one': expected a child that is stopped, this one is running: "
        "stop_child comes first\n"
    )
    as_json("stop", "root", "one")
    assert as_json("delete", "root", "one") == {"supervisor": "root", "deleted": "one"}
    assert as_json("count")["specs"] == 1
    assert run("stop", "root", "one").stderr.startswith("loom-node: L1003 supervisor 'root' has no child 'one'")


def test_children_of_a_template_from_a_shell(node: loom.Node) -> None:
    started = as_json("start", "sessions", "alice", "age=3", "--name", "alice")
    assert started == {"supervisor": "sessions", "name": "alice", "kind": "actor", "state": "running"}
    assert node.lookup("alice").args().result(timeout_s=20) == [["db", "alice"], {"age": 3}]
    as_json("stop", "sessions", "alice")
    assert as_json("list", "sessions")["children"] == []


def test_what_fails_from_a_shell() -> None:
    wrong = as_json("start", "root", "fail", "--actor", "kids:Kid", code=1)["error"]
    assert wrong["code"] == "L3001"
    assert "cannot be made" in wrong["message"]
    assert run("start", "root", "ignore", "--actor", "kids:Kid", "--restart", "temporary").stdout == (
        "kid did not want to start\n"
    )
    assert run("start", "root", "--actor", "kids.Kid").returncode == 2
    assert run("list", "session").returncode == 1
    assert run("begin").stderr.startswith("loom-node: L1008 argument VERB: invalid choice: 'begin'")


CONFIG = """
[supervisor]
auto_shutdown = "all"
[[supervisor.child]]
actor = "needy:Job"
restart = "transient"
significant = true
[[supervisor.child]]
name = "sessions"
[supervisor.child.supervisor]
strategy = "simple_one_for_one"
[[supervisor.child.supervisor.child]]
actor = "needy:Session"
args = ["db"]
restart = "temporary"
"""

NEEDY = """
import loom

class Job(loom.Actor):
    def finish(self):
        self.ctx.stop()

class Session(loom.Actor):
    def __init__(self, db, user):
        self.user = user
"""


def test_a_config_with_a_template_and_a_significant_child(tmp_path: Path, runtime_folder: Path) -> None:
    """The template's arguments are not all there yet, which `check` knows; the job's end ends the node, well."""
    (tmp_path / "needy.py").write_text(NEEDY)
    (tmp_path / "needy.toml").write_text(CONFIG)
    loom_node = [sys.executable, "-m", "loom"]
    done = subprocess.run([*loom_node, "check", str(tmp_path / "needy.toml")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 actor," in done.stdout
    assert "auto-shutdown all" in done.stdout
    assert "template session needy:Session('db') temporary" in done.stdout
    up = subprocess.Popen([*loom_node, "up", str(tmp_path / "needy.toml")], stderr=subprocess.PIPE, text=True)
    assert up.stderr is not None
    assert " is up: " in up.stderr.readline()
    node = ["--node", "default", "--json"]
    started = subprocess.run([*loom_node, "child", "start", "sessions", "alice", *node], capture_output=True, text=True)
    assert json.loads(started.stdout)["state"] == "running"
    subprocess.run([*loom_node, "call", "job.finish", *node], capture_output=True, check=False)
    said = up.stderr.read()
    up.stderr.close()
    assert up.wait(60) == 0
    assert "default ends: supervisor 'root' has shut itself down: its significant child 'job' ended normally" in said


class Plain:
    """A client with nothing of Loom."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self.ids = itertools.count(1)

    def call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        number = next(self.ids)
        body = [list(args), kwargs] if kwargs else [list(args)]
        self.socket.send(msgpack.packb({"id": number, "kind": "call", "name": verb, "body": body}))
        return self.answer(number)

    def answer(self, number: int) -> Any:
        assert self.socket.poll(20_000)
        frames = self.socket.recv_multipart()
        header = msgpack.unpackb(frames[0])
        assert header["correlation_id"] == number
        body = header["body"] if "body" in header else msgpack.unpackb(frames[1])
        return {"error": body} if header["kind"] == "error" else body

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def plain(node: loom.Node) -> Iterator[Plain]:
    client = Plain(node.endpoint)
    yield client
    client.close()


def test_the_life_of_a_child_from_another_language(plain: Plain) -> None:
    child = {"actor": "kids:Kid", "args": [1, "two"], "name": "foreign", "shutdown_s": 1}
    assert plain.call("start_child", "root", child) == {"name": "foreign", "kind": "actor", "state": "running"}
    row = plain.call("which_children", "root")[-1]
    assert (row["name"], row["restart"], row["state"]) == ("foreign", "permanent", "running")
    assert plain.call("start_child", "root", child)["error"]["reason"] == "already_started"
    assert plain.call("terminate_child", "root", "foreign") is None
    assert plain.call("start_child", "root", child)["error"]["reason"] == "already_present"
    assert plain.call("restart_child", "root", "foreign")["state"] == "running"
    assert plain.call("restart_child", "root", "foreign")["error"] == {
        "code": "L1010",
        "type": "ChildError",
        "message": "restart_child of 'foreign': expected a child that is stopped, this one is running: "
        "stop_child comes first",
        "reason": "running",
    }
    assert plain.call("terminate_child", "root", "foreign") is None
    assert plain.call("delete_child", "root", "foreign") is None
    assert plain.call("delete_child", "root", "foreign")["error"]["code"] == "L1003"
    assert plain.call("count_children", "root")["specs"] == 1
    wrong = plain.call("start_child", "root", {"actor": "kids:Kid", "restart": "maybe"})["error"]
    assert wrong["code"] == "L1001"
    assert wrong["message"].startswith("child: $.restart: expected 'permanent', 'transient' or 'temporary'")


def test_children_of_a_template_from_another_language(plain: Plain, node: loom.Node) -> None:
    started = plain.call("start_from_template", "sessions", ["bob"], {"age": 4})
    assert started["state"] == "running"
    assert node.lookup(started["name"]).args().result(timeout_s=20) == [["db", "bob"], {"age": 4}]
    assert plain.call("start_child", "sessions", {"actor": "kids:Kid"})["error"]["reason"] == "simple_one_for_one"
    assert plain.call("terminate_child", "sessions", started["name"]) is None
    assert plain.call("which_children", "sessions") == []


def test_a_supervisor_below_a_supervisor_from_another_language(plain: Plain) -> None:
    child = {"name": "below", "supervisor": {"strategy": "one_for_all", "child": [{"actor": "kids:Kid", "name": "k"}]}}
    assert plain.call("start_child", "root", child) == {"name": "below", "kind": "supervisor", "state": "running"}
    assert [row["name"] for row in plain.call("which_children", "below")] == ["k"]
    assert plain.call("stop_child", "below") is None
    assert plain.call("stop_child", "root")["error"]["code"] == "L1008"
    assert plain.call("start_child", "root", b"nonsense")["error"]["code"] == "L1001"
