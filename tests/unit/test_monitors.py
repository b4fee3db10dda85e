"""The node's book of monitors and links, without processes: what it remembers, and what it forgets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from loom.actor.death import Death
from loom.errors import MailboxFull
from loom.node import monitors as module
from loom.node.monitors import Monitors
from loom.node.registry import Registry
from loom.supervise.child import Child

KILLED = Death("abnormal", "killed by SIGKILL", signal=9, how="signal")


class Named(Child):
    def __init__(self, name: str, state: Any = "running") -> None:
        self.name = name
        self.restart = "permanent"
        self.state = state
        self.incarnation = 1


def book(*children: Child) -> tuple[Registry, Monitors]:
    registry = Registry()
    for child in children:
        registry.add(child)
    return registry, Monitors(registry)


def test_each_monitor_hears_each_death_once_and_in_order() -> None:
    async def live() -> None:
        one = Named("one")
        _, monitors = book(one, Named("two"))
        streams = [monitors.monitor("one") for _ in range(3)]
        for stream in streams:
            assert await anext(stream) == {"monitoring": ["one"]}
        for number in range(1, 6):
            one.incarnation = number
            monitors.died(one, KILLED)
        for stream in streams:
            assert [(await anext(stream))["incarnation"] for _ in range(5)] == [1, 2, 3, 4, 5]
        assert monitors.count() == {"monitors": 3, "links": 0}
        for stream in streams:
            await stream.aclose()
        assert monitors.count() == {"monitors": 0, "links": 0}
        assert monitors._watchers == {}

    asyncio.run(live())


def test_it_ends_when_nobody_bears_the_name() -> None:
    async def live() -> None:
        one = Named("one")
        registry, monitors = book(one)
        stream = monitors.monitor("one")
        await anext(stream)
        monitors.died(one, KILLED)
        registry.remove(one)
        monitors.forgotten("one")
        assert [news["reason"] async for news in stream] == ["signal"]
        assert monitors._watchers == {}

    asyncio.run(live())


def test_what_is_dead_already_is_told_at_once() -> None:
    async def live() -> None:
        waiting, gone = Named("waiting", "restarting"), Named("gone", "stopped")
        waiting.last = gone.last = KILLED
        registry, monitors = book(waiting, gone, Named("fresh", "starting"))
        registry.remove(gone)
        assert [news["reason"] async for news in monitors.monitor("gone") if "reason" in news] == ["signal"]
        assert [news["reason"] async for news in monitors.monitor("ghost") if "reason" in news] == ["noproc"]
        stream = monitors.monitor("waiting")
        await anext(stream)
        assert (await anext(stream))["reason"] == "signal"
        await stream.aclose()
        fresh = monitors.monitor("fresh")
        await anext(fresh)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(fresh), 0)
        assert monitors._watchers == {}

    asyncio.run(live())


def test_a_consumer_that_does_not_read_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 10)

    async def live() -> None:
        one = Named("one")
        _, monitors = book(one)
        stream = monitors.monitor("one")
        await anext(stream)
        for number in range(1, 100):
            one.incarnation = number
            monitors.died(one, KILLED)
        (watcher,) = monitors._watchers["one"]
        assert watcher.news.qsize() == 10
        assert [(await anext(stream))["incarnation"] for _ in range(10)] == list(range(1, 11))
        with pytest.raises(MailboxFull, match="monitor it anew"):
            await anext(stream)
        assert monitors._watchers == {}

    asyncio.run(live())


def test_links_to_and_from_nobody_leave_nothing() -> None:
    async def live() -> None:
        _, monitors = book(Named("one"))
        monitors.link("ghost", 1, "one")
        monitors.link("one", 1, "ghost")
        monitors.link("one", 1, "one")
        monitors.unlink("one", "ghost")
        monitors.unlink("never", "linked")
        assert monitors.count() == {"monitors": 0, "links": 0}
        assert monitors._links == {}

    asyncio.run(live())
