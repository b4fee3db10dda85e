"""kill -9 of everything that can be killed: what callers see, what comes back, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loom
from loom.errors import ActorDied, LoomError, NodeDown, StartFailed

MANY = loom.SupervisorSpec(max_restarts=100_000, within_s=3600)


class Worker(loom.Actor):
    def __init__(self, folder: str = "") -> None:
        self.folder = folder

    def pid(self) -> int:
        return os.getpid()

    def echo(self, value: Any) -> Any:
        return value

    def total(self, array: np.ndarray) -> float:
        return float(array.sum())

    def nap(self, s: float) -> str:
        time.sleep(s)
        return "rested"

    def exit(self, code: int) -> None:
        raise SystemExit(code)

    def hard_exit(self, code: int) -> None:
        os._exit(code)

    def leave(self) -> None:
        self.ctx.stop()

    def child(self, setsid: bool) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=setsid).pid

    def on_stop(self, reason: str) -> None:
        if self.folder:
            with open(Path(self.folder) / "order", "a") as file:
                file.write(f"{self.ctx.name} {reason}\n")


class Fails(loom.Actor):
    def __init__(self, marker: str = "") -> None:
        if not marker or Path(marker).exists():
            raise RuntimeError("cannot be made today")

    def pid(self) -> int:
        return os.getpid()


def is_alive(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def ask_until_up(ref: Any, method: str = "pid") -> Any:
    """The first answer of whoever bears the name now; an answer in flight may still die with the old one."""
    for _ in range(100):
        try:
            return getattr(ref, method)().result(timeout_s=20)
        except ActorDied:
            continue
    raise AssertionError("it never came back")


def test_the_caller_hears_of_the_death_and_the_replacement_answers() -> None:
    with loom.Node(supervisor=MANY) as node:
        worker = node.spawn(Worker)
        pid = worker.pid().result(timeout_s=10)
        under_way = worker.nap(60.0)
        waiting = worker.echo(1)
        time.sleep(0)
        while node.stats().actors[0].since_s < 0.05:  # until it is surely the nap that runs
            pass
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorDied, match="killed by SIGKILL") as first:
            under_way.result(timeout_s=10)
        with pytest.raises(ActorDied) as second:
            waiting.result(timeout_s=10)
        assert (first.value.started, second.value.started) == (True, False)
        assert ask_until_up(worker) != pid
        (restart,) = node.stats().restarts
        assert restart.cause == "killed by SIGKILL"


def test_calls_under_fire_all_end() -> None:
    """Kill the actor again and again under load: every ask ends, in a right answer or in ActorDied."""
    with loom.Node(supervisor=MANY) as node:
        worker = node.spawn(Worker)
        stop = threading.Event()
        results = {"answered": 0, "died": 0}
        wrong: list[Any] = []
        lock = threading.Lock()

        def ask(seed: int) -> None:
            number = seed
            while not stop.is_set():
                number += 8
                try:
                    batch = [(n, worker.echo(n)) for n in range(number, number + 20)]
                    for sent, reply in batch:
                        try:
                            if reply.result(timeout_s=30) != sent:
                                wrong.append(sent)
                            with lock:
                                results["answered"] += 1
                        except ActorDied:
                            with lock:
                                results["died"] += 1
                except LoomError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(25):
            pid = ask_until_up(worker)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        stop.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong
        assert results["answered"] > 0
        ask_until_up(worker)
        assert node.stats().restart_count >= 20


def test_arrays_under_fire_are_right_and_leak_nothing(until: Any) -> None:
    with loom.Node(supervisor=MANY) as node:
        worker = node.spawn(Worker)
        ask_until_up(worker)
        shared = loom.arena.share(np.ones(500_000))
        for number in range(30):
            mine = np.full(50_000, float(number))
            replies = [worker.total(shared), worker.total(mine), worker.echo(mine)]
            if number % 3 == 0:
                os.kill(node.stats().actors[0].pid or ask_until_up(worker), signal.SIGKILL)
            for reply, right in zip(replies, (500_000.0, 50_000.0 * number, None), strict=True):
                try:
                    found = reply.result(timeout_s=30)
                except ActorDied:
                    continue
                if right is None:
                    np.testing.assert_array_equal(found, mine)
                else:
                    assert found == right
        del shared, replies, reply, mine
        found = None
        ask_until_up(worker)

        def nothing_in_use() -> bool:
            loom.arena.current().collect()
            stats = node.stats().arena
            return stats.in_use_bytes <= 400_000 and stats.in_flight == 0  # what the actor last sent, at most

        assert until(nothing_in_use)


@pytest.mark.parametrize(
    ("how", "restart", "comes_back"),
    [
        ("kill", "permanent", True),
        ("kill", "transient", True),
        ("kill", "temporary", False),
        ("exit 0", "permanent", True),
        ("exit 0", "transient", False),
        ("exit 3", "transient", True),
        ("exit 3", "temporary", False),
        ("leave", "permanent", True),
        ("leave", "transient", False),
    ],
)
def test_restart_types(how: str, restart: Any, comes_back: bool, until: Any) -> None:
    child = loom.ChildSpec(Worker, name="w", restart=restart)
    with loom.Node(supervisor=loom.SupervisorSpec(children=(child,), max_restarts=3)) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        if how == "kill":
            os.kill(pid, signal.SIGKILL)
        elif how == "leave":
            worker.leave.tell()
        else:
            worker.exit.tell(int(how.split()[1]))
        assert until(lambda: not is_alive(pid))
        if comes_back:
            assert ask_until_up(worker) != pid
        else:
            with pytest.raises(ActorDied):
                worker.pid().result(timeout_s=10)
            assert node.stats().restart_count == 0


def test_exactly_max_restarts_survive_and_one_more_ends_the_node(until: Any) -> None:
    spec = loom.SupervisorSpec(max_restarts=3, within_s=600, children=(loom.ChildSpec(Worker, name="w"),))
    with loom.Node(supervisor=spec) as node:
        worker = node.lookup("w")
        for _ in range(3):
            os.kill(ask_until_up(worker), signal.SIGKILL)
        pid = ask_until_up(worker)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises((NodeDown, ActorDied)):
            worker.pid().result(timeout_s=20)
        assert until(lambda: not is_alive(node.pid))
        with pytest.raises(NodeDown, match=r"gave up: more than 3 restarts in 600 s; the last was of 'w'"):
            worker.pid().result(timeout_s=20)


def test_a_failed_start_tells_its_callers_why() -> None:
    with loom.Node() as node:
        broken = node.spawn(Fails, name="broken")
        with pytest.raises(ActorDied, match="RuntimeError: cannot be made today") as caught:
            broken.pid().result(timeout_s=10)
        assert caught.value.started is False
        assert "raise RuntimeError" in caught.value.cause
        with pytest.raises(ActorDied, match="cannot be made today"):
            broken.pid().result(timeout_s=10)
        assert node.spawn(Worker, name="broken").pid().result(timeout_s=10) > 0
    with pytest.raises(StartFailed, match="cannot be made today"):
        loom.Node(supervisor=loom.SupervisorSpec(children=(loom.ChildSpec(Worker, name="w"), loom.ChildSpec(Fails))))


def test_failed_restarts_count(tmp_path: Path, until: Any) -> None:
    marker = tmp_path / "marker"
    spec = loom.SupervisorSpec(max_restarts=3, within_s=600, children=(loom.ChildSpec(Fails, args=(str(marker),)),))
    with loom.Node(supervisor=spec) as node:
        fails = node.lookup("fails")
        pid = fails.pid().result(timeout_s=10)
        marker.touch()
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not is_alive(node.pid))
        with pytest.raises(NodeDown, match=r"gave up.*cannot be made today"):
            fails.pid().result(timeout_s=10)


def test_strategies_and_order(tmp_path: Path) -> None:
    def tree(strategy: Any) -> loom.SupervisorSpec:
        children = tuple(loom.ChildSpec(Worker, args=(str(tmp_path),), name=name) for name in "abc")
        return loom.SupervisorSpec(strategy=strategy, max_restarts=5, children=children)

    moved = {"one_for_one": "b", "rest_for_one": "bc", "one_for_all": "abc"}
    for strategy, expected in moved.items():
        with loom.Node(supervisor=tree(strategy)) as node:
            pids = {name: node.lookup(name).pid().result(timeout_s=10) for name in "abc"}
            os.kill(pids["b"], signal.SIGKILL)
            ask_until_up(node.lookup("b"))
            after = {name: ask_until_up(node.lookup(name)) for name in "abc"}
            while any(after[name] == pids[name] for name in expected):
                after = {name: ask_until_up(node.lookup(name)) for name in "abc"}
            assert "".join(name for name in "abc" if after[name] != pids[name]) == expected
            (tmp_path / "order").write_text("")
        assert (tmp_path / "order").read_text() == "c shutdown\nb shutdown\na shutdown\n"


def test_a_nested_supervisor_that_gives_up_is_restarted_with_all_below_it() -> None:
    inner = loom.SupervisorSpec(
        max_restarts=0, children=(loom.ChildSpec(Worker, name="one"), loom.ChildSpec(Worker, name="two"))
    )
    outer = loom.SupervisorSpec(max_restarts=5, children=(loom.ChildSpec(inner, name="inner"),))
    with loom.Node(supervisor=outer) as node:
        one, two = node.lookup("one"), node.lookup("two")
        before = one.pid().result(timeout_s=10), two.pid().result(timeout_s=10)
        os.kill(before[0], signal.SIGKILL)
        while True:
            after = ask_until_up(one), ask_until_up(two)
            if not set(before) & set(after):
                break
        assert node.tree().children[0].name == "inner"


def test_the_zygotes_death_harms_no_actor(until: Any) -> None:
    with loom.Node(supervisor=MANY) as node:
        worker = node.spawn(Worker)
        pid = worker.pid().result(timeout_s=10)
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        (zygote,) = (int(one) for one in children if int(one) != pid)
        os.kill(zygote, signal.SIGKILL)
        assert until(lambda: not is_alive(zygote))
        assert worker.pid().result(timeout_s=10) == pid
        os.kill(pid, signal.SIGKILL)
        assert ask_until_up(worker) != pid
        assert node.spawn(Worker).echo("new").result(timeout_s=20) == "new"


@pytest.mark.parametrize("setsid", [False, True])
def test_no_survivor_of_a_killed_node(setsid: bool, until: Any) -> None:
    node = loom.Node(supervisor=MANY)
    workers = [node.spawn(Worker) for _ in range(3)]
    pids = [worker.pid().result(timeout_s=10) for worker in workers]
    pids += [worker.child(setsid).result(timeout_s=10) for worker in workers]
    pending = workers[0].nap(600.0)
    os.kill(node.pid, signal.SIGKILL)
    with pytest.raises(LoomError) as caught:
        pending.result(timeout_s=20)
    assert isinstance(caught.value, (NodeDown, ActorDied))
    assert until(lambda: not any(is_alive(pid) for pid in pids))
    with pytest.raises(NodeDown):
        node.stats()
    node.close()


PROGRAM = """
import sys, time, loom
class Idle(loom.Actor):
    def pid(self):
        import os
        return os.getpid()
