"""The `loom-node` command, run as people, scripts and systemd run it: as a process, with a config file."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loom.cli.main import COMMANDS
from loom.cli.values import ARRAY_ITEMS, as_json, as_text, read_arguments
from loom.errors import UsageError

EXAMPLE = Path(__file__).parents[2] / "examples" / "index.toml"
COMMAND = [sys.executable, "-P", "-m", "loom.cli.main"]
GENEROUS_S = 60.0
"""A deadline for what normally takes a fraction of a second."""

PARTS = '''
import os, time
import loom

class Note(loom.Actor):
    """Writes its name to a file when it stops."""
    def __init__(self, file):
        self.file = file
    def on_stop(self, reason):
        with open(self.file, "a") as file:
            file.write(f"{self.ctx.name} {reason}\\n")
    def environ(self, name):
        return os.environ.get(name)
    def say(self, text):
        print(text)

class Stuck(Note):
    """Writes its name as it begins to stop, and never ends."""
    def on_stop(self, reason):
        super().on_stop(reason)
        time.sleep(3600)

class Slow(Note):
    """Writes its name when it starts, and never gets ready."""
    def __init__(self, file):
        super().__init__(file)
        self.on_stop("started")
        time.sleep(3600)

class Broken(loom.Actor):
    def __init__(self):
        raise ValueError("no such\\nmodel")

class Plain:
    pass
'''


class Node:
    """A `loom-node up`, and what it has said."""

    def __init__(self, shell: Shell, words: tuple[str, ...], environ: dict[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="node", dir=shell.tmp))
        with (self._folder / "out").open("wb") as out, (self._folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "up", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**shell.environ, **environ},
                start_new_session=True,  # a group of its own, so that Ctrl-C can be sent to all of it, as terminals do
            )

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    def says(self, start: str) -> list[str]:
        """The lines for people that begin so."""
        return [line for line in self.err.splitlines() if line.startswith(f"loom-node: {start}")]

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        return self.process.wait(GENEROUS_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Shell:
    """A user's shell: runs commands in a runtime folder of its own."""

    def __init__(self, tmp: Path, runtime: Path) -> None:
        self.tmp = tmp
        self.runtime = runtime
        left_out = ("LOOM_NODE", "LOOM_LOG", "NOTIFY_SOCKET")
        self.environ = {name: value for name, value in os.environ.items() if name not in left_out}
        self.environ["XDG_RUNTIME_DIR"] = str(runtime)
        self.notes = tmp / "notes"
        self.nodes: list[Node] = []

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words],
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GENEROUS_S,
        )

    def json(self, *words: str, code: int = 0) -> Any:
        done = self.run(*words, "--json")
        assert (done.returncode, done.stderr) == (code, ""), done
        return json.loads(done.stdout)

    def refusal(self, *words: str, code: int) -> str:
        """The one line that a command fails with, without the command's name."""
        done = self.run(*words)
        assert done.returncode == code, done
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("loom-node: L")
        return done.stderr.removeprefix("loom-node: ").rstrip()

    def popen(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *words], env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def config(self, text: str) -> str:
        """A config file beside a module `parts`; NOTES in it is the file that actors write to."""
        (self.tmp / "parts.py").write_text(PARTS)
        path = self.tmp / "node.toml"
        path.write_text(textwrap.dedent(text).replace("NOTES", str(self.notes)))
        return str(path)

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def start(self, *words: str, **environ: str) -> Node:
        node = Node(self, words, environ)
        self.nodes.append(node)
        return node


def new_shell(tmp: Path) -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="lm", dir="/tmp") as runtime:  # short: a socket's path has 107 bytes
        shell = Shell(tmp, Path(runtime))
        try:
            yield shell
        finally:
            for node in shell.nodes:
                node.kill()
        if all(node.process.returncode in (0, 1, 2) for node in shell.nodes):
            assert [str(path) for path in Path(runtime).rglob("*") if path.name != "loom"] == []


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    yield from new_shell(tmp_path)


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell in which the example's node runs."""
    for shell in new_shell(tmp_path_factory.mktemp("alpha")):
        node = shell.start(str(EXAMPLE))
        await_ready(node)
        yield shell
        node.ctrl_c()
        assert node.wait() == 0


