"""Limits, each broken on purpose: by an actor that allocates, spins, opens files, or asks for what there is not."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loom
from loom.errors import ActorDied, RemoteError, StartFailed
from loom.supervise import cgroup

MIB = 2**20


class Greedy(loom.Actor):
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def pid(self) -> int:
        return os.getpid()

    def take(self, size_bytes: int) -> int:
        self.kept.append(np.ones(size_bytes, np.uint8))
        return len(self.kept)

    def let_go(self) -> None:
        self.kept.clear()

    def take_for_ever(self) -> None:
        while True:
            self.take(8 * MIB)
            time.sleep(0.02)

    def spin(self) -> None:
        while True:
            pass

    def spin_whatever_comes(self) -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        self.spin()

    def open_files(self, count: int) -> int:
        self.kept += [open(os.devnull) for _ in range(count)]  # noqa: SIM115
        return len(self.kept)

    def has(self) -> tuple[int, list[int], tuple[int, int], tuple[int, int]]:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        cpus = sorted(os.sched_getaffinity(0))
        return nice, cpus, resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CPU)

    def of_every_thread(self) -> set[tuple[int, tuple[int, ...]]]:
        tids = [int(tid) for tid in os.listdir("/proc/self/task")]
        return {(os.getpriority(os.PRIO_PROCESS, tid), tuple(sorted(os.sched_getaffinity(tid)))) for tid in tids}

    def view(self, array: np.ndarray) -> int:
        self.kept.append(array)
        return int(array.sum())


@contextmanager
def limited(**limits: Any) -> Iterator[tuple[loom.Node, Any]]:
    child = loom.ChildSpec(Greedy, name="greedy", limits=loom.LimitsSpec(**limits))
    spec = loom.SupervisorSpec(max_restarts=100, within_s=3600, children=(child,))
    with loom.Node(arena="512MiB", supervisor=spec) as node:
        yield node, node.lookup("greedy")


def cause_of(reply: Any) -> str:
    with pytest.raises(ActorDied) as caught:
        reply.result(timeout_s=60)
    return caught.value.cause


def test_memory_that_exceeds_its_limit_ends_the_actor_and_says_so() -> None:
    with limited(memory_bytes=96 * MIB) as (node, greedy):
        pid = greedy.pid().result(timeout_s=10)
        with node.monitor(greedy) as downs:
            cause = cause_of(greedy.take_for_ever())
            down = next(iter(downs))
        assert cause.startswith("memory limit: ")
        assert (down.reason, down.cause.text, down.cause.signal) == ("memory_limit", cause, signal.SIGKILL)
        assert f"limits.memory_bytes = {96 * MIB}, 96 MiB" in cause
        assert greedy.pid().result(timeout_s=10) != pid
        assert node.stats().actors[0].last_death == cause


@pytest.mark.skipif(isinstance(cgroup.find(), Path), reason="a control group counts the arena, too")
def test_what_is_shared_is_not_the_actors_own_memory() -> None:
    with limited(memory_bytes=64 * MIB) as (node, greedy):
        shared = loom.arena.share(np.ones(128 * MIB, np.uint8))
        assert greedy.view(shared).result(timeout_s=20) == 128 * MIB
        time.sleep(0.5)  # a few looks
        assert greedy.take(8 * MIB).result(timeout_s=10) == 2
        assert node.stats().actors[0].incarnation == 1


def test_a_soft_limit_is_told_once_for_each_crossing(capfd: pytest.CaptureFixture[str], until: Any) -> None:
    with limited(memory_soft_bytes=64 * MIB) as (node, greedy):

        def warnings() -> int:
            return node.stats().actors[0].memory_warnings

        greedy.take(96 * MIB).result(timeout_s=10)
        assert until(lambda: warnings() == 1)
        greedy.take(32 * MIB).result(timeout_s=10)
        time.sleep(0.5)
        assert warnings() == 1
        greedy.let_go().result(timeout_s=10)
        time.sleep(0.5)
        greedy.take(96 * MIB).result(timeout_s=10)
        assert until(lambda: warnings() == 2)
        assert node.stats().actors[0].incarnation == 1
    assert f"(limits.memory_soft_bytes = {64 * MIB})" in capfd.readouterr().err


@pytest.mark.parametrize("method", ["spin", "spin_whatever_comes"])
def test_cpu_time_that_is_used_up_ends_the_actor_and_says_so(method: str) -> None:
    with limited(cpu_s=1) as (node, greedy):
        pid = greedy.pid().result(timeout_s=10)
        with node.monitor(greedy) as downs:
            cause = cause_of(getattr(greedy, method)())
            assert next(iter(downs)).reason == "cpu_limit"
        assert cause.startswith("CPU limit: it has had ")
        assert cause.endswith("of CPU time (limits.cpu_s = 1)")
        assert greedy.pid().result(timeout_s=10) != pid  # with a second of its own


def test_open_files_are_the_actors_error_and_not_its_death() -> None:
    with limited(open_files=100) as (node, greedy):
        assert greedy.open_files(20).result(timeout_s=10) == 20
        with pytest.raises(RemoteError, match="Too many open files"):
            greedy.open_files(100).result(timeout_s=10)
        assert greedy.has().result(timeout_s=10)[2] == (100, 100)
        assert node.stats().actors[0].incarnation == 1


def test_niceness_and_cpus_hold_for_every_thread() -> None:
    cpu = max(os.sched_getaffinity(0))
    with limited(nice=7, cpus=[cpu], cpu_s=3600) as (_, greedy):
        nice, cpus, _, cpu_s = greedy.has().result(timeout_s=10)
        assert (nice, cpus, cpu_s) == (7, [cpu], (3600, 3601))
        assert greedy.of_every_thread().result(timeout_s=10) == {(7, (cpu,))}


def test_a_cpu_that_is_not_there_fails_the_start() -> None:
    with (
        pytest.raises(StartFailed, match=r"limits.cpus: expected to get \(4095,\), got .*: give what"),
        limited(cpus=[4095]),
    ):
        pass


def test_more_than_the_system_allows_fails_the_start() -> None:
    code = (
        "import resource, loom\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))\n"
        "class A(loom.Actor): pass\n"
        "child = loom.ChildSpec(A, limits=loom.LimitsSpec(open_files=500))\n"
        "try:\n"
        "    loom.Node(supervisor=loom.SupervisorSpec(children=(child,)))\n"
        "except loom.errors.StartFailed as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "limits.open_files: expected to get 500, got the system allows at most 400" in done.stdout, done.stderr


V1 = Path("/sys/fs/cgroup/memory")


@contextmanager
def a_group_of_v1(limit_bytes: int) -> Iterator[Path]:
    """This process, and what it starts, in a memory group of its own; cgroup v1, for the kernel's OOM killer."""
    own = next(
        line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line
    )
    group = V1 / own.lstrip("/") / f"loom-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield group
    finally:
        (V1 / own.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        end_s = time.monotonic() + 10
        while group.exists() and time.monotonic() < end_s:
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.05)


