"""The examples, run as a user runs them. The plain client must manage without a line of Loom."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loom

EXAMPLES = Path(__file__).parents[2] / "examples"


class Desk(loom.Actor):
    """What a stranger may ask for."""

    def add(self, first: int, second: int) -> int:
        return first + second

    def echo(self, value: Any) -> Any:
        return value

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def fail(self, text: str) -> None:
        raise ValueError(text)


def run(script: str, *args: str, isolated: bool = False) -> subprocess.CompletedProcess[str]:
    """Run an example; `isolated`: with nothing but the standard library, zmq and msgpack to be found."""
    command = [sys.executable, str(EXAMPLES / script)]
    if isolated:
        source = (
            "import runpy, sys\n"
            f"sys.path.append({sysconfig.get_path('platlib')!r})\n"  # packages, but no .pth file, so no editable loom
            "sys.modules['loom'] = None\n"  # and whoever imports it all the same gets an ImportError
            f"sys.argv = {[script, *args]!r}\n"
            f"runpy.run_path({str(EXAMPLES / script)!r}, run_name='__main__')\n"
        )
        command = [sys.executable, "-I", "-S", "-c", source]
        args = ()
    return subprocess.run([*command, *args], capture_output=True, text=True, timeout=60, check=False)


def ask(node: loom.Node, *args: str) -> subprocess.CompletedProcess[str]:
    return run("plain_client.py", node.endpoint, *args, isolated=True)


def imports_of(script: str) -> set[str]:
    found: set[str] = set()
    for statement in ast.walk(ast.parse((EXAMPLES / script).read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found.add((statement.module or "").partition(".")[0])
    return found


def test_the_plain_client_imports_no_loom() -> None:
    assert imports_of("plain_client.py") == {"json", "sys", "zmq", "msgpack"}


def test_the_isolation_would_notice_an_import_of_loom(node: loom.Node) -> None:
    done = run("counter.py", isolated=True)
    assert done.returncode == 1
    assert "loom" in done.stderr
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr


def test_the_plain_client_calls_an_actor(node: loom.Node) -> None:
    node.spawn(Desk, name="desk")
    done = ask(node, "desk", "add", "40", "2")
    assert (done.stdout, done.stderr, done.returncode) == ("42\n", "", 0)


@pytest.mark.parametrize("value", ["null", "true", "-1.5", '"\\u00e9"', '[1, {"a": [2]}]', "9007199254740991"])
def test_json_goes_there_and_back(node: loom.Node, value: str) -> None:
    node.spawn(Desk, name="desk")
    done = ask(node, "desk", "echo", value)
    assert (done.stdout, done.stderr, done.returncode) == (f"{value}\n", "", 0)


def test_a_stream_longer_than_its_first_credit(node: loom.Node) -> None:
    node.spawn(Desk, name="desk")
    done = ask(node, "desk", "count", "100")
    assert done.stdout.split() == [str(number) for number in range(100)]
    assert done.returncode == 0


def test_a_remote_exception(node: loom.Node) -> None:
    node.spawn(Desk, name="desk")
    done = ask(node, "desk", "fail", '"no paper"')
    assert (done.stdout, done.stderr, done.returncode) == ("", "L2005 ValueError: no paper\n", 1)


def test_a_name_that_nobody_bears(node: loom.Node) -> None:
    node.spawn(Desk, name="desk")
    done = ask(node, "dask", "add", "1", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("L1003 ActorNotFound: ")
    assert "'desk'" in done.stderr


def test_counter_comes_back() -> None:
    done = run("counter.py")
    assert done.returncode == 0, done.stderr
    first, death, second = done.stdout.splitlines()
    assert (first, second) == ("42", "41")
    assert death.startswith("L2001 actor 'counter' (pid ")
    assert death.endswith("counter.nap: killed by SIGKILL")
