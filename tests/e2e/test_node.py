"""A node, its actors and their callers: what the README promises, tried on the real thing."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import loom
from loom.errors import (
    ActorDied,
    ActorNotFound,
    CallTimeout,
    NameTaken,
    NoSuchMethod,
    NotSendable,
    RemoteError,
    UsageError,
)


@dataclass
class Parcel:
    label: str
    content: Any


class Counter(loom.Actor):
    def __init__(self, start: int = 0) -> None:
        self.count = start
        self.seen: list[Any] = []
        self.name_in_init = self.ctx.name

    def add(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def note(self, value: Any) -> None:
        self.seen.append(value)

    def notes(self) -> list[Any]:
        return self.seen

    def where(self) -> tuple[str, str, int]:
        return self.name_in_init, self.ctx.ref.name, self.ctx.incarnation

    def boom(self, text: str) -> None:
        raise ValueError(text)

    def lock(self) -> Any:
        return threading.Lock()

    async def later(self, value: int, s: float) -> int:
        await asyncio.sleep(s)
        return value

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def async_numbers(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            await asyncio.sleep(0)
            yield number

    def broken_numbers(self) -> Iterator[int]:
        yield 1
        raise KeyError("two")

    def call_back(self, ref: Any, by: int) -> int:
        return int(ref.add(by).result(timeout_s=10))

    async def call_back_async(self, ref: Any, by: int) -> int:
        return int(await ref.add(by))

    def who_asks(self) -> str | None:
        sender = self.ctx.sender
        return sender.name if sender is not None else None

    def ask_who(self, ref: Any) -> str | None:
        found: str | None = ref.who_asks().result(timeout_s=10)
        return found

    def modules(self) -> list[str]:
        return sorted(sys.modules)

    def pid(self) -> int:
        return os.getpid()

    def look(self, parcel: Parcel) -> tuple[bool, float]:
        array = parcel.content["deep"][0]
        return bool(array.flags.writeable), float(array.sum())

    def same(self, value: Any) -> Any:
        return value


def test_ask_tell_and_state(node: loom.Node) -> None:
    counter = node.spawn(Counter, 5, name="counter")
    assert counter.add(3).result(timeout_s=10) == 8
    counter.add.tell(2)
    assert counter.add(by=0).result(timeout_s=10) == 10
    assert counter.where().result(timeout_s=10) == ("counter", "counter", 1)
    assert counter.pid().result(timeout_s=10) not in (os.getpid(), node.pid)


def test_a_first_call_is_woken_by_the_nodes_answer_and_not_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.actor.target.ROOM_S", 3600.0)
    with loom.Node() as node:
        for _ in range(20):
            assert node.spawn(Counter).add().result(timeout_s=30) == 1


def test_a_call_that_was_answered_is_no_dead_letter_when_the_name_goes_to_another(node: loom.Node) -> None:
    for _ in range(5):
        assert node.spawn(Counter, name="again").add().result(timeout_s=30) == 1
        node.stop("again")
    assert node.spawn(Counter, name="again").add().result(timeout_s=30) == 1
    assert node.dead_letters() == []


def test_order_of_one_sender_is_kept(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    for number in range(3000):
        if number % 2:
            counter.note.tell(number)
        else:
            counter.note(number)
    assert counter.notes().result(timeout_s=30) == list(range(3000))


def test_streams(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    assert list(counter.numbers(1000)) == list(range(1000))
    assert list(counter.async_numbers(200)) == list(range(200))
    assert list(counter.numbers(0)) == []
    assert counter.numbers(5).result(timeout_s=10) == [0, 1, 2, 3, 4]
    items = iter(counter.broken_numbers())
    assert next(items) == 1
    with pytest.raises(RemoteError, match="KeyError"):
        next(items)
    for number in counter.numbers(10**9):  # left early: the actor must not go on, nor keep it open
        if number == 100:
            break
    assert counter.add(1).result(timeout_s=10) == 1
    with pytest.raises(UsageError, match="returns one value"):
        list(counter.add(1))


def test_other_messages_run_between_the_items_of_a_stream(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    stream = iter(counter.numbers(10**6))
    assert next(stream) == 0
    assert counter.add(1).result(timeout_s=10) == 1
    assert next(stream) == 1


def test_await(node: loom.Node) -> None:
    counter = node.spawn(Counter)

    async def main() -> None:
        assert await counter.add(1) == 1
        assert await asyncio.gather(*(counter.later(n, 0.01) for n in range(50))) == list(range(50))
        assert [n async for n in counter.numbers(300)] == list(range(300))
        assert [n async for n in counter.async_numbers(300)] == list(range(300))
        with pytest.raises(RemoteError):
            await counter.boom("x")
        with pytest.raises(CallTimeout):
            await counter.later.options(timeout_s=0.05)(1, 30.0)
        assert await counter.numbers(3) == [0, 1, 2]

    asyncio.run(main())
    asyncio.run(main_again(counter))


async def main_again(counter: Any) -> None:
    """A second event loop in the same program uses the same connection."""
    assert await counter.add(0) == 1


def test_async_with() -> None:
    async def main() -> None:
        async with loom.Node() as node:
            assert await node.spawn(Counter).add(4) == 4

    asyncio.run(main())


def test_many_threads_share_a_reference(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    counter.add(0).result(timeout_s=10)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for step in range(200):
            value = (number, step)
            if counter.same(value).result(timeout_s=30) != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    slow = counter.later("slow", 0.5)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slow.result(timeout_s=10) == "slow"
    assert not wrong


def test_an_exception_reaches_the_caller_and_the_actor_lives_on(node: loom.Node) -> None:
    counter = node.spawn(Counter, name="c")
    pid = counter.pid().result(timeout_s=10)
    with pytest.raises(RemoteError) as caught:
        counter.boom("no such luck").result(timeout_s=10)
    error = caught.value
    assert (error.type_name, error.message, error.actor) == ("ValueError", "no such luck", "c")
    assert "raise ValueError(text)" in error.traceback
    assert "receive.py" not in error.traceback
    assert counter.pid().result(timeout_s=10) == pid


def test_what_cannot_be_sent_is_an_error_on_its_senders_side(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    with pytest.raises(NotSendable, match="the arguments cannot be sent"):
        counter.note(threading.Lock())
    with pytest.raises(RemoteError, match="the result cannot be sent") as caught:
        counter.lock().result(timeout_s=10)
    assert caught.value.type_name == "NotSendable"
    assert counter.add(1).result(timeout_s=10) == 1


def test_lambdas_and_local_classes_travel_by_value(node: loom.Node) -> None:
    class Local(loom.Actor):
        def apply(self, function: Any, value: int) -> int:
            return int(function(value))

    offset = 10
    assert node.spawn(Local).apply(lambda x: x + offset, 1).result(timeout_s=10) == 11


def test_a_large_array_arrives_read_only_and_uncopied_however_deep(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    array = np.ones((1000, 1000))
    parcel = Parcel("x", {"deep": [array]})
    assert counter.look(parcel).result(timeout_s=10) == (False, 1e6)
    array[:] = 2.0  # a plain array was copied in: it is still the sender's
    back = counter.same(array).result(timeout_s=10)
    assert not back.flags.writeable
    np.testing.assert_array_equal(back, array)

    shared = loom.arena.share(array)
    before = node.stats().arena
    assert counter.look(Parcel("y", {"deep": [shared]})).result(timeout_s=10) == (False, 2e6)
    after = node.stats().arena
    assert after.bytes_copied == before.bytes_copied
    assert after.bytes_shared - before.bytes_shared >= array.nbytes
    assert not shared.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        shared[0, 0] = 1.0


def test_blocks_are_gone_when_nobody_holds_them(node: loom.Node, until: Any) -> None:
    counter = node.spawn(Counter)
    back = [counter.same(np.full(100_000, float(n))).result(timeout_s=10) for n in range(5)]
    assert [float(array[7]) for array in back] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert node.stats().arena.in_use_bytes > 0
    del back
    counter.add(0).result(timeout_s=10)

    def all_free() -> bool:
        loom.arena.current().collect()
        counter.same(np.zeros(100_000)).result(timeout_s=10)  # the actor gives back what was taken from it
        return node.stats().arena.in_use_bytes <= 2 * 800_000

    assert until(all_free)


def test_references_travel(node: loom.Node) -> None:
    first, second = node.spawn(Counter, name="first"), node.spawn(Counter, name="second")
    assert first.call_back(second, 3).result(timeout_s=10) == 3
    assert first.call_back_async(second, 4).result(timeout_s=10) == 7
    assert first.ask_who(second).result(timeout_s=10) == "first"
    assert second.who_asks().result(timeout_s=10) is None
    assert second.same(first).result(timeout_s=10) == first


def test_names(node: loom.Node) -> None:
    node.spawn(Counter, 1, name="index")
    assert node.lookup("index").add(0).result(timeout_s=10) == 1
    with pytest.raises(NameTaken, match="'index' is taken"):
        node.spawn(Counter, name="index")
    with pytest.raises(ActorNotFound, match="did you mean 'index'"):
        node.lookup("indx")
    assert node.spawn(Counter).name == "counter"
    assert node.spawn(Counter).name == "counter-2"
    with pytest.raises(loom.errors.ConfigError, match="digits"):
        node.spawn(Counter, name="no spaces")
    with pytest.raises(UsageError, match=r"subclass of loom\.Actor"):
        node.spawn(dict)  # type: ignore[arg-type]


def test_unknown_methods(node: loom.Node) -> None:
    counter = node.spawn(Counter, name="c")
    with pytest.raises(AttributeError, match=r"did you mean .note"):
        counter.notez()
    unaware = node.lookup("c")
    with pytest.raises(NoSuchMethod, match=r"did you mean 'note"):
        unaware.notez().result(timeout_s=10)
    with pytest.raises(NoSuchMethod):
        unaware.on_start().result(timeout_s=10)
    with pytest.raises(RemoteError, match="TypeError"):
        counter.add(1, 2, 3).result(timeout_s=10)


def test_a_deadline_ends_the_call_and_a_late_reply_reaches_no_other(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    slow = counter.later.options(timeout_s=0.1)("late", 0.4)
    with pytest.raises(CallTimeout):
        slow.result(timeout_s=10)
    with pytest.raises(CallTimeout):
        slow.result(timeout_s=10)
    assert [counter.same(n).result(timeout_s=10) for n in range(20)] == list(range(20))
    patient = counter.later("in time", 0.3)
    with pytest.raises(CallTimeout):
        patient.result(timeout_s=0.05)
    assert patient.result(timeout_s=10) == "in time"


def test_work_whose_deadline_has_passed_is_not_started(node: loom.Node) -> None:
    sleeper = node.spawn(Sleeper)
    first = sleeper.nap(0.3)
    second = sleeper.mark.options(timeout_s=0.05)()
    with pytest.raises(CallTimeout):
        second.result(timeout_s=10)
    first.result(timeout_s=10)
    assert sleeper.marks().result(timeout_s=10) == 0
    assert node.stats().actors[0].expired == 1


class Sleeper(loom.Actor):
    def __init__(self) -> None:
        self.marked = 0
        self.order: list[int] = []

    def nap(self, s: float) -> None:
        import time

        time.sleep(s)

    def mark(self) -> None:
        self.marked += 1

    def marks(self) -> int:
        return self.marked

    def put(self, number: int) -> None:
        self.order.append(number)

    def taken(self) -> list[int]:
        return self.order


def test_priority(node: loom.Node) -> None:
    sleeper = node.spawn(Sleeper)
    sleeper.nap(0.3)
    for number in (50, 10, 90, 50, 100):
        sleeper.put.options(priority=number).tell(number)
    assert sleeper.taken.options(priority=0)().result(timeout_s=10) == [100, 90, 50, 50, 10]


def test_the_boot_path_is_light(node: loom.Node) -> None:
    loaded = set(node.spawn(Counter).modules().result(timeout_s=10))
    assert not loaded & {"numba", "llvmlite", "textual", "rich", "sklearn", "scipy", "openai", "aiohttp"}


def test_stop_one_actor(node: loom.Node) -> None:
    counter = node.spawn(Counter, name="c")
    pending = counter.later(1, 30.0)
    counter.add(1).result(timeout_s=10)
    node.stop(counter)
    with pytest.raises(ActorDied) as caught:
        pending.result(timeout_s=10)
    assert caught.value.started is True
    with pytest.raises(ActorDied, match="stopped"):
        counter.add(1).result(timeout_s=10)
    again = node.spawn(Counter, 7, name="c")
    assert again.add(0).result(timeout_s=10) == 7
    assert counter.add(0).result(timeout_s=10) == 7  # a reference means whoever bears the name


def test_connect_from_the_same_and_from_another_program(node: loom.Node) -> None:
    import subprocess

    node.spawn(Counter, 2, name="c")
    with loom.connect(node.endpoint) as client:
        assert client.lookup("c").add(1).result(timeout_s=10) == 3
    assert node.lookup("c").add(0).result(timeout_s=10) == 3
    code = f"""