node = loom.Node()
print(node.pid, *(node.spawn(Idle).pid().result(timeout_s=20) for _ in range(2)), flush=True)
time.sleep(600)
"""


def test_no_survivor_of_a_killed_program(until: Any) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    pids = [int(pid) for pid in program.stdout.readline().split()]
    program.stdout.close()
    assert len(pids) == 3
    program.kill()
    program.wait()
    assert until(lambda: not any(is_alive(pid) for pid in pids))


def test_the_next_start_clears_what_a_dead_node_left(until: Any) -> None:
    """Node and zygote are killed together, so that nobody is left to clear up; the next start does."""
    node = loom.Node("alpha", supervisor=MANY)
    worker = node.spawn(Worker)
    pid = worker.pid().result(timeout_s=10)
    orphan = worker.child(True).result(timeout_s=10)
    children = [int(one) for one in Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()]
    (zygote,) = (one for one in children if one != pid)
    arena = loom.arena.current().name
    folder = Path(node.endpoint.removeprefix("ipc://")).parent
    os.kill(zygote, signal.SIGKILL)
    os.kill(node.pid, signal.SIGKILL)
    assert until(lambda: not is_alive(node.pid) and not is_alive(pid))
    assert is_alive(orphan)
    assert folder.exists()
    assert list(Path("/dev/shm").glob(f"{arena}*"))
    node.close()
    with loom.Node("alpha") as again:
        assert again.spawn(Worker).echo(1).result(timeout_s=10) == 1
        assert not is_alive(orphan)
        assert not list(Path("/dev/shm").glob(f"{arena}*"))


def test_a_program_that_forgets_to_close_leaves_nothing(until: Any) -> None:
    code = "import loom\nclass A(loom.Actor):\n    def pid(self): return 1\nn = loom.Node()\nn.spawn(A)\nprint(n.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert until(lambda: not is_alive(int(done.stdout)))


def test_an_actor_that_ignores_its_shutdown_time_is_killed() -> None:
    child = loom.ChildSpec(Worker, name="w", shutdown_s=0.2)
    with loom.Node(supervisor=loom.SupervisorSpec(children=(child,))) as node:
        worker = node.lookup("w")
        pending = worker.nap(600.0)
        while node.stats().actors[0].since_s < 0.05:
            pass
        node.stop("w")
        with pytest.raises(ActorDied, match="did not stop in its shutdown time"):
            pending.result(timeout_s=10)


def test_closing_does_not_wait_for_a_call_that_died_unread(until: Any) -> None:
    with loom.Node(supervisor=MANY) as node:
        worker = node.spawn(Worker)
        pid = ask_until_up(worker)
        forgotten = worker.nap(600.0)
        while node.stats().actors[0].since_s < 0.05:
            pass
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: ask_until_up(worker) != pid)
    with pytest.raises((ActorDied, NodeDown)):
        forgotten.result(timeout_s=10)


def test_after_close_every_verb_says_that_the_node_is_down() -> None:
    node = loom.Node()
    worker = node.spawn(Worker)
    ask_until_up(worker)
    node.close()
    for use in (node.stats, node.tree, lambda: node.lookup("worker"), lambda: worker.pid().result(timeout_s=5)):
        with pytest.raises(NodeDown, match="closed it"):
            use()


class SlowStart(Worker):
    def on_start(self) -> None:
        time.sleep(0.3)


def test_a_later_death_takes_over_an_earlier_group_restart(until: Any) -> None:
    """a dies, and again while b restarts after it: each child ends up with one process, started in order."""
    children = (
        loom.ChildSpec(Worker, name="a"),
        loom.ChildSpec(SlowStart, name="b"),
        loom.ChildSpec(Worker, name="c"),
    )
    spec = loom.SupervisorSpec(strategy="rest_for_one", max_restarts=10, children=children)
    with loom.Node(supervisor=spec) as node:
        a, b, c = (node.lookup(name) for name in "abc")
        before = ask_until_up(a), ask_until_up(c)
        os.kill(before[0], signal.SIGKILL)
        second = until(lambda: next((pid for pid in [ask_until_up(a)] if pid != before[0]), None))
        os.kill(second, signal.SIGKILL)
        assert until(lambda: ask_until_up(a) not in (before[0], second))
        assert until(lambda: all(one.state == "running" for one in node.stats().actors))
        assert until(lambda: ask_until_up(c) != before[1])
        ask_until_up(b)
        names = [one for one in process_names(node.pid) if one.startswith("loom:")]
        assert sorted(names) == ["loom:a", "loom:b", "loom:c"]


def process_names(node_pid: int) -> list[str]:
    """What the node's own children call themselves."""
    found = []
    for pid in Path(f"/proc/{node_pid}/task/{node_pid}/children").read_text().split():
        if is_alive(int(pid)):
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def test_an_actor_stopped_while_it_starts_is_gone(until: Any) -> None:
    with loom.Node(supervisor=MANY) as node:
        for _ in range(10):
            node.spawn(Worker, name="brief")
            node.stop("brief")
        assert until(lambda: not [one for one in process_names(node.pid) if one.startswith("loom:")])
        assert node.spawn(Worker, name="brief").echo(1).result(timeout_s=10) == 1


