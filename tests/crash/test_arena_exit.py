"""The ends of an interpreter with arrays alive, of a forked child with inherited ones: no crash, and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loom

HEAD = """
import atexit, gc, os, sys, threading
import numpy as np
import loom
class Maker(loom.Actor):
    def make(self, n): return np.arange(n)
    def shared(self, n): return loom.arena.share(np.arange(n))
    def keep(self, array):
        self.kept = array
        globals()["kept_for_ever"] = array
        return int(array.sum())
"""

ENDS = {
    "arrays in module globals": """
        node = loom.Node(arena="16MiB")
        made, shared, own = (
            node.spawn(Maker).make(50_000).result(), node.spawn(Maker).shared(50_000).result(), loom.arena.empty(50_000)
        )
        view = own[10:20]
        """,
    "the node closed first": """
        node = loom.Node(arena="16MiB")
        made, own = node.spawn(Maker).make(50_000).result(), loom.arena.share(np.arange(50_000))
        node.close()
        assert made.sum() == own.sum() == 1249975000
        """,
    "atexit after and before the node's own": """
        def look(): assert made.sum() == own.sum() == 1249975000; sys.stdout.write("looked "); sys.stdout.flush()
        atexit.register(look)
        node = loom.Node(arena="16MiB")
        made, own = node.spawn(Maker).make(50_000).result(), loom.arena.share(np.arange(50_000))
        atexit.register(look)
        """,
    "a daemon thread that goes on": """
        node = loom.Node(arena="16MiB")
        maker, begun = node.spawn(Maker), threading.Event()
        def work():
            while True:
                try: array = loom.arena.empty(40_000, np.uint8)
                except loom.errors.LoomError: return  # the node is closed before the thread ends
                array[:] = 1
                begun.set()
        for _ in range(3): threading.Thread(target=work, daemon=True).start()
        begun.wait()
        """,
    "a cycle, a __del__ and a thread's local": """
        node = loom.Node(arena="16MiB")
        class Keeper:
            def __init__(self): self.me, self.array = self, loom.arena.share(np.arange(50_000))
            def __del__(self): assert self.array[-1] == 49_999
        keeper, local = Keeper(), threading.local()
        local.array = node.spawn(Maker).make(50_000).result()
        thread = threading.Thread(target=lambda: setattr(local, "array", loom.arena.empty(50_000)))
        thread.start(); thread.join()
        """,
    "an actor that keeps ours": """
        node = loom.Node(arena="16MiB")
        own = loom.arena.share(np.arange(50_000))
        assert node.spawn(Maker).keep(own).result() == 1249975000
        """,
    "an exception with an array in its frames": """
        node = loom.Node(arena="16MiB")
        def fail(array): raise SystemExit(0)
        fail(node.spawn(Maker).make(50_000).result())
        """,
    "arrays in a forked child that exits as Python does": """
        node = loom.Node(arena="16MiB")
        made, own = node.spawn(Maker).make(50_000).result(), loom.arena.share(np.arange(50_000))
        pid = os.fork()
        if pid == 0:
            assert made.sum() == own.sum() == 1249975000
            try: loom.arena.empty(10)
            except loom.errors.UsageError as error: assert "fork" in str(error), error
            else: raise AssertionError
            del made
            gc.collect()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert node.arena().stats.blocks == 2
        assert made.sum() == own.sum() == 1249975000
        """,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("full", ["wait", "spill"])
def test_an_interpreter_ends_with(end: str, full: str, tmp_path: Path, until: Callable[..., Any]) -> None:
    code = HEAD + textwrap.dedent(ENDS[end])
    if full == "spill":  # nothing fits into memory
        code = code.replace('arena="16MiB"', f'arena=1, arena_full="spill", arena_spill={str(tmp_path)!r}')
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if "Error" in line or "Fatal" in line or "Exception" in line]
    assert errors == []
    if "atexit" in end:
        assert done.stdout == "looked looked "
    assert until(lambda: list(tmp_path.iterdir()) == [])


class Forker(loom.Actor):
    """Forks, as careless libraries do, and lets the child end in one way or another."""

    def __init__(self) -> None:
        self.array = loom.arena.share(__import__("numpy").arange(50_000))

    def fork(self, how: str) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                if self.array.sum() != 1249975000:
                    os._exit(3)
                del self.array
                loom.arena.current().close()
                try:
                    loom.arena.empty(10)
                except loom.errors.UsageError:
                    pass
                else:
                    os._exit(4)
                if how == "kill":
                    os.kill(os.getpid(), 9)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def total(self) -> int:
        return int(self.array.sum())

    def make(self) -> Any:
        return self.array


@pytest.mark.parametrize(("how", "code"), [("exit", 0), ("kill", -9)])
def test_a_child_that_an_actor_forks_changes_nothing(node: loom.Node, how: str, code: int) -> None:
    forker = node.spawn(Forker, name="forker")
    before = forker.make().result(timeout_s=60)
    blocks = node.arena().oldest
    assert forker.fork(how).result(timeout_s=60) == code
    after = node.arena().oldest
    assert [(one.index, one.generation, one.holders) for one in after] == [
        (one.index, one.generation, one.holders) for one in blocks
    ]
    assert forker.total().result(timeout_s=60) == int(before.sum()) == 1249975000
    assert node.stats().arena.participants == 3