@pytest.mark.skipif(not os.access(V1 / "cgroup.procs", os.W_OK), reason="no memory group can be made here")
def test_a_kill_by_the_kernel_for_want_of_memory_is_told(until: Callable[..., Any]) -> None:
    with a_group_of_v1(700 * MIB) as group, limited() as (node, greedy):
        pid = greedy.pid().result(timeout_s=10)
        for one in (node.pid, pid):
            (group / "cgroup.procs").write_text(str(one))
        assert cause_of(greedy.take(2000 * MIB)) == "out of memory: killed by the kernel (SIGKILL)"
        again = greedy.pid().result(timeout_s=10)
        os.kill(again, signal.SIGKILL)
        assert until(lambda: node.stats().actors[0].last_death == "killed by SIGKILL")


@pytest.mark.skipif(isinstance(cgroup.find(()), str), reason=f"no control group: {cgroup.find(())}")
def test_control_groups_come_and_go(until: Callable[..., Any]) -> None:
    base = cgroup.find(())
    assert isinstance(base, Path)
    groups = cgroup.Cgroups(base, "0test0", (), controllers=())
    folder = Path(groups.make("1.1", None))
    script = f"echo 0 > {folder}/cgroup.procs; env -i setsid sleep 600 >&- & echo $!"
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    pid = int(done.stdout)
    assert pid in cgroup.processes_in(folder)
    groups.end(str(folder))
    assert until(lambda: not _is_alive(pid))
    assert until(lambda: groups.sweep() is None and not folder.exists())
    Path(groups.make("1.2", None))
    cgroup.clear("0test0")
    assert not list(base.glob("loom-0test0*"))


@pytest.mark.skipif(isinstance(cgroup.find(()), str), reason=f"no control group: {cgroup.find(())}")
def test_a_node_alone_in_its_group_moves_into_a_leaf(until: Callable[..., Any]) -> None:
    top = cgroup.find(())
    assert isinstance(top, Path)
    controllers = (top / "cgroup.controllers").read_text().split()[:1]
    if not controllers:
        pytest.skip("no controller is left for version 2")
    base = top / f"loom-test-{os.getpid()}"
    base.mkdir()
    before = (top / "cgroup.subtree_control").read_text().split()
    (top / "cgroup.subtree_control").write_text(f"+{controllers[0]}")
    nodes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    try:
        for one in nodes:
            (base / "cgroup.procs").write_text(str(one.pid))
        with pytest.raises(OSError, match="busy"):
            cgroup.Cgroups(base, "0test0", {nodes[0].pid}, controllers)
        assert not [path for path in base.iterdir() if path.is_dir()]
        pids = {one.pid for one in nodes}
        groups = cgroup.Cgroups(base, "0test0", pids, controllers)
        assert (cgroup.processes_in(base), cgroup.processes_in(base / "loom-0test0-node")) == (set(), pids)
        folder = Path(groups.make("1.1", None))
        assert controllers[0] in (folder / "cgroup.controllers").read_text().split()
        cgroup._clear(base, "0test0")
        assert cgroup.processes_in(base) == pids
        assert not [path for path in base.iterdir() if path.is_dir()]
    finally:
        for one in nodes:
            one.kill()
            one.wait()
        assert until(lambda: not cgroup.processes_in(base))
        base.rmdir()
        if controllers[0] not in before:
            (top / "cgroup.subtree_control").write_text(f"-{controllers[0]}")


def _is_alive(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
