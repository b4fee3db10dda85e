"""State, drain, reload and upgrade as commands: nodes that `loom-node up` runs, and what survives them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-P", "-m", "loom.cli.main"]
GENEROUS_S = 60.0

PARTS = """
import time
import loom

class Counter(loom.Actor):
    def __init__(self, start=0, by=1):
        self.count, self.by = start, by
    def snapshot(self):
        return {"count": self.count}
    def restore(self, state):
        self.count = state["count"]
    def add(self):
        self.count += self.by
        return self.count
    def get(self):
        return self.count
"""


class Up:
    """A node of `loom-node up`, in a folder of its own."""

    def __init__(self, tmp: Path, config: str) -> None:
        self.tmp = tmp
        self.config = tmp / "node.toml"
        self.environ = {**os.environ, "XDG_STATE_HOME": str(tmp / "home"), "LOOM_NODE": "statenode"}
        self.write(config)
        self.process: subprocess.Popen[str] | None = None

    def write(self, config: str, parts: str = PARTS) -> None:
        (self.tmp / "parts.py").write_text(parts)
        self.config.write_text('[node]\nname = "statenode"\narena = "1MiB"\n' + textwrap.dedent(config))

    def start(self) -> dict[str, Any]:
        with (self.tmp / "err").open("a") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "up", str(self.config), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                env=self.environ,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.err
        found: dict[str, Any] = json.loads(line)
        return found

    @property
    def err(self) -> str:
        return (self.tmp / "err").read_text()

    def run(self, *words: str, code: int = 0, timeout_s: float = GENEROUS_S) -> str:
        done = subprocess.run(
            [*COMMAND, *words],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code))

    def actors(self) -> dict[str, Any]:
        return {one["name"]: one for one in self.json("ps")["actors"]}

    def stop(self, how: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        code = self.process.wait(GENEROUS_S)
        self.process = None
        return code


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[str], Up]]:
    made: list[Up] = []

    def make(config: str) -> Up:
        made.append(Up(tmp_path, config))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None:
            one.stop(signal.SIGKILL)


def wait_until(predicate: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + GENEROUS_S
    while not (found := predicate()):
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.02)
    return found


ONE = """
    [supervisor]
    max_restarts = 1000
    [[supervisor.child]]
    actor = "parts:Counter"
    snapshot = { every_messages = 1 }
"""


def test_state_outlives_the_node_however_that_ends(up: Callable[[str], Up]) -> None:
    node = up(ONE)
    for number, how in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGINT)):
        node.start()
        assert node.json("call", "counter.add") == number + 1
        code = node.stop(how)
        assert code == (-9 if how == signal.SIGKILL else 0)
    assert (node.tmp / "home" / "loom" / "statenode" / "data.mdb").exists()


def test_state_list_show_delete(up: Callable[[str], Up]) -> None:
    node = up(ONE)
    assert node.run("state", "list").startswith("nothing is saved in ")
    node.start()
    node.json("call", "counter.add")
    for _ in ("while it runs", "while it does not"):
        found = node.json("state", "list")
        assert found["folder"] == str(node.tmp / "home" / "loom" / "statenode")
        (row,) = found["snapshots"]
        assert (row["name"], row["actor"], row["version"]) == ("counter", "parts:Counter", 1)
        assert abs(row["saved_at"] - time.time()) < 3600
        lines = node.run("state", "list").splitlines()
        assert lines[0].split() == ["NAME", "ACTOR", "VERSION", "SAVED", "BYTES"]
        assert lines[1].split()[:3] == ["counter", "parts:Counter", "1"]
        assert node.json("state", "show", "counter")["state"] == "{'count': 1}"
        assert "state        {'count': 1}" in node.run("state", "show", "counter")
        if node.process is not None:
            node.stop()
    text = node.run("state", "delete", "counter", "other", code=2)
    assert "L1009 no state of 'other' in " in text
    assert node.json("state", "delete", "counter")["deleted"] == ["counter"]
    node.start()
    assert node.json("call", "counter.get") == 0
    node.stop()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["list", "a"], "L1008 state list: expected no NAME"),
        (["show"], "L1008 state show: expected at least one NAME"),
        (["drop"], "argument what: invalid choice: 'drop'"),
        (["show", "a", "--folder", "/nowhere"], "L1009 no state of 'a' in /nowhere: it has none"),
    ],
)
def test_a_wrong_state_command_is_one_line(up: Callable[[str], Up], words: list[str], text: str) -> None:
    assert text in up(ONE).run("state", *words, code=2)


def test_the_configs_folder(up: Callable[[str], Up]) -> None:
    node = up('state = "kept"\n' + ONE)
    node.start()
    node.json("call", "counter.add")
    assert node.json("state", "list")["folder"] == str(node.tmp / "kept")
    node.stop()
    assert not (node.tmp / "home").exists()
    assert node.json("state", "show", "counter", "--folder", str(node.tmp / "kept"))["state"] == "{'count': 1}"


def test_a_restore_that_fails_names_the_way_out(up: Callable[[str], Up]) -> None:
    node = up(ONE)
    node.start()
    node.json("call", "counter.add")
    node.stop()
    node.write(ONE, PARTS.replace('state["count"]', 'state["counts"]'))
    done = subprocess.run([*COMMAND, "up", str(node.config)], env=node.environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "L3001 the tree failed to start: " in done.stderr
    assert "restore() raised KeyError: 'counts'; 'loom-node state delete counter' starts it with nothing" in done.stderr
