"""Pools: each routing, members that die, and pools that change their size, on real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.errors import ActorDied, ActorNotFound, CallTimeout, ConfigError, LoomError, UsageError

MANY = 100_000


class Worker(loom.Actor):
    def __init__(self) -> None:
        self.n = 0

    def who(self) -> str:
        self.n += 1
        return self.ctx.name

    def pid(self) -> int:
        return os.getpid()

    def count(self) -> int:
        return self.n

    def hold(self, gate: str) -> str:
        while not Path(gate).exists():
            time.sleep(0.002)
        return self.ctx.name

    async def relay(self, pool: str, n: int) -> list[str]:
        ref = self.ctx.lookup(pool)
        return list(await asyncio.gather(*(ref.who() for _ in range(n))))


def pool(routing: str, instances: int = 3, **fields: Any) -> loom.Node:
    children = (
        loom.ChildSpec(Worker, name="w", instances=instances, routing=routing, **fields),  # type: ignore[arg-type]
        loom.ChildSpec(Worker, name="other"),
    )
    return loom.Node(supervisor=loom.SupervisorSpec(max_restarts=MANY, within_s=60, children=children))


def test_round_robin() -> None:
    with pool("round_robin") as node:
        workers = node.lookup("w")
        seen = [workers.who().result(timeout_s=10) for _ in range(9)]
        assert Counter(seen) == {"w.0": 3, "w.1": 3, "w.2": 3}
        assert seen[:3] == seen[3:6] == seen[6:]
        relayed = node.lookup("other").relay("w", 6).result(timeout_s=10)
        assert Counter(relayed) == {"w.0": 2, "w.1": 2, "w.2": 2}


def test_the_least_loaded(tmp_path: Path, until: Any) -> None:
    with pool("least_loaded") as node:
        workers = node.lookup("w")
        held = [node.lookup(f"w.{index}").hold(str(tmp_path / "gate")) for index in (0, 2)]
        until(lambda: sum(one.since_s > 0.02 for one in node.stats().actors) == 2)
        assert {workers.who().result(timeout_s=10) for _ in range(10)} == {"w.1"}
        (tmp_path / "gate").touch()
        assert [one.result(timeout_s=10) for one in held] == ["w.0", "w.2"]
        until(lambda: not any(one.since_s or one.depth for one in node.stats().actors))
        assert len({workers.who().result(timeout_s=10) for _ in range(9)}) == 3


def test_the_least_loaded_counts_what_a_stopped_member_has_not_read(until: Any) -> None:
    with pool("least_loaded", instances=2) as node:
        pid = node.lookup("w.0").pid().result(timeout_s=10)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(10):
            node.lookup("w.0").who.tell()
        workers = node.lookup("w")
        assert {workers.who().result(timeout_s=10) for _ in range(8)} == {"w.1"}
        os.kill(pid, signal.SIGCONT)


def test_consistent_hash() -> None:
    with pool("consistent_hash", instances=4) as node:
        workers = node.lookup("w")
        keys = [f"key-{number}" for number in range(60)]

        def places() -> dict[str, str]:
            return {key: workers.who.options(key=key)().result(timeout_s=10) for key in keys}

        first = places()
        assert places() == first
        assert set(first.values()) == {"w.0", "w.1", "w.2", "w.3"}
        node.stop("w.1")
        second = places()
        assert {key for key in keys if first[key] != second[key]} == {key for key in keys if first[key] == "w.1"}
        with pytest.raises(UsageError, match="options"):
            workers.who()


def test_broadcast() -> None:
    with pool("broadcast") as node:
        workers = node.lookup("w")
        reply = workers.who()
        assert reply.result(timeout_s=10) == ["w.0", "w.1", "w.2"]
        assert reply.done()
        assert list(workers.who()) == ["w.0", "w.1", "w.2"]
        workers.who.tell()
        assert workers.count().result(timeout_s=10) == [3, 3, 3]

        async def ask() -> Any:
            return await workers.who(), [name async for name in workers.who()]

        assert asyncio.run(ask()) == (["w.0", "w.1", "w.2"], ["w.0", "w.1", "w.2"])


def test_a_broadcast_says_who_failed(until: Any) -> None:
    with pool("broadcast", restart="temporary") as node:
        pid = node.lookup("w.1").pid().result(timeout_s=10)
        workers = node.lookup("w")
        os.kill(pid, signal.SIGSTOP)
        reply: Any = workers.who()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorDied, match=r"w\.1"):
            reply.result(timeout_s=10)
        assert [part.result(timeout_s=10) for part in (reply.parts[0], reply.parts[2])] == ["w.0", "w.2"]

        def is_known_to_all() -> bool:
            try:
                return bool(workers.who().result(timeout_s=10) == ["w.0", "w.2"])
            except ActorDied:  # sent before this process had heard of it
                return False

        until(is_known_to_all)


@pytest.mark.parametrize("routing", ["round_robin", "least_loaded"])
def test_a_dead_members_share_goes_to_the_others(routing: str, until: Any) -> None:
    with pool(routing, restart="temporary") as node:
        workers = node.lookup("w")
        pid = node.lookup("w.1").pid().result(timeout_s=10)
        os.kill(pid, signal.SIGKILL)
        until(lambda: all(one.name != "w.1" for one in node.stats().actors))
        assert {workers.who().result(timeout_s=10) for _ in range(12)} == {"w.0", "w.2"}


def test_kills_under_load_cost_only_what_was_there(until: Any) -> None:
    with pool("least_loaded", instances=4) as node:
        workers = node.lookup("w")
        answered = died = 0
        for round_ in range(6):
            calls = [workers.who() for _ in range(100)]
            pid = next((one.pid for one in node.stats().actors if one.name == f"w.{round_ % 4}"), 0)
            if pid:
                os.kill(pid, signal.SIGKILL)
            for call in calls:
                try:
                    call.result(timeout_s=20)
                    answered += 1
                except (ActorDied, CallTimeout):
                    died += 1
        assert answered + died == 600
        assert answered > 200
        until(lambda: all(one.unaccounted == 0 and one.depth == 0 for one in node.stats().actors))


def test_resizing() -> None:
    with pool("round_robin", instances=2) as node:
        workers = node.lookup("w")
        assert {workers.who().result(timeout_s=10) for _ in range(8)} == {"w.0", "w.1"}
        assert node.resize("w", 4) == ["w.0", "w.1", "w.2", "w.3"]
        assert {workers.who().result(timeout_s=10) for _ in range(8)} == {"w.0", "w.1", "w.2", "w.3"}
        assert node.resize("w", 1) == ["w.0"]
        assert {workers.who().result(timeout_s=10) for _ in range(4)} == {"w.0"}
        assert node.resize("w", 3) == ["w.0", "w.1", "w.2"]
        for wrong in (0, -1, 20_000):
            with pytest.raises(ConfigError, match="expected 1 to"):
                node.resize("w", wrong)
        with pytest.raises(ActorNotFound, match="no pool"):
            node.resize("other", 2)


def test_resizing_under_load_loses_nothing() -> None:
    with pool("round_robin", instances=4) as node:
        workers = node.lookup("w")
        for size in (2, 5, 1, 3):
            calls = [workers.who() for _ in range(200)]
            assert len(node.resize("w", size)) == size
            for call in calls:
                assert call.result(timeout_s=20).startswith("w.")


def test_a_reference_that_is_sent_is_still_a_pool() -> None:
    with pool("round_robin") as node:
        import pickle

        workers = pickle.loads(pickle.dumps(node.lookup("w")))
        assert len({workers.who().result(timeout_s=10) for _ in range(9)}) == 3


def test_a_routing_that_is_none() -> None:
    with pytest.raises(LoomError, match="did you mean 'round_robin'"):
        loom.ChildSpec(Worker, instances=2, routing="round_robbin")  # type: ignore[arg-type]
