"""Monitor: news of the deaths of one actor, or of a group, or of a supervisor, as a stream of Downs.

The node sees every death, and tells of it on one stream for each monitor: so nothing is missed between two
incarnations, and a monitor whose holder dies is found by the stream's own means.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from loom.actor.actor import Actor
from loom.actor.death import Death
from loom.actor.ref import ActorRef
from loom.errors import UsageError
from loom.telemetry import log
from loom.wire import failures

if TYPE_CHECKING:
    from loom.actor.links import Links


class Down(msgspec.Struct, frozen=True):
    """An incarnation of `ref` has ended, or there is none: the news that a monitor or a link gives.

    reason: `cause.how`, such as "normal", "stopped", "signal", "exit", "start_failed" or "hang"; or "noproc" when there
    was nobody to monitor, and nobody remembers how he ended. cause: exit code, signal, traceback, stack.
    """

    ref: ActorRef
    reason: str
    cause: Death
    incarnation: int = 0


class _News(msgspec.Struct):
    name: str
    reason: str
    cause: Death
    incarnation: int = 0


def down_of(links: Links, news: Any) -> Down:
    """A Down from the node's words for it."""
    found = msgspec.convert(news, _News)
    return Down(ActorRef(links.target(found.name)), found.reason, found.cause, found.incarnation)


class Monitor:
    """Yields a Down for each death of what it monitors, in order, from the moment it was made; ends with the name.

    Iterate over it, in any thread or event loop, or call `get`. It lasts over restarts: a reference means whoever bears
    the name. What is already dead is told at once. `close`, or the `with` block's end, ends it.
    """

    def __init__(self, links: Links, name: str) -> None:
        """Returns when the node has taken note. Raises: NodeDown (L2008)."""
        self.name = name
        self._links = links
        self._reply = links.ask_node("monitor", name)
        self._reply.next()  # the node's word that no death from now on is missed

    def get(self, timeout_s: float | None = None) -> Down:
        """Wait for the next Down. Raises: StopIteration at the end; CallTimeout (L2002); NodeDown (L2008)."""
        return down_of(self._links, self._reply.next(timeout_s))

    def close(self) -> None:
        """Monitor no more. Downs that have come, and were not taken, are gone."""
        self._reply.cancel()

    def __iter__(self) -> Iterator[Down]:
        return self

    def __next__(self) -> Down:
        return self.get()

    async def __aiter__(self) -> AsyncIterator[Down]:
        async for news in self._reply:
            yield down_of(self._links, news)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<loom.Monitor of {self.name!r}>"


class Hooks:
    """Calls an actor's hooks with Downs, on its own event loop, between its messages."""

    def __init__(self, actor: Actor, links: Links) -> None:
        self._actor = actor
        self._links = links
        self._tasks: weakref.WeakKeyDictionary[Monitor, asyncio.Task[None]] = weakref.WeakKeyDictionary()
        self._running: set[asyncio.Task[None]] = set()

    def monitor(self, name: str) -> Monitor:
        """Monitor `name`, and give each Down to `on_down`."""
        monitor = Monitor(self._links, name)
        self._tasks[monitor] = self._begin(self._deliver(monitor))
        return monitor

    def demonitor(self, monitor: Monitor) -> None:
        """No Down of that monitor is delivered any more. Raises: UsageError (L1008) when it is none of this actor's."""
        task = self._tasks.pop(monitor, None)
        if task is None:
            raise UsageError(f"ctx.demonitor: expected what ctx.monitor gave, once, got {monitor!r}")
        task.cancel()
        monitor.close()

    def exit_signal(self, news: Any) -> None:
        """A linked actor has ended, and this one traps exits."""
        self._begin(self._call("on_exit_signal", down_of(self._links, news)))

    def _begin(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_event_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _deliver(self, monitor: Monitor) -> None:
        async for down in monitor:
            await self._call("on_down", down)
        self._tasks.pop(monitor, None)

    async def _call(self, hook: str, down: Down) -> None:
        try:
            waits = getattr(self._actor, hook)(down)
            if waits is not None:
                await waits
        except Exception as error:  # as in a tell: nobody asked, and the actor lives on
            log.error("%s raised:\n%s", hook, failures.traceback_of(error, 1))
