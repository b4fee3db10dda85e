"""Delivery: what every mailbox promises of messages, whatever carries them. Each test tries to break one promise.

Whoever writes another mailbox adds its line to MAILBOXES, and changes nothing else here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.errors import ActorDied, CallTimeout, LoomError, MailboxFull, Rejected, RemoteError, UsageError
from loom.node.stats import ActorStats

MAILBOXES = {"lanes": "on", "sockets": "off"}
"""What carries the messages -> LOOM_LANES."""

MANY = 100_000


class Worker(loom.Actor):
    """Notes what it is given, in a file too when it has one, so that its next incarnations are known as well."""

    def __init__(self, log: str = "") -> None:
        self.log = log
        self.seen: list[Any] = []
        self.was_cancelled = ""

    def note(self, value: Any) -> None:
        self.seen.append(value)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{self.ctx.incarnation} {value}\n")

    def noted(self) -> list[Any]:
        return self.seen

    def pid(self) -> int:
        return os.getpid()

    def echo(self, value: Any) -> Any:
        return value

    def nap(self, s: float) -> str:
        time.sleep(s)
        return "rested"

    def hold(self, gate: str) -> str:
        """Run until there is a file `gate`, looking neither right nor left."""
        while not Path(gate).exists():
            time.sleep(0.002)
        return "held"

    def look(self, gate: str) -> None:
        """Run until there is a file `gate`, looking into the mailbox all the time."""
        while not Path(gate).exists():
            assert not self.ctx.cancelled
            time.sleep(0.002)

    def attentive(self, s: float) -> str:
        until = time.monotonic() + s
        while time.monotonic() < until:
            if self.ctx.cancelled:
                self.was_cancelled = "sync"
                return "gave up"
            time.sleep(0.002)
        return "worked"

    async def patient(self, s: float) -> str:
        try:
            await asyncio.sleep(s)
        except asyncio.CancelledError:
            self.was_cancelled = "async"
            raise
        return "worked"

    async def stubborn(self, s: float) -> str:
        until = time.monotonic() + s
        while time.monotonic() < until:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue
        return "worked"

    def cancelled(self) -> str:
        return self.was_cancelled

    def stream(self, n: int, s: float = 0.0) -> Iterator[int]:
        try:
            for number in range(n):
                time.sleep(s)
                yield number
        except GeneratorExit:
            self.was_cancelled = "stream"
            raise

    def fail(self) -> None:
        raise ValueError("as asked")

    def big(self, n: int) -> bytes:
        self.seen.append(n)
        return bytes(n)


class Sender(loom.Actor):
    """A sender in a process of its own. What it says it has sent is what it was not told was refused."""

    def pid(self) -> int:
        return os.getpid()

    def tells(self, name: str, values: list[Any]) -> int:
        ref = self.ctx.lookup(name)
        for value in values:
            ref.note.tell(value)
        return len(values)

    async def flood(self, name: str, n: int) -> int:
        """As many tells as are accepted without waiting."""
        ref = self.ctx.lookup(name)
        for number in range(n):
            ref.note.tell(number)
            if number % 50 == 0:
                await asyncio.sleep(0)
        return n

    async def ask(self, name: str, value: Any) -> Any:
        return await self.ctx.lookup(name).echo(value)


@pytest.fixture(params=MAILBOXES)
def mailbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., loom.MailboxSpec]:
    """`mailbox(capacity=..., policy=...)`: a MailboxSpec; nodes that are started now use the kind under test."""
    monkeypatch.setenv("LOOM_LANES", MAILBOXES[request.param])
    return lambda **fields: loom.MailboxSpec(**fields)


@contextmanager
def running(*children: loom.ChildSpec) -> Iterator[loom.Node]:
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=MANY, within_s=60, children=children)) as node:
        yield node


def stats(node: loom.Node, name: str) -> ActorStats:
    return next(one for one in node.stats().actors if one.name == name)


def restarted(node: loom.Node, ref: Any, old: int) -> int:
    """The pid of the incarnation after `old`."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            pid: int = ref.pid().result(timeout_s=10)
        except (ActorDied, CallTimeout):
            continue
        if pid != old:
            return pid
    raise AssertionError("it never came back")