def await_ready(node: Node) -> None:
    """Wait until it says that it is up."""
    wait_until(lambda: " is up: " in node.err or node.process.poll() is not None)
    assert node.process.poll() is None, node.err


def wait_until(predicate: Callable[[], Any]) -> Any:
    import time

    end_s = time.monotonic() + GENEROUS_S
    while not (found := predicate()):
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.005)
    return found


THREE = """
    [node]
    name = "three"
    arena = "1MiB"
    [supervisor]
    max_restarts = 0
    [[supervisor.child]]
    name = "first"
    actor = "parts:Note"
    args = ["NOTES"]
    [[supervisor.child]]
    name = "group"
    [supervisor.child.supervisor]
    [[supervisor.child.supervisor.child]]
    name = "second"
    actor = "parts:Note"
    args = ["NOTES"]
    [[supervisor.child.supervisor.child]]
    name = "third"
    actor = "parts:Note"
    kwargs = { file = "NOTES" }
"""


def one(actor: str, more: str = "") -> str:
    """A config with one actor, a class of `parts`."""
    arguments = "" if actor in ("Broken", "Plain") else 'args = ["NOTES"]'
    return f"""
    [node]
    arena = "1MiB"
    [[supervisor.child]]
    name = "only"
    actor = "parts:{actor}"
    {arguments}
    {more}
    """


# What is loaded, and what is asked for help


def test_the_command_line_itself_loads_nothing_heavy() -> None:
    code = "import sys, loom.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "argparse" in loaded
    assert {"numpy", "zmq", "rich", "msgspec", "asyncio", "uvloop", "loom.cli.ps"}.isdisjoint(loaded)