def test_one_who_waits_for_a_transient_actor_that_ends_normally_is_told() -> None:
    child = loom.ChildSpec(Worker, name="w", restart="transient")
    with loom.Node(supervisor=loom.SupervisorSpec(children=(child,))) as node:
        worker = node.lookup("w")
        ask_until_up(worker)
        worker.leave.tell()

        def ask_the_dying_then_the_dead() -> None:
            for _ in range(3):
                worker.pid().result(timeout_s=10)

        with pytest.raises(ActorDied):
            ask_the_dying_then_the_dead()


def test_a_client_that_outlives_many_actors_keeps_no_connection_to_them() -> None:
    with loom.Node(supervisor=MANY) as node:
        for number in range(40):
            worker = node.spawn(Worker, name=f"w{number}")
            assert worker.echo(number).result(timeout_s=10) == number
            node.stop(worker)
        assert len(node._links.channels) < 5


def test_a_group_loses_members_and_ends_with_the_last() -> None:
    child = loom.ChildSpec(Worker, name="w", instances=3)
    with loom.Node(supervisor=loom.SupervisorSpec(children=(child,))) as node:
        node.stop("w.1")
        assert len({node.lookup("w").pid().result(timeout_s=10) for _ in range(6)}) == 2
        node.stop("w")
        with pytest.raises(loom.errors.ActorNotFound):
            node.lookup("w")