def at_rest(until: Callable[..., Any], node: loom.Node, name: str) -> ActorStats:
    """The figures of an actor once nothing waits or runs."""

    def rests() -> ActorStats | None:
        found = stats(node, name)
        return found if not (found.depth or found.running or found.unaccounted or found.since_s) else None

    found: ActorStats = until(rests, within_s=30)
    return found


# --- Nothing vanishes ---


def test_what_was_in_the_socket_when_the_actor_was_killed_is_counted(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=5000))) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)  # it reads nothing any more: all of these stay on their way
        for number in range(3000):
            worker.note.tell(number)
        assert stats(node, "w").depth == 3000
        os.kill(pid, signal.SIGKILL)
        restarted(node, worker, pid)
        found = at_rest(until, node, "w")
        assert found.dead_lettered >= 3000
        assert found.received == 3000 + found.processed + (found.dead_lettered - 3000)


def test_each_dead_letter_is_named(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox()), loom.ChildSpec(Sender, name="s")) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        worker.note.tell(b"x" * 100)
        call = worker.echo(1)
        assert node.lookup("s").tells("w", [1, 2]).result(timeout_s=10) == 2
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorDied) as died:
            call.result(timeout_s=10)
        assert died.value.started is False
        letters = until(lambda: len(found := node.dead_letters()) >= 4 and found)
        of = sorted((one.actor, one.method, one.sender, one.kind) for one in letters)
        assert of == [
            ("w", "echo", "", "call"),
            ("w", "note", "", "tell"),
            ("w", "note", "s", "tell"),
            ("w", "note", "s", "tell"),
        ]
        assert all("killed by SIGKILL" in one.reason and one.time_s > 1e9 for one in letters)
        assert max(one.size_bytes for one in letters) > 100


def test_the_counters_sum_under_fire(mailbox: Any, until: Any) -> None:
    """Kills, stops, exceptions and full mailboxes: every message that was accepted ends in exactly one counter."""
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=50))) as node:
        worker = node.lookup("w")
        stop = threading.Event()
        accepted = [0] * 4
        ended = [0] * 4

        def send(index: int) -> None:
            calls = []
            while not stop.is_set():
                try:
                    worker.note.tell(index)
                    accepted[index] += 1
                    worker.fail.tell()
                    accepted[index] += 1
                except LoomError:
                    continue
                calls.append(worker.echo.options(timeout_s=20)(index))
                calls.append(worker.patient(0.001))
            for call in calls:
                accepted[index] += 1
                try:
                    call.result(timeout_s=30)
                except LoomError:
                    pass
                ended[index] += 1
            assert ended[index] == len(calls)

        threads = [threading.Thread(target=send, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            pid = stats(node, "w").pid
            time.sleep(0.05)
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        found = at_rest(until, node, "w")
        # A call that found nobody, and was never accepted, has ended, too: so at most.
        assert found.processed + found.failed + found.dead_lettered + found.expired + found.cancelled == found.received
        assert sum(accepted) - sum(ended) <= found.received <= sum(accepted)


def test_every_accepted_tell_is_counted(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=20))) as node:
        worker = node.lookup("w")
        stop = threading.Event()
        accepted = [0] * 3

        def send(index: int) -> None:
            while not stop.is_set():
                try:
                    worker.note.tell(index)
                except LoomError:
                    continue
                accepted[index] += 1

        threads = [threading.Thread(target=send, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            time.sleep(0.05)
            with suppress(ProcessLookupError):
                if pid := stats(node, "w").pid:
                    os.kill(pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert at_rest(until, node, "w").received == sum(accepted)


def test_what_a_killed_sender_had_let_in_is_settled(mailbox: Any, until: Any) -> None:
    """It takes no room from others for ever, and the counters sum."""
    children = (
        loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=100)),
        loom.ChildSpec(Sender, name="s", restart="temporary"),
    )
    with running(*children) as node:
        worker, sender = node.lookup("w"), node.lookup("s")
        pid, sender_pid = worker.pid().result(timeout_s=10), sender.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        flood = sender.flood("w", 2000)
        until(lambda: stats(node, "w").depth == 100)
        os.kill(sender_pid, signal.SIGKILL)
        with pytest.raises(ActorDied):
            flood.result(timeout_s=10)
        os.kill(pid, signal.SIGCONT)
        found = at_rest(until, node, "w")
        assert found.received == found.processed + found.dead_lettered == 101
        for number in range(300):  # there is room for more than there ever was at once
            worker.note.tell(number)
        assert len(worker.noted().result(timeout_s=10)) == found.processed - 1 + 300


def test_a_stopped_actor_refuses_what_waits_and_counts_it(mailbox: Any, until: Any, tmp_path: Path) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        held = worker.hold(str(tmp_path / "gate"))
        until(lambda: stats(node, "w").since_s > 0.02)
        waiting = [worker.nap(0.02) for number in range(20)]
        stopping = threading.Thread(target=node.stop, args=("w",))
        stopping.start()
        until(lambda: stats(node, "w").state == "stopping")
        (tmp_path / "gate").touch()
        stopping.join(20)
        assert held.result(timeout_s=10) == "held"
        refused = []
        for call in waiting:
            try:
                call.result(timeout_s=10)
            except ActorDied as died:
                refused.append(died.started)
        assert len(refused) >= 15
        assert not any(refused)
        until(lambda: len(node.dead_letters()) == len(refused))


def test_dead_letters_are_bounded(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=5000))) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        for number in range(3000):
            worker.note.tell(number)
        os.kill(pid, signal.SIGKILL)
        restarted(node, worker, pid)
        until(lambda: len(node.dead_letters(5000)) == 1000)
        assert len(node.dead_letters(7)) == 7


