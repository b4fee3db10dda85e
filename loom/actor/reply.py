"""Reply: what an ask gives at once, and what it will have become.

Three ways to wait for one, freely mixed: `.result(timeout_s)` from any thread, `await reply` in any event loop, and
iteration (`for` or `async for`) when the handler is a generator. A thread that waits reads the socket itself: no
background thread stands between the reply and the caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from loom.clock import monotonic
from loom.errors import CallTimeout, UsageError

if TYPE_CHECKING:
    from loom.actor.channel import Channel

STREAM_WINDOW = 32
"""How many items of a stream may be on their way before the consumer has asked for more."""


class Reply:
    """The pending outcome of one call: a value, an exception, or a stream of items.

    `channel` is the link the outcome will arrive on; it changes while the target is still being looked up.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_items",
        "_taken",
        "_value",
        "callbacks",
        "channel",
        "deadline",
        "id",
        "is_done",
        "kill_after_s",
        "wakers",
        "what",
    )

    def __init__(self, message_id: int, what: str, deadline: float = 0.0) -> None:
        self.id = message_id
        self.what = what
        self.deadline = deadline
        self.channel: Channel | None = None
        self.is_done = False
        self.kill_after_s: float | None = None
        self.wakers: set[int] = set()
        self.callbacks: list[Callable[[Reply], None]] = []
        self._value: Any = None
        self._error: BaseException | None = None
        self._items: deque[Any] | None = None
        self._taken = 0

    def __repr__(self) -> str:
        state = "pending"
        if self.is_done:
            state = f"failed: {self._error}" if self._error is not None else "done"
        return f"<loom.Reply to {self.what}: {state}>"

    # --- for the caller ---

    def done(self) -> bool:
        """Whether the outcome is here. Does not read the socket."""
        return self.is_done

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the outcome and return it; a stream comes as the list of its items.

        A timeout given here ends the waiting, not the call: `result` may be called again.
        Raises: CallTimeout (L2002), ActorDied (L2001), RemoteError (L2005), or what refused the message.
        """
        until = None if timeout_s is None else monotonic() + timeout_s
        while not self.is_done and self._items is None:
            if not self._pump(until):
                raise CallTimeout(f"no reply from {self.what} within {timeout_s} s; the call may still be running")
        return self._outcome() if self._items is None else list(self._consume(until))

    def next(self, timeout_s: float | None = None) -> Any:
        """Wait for the next item of a stream, and take it.

        Raises: StopIteration at its end; CallTimeout (L2002), and it may be called again; what the stream failed with.
        """
        until = None if timeout_s is None else monotonic() + timeout_s
        while not self._items:
            if self.is_done:
                self._end()
                raise StopIteration
            if not self._pump(until):
                raise CallTimeout(f"no further item from {self.what} within {timeout_s} s")
        return self._take()

    def __await__(self) -> Generator[Any, None, Any]:
        while not self.is_done and self._items is None:
            yield from self._news().__await__()
        if self._items is None:
            return self._outcome()
        return (yield from self._collect().__await__())

    def __iter__(self) -> Iterator[Any]:
        return self._consume(None)

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while self._items or not self.is_done:
                if self._items:
                    yield self._take()
                else:
                    await self._news()
        finally:
            self.cancel()
        self._end()

    def cancel(self, *, kill_after_s: float | None = None) -> None:
        """Stop caring: the call is not begun any more, or told to end. Does nothing once it is done.

        An `async` handler gets CancelledError at its next await, a stream's generator is closed, any other handler can
        see `self.ctx.cancelled`. This Reply ends as CallTimeout at once, and a late answer is discarded; but with
        `kill_after_s` it stays, and ends with what the handler makes of it; and if that takes longer than these
        seconds, the actor's process is killed, the Reply ends as ActorDied saying so, and the supervisor restarts it.
        """
        if not self.is_done and self.channel is not None:
            self.channel.cancel(self, kill_after_s)

    def add_done_callback(self, callback: Callable[[Reply], None]) -> None:
        """Call `callback(self)` when the outcome is here: at once if it is, else on the thread that reads it."""

        def when_done(reply: Reply) -> None:
            if reply.is_done:
                callback(reply)
            else:  # an item of a stream: there is more to come
                reply.on_next_news(when_done)

        if self.is_done:
            callback(self)
        else:
            self.on_next_news(when_done)

    def on_next_news(self, callback: Callable[[Reply], None]) -> None:
        """Call `callback(self)` when anything arrives: an item, or the outcome."""
        if self.channel is None:
            self.callbacks.append(callback)
        else:
            self.channel.on_news(self, callback)

    @property
    def error(self) -> BaseException | None:
        """What it failed with; None while pending, or when it succeeded."""
        return self._error

    # --- for the channel, which holds its lock while it calls these ---

    @property
    def has_items(self) -> bool:
        """Whether items of a stream wait to be consumed."""
        return bool(self._items)

    def resolve(self, value: Any) -> None:
        """The call returned `value`."""
        self._value = value
        self.is_done = True

    def fail(self, error: BaseException) -> None:
        """The call ended with `error`."""
        self._error = error
        self.is_done = True

    def push(self, item: Any) -> None:
        """One more item of a stream."""
        if self._items is None:
            self._items = deque()
        self._items.append(item)

    def end(self) -> None:
        """The stream is complete."""
        if self._items is None:
            self._items = deque()
        self.is_done = True

    # --- waiting ---

    def _pump(self, until: float | None) -> bool:
        """Let the channel read until there is news or `until` (monotonic seconds) passes; False when it passed."""
        channel = self.channel
        if channel is None:
            raise UsageError(f"the call to {self.what} has not been sent: its event loop has to run first, use 'await'")
        if self.deadline and (until is None or self.deadline < until):
            if not channel.wait(self, self.deadline):
                channel.expire(self)
            return True
        return channel.wait(self, until)

    async def _news(self) -> None:
        """Sleep until something arrives for this reply."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake(_: Reply) -> None:
            if asyncio._get_running_loop() is loop:
                _set(future)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(_set, future)

        self.on_next_news(wake)
        if self.channel is not None:
            self.channel.watch(loop)
        timer = loop.call_later(max(0.0, self.deadline - monotonic()), self._expire) if self.deadline else None
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self) -> None:
        if self.channel is not None:
            self.channel.expire(self)

    def _consume(self, until: float | None) -> Iterator[Any]:
        """The items of a stream, in order, asking for more as they are consumed."""
        try:
            while self._items or not self.is_done:
                if self._items:
                    yield self._take()
                elif not self._pump(until):
                    raise CallTimeout(f"no further item from {self.what} in time")
        finally:
            self.cancel()
        self._end()

    async def _collect(self) -> list[Any]:
        return [item async for item in self]

    def _take(self) -> Any:
        assert self._items is not None
        item = self._items.popleft()
        self._taken += 1
        if self._taken >= STREAM_WINDOW // 2 and self.channel is not None and not self.is_done:
            self.channel.credit(self, self._taken)
            self._taken = 0
        return item

    def _end(self) -> None:
        if self._error is not None:
            raise self._error
        if self._items is None:
            raise UsageError(
                f"{self.what} returns one value, not a stream: use .result() or 'await' instead of iterating"
            )

    def _outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
