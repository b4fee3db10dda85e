"""Drain and upgrade, under load and under fire: nothing that was taken in is lost, and there is always an actor."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.errors import ActorDied, LoomError, RemoteError, StartFailed, UpgradeFailed

MANY = loom.SupervisorSpec(max_restarts=100_000, within_s=60)


class Slow(loom.Actor):
    """Works for a while at each message, and hands on what it did."""

    def __init__(self, file: str = "", to: str = "") -> None:
        self.file, self.to = file, to

    def work(self, number: int, s: float) -> int:
        time.sleep(s)
        if self.to:
            self.ctx.lookup(self.to).work.tell(number, s)
        if self.file:
            with open(self.file, "a") as file:
                file.write(f"{number}\n")
        return number

    async def nap(self, s: float) -> str:
        await asyncio.sleep(s)
        return "rested"

    def count(self, n: int) -> Any:
        yield from range(n)

    def on_stop(self, reason: str) -> None:
        if self.file:
            with open(self.file, "a") as file:
                file.write(f"{self.ctx.name} {reason}\n")


class Old(loom.Actor):
    def __init__(self, by: int = 1) -> None:
        self.by = by
        self.total = 0

    def snapshot(self) -> Any:
        if self.total == 666:
            raise ValueError("cannot be saved")
        return self.total

    def restore(self, state: Any) -> None:
        self.total = state

    def add(self, pause_s: float = 0.0) -> int:
        time.sleep(pause_s)
        self.total += self.by
        return self.total

    def set(self, total: int) -> None:
        self.total = total

    def who(self) -> str:
        return "old"

    def pid(self) -> int:
        return os.getpid()


class New(Old):
    def restore(self, state: Any) -> None:
        self.total = state * 1000

    def who(self) -> str:
        return "new"

    def more(self) -> str:
        return "only the new one has this"


class Broken(Old):
    def restore(self, state: Any) -> None:
        raise RuntimeError("not my kind of state")


def board_state(node: loom.Node, name: str) -> str:
    """What senders see on the status board, rather than what the node says."""
    board = node._links.board
    assert board is not None
    pid = next(one.pid for one in node.stats().actors if one.name == name)
    return next((row.state for row in (board.row(n, 0) for n in range(8)) if row.pid == pid), "")


def is_gone(pid: int) -> bool:
    try:
        return b") Z" in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True


# --- drain -------------------------------------------------------------------------------------------------------


def test_drain_finishes_what_is_there_and_what_comes_of_it(tmp_path: Path) -> None:
    file = str(tmp_path / "done")
    with loom.Node(supervisor=MANY) as node:
        node.spawn(Slow, file, name="last")
        first = node.spawn(Slow, "", "last", name="first")
        replies = [first.work(number, 0.01) for number in range(20)]
        nap = first.nap(0.3)
        reports: list[Any] = []
        report = node.drain(progress=reports.append)
        assert (report.left, report.is_done) == (0, True)
        assert max(one.left for one in reports) > 5
        assert [reply.result(timeout_s=1) for reply in replies] == list(range(20))
        assert nap.result(timeout_s=1) == "rested"
        assert is_gone(node.pid)
    lines = Path(file).read_text().splitlines()
    assert lines == [*map(str, range(20)), "last shutdown"]


def test_while_it_drains_clients_are_refused_and_actors_are_not(until: Callable[..., Any], tmp_path: Path) -> None:
    with loom.Node(supervisor=MANY) as node:
        slow = node.spawn(Slow, str(tmp_path / "done"), name="slow")
        other = node.spawn(Slow, name="other")
        other.work(0, 0.0).result(timeout_s=20)
        under_way = slow.work(1, 1.5)
        until(lambda: any(one.since_s for one in node.stats().actors))
        drained: list[Any] = []
        with loom.connect(node.endpoint) as watcher:
            thread = threading.Thread(target=lambda: drained.append(watcher.drain()))
            thread.start()

            def refused() -> bool:
                try:
                    other.work(2, 0.0).result(timeout_s=20)
                except loom.errors.Rejected as error:
                    return "draining: it takes no new work" in str(error)
                return False

            until(refused)
            for refuse in (
                lambda: node.spawn(Slow),
                lambda: node.lookup("slow"),
                lambda: node.supervisor().stop_child("other"),
                lambda: node.upgrade("slow"),
            ):
                with pytest.raises(loom.errors.Rejected, match="draining"):
                    refuse()
            assert {one.name for one in node.stats().actors} == {"slow", "other"}  # looking is fine
            assert under_way.result(timeout_s=20) == 1
            thread.join()
        assert drained[0].left == 0


def test_a_drain_that_takes_too_long_stops_all_the_same(tmp_path: Path) -> None:
    with loom.Node(supervisor=MANY) as node:
        slow = node.spawn(Slow, name="slow")
        replies = [slow.work(number, 0.3) for number in range(50)]
        report = node.drain(timeout_s=0.5)
        assert report.left > 10
        assert set(report.actors) == {"slow"}
        ended = []
        for reply in replies:
            try:
                ended.append(reply.result(timeout_s=20))
            except ActorDied:
                ended.append("died")
            except LoomError as error:
                ended.append(error.code)
        assert ended[0] == 0
        assert ended[-1] != 49
        assert is_gone(node.pid)


def test_a_drain_whose_client_is_gone_goes_on(until: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "done"
    node = loom.Node(supervisor=MANY)
    slow = node.spawn(Slow, str(file), name="slow")
    for number in range(10):
        slow.work.tell(number, 0.05)
    with loom.connect(node.endpoint) as client:
        next(iter(client._links.ask_node("drain", None)))
    until(lambda: is_gone(node.pid) or node._process.poll() is not None, within_s=30)
    assert file.read_text().splitlines() == [*map(str, range(10)), "slow shutdown"]
    node.close()


def test_a_stopped_actor_is_waited_for(until: Callable[..., Any]) -> None:
    with loom.Node(supervisor=MANY) as node:
        slow = node.spawn(Slow, name="slow")
        slow.work(0, 0.0).result(timeout_s=20)
        pid = node.stats().actors[0].pid
        os.kill(pid, signal.SIGSTOP)
        reply = slow.work(1, 0.0)
        reports: list[Any] = []
        drained: list[Any] = []
        thread = threading.Thread(target=lambda: drained.append(node.drain(progress=reports.append)))
        thread.start()
        until(lambda: len(reports) > 2)
        assert thread.is_alive()
        os.kill(pid, signal.SIGCONT)
        assert reply.result(timeout_s=20) == 1
        thread.join()
        assert drained[0].left == 0


def test_an_actor_that_dies_while_it_drains_comes_back_and_refuses_too(until: Callable[..., Any]) -> None:
    with loom.Node(supervisor=MANY) as node:
        slow = node.spawn(Slow, name="slow")
        slow.work(0, 0.0).result(timeout_s=20)
        busy = node.spawn(Slow, name="busy")
        under_way = busy.work(1, 2.0)
        until(lambda: any(one.since_s for one in node.stats().actors))
        thread = threading.Thread(target=node.drain)
        with loom.connect(node.endpoint) as client:
            thread = threading.Thread(target=client.drain)
            thread.start()
            pid = next(one.pid for one in node.stats().actors if one.name == "slow")
            os.kill(pid, signal.SIGKILL)
            until(lambda: any(one.name == "slow" and one.incarnation == 2 for one in node.stats().actors))
            with pytest.raises(loom.errors.Rejected):
                slow.work(1, 0.0).result(timeout_s=20)
            assert under_way.result(timeout_s=20) == 1
            thread.join()


# --- upgrade -----------------------------------------------------------------------------------------------------


def test_an_upgrade_keeps_state_and_arguments_and_has_the_new_code() -> None:
    with loom.Node(supervisor=MANY) as node:
        actor = node.spawn(Old, 5, name="it")
        assert actor.add().result(timeout_s=20) == 5
        pid = actor.pid().result(timeout_s=20)
        assert node.upgrade(actor, New) == ["it"]
        assert actor.who().result(timeout_s=20) == "new"
        assert actor.add().result(timeout_s=20) == 5005
        assert node.lookup("it").more().result(timeout_s=20) == "only the new one has this"
        assert actor.pid().result(timeout_s=20) != pid
        stats = node.stats()
        assert stats.actors[0].incarnation == 2
        assert stats.restart_count == 0  # its supervisor does not count it


def test_upgrades_under_load_lose_no_message() -> None:
    """Threads and coroutines call and tell all the time; every call is answered, every tell is counted."""
    with loom.Node(supervisor=MANY) as node:
        node.spawn(Old, name="it")
        stop = threading.Event()
        sent = [0, 0, 0]
        wrong: list[Any] = []

        def ask(me: int) -> None:
            actor = node.lookup("it")
            while not stop.is_set():
                try:
                    replies = [actor.add() for _ in range(10)]
                    sent[me] += 10
                    for reply in replies:
                        reply.result(timeout_s=60)
                    if me == 1:
                        actor.add.tell()
                        sent[me] += 1
                except LoomError as error:
                    wrong.append(error)
                    return

        async def ask_async() -> None:
            actor = node.lookup("it")
            while not stop.is_set():
                replies = [actor.add() for _ in range(10)]
                sent[2] += 10
                for reply in replies:
                    await reply

        threads = [threading.Thread(target=ask, args=(0,)), threading.Thread(target=ask, args=(1,))]
        threads.append(threading.Thread(target=lambda: asyncio.run(ask_async())))
        for thread in threads:
            thread.start()
        for _ in range(6):
            node.upgrade("it", Old)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        node.lookup("it").who().result(timeout_s=20)
        assert node.lookup("it").add().result(timeout_s=20) == sum(sent) + 1
        assert node.stats().actors[0].incarnation == 7


@pytest.mark.parametrize(
    ("new", "text"), [(Broken, "restore.. raised RuntimeError: not my kind"), ("nowhere:Missing", "cannot be imported")]
)
def test_a_new_one_that_fails_to_start_leaves_the_old_one(new: Any, text: str) -> None:
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=0)) as node:
        actor = node.spawn(Old, name="it")
        actor.set(41).result(timeout_s=20)
        with pytest.raises(StartFailed, match=f"(?s)the old one (runs again|goes on): .*{text}"):
            node.upgrade(actor, new)
        assert actor.who().result(timeout_s=20) == "old"
        assert actor.add().result(timeout_s=20) == 42
        assert node.upgrade(actor, New) == ["it"]


def test_an_old_one_that_cannot_be_saved_goes_on() -> None:
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=0)) as node:
        actor = node.spawn(Old, name="it")
        actor.set(666).result(timeout_s=20)
        pid = actor.pid().result(timeout_s=20)
        with pytest.raises(
            UpgradeFailed, match="goes on as it was: its state was not saved: ValueError: cannot be saved"
        ):
            node.upgrade(actor, New)
        assert actor.pid().result(timeout_s=20) == pid
        assert actor.add().result(timeout_s=20) == 667


def test_an_old_one_that_is_busy_goes_on() -> None:
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=0)) as node:
        actor = node.spawn(Old, name="it")
        replies = [actor.add(0.2) for _ in range(20)]
        with pytest.raises(UpgradeFailed, match=r"messages left after 0\.3 s, and goes on"):
            node.upgrade(actor, New, timeout_s=0.3)
        assert actor.who().result(timeout_s=60) == "old"
        assert [reply.result(timeout_s=60) for reply in replies] == list(range(1, 21))


def test_killed_in_the_middle_of_an_upgrade_the_actor_comes_back(until: Callable[..., Any]) -> None:
    with loom.Node(supervisor=MANY) as node:
        actor = node.spawn(Old, name="it")
        actor.set(7).result(timeout_s=20)
        pid = actor.pid().result(timeout_s=20)
        os.kill(pid, signal.SIGSTOP)
        failed: list[LoomError] = []

        def run() -> None:
            try:
                node.upgrade("it", New, timeout_s=60)
            except LoomError as error:
                failed.append(error)

        threads = [threading.Thread(target=run)]
        threads[0].start()
        until(lambda: board_state(node, "it") == "down")
        answers: list[str] = []  # of one that waits for its name to resolve
        threads.append(threading.Thread(target=lambda: answers.append(actor.who().result(timeout_s=60))))
        threads[1].start()
        os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert isinstance(failed[0], UpgradeFailed)
        assert answers == ["old"]
        assert actor.who().result(timeout_s=20) == "old"
        assert node.upgrade("it", New) == ["it"]


def test_an_edited_module_is_imported_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import loom\nclass It(loom.Actor):\n    def who(self):\n        return {}\n"
    module = tmp_path / "edited_module.py"
    module.write_text(code.format("'first'"))
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = loom.SupervisorSpec(children=(loom.ChildSpec("edited_module:It", name="it", instances=2),))
    with loom.Node(supervisor=spec) as node:
        assert node.lookup("it").who().result(timeout_s=20) == "first"
        module.write_text(code.format("'the second one'"))
        assert node.upgrade("it") == ["it.0", "it.1"]
        assert {node.lookup(f"it.{n}").who().result(timeout_s=20) for n in (0, 1)} == {"the second one"}
        module.write_text("a syntax error\n")
        with pytest.raises(StartFailed, match="SyntaxError"):
            node.upgrade("it.0")
        module.write_text(code.format("'third, longer'"))  # what failed has left no trace
        assert node.upgrade("it.0") == ["it.0"]
        assert node.lookup("it.0").who().result(timeout_s=20) == "third, longer"


def test_a_class_that_came_with_its_code_cannot_be_imported_anew() -> None:
    class Local(Old):
        pass

    with loom.Node() as node:
        node.spawn(Local, name="it")
        with pytest.raises(loom.errors.UsageError, match="came with its code, not by name: give the new class"):
            node.upgrade("it")
        with pytest.raises(loom.errors.ActorNotFound):
            node.upgrade("that")


def test_a_failing_handler_is_no_obstacle() -> None:
    class Fails(Old):
        def fail(self) -> None:
            raise ValueError

    with loom.Node() as node:
        actor = node.spawn(Fails, name="it")
        with pytest.raises(RemoteError):
            actor.fail().result(timeout_s=20)
        assert node.upgrade(actor, New) == ["it"]