# --- Order ---


def test_first_in_first_out_for_each_sender(mailbox: Any) -> None:
    children = [loom.ChildSpec(Sender, name=f"s{index}") for index in range(3)]
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=7)), *children) as node:
        sends = [node.lookup(f"s{i}").tells("w", [(i, number) for number in range(400)]) for i in range(3)]
        for send in sends:
            send.result(timeout_s=30)
        worker = node.lookup("w")
        seen: list[Any] = []
        deadline = time.monotonic() + 30
        while len(seen) < 1200 and time.monotonic() < deadline:
            seen = worker.noted().result(timeout_s=10)
        for i in range(3):
            assert [number for sender, number in seen if sender == i] == list(range(400))


def test_the_urgent_overtake(mailbox: Any, until: Any, tmp_path: Path) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        worker.hold.tell(str(tmp_path / "gate"))
        until(lambda: stats(node, "w").since_s > 0.02)
        for value, priority in (("low", 10), ("normal", 50), ("normal 2", 50), ("high", 90), ("higher", 91)):
            worker.note.options(priority=priority).tell(value)
        (tmp_path / "gate").touch()
        last = worker.noted.options(priority=0)().result(timeout_s=10)
        assert last == ["higher", "high", "normal", "normal 2", "low"]


def test_handed_on_in_order_and_never_twice(mailbox: Any, until: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = loom.ChildSpec(Worker, args=(str(log),), name="w", mailbox=mailbox(on_death="hand_on", capacity=300))
    with running(spec, loom.ChildSpec(Sender, name="s")) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        for _ in range(5):
            os.kill(pid, signal.SIGSTOP)
            first = log.read_text().count("\n") if log.exists() else 0
            for number in range(first, first + 200):
                worker.note.tell(number)
            call = worker.echo("still there")
            os.kill(pid, signal.SIGKILL)
            worker.note.tell(first + 200)  # sent after the death: behind what is handed on
            assert call.result(timeout_s=20) == "still there"
            pid = restarted(node, worker, pid)
            until(lambda first=first: log.read_text().count("\n") == first + 201)
        values = [int(line.split()[1]) for line in log.read_text().splitlines()]
        assert values == list(range(5 * 201))
        found = at_rest(until, node, "w")
        assert found.handed_on >= 5 * 201
        assert found.dead_lettered <= 5  # the `pid` calls that may have been on their way


def test_what_has_begun_is_not_handed_on(mailbox: Any, until: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = loom.ChildSpec(Worker, args=(str(log),), name="w", mailbox=mailbox(on_death="hand_on"))
    with running(spec) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        worker.note.tell("before")
        begun = worker.hold(str(tmp_path / "never"))
        until(lambda: stats(node, "w").since_s > 0.02)
        worker.note.tell("after")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorDied) as died:
            begun.result(timeout_s=10)
        assert died.value.started is True
        until(lambda: "after" in log.read_text())
        assert log.read_text() == "1 before\n2 after\n"


# --- Full mailboxes ---


def test_a_full_mailbox_makes_its_senders_wait(mailbox: Any, until: Any) -> None:
    children = [loom.ChildSpec(Sender, name=f"s{index}") for index in range(3)]
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=10)), *children) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        floods = [node.lookup(f"s{index}").flood("w", 500) for index in range(3)]
        sent: list[int] = []

        def send() -> None:
            for number in range(500):
                worker.note.tell(number)
                sent.append(number)

        thread = threading.Thread(target=send)
        thread.start()
        for flood in floods:
            assert flood.result(timeout_s=20) == 500  # coroutines leave theirs to their event loop
        assert thread.is_alive()
        assert len(sent) <= 10
        assert stats(node, "w").depth == 10  # from all of them together, wherever they are
        os.kill(pid, signal.SIGCONT)
        thread.join(60)
        assert not thread.is_alive()
        until(lambda: stats(node, "w").processed == 2001, within_s=60)
        assert stats(node, "w").unaccounted == 0