import loom
with loom.connect({node.endpoint!r}) as client:
    print(client.lookup("c").add(4).result(timeout_s=10))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "7", done.stderr
    with pytest.raises(loom.errors.NodeNotFound, match="no node is running"):
        loom.connect("nowhere")


def test_stats_and_tree(node: loom.Node) -> None:
    counter = node.spawn(Counter, name="c")
    counter.add(1).result(timeout_s=10)
    with pytest.raises(RemoteError):
        counter.boom("x").result(timeout_s=10)
    (actor,) = node.stats().actors
    assert (actor.name, actor.state, actor.incarnation) == ("c", "running", 1)
    assert (actor.received, actor.processed, actor.failed) == (2, 1, 1)
    assert actor.pss_bytes > 100_000
    tree = node.tree()
    assert (tree.kind, tree.children[0].name, tree.children[0].pid) == ("supervisor", "c", actor.pid)
    assert "└── c running" in str(tree)


def test_a_name_of_a_running_node_is_taken() -> None:
    with loom.Node("alpha"), pytest.raises(NameTaken, match="'alpha' is running"):
        loom.Node("alpha")


def test_a_bad_arena_is_refused() -> None:
    with pytest.raises(loom.errors.ConfigError):
        loom.Node(arena="lots")
    with pytest.raises(loom.errors.ArenaFull, match="/dev/shm has"):
        loom.Node(arena=2**60)


def test_a_forked_program_leaves_its_parents_node_alone(node: loom.Node) -> None:
    counter = node.spawn(Counter)
    assert counter.add(1).result(timeout_s=10) == 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            counter.add(1).result(timeout_s=10)
        except loom.errors.NodeDown as error:
            code = 0 if "loom.connect" in str(error) else 2
        except BaseException:
            code = 3
        finally:
            node.close()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert counter.add(1).result(timeout_s=10) == 2