def test_version_and_module() -> None:
    from loom import __version__

    done = subprocess.run([sys.executable, "-m", "loom", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"loom-node {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(shell: Shell, command: str) -> None:
    done = shell.run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: loom-node {command}")
    assert f"  loom-node {command}" in done.stdout.partition("options:")[2]


def test_help_names_commands_and_exit_codes(shell: Shell) -> None:
    text = shell.run("--help").stdout
    assert all(re.search(rf"^    {command}\s", text, re.MULTILINE) for command in COMMANDS)
    assert "exit codes:" in text
    done = shell.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: loom-node")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["pss"], "L1008 there is no command 'pss': did you mean 'ps'?"),
        (["-v"], "L1008 expected a command first, got '-v': options follow it, as in 'loom-node ps -v'"),
        (["ps", "--jso"], "L1008 unrecognized arguments: --jso; see 'loom-node --help'"),
        (["up"], "L1008 the following arguments are required: CONFIG; see 'loom-node up --help'"),
        (["call"], "L1008 the following arguments are required: NAME.METHOD; see 'loom-node call --help'"),
        (["call", "index"], "L1008 expected NAME.METHOD, got 'index': write it as in index.count"),
        (["call", "index."], "L1008 expected NAME.METHOD, got 'index.': write it as in index.count"),
        (["call", "a.b", "k=1", "k=2"], "L1008 argument 'k' is given twice: leave one out"),
        (
            ["call", "a.b", "--timeout", "0"],
            "L1008 argument --timeout: expected a number of seconds > 0, got '0'; see 'loom-node call --help'",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(shell: Shell, words: list[str], text: str) -> None:
    assert shell.refusal(*words, code=2) == text


# Configs


def test_check_shows_the_tree(shell: Shell) -> None:
    done = shell.run("check", str(EXAMPLE))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == textwrap.dedent(f"""\
        {EXAMPLE} is fine: node 'alpha', 6 actors, arena 64 MiB
        root (rest_for_one, 5 restarts in 10 s)
        ├── index myapp.index:Index(3) permanent
        ├── workers x 4 myapp.work:Worker() transient
        └── edge (one_for_all, 1 restart in 5 s) permanent
            └── clock myapp.clock:Clock() permanent
        """)


def test_check_json(shell: Shell) -> None:
    found = shell.json("check", str(EXAMPLE))
    assert (found["name"], found["arena_bytes"]) == ("alpha", 64 * 2**20)
    assert [child["name"] for child in found["supervisor"]["children"]] == ["index", "workers", "edge"]


WRONG = {
    "missing": ("", "L1001", "expected a TOML file, got no such file: did you mean"),
    "not TOML": ("[node\n", "L1001", "$: expected TOML, got Expected ']'"),
    "unknown key": ("[supervisor]\nstrategi = 'one_for_all'\n", "L1001", "$.supervisor.strategi: expected a known key"),
    "unknown word": ("[supervisor]\nstrategy = 'one_for_al'\n", "L1001", "did you mean 'one_for_all'?"),
    "no module": (one("Note").replace("parts:", "partz:"), "L1006", "No module named 'partz': is it in one of"),
    "no class": (one("Nose"), "L1006", "expected a class 'Nose' in 'parts', got no 'Nose' there: did you mean 'Note'?"),
    "no actor": (one("Plain"), "L1006", "expected 'parts:Plain' to be a loom.Actor class"),
    "arguments": (one("Note", "kwargs = { fil = 1 }"), "L1006", "expected arguments for Note(file), got ("),
    "raises at import": (one("Note").replace("parts:", "bad:"), "L1006", "got ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("command", ["check", "up"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_config_is_one_line(shell: Shell, command: str, case: str) -> None:
    text, code, part = WRONG[case]
    path = shell.config(text)
    (shell.tmp / "bad.py").write_text("1 / 0\n")
    if case == "missing":
        path = path.replace("node.toml", "nod.toml")
    line = shell.refusal(command, path, code=2)
    assert line.startswith(f"{code} {path}: $")
    assert part in line
    done = shell.run(command, path, "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout) == {"error": {"code": code, "message": line.removeprefix(f"{code} ")}}


def test_a_wrong_name_is_one_line(shell: Shell) -> None:
    line = shell.refusal("up", shell.config(one("Note")), "--name", "a/b", code=2)
    assert line.startswith("L1008 --name: expected a name of 1 to 64 letters")
    assert line.endswith("got 'a/b': did you mean 'a_b'?")


def test_what_actors_do_at_import_does_not_reach_the_node(shell: Shell) -> None:
    path = shell.config(one("Note"))
    with (shell.tmp / "parts.py").open("a") as parts:
        parts.write("\nif not any(name.startswith('LOOM_COOKIE') for name in os.environ): os.environ['SET'] = 'yes'\n")
    node = shell.start(path)
    await_ready(node)
    assert shell.json("call", "only.environ", "SET") is None


# A node's life


def test_up_becomes_the_node_and_says_when_it_is_ready(shell: Shell) -> None:
    node = shell.start(shell.config(THREE), "--name", "other", "--json")
    ready = json.loads(wait_until(lambda: node.out.partition("\n")[0]))
    endpoint = f"ipc://{shell.runtime}/loom/other/node"
    assert ready == {"ready": endpoint, "pid": node.process.pid, "name": "other", "actors": 3}
    assert shell.json("ps", "--node", endpoint)["pid"] == node.process.pid
    assert shell.json("call", "first.say", "hello") is None
    node.ctrl_c()
    assert node.wait() == 0
    assert node.out.splitlines()[1:] == ["hello", '{"exit": "received SIGINT", "code": 0}']
    assert "loom-node: " not in node.err


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "stop"])
def test_a_node_stops_in_reverse_order(shell: Shell, how: str) -> None:
    node = shell.start(shell.config(THREE))
    await_ready(node)
    assert shell.noted() == []
    if how == "stop":
        assert shell.json("stop") == {"stopped": "three"}
    elif how == "SIGINT":
        node.ctrl_c()
    else:
        node.process.terminate()
    assert node.wait() == 0
    assert shell.noted() == ["third shutdown", "second shutdown", "first shutdown"]
    assert node.says("three is stopping: " + ("asked to by 'loom-node stop'" if how == "stop" else f"received {how}"))
    assert node.says("three has stopped")


def test_a_second_ctrl_c_kills(shell: Shell) -> None:
    node = shell.start(shell.config(one("Stuck", 'shutdown_s = "infinity"')))
    await_ready(node)
    pid = shell.json("ps")["actors"][0]["pid"]
    node.ctrl_c()
    wait_until(lambda: shell.noted() == ["only shutdown"])
    assert node.process.poll() is None
    os.kill(pid, 0)
    node.ctrl_c()
    assert node.wait() == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert node.says("default is killed: received SIGINT while it was stopping")


def test_being_asked_twice_to_stop_is_no_second_ctrl_c(shell: Shell) -> None:
    node = shell.start(shell.config(one("Stuck", 'shutdown_s = "infinity"')))
    await_ready(node)
    askers = [shell.popen("stop") for _ in range(2)]
    wait_until(lambda: shell.noted() == ["only shutdown"])
    assert shell.json("tree")["state"] == "stopping"
    assert node.process.poll() is None
    node.ctrl_c()  # the first signal: a stop, and it is stopping already
    assert shell.json("tree")["state"] == "stopping"
    node.ctrl_c()
    assert node.wait() == 1
    for asker in askers:
        asker.communicate(timeout=GENEROUS_S)
    assert shell.noted() == ["only shutdown"]


def test_ctrl_c_while_it_starts(shell: Shell) -> None:
    node = shell.start(shell.config(one("Slow", "shutdown_s = 0.01")))
    wait_until(lambda: shell.noted() == ["only started"])
    node.ctrl_c()
    assert node.wait() == 0
    assert " is up" not in node.err
    assert "Traceback" not in node.err


def test_ctrl_c_at_the_very_start(shell: Shell) -> None:
    node = shell.start(shell.config(one("Note")))
    cmdline = Path(f"/proc/{node.process.pid}/cmdline")
    wait_until(lambda: b"loom.node.main" in cmdline.read_bytes())  # the exec is done, the imports are not
    node.ctrl_c()
    assert node.wait() == 0
    assert "Traceback" not in node.err
    assert node.says("default has stopped")


def test_an_actor_that_cannot_start_is_one_line(shell: Shell) -> None:
    path = shell.config(one("Broken"))
    node = shell.start(path)
    assert node.wait() == 1
    line = "L3001 the tree failed to start: child 'only' failed to start: ValueError: no such model"
    assert node.says("") == [f"loom-node: {line}"]
    assert "Traceback" not in node.err

    loud = shell.start(path, "--verbose")
    assert loud.wait() == 1
    assert loud.says(line)
    assert "\n    Traceback (most recent call last):\n" in loud.err
    assert 'raise ValueError("no such\\nmodel")' in loud.err

    for_programs = shell.start(path, "--json")
    assert for_programs.wait() == 1
    failed, ended = map(json.loads, for_programs.out.splitlines())
    assert failed["error"]["code"] == "L3001"
    assert failed["error"]["traceback"].startswith("Traceback")
    assert ended["code"] == 1


def test_a_tree_that_gives_up_ends_the_node(shell: Shell) -> None:
    node = shell.start(shell.config(THREE))
    await_ready(node)
    pids = {actor["name"]: actor["pid"] for actor in shell.json("ps")["actors"]}
    os.kill(pids["first"], signal.SIGKILL)
    assert node.wait() == 1
    (line,) = node.says("L2008 three ends: supervisor 'root' gave up")
    assert line.endswith("the last was of 'first': killed by SIGKILL")
    assert shell.noted() == ["third shutdown", "second shutdown"]


def test_systemd_is_told(shell: Shell) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(shell.tmp / "notify"))
        notify.settimeout(GENEROUS_S)
        node = shell.start(shell.config(one("Note")), NOTIFY_SOCKET=str(shell.tmp / "notify"))
        assert notify.recv(100) == b"READY=1"
        assert shell.json("tree")["state"] == "running"
        assert shell.json("call", "only.environ", "NOTIFY_SOCKET") is None  # the service's voice is the node's alone
        node.process.terminate()
        assert notify.recv(100) == b"STOPPING=1"
        assert node.wait() == 0


def test_systemd_is_not_told_of_a_start_that_failed(shell: Shell) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(shell.tmp / "notify"))
        notify.settimeout(GENEROUS_S)
        node = shell.start(shell.config(one("Broken")), NOTIFY_SOCKET=str(shell.tmp / "notify"))
        assert notify.recv(100) == b"STOPPING=1"
        assert node.wait() == 1


def test_no_room_for_the_arena(shell: Shell) -> None:
    line = shell.refusal("up", shell.config(one("Note").replace("1MiB", "8000000GiB")), code=1)
    assert line.startswith("L3003 /dev/shm has ")
    assert "set a smaller 'arena'" in line


def test_stop_one_for_good(shell: Shell) -> None:
    node = shell.start(shell.config(THREE))
    await_ready(node)
    assert shell.json("stop", "second") == {"stopped": "second"}
    assert shell.noted() == ["second shutdown"]
    assert [actor["name"] for actor in shell.json("ps")["actors"]] == ["first", "third"]
    assert shell.refusal("call", "second.environ", "HOME", code=1).startswith("L2001 actor 'second'")
    assert shell.run("stop", "group").returncode == 0
    assert shell.noted() == ["second shutdown", "third shutdown"]
    assert shell.refusal("stop", "firts", code=1) == "L1003 no actor named 'firts' on this node: did you mean 'first'?"
    node.process.terminate()
    assert node.wait() == 0


# Which node


def test_no_node_is_running(shell: Shell) -> None:
    assert shell.refusal("ps", code=1) == "L1007 no node is running: start one with 'loom-node up CONFIG'"
    assert shell.refusal("tree", "--node", "nope", code=1).startswith(
        "L1007 no node is running at 'nope'; running: none"
    )
    assert shell.json("stop", code=1)["error"]["code"] == "L1007"


def test_a_name_is_taken_and_several_are_running(alpha: Shell) -> None:
    line = alpha.refusal("up", str(EXAMPLE), code=1)
    assert line.startswith("L1002 a node named 'alpha' is running: choose another name")
    beta = alpha.start(alpha.config(THREE), "--name", "beta")
    await_ready(beta)
    assert alpha.refusal("ps", code=1) == (
        "L1007 several nodes are running: say which with --node or $LOOM_NODE: alpha, beta"
    )
    assert alpha.refusal("ps", "--node", "beat", code=1).startswith(
        "L1007 no node is running at 'beat'; running: alpha, beta"
    )
    assert json.loads(alpha.run("ps", "--json", LOOM_NODE="alpha").stdout)["name"] == "alpha"
    assert json.loads(alpha.run("ps", "--json", "--node", "beta", LOOM_NODE="alpha").stdout)["name"] == "beta"
    assert alpha.run("stop", "--node", "beta").returncode == 0
    assert beta.wait() == 0
    assert alpha.json("ps")["name"] == "alpha"


# Looking at a node


def test_ps(alpha: Shell) -> None:
    found = alpha.json("ps")
    assert (found["name"], found["pid"]) == ("alpha", alpha.nodes[0].process.pid)
    assert [actor["name"] for actor in found["actors"]] == ["index", *(f"workers.{n}" for n in range(4)), "clock"]
    first = found["actors"][0]
    assert (first["state"], first["incarnation"], first["restarts"], first["depth"]) == ("running", 1, 0, 0)
    assert first["pss_bytes"] > 100_000

    done = alpha.run("ps")
    head, row, *_ = done.stdout.splitlines()
    columns = "NAME STATE PID INCARNATION RESTARTS MAILBOX PROCESSED FAILED RUNNING MEMORY"
    assert " ".join(head.split()) == columns
    assert row.split()[:5] == ["index", "running", str(first["pid"]), "1", "0"]


def test_ps_of_what_was_restarted(shell: Shell) -> None:
    node = shell.start(shell.config(THREE.replace("max_restarts = 0", "max_restarts = 9")))
    await_ready(node)
    before = shell.json("ps")["actors"][0]
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: shell.json("ps")["actors"][0]["incarnation"] == 2)
    wait_until(lambda: shell.json("ps")["actors"][0]["state"] == "running")
    found = shell.json("ps")["actors"][0]
    assert (found["name"], found["restarts"]) == ("first", 1)
    head, row, *_ = shell.run("ps").stdout.splitlines()
    assert head.endswith("LAST DEATH")
    assert row.endswith("killed by SIGKILL")
    node.process.terminate()
    assert node.wait() == 0


def test_tree(alpha: Shell) -> None:
    found = alpha.json("tree")
    assert (found["kind"], found["strategy"]) == ("supervisor", "rest_for_one")
    assert [child["name"] for child in found["children"]][-1] == "edge"
    lines = alpha.run("tree").stdout.splitlines()
    assert lines[0] == "root (rest_for_one) running"
    assert lines[-2] == "└── edge (one_for_all) running"
    assert lines[-1].startswith("    └── clock running pid ")
    plain = alpha.run("tree", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0
    assert "\\u2514" in plain.stdout


# Calls


def test_call(alpha: Shell) -> None:
    assert alpha.json("call", "index.add", "[[1, 0, 0], [0, 1, 0]]") == 2
    assert alpha.json("call", "index.search", "[0, 1, 0]", "k=2", "--timeout", "30") == [1, 0]
    assert alpha.run("call", "index.count").stdout == "2\n"
    assert alpha.json("call", "workers.count_words", "b a b") == {"b": 2, "a": 1}
    assert alpha.json("call", "workers.3.count_words", "text=b a") == {"b": 1, "a": 1}
    assert json.loads(alpha.run("call", "--json", "workers.count_words", "--", "-x").stdout) == {"-x": 1}
    scanned = alpha.run("call", "index.scan", "1", "--json")
    assert [json.loads(line) for line in scanned.stdout.splitlines()] == [[[1, 0, 0]], [[0, 1, 0]]]
    assert alpha.run("call", "index.scan", "2").stdout == "float64 array, 2 x 3:\n[[1. 0. 0.]\n [0. 1. 0.]]\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["idnex.count"], "L1003 no actor named 'idnex' on this node: did you mean 'index'?"),
        (["index.cuont"], "L1005 actor 'index' has no public method 'cuont': did you mean 'count'?"),
        (["index._rows"], "L1005 '_rows' of actor 'index' cannot be called: expected a public method"),
        (["index.name"], "L1005 'name' of actor 'index' cannot be called: expected a public method"),
        (["edge.count"], "L1003 'edge' is a supervisor, which takes no calls: name one of its children"),
        (
            ["index.count", "7"],
            "L2005 TypeError in actor 'index': Index.count() takes 1 positional argument but 2 were given",
        ),
        (
            ["clock.ticks", "cuont=2"],
            "L2005 TypeError in actor 'clock': Clock.ticks() got an unexpected keyword argument 'cuont'",
        ),
    ],
)
def test_a_call_that_fails_is_one_line(alpha: Shell, words: list[str], text: str) -> None:
    assert alpha.refusal("call", *words, code=1).removesuffix(" (--verbose shows the traceback)") == text