def test_a_full_mailbox_refuses(mailbox: Any, until: Any) -> None:
    spec = loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=10, policy="refuse"))
    with running(spec, loom.ChildSpec(Sender, name="s")) as node:
        worker = node.lookup("w")
        assert node.lookup("s").tells("w", [0]).result(timeout_s=10) == 1
        until(lambda: stats(node, "w").processed == 1)
        pid = worker.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)  # it cannot say no itself
        calls = [worker.echo(number) for number in range(10)]
        for send in (lambda: worker.echo(10), lambda: worker.note.tell(10)):
            with pytest.raises(MailboxFull, match="'w' has 10 messages waiting"):
                send()
        with pytest.raises(RemoteError, match="MailboxFull"):
            node.lookup("s").tells("w", [1]).result(timeout_s=10)
        os.kill(pid, signal.SIGCONT)
        assert [call.result(timeout_s=10) for call in calls] == list(range(10))
        found = at_rest(until, node, "w")
        assert (found.received, found.processed, found.refused) == (12, 12, 3)
        assert worker.echo(11).result(timeout_s=10) == 11


def test_the_oldest_goes(mailbox: Any, until: Any, tmp_path: Path) -> None:
    spec = loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=10, policy="drop_oldest"))
    with running(spec) as node:
        worker = node.lookup("w")
        worker.look.tell(str(tmp_path / "gate"))
        until(lambda: stats(node, "w").since_s > 0.02)
        oldest = worker.echo("oldest")
        for number in range(100):
            worker.note.tell(number)
        until(lambda: stats(node, "w").dropped == 91)
        (tmp_path / "gate").touch()
        with pytest.raises(MailboxFull, match="the oldest message"):
            oldest.result(timeout_s=10)
        until(lambda: stats(node, "w").depth == 0)
        assert worker.noted().result(timeout_s=10) == list(range(90, 100))
        found = at_rest(until, node, "w")
        assert (found.dropped, found.processed) == (91, 12)
        assert sum(one.method == "note" for one in node.dead_letters()) == 90


def test_a_deadline_ends_the_wait_for_room(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=1))) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        worker.note.tell(0)
        with pytest.raises(MailboxFull, match="no room"):
            worker.note.options(timeout_s=0.05).tell(1)
        with pytest.raises(MailboxFull, match="no room"):
            worker.echo.options(timeout_s=0.05)(1).result(timeout_s=10)
        os.kill(pid, signal.SIGCONT)
        assert worker.noted().result(timeout_s=10) == [0]


def test_a_sender_that_waits_hears_of_the_death(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", restart="temporary", mailbox=mailbox(capacity=1))) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        worker.note.tell(0)
        failures: list[LoomError] = []

        def send() -> None:
            try:
                worker.note.tell(1)
            except LoomError as error:
                failures.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        os.kill(pid, signal.SIGKILL)
        thread.join(20)
        assert not thread.is_alive()
        assert [type(one) for one in failures] == [ActorDied]


def test_a_slow_actor_holds_up_no_other_conversation(mailbox: Any) -> None:
    specs = [loom.ChildSpec(Worker, name=name, mailbox=mailbox(capacity=5)) for name in ("slow", "quick")]
    with running(*specs, loom.ChildSpec(Sender, name="s")) as node:
        slow, quick, sender = node.lookup("slow"), node.lookup("quick"), node.lookup("s")
        pid = slow.pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        assert sender.flood("slow", 5000).result(timeout_s=20) == 5000  # most of it stands in line there

        def send() -> None:
            for number in range(20):
                slow.note.tell(number)

        thread = threading.Thread(target=send)
        thread.start()
        for number in range(50):
            assert quick.echo(number).result(timeout_s=10) == number
            assert sender.ask("quick", number).result(timeout_s=10) == number
        assert thread.is_alive()
        os.kill(pid, signal.SIGCONT)
        thread.join(60)
        assert not thread.is_alive()


def test_a_caller_that_does_not_read_holds_up_no_other(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox()), loom.ChildSpec(Sender, name="s")) as node:
        worker, sender = node.lookup("w"), node.lookup("s")
        pid = sender.pid().result(timeout_s=10)
        ask = sender.ask("w", b"x" * 100_000)
        os.kill(pid, signal.SIGSTOP)
        for number in range(100):
            assert worker.echo(number).result(timeout_s=10) == number
        os.kill(pid, signal.SIGCONT)
        assert len(ask.result(timeout_s=10)) == 100_000


