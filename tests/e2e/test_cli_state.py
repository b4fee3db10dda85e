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


# --- drain and upgrade -------------------------------------------------------------------------------------------


def test_drain_as_a_command(up: Callable[[str], Up]) -> None:
    node = up(ONE)
    node.start()
    node.json("call", "counter.add")
    found = node.json("drain", "statenode")
    assert (found["drained"], found["node"], found["left"]) == (True, "statenode", 0)
    assert node.wait() == 0
    node.start()
    assert node.json("call", "counter.get") == 1  # stopped in order: saved
    text = node.run("drain")
    assert text.startswith("statenode is drained and has stopped, after ")
    assert node.wait() == 0
    assert "L1007 no node is running at 'statenode'" in node.run("drain", code=1)


def test_upgrade_as_a_command(up: Callable[[str], Up]) -> None:
    node = up(ONE)
    node.start()
    assert node.json("call", "counter.add") == 1
    node.write(ONE, PARTS.replace("self.count += self.by", "self.count += 100 * self.by"))
    assert node.run("upgrade", "counter") == "upgraded: counter\n"
    assert node.json("call", "counter.add") == 101
    more = "\nclass Other(Counter):\n    def add(self):\n        return 'other ' + str(self.count)\n"
    node.write(ONE, PARTS + more)
    assert node.json("upgrade", "counter", "parts:Other") == {"upgraded": ["counter"]}
    assert node.json("call", "counter.add") == "other 101"
    assert "L3001 the new 'counter' cannot be made, and the old one goes on: " in node.run(
        "upgrade", "counter", "parts:Missing", code=1
    )
    assert node.json("call", "counter.add") == "other 101"
    node.stop()


# --- reload ------------------------------------------------------------------------------------------------------


THREE = """
    [supervisor]
    max_restarts = 1000
    [[supervisor.child]]
    name = "first"
    actor = "parts:Counter"
    [[supervisor.child]]
    name = "second"
    actor = "parts:Counter"
    [[supervisor.child]]
    name = "below"
    [supervisor.child.supervisor]
    [[supervisor.child.supervisor.child]]
    name = "workers"
    actor = "parts:Counter"
    instances = 2
"""


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def children(tree: dict[str, Any]) -> list[Any]:
    return [(one["name"], children(one)) if one["children"] else one["name"] for one in tree["children"]]


def test_reload_restarts_only_what_changed(up: Callable[[str], Up]) -> None:
    node = up(THREE)
    node.start()
    for name in ("first", "second", "workers.0"):
        assert node.json("call", f"{name}.add") == 1
    before = node.actors()
    assert node.run("reload", "--plan") == "nothing to change\n"
    node.write(
        changed(
            THREE,
            ('name = "first"\n    actor = "parts:Counter"', 'name = "third"\n    actor = "parts:Counter"'),
            ('name = "second"\n', 'name = "second"\n    kwargs = { by = 10 }\n'),
            ("max_restarts = 1000", "max_restarts = 77"),
            ("instances = 2", 'instances = 3\n    restart = "transient"'),
        )
    )
    plan = node.json("reload", "--plan")
    assert (plan["applied"], plan["needs_new_node"]) == (False, [])
    assert [" ".join(one["text"].split()) for one in plan["changes"]] == [
        "adjust root (max_restarts)",
        "add third under root",
        "replace second (pickled) under root",
        "adjust workers.0 (restart) under below",
        "adjust workers.1 (restart) under below",
        "add workers.2 under below",
        "remove first under root",
    ]
    assert node.actors().keys() == before.keys()
    assert "L1008 nobody to ask: add --yes to do it, or --plan to look only" in node.run("reload", code=2)
    assert node.json("reload", "--yes")["applied"]
    after = node.actors()
    assert after.keys() == {"second", "third", "workers.0", "workers.1", "workers.2"}
    assert after["second"]["pid"] != before["second"]["pid"]
    assert node.json("call", "second.add") == 11  # by = 10, and its state came along
    for name in ("workers.0", "workers.1"):
        assert after[name]["pid"] == before[name]["pid"]
    assert children(node.json("tree")) == ["third", "second", ("below", ["workers.0", "workers.1", "workers.2"])]
    assert [node.json("call", f"workers.{k}.get") for k in range(3)] == [1, 0, 0]
    assert node.run("reload", "--yes") == "nothing to change\n"
    assert node.stop() == 0