def test_a_remote_exception(alpha: Shell) -> None:
    line = alpha.refusal("call", "index.search", "[1, 2]", code=1)
    assert line.startswith("L2005 ValueError in actor 'index': operands could not be broadcast")
    loud = alpha.run("call", "index.search", "[1, 2]", "--verbose")
    assert loud.returncode == 1
    assert "\n    Traceback (most recent call last):\n" in loud.stderr
    assert "in search\n" in loud.stderr
    error = alpha.json("call", "index.search", "[1, 2]", code=1)["error"]
    assert (error["code"], error["type"], error["actor"]) == ("L2005", "ValueError", "index")
    assert error["traceback"].startswith("Traceback")


def test_a_call_that_takes_too_long(alpha: Shell) -> None:
    done = alpha.run("call", "clock.ticks", "100000", "0.01", "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stderr.startswith("loom-node: L2002 ")
    assert done.stderr.count("\n") == 1


def test_a_stream_comes_item_by_item_and_ends_with_ctrl_c(alpha: Shell) -> None:
    with alpha.popen("call", "clock.ticks", "100000", "0.01") as call:
        assert call.stdout is not None
        assert call.stderr is not None
        ages = [float(call.stdout.readline()) for _ in range(3)]
        assert ages == sorted(ages)
        assert alpha.json("call", "clock.age") > 0  # it has time for others meanwhile
        call.send_signal(signal.SIGINT)
        assert call.wait(GENEROUS_S) == 130
        assert call.stderr.read() == ""
    wait_until(lambda: alpha.json("ps")["actors"][-1]["running"] == 0)  # and the actor has been told


def test_a_reader_that_leaves_is_no_error(alpha: Shell) -> None:
    with alpha.popen("call", "clock.ticks", "100000", "0.001") as call:
        assert call.stdout is not None
        assert call.stderr is not None
        call.stdout.readline()
        call.stdout.close()
        assert call.wait(GENEROUS_S) == 141
        assert call.stderr.read() == ""


# Words in, text out


def test_arguments_are_json_or_strings() -> None:
    words = ["1", "-2.5", "true", "null", "[1, {}]", '"a=b"', "plain words", "NaN", "k=[1]", "s=x=y", "1=2", ""]
    args, kwargs = read_arguments(words)
    assert args == [1, -2.5, True, None, [1, {}], "a=b", "plain words", "NaN", "1=2", ""]
    assert kwargs == {"k": [1], "s": "x=y"}
    with pytest.raises(UsageError):
        read_arguments(["k=1", "k=1"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.arange(3, dtype=np.int16), "[0,1,2]"),
        (np.float32(0.5), "0.5"),
        ({"rows": np.zeros((1, 2))}, '{"rows":[[0.0,0.0]]}'),
        ((1, b"ab", None), '[1,"YWI=",null]'),
        (float("nan"), "null"),
        ({(1, 2): {3}}, '{"(1, 2)":[3]}'),
        (2**70, "1180591620717411303424"),
        (1 + 2j, '"(1+2j)"'),
        ({"name": "\udcff"}, '{"name": "\\udcff"}'),
        (np.zeros((200, 100), dtype=np.uint8), '{"dtype":"uint8","shape":[200,100],"bytes":20000}'),
    ],
)
def test_values_as_json(value: object, text: str) -> None:
    assert as_json(value) == text


def test_large_arrays_in_full_on_request() -> None:
    array = np.ones(ARRAY_ITEMS + 1)
    assert json.loads(as_json(array, full=True)) == array.tolist()
    shown, full = as_text(array), as_text(array, full=True)
    assert shown is not None
    assert full is not None
    assert len(shown) < 100 < len(full)


def test_values_as_text() -> None:
    assert as_text(None) is None
    assert as_text("a\nb") == "a\nb"
    assert as_text(True) == "true"
    assert as_text({"a": [1, 2]}) == '{"a":[1,2]}'
    assert as_text({"a": "x" * 200}) == json.dumps({"a": "x" * 200}, indent=2)


def test_a_value_without_a_bottom_is_text() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert as_json(endless) == '"a list nested too deeply to be printed"'