# --- Control overtakes ---


def test_a_ping_overtakes_a_full_mailbox(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=100))) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        naps = [worker.nap(0.02) for _ in range(100)]
        assert node.ping("w").result(timeout_s=20) is None
        assert not naps[-1].done()
        naps[-1].result(timeout_s=20)


def test_a_stop_overtakes_a_full_mailbox(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=100))) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        naps = [worker.nap(0.02) for _ in range(100)]
        node.stop("w")
        ends = []
        for nap in naps:
            try:
                ends.append(nap.result(timeout_s=10))
            except ActorDied as error:
                ends.append(error.cause)
        assert ends[-1] == "stopped"


def test_a_cancel_overtakes_a_full_mailbox(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=50))) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        naps = [worker.nap(0.02) for _ in range(20)]
        notes = [worker.note(number) for number in range(30)]
        for note in notes:
            note.cancel()
        for nap in naps:
            nap.result(timeout_s=20)
        assert worker.noted().result(timeout_s=10) == []
        assert at_rest(until, node, "w").cancelled == 30


# --- Deadlines and hops ---


def test_work_whose_deadline_has_passed_is_not_started(mailbox: Any, until: Any, tmp_path: Path) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        worker.hold.tell(str(tmp_path / "gate"))
        until(lambda: stats(node, "w").since_s > 0.02)
        late = worker.note.options(timeout_s=0.02)("late")
        worker.note.options(timeout_s=0.02).tell("late, too")
        with pytest.raises(CallTimeout):
            late.result(timeout_s=10)
        time.sleep(0.03)
        (tmp_path / "gate").touch()
        assert worker.noted().result(timeout_s=10) == []
        assert at_rest(until, node, "w").expired == 2