@pytest.mark.parametrize("how", ["not TOML", "no class", "__init__ raises", "restore raises"])
def test_a_bad_config_changes_nothing(up: Callable[[str], Up], how: str) -> None:
    node = up(THREE)
    node.start()
    assert node.json("call", "second.add") == 1
    before = node.actors()
    bad = {
        "not TOML": ('name = "second"', "name = second"),
        "no class": ('name = "first"\n    actor = "parts:Counter"', 'name = "first"\n    actor = "parts:Missing"'),
        "__init__ raises": ("instances = 2", 'instances = 2\n    args = ["a", "b"]\n    kwargs = { more = 1 }'),
        "restore raises": ("instances = 2", "instances = 2"),
    }[how]
    parts = PARTS
    text = changed(THREE, bad, ("max_restarts = 1000", "max_restarts = 5"))
    if how == "__init__ raises":
        text = changed(THREE, ("max_restarts = 1000", "max_restarts = 5"))
        text += '    [[supervisor.child]]\n    name = "late"\n    actor = "parts:Late"\n'
        parts += "\nclass Late(loom.Actor):\n    def __init__(self):\n        raise RuntimeError('not today')\n"
    elif how == "restore raises":
        text = changed(text, ('name = "second"\n', 'name = "second"\n    kwargs = { by = 2 }\n'))
        text = changed(text, ('name = "first"\n', 'name = "newcomer"\n'))
        fails = "if self.by == 2:\n            raise KeyError('by')\n        "
        parts = parts.replace('self.count = state["count"]', fails + 'self.count = state["count"]')
    node.write(text, parts)
    code = 1 if how.endswith("raises") else 2
    said = node.run("reload", "--yes", code=code)
    if code == 1:
        assert "nothing was changed: " in said
    after = node.actors()
    assert after.keys() == before.keys()
    for name in ("workers.0", "workers.1"):
        assert after[name]["pid"] == before[name]["pid"]
    node.write(THREE)  # with the old file all is as before: the failed one has left no trace
    assert node.run("reload", "--plan") == "nothing to change\n"
    wait_until(lambda: all(one["state"] == "running" for one in node.actors().values()))
    assert node.json("call", "second.add") == 2
    assert children(node.json("tree")) == ["first", "second", ("below", ["workers.0", "workers.1"])]
    node.stop()


def test_sighup_reloads(up: Callable[[str], Up]) -> None:
    node = up(THREE)
    node.start()
    assert node.process is not None
    node.write(changed(THREE, ('name = "first"\n', 'name = "renamed"\n')))
    node.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "renamed" in node.actors())
    assert "first" not in node.actors()
    node.write(changed(THREE, ('name = "first"\n', "name = 7\n")))
    node.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "L1001 " in node.err)
    assert "renamed" in node.actors()
    node.stop()


def test_a_node_without_a_file_needs_one(up: Callable[[str], Up]) -> None:
    import loom

    node = up(ONE)
    with loom.Node() as other:
        text = node.run("reload", "--node", other.endpoint, code=2)
    assert "L1008 this node was not started from a config file: name one" in text


def test_what_only_a_new_node_can_change_is_said(up: Callable[[str], Up]) -> None:
    node = up(ONE)
    node.start()
    node.config.write_text(node.config.read_text().replace('arena = "1MiB"', 'arena = "2MiB"'))
    assert node.json("reload", "--yes") == {"changes": [], "needs_new_node": ["[node] arena"], "applied": False}
    node.stop()