def test_a_deadline_holds_between_the_items_of_a_stream(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        stream = worker.stream.options(timeout_s=0.1)(MANY, 0.01)
        assert next(iter(stream)) == 0
        with pytest.raises(CallTimeout):
            list(stream)
        until(lambda: worker.cancelled().result(timeout_s=10) == "stream")
        assert at_rest(until, node, "w").failed == 1


# --- Cancelling ---


def test_cancelled_before_its_first_step_it_is_counted_all_the_same(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        for _ in range(20):
            os.kill(pid, signal.SIGSTOP)  # so that call and cancel are read in one go
            call = worker.patient(60)
            call.cancel()
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(CallTimeout, match="cancelled"):
                call.result(timeout_s=10)
        found = at_rest(until, node, "w")
        assert (found.running, found.unaccounted) == (0, 0)


def test_an_async_handler_gets_cancelled_error(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        call = worker.patient(60)
        until(lambda: stats(node, "w").running == 1)
        assert worker.cancelled().result(timeout_s=10) == ""  # a turn later: it has begun
        call.cancel()
        with pytest.raises(CallTimeout, match="cancelled"):
            call.result(timeout_s=10)
        assert until(lambda: worker.cancelled().result(timeout_s=10)) == "async"
        assert at_rest(until, node, "w").failed == 1


def test_a_sync_handler_sees_that_it_is_cancelled(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox(capacity=20))) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        call = worker.attentive(600.0)
        until(lambda: stats(node, "w").since_s > 0.02)
        for number in range(19):
            worker.note.tell(number)
        call.cancel()
        assert worker.cancelled().result(timeout_s=20) == "sync"
        assert worker.noted().result(timeout_s=10) == list(range(19))  # looking has lost nothing


def test_a_sync_handler_sees_that_its_deadline_has_passed(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        worker.attentive.options(timeout_s=0.2).tell(600.0)
        assert worker.cancelled().result(timeout_s=20) == "sync"


@pytest.mark.parametrize("method", ["nap", "stubborn"])
def test_a_stuck_handler_is_killed_on_request(mailbox: Any, until: Any, method: str) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        call = getattr(worker, method)(600.0)
        until(lambda: stats(node, "w").since_s > 0.02 or stats(node, "w").running)
        call.cancel(kill_after_s=0.1)
        with pytest.raises(ActorDied, match="cancelled") as died:
            call.result(timeout_s=20)
        assert died.value.started is True
        assert restarted(node, worker, pid) != pid


def test_one_that_ends_in_time_is_not_killed(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        call = worker.attentive(600.0)
        until(lambda: stats(node, "w").since_s > 0.02)
        call.cancel(kill_after_s=0.5)
        assert call.result(timeout_s=20) == "gave up"
        time.sleep(0.6)
        assert worker.pid().result(timeout_s=10) == pid


def test_a_deadline_may_kill(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        pid = worker.pid().result(timeout_s=10)
        with pytest.raises(CallTimeout):
            worker.nap.options(timeout_s=0.1, kill_after_s=0.1)(600.0).result()
        assert restarted(node, worker, pid) != pid


def test_a_stream_that_nobody_holds_ends(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        stream = worker.stream(MANY)
        until(lambda: stats(node, "w").running == 1)
        assert worker.cancelled().result(timeout_s=10) == ""
        del stream
        until(lambda: worker.cancelled().result(timeout_s=10) == "stream")
        assert at_rest(until, node, "w").running == 0


# --- Once ---


def test_a_repeat_joins_the_first_and_takes_effect_once(mailbox: Any, until: Any, tmp_path: Path) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        first = worker.patient.options(dedup="k")(0.2)
        second = worker.patient.options(dedup="k")(0.2)
        assert [first.result(timeout_s=10), second.result(timeout_s=10)] == ["worked", "worked"]
        for _ in range(3):
            worker.note.options(dedup="n1")(1).result(timeout_s=10)
            worker.note.options(dedup="n1").tell(1)
        worker.note.options(dedup="n2")(2).result(timeout_s=10)
        assert worker.noted().result(timeout_s=10) == [1, 2]
        found = at_rest(until, node, "w")
        assert found.processed == found.received


def test_a_repeat_of_a_failure_fails_alike(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        for _ in range(2):
            with pytest.raises(RemoteError, match=r"ValueError.*as asked"):
                worker.fail.options(dedup="k")().result(timeout_s=10)


def test_of_a_large_outcome_it_is_known_that_there_was_one(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        assert len(worker.big.options(dedup="k")(100_000).result(timeout_s=10)) == 100_000
        with pytest.raises(Rejected, match="taken effect before"):
            worker.big.options(dedup="k")(100_000).result(timeout_s=10)
        assert worker.noted().result(timeout_s=10) == [100_000]


def test_a_repeat_after_a_timeout_gets_the_outcome(mailbox: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        worker.pid().result(timeout_s=10)
        call = worker.nap.options(dedup="k")(0.3)
        with pytest.raises(CallTimeout):
            call.result(timeout_s=0.05)
        assert worker.nap.options(dedup="k")(600.0).result(timeout_s=20) == "rested"


def test_a_call_that_did_not_take_effect_may_be_repeated(mailbox: Any, until: Any) -> None:
    with running(loom.ChildSpec(Worker, name="w", mailbox=mailbox())) as node:
        worker = node.lookup("w")
        with pytest.raises(RemoteError, match="TypeError"):
            worker.note.options(dedup="k")(1, wrong=2).result(timeout_s=10)
        worker.note.options(dedup="k")(1).result(timeout_s=10)
        assert worker.noted().result(timeout_s=10) == [1]
        assert at_rest(until, node, "w").rejected == 1


@pytest.mark.parametrize("options", [{"dedup": 5}, {"dedup": "x" * 201}, {"kill_after_s": 1}, {"kill_after_s": -1}])
def test_options_that_make_no_sense(mailbox: Any, node: loom.Node, options: dict[str, Any]) -> None:
    worker = node.spawn(Worker)
    with pytest.raises(UsageError, match="options"):
        worker.note.options(**options)
