"""Streams: generator handlers that are under way, each sent item by item as its consumer asks for more.

A stream has credit for as many items as its consumer has room for. Without credit it rests and costs nothing; other
messages run between its items.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from time import monotonic_ns
from types import GeneratorType
from typing import Any

from loom.actor import board as rows
from loom.actor.answers import Answers, Message
from loom.actor.context import current
from loom.actor.reply import STREAM_WINDOW
from loom.clock import monotonic
from loom.errors import ActorDied, CallTimeout, LoomError, ProtocolError, Rejected
from loom.telemetry import log
from loom.wire import codec, envelope, failures

PROBE_S = 10.0
"""How often the consumers of streams are looked at: of those that rest, and of those that wait for their next item."""


class Stream:
    """One generator under way. `credit`: items its consumer still has room for."""

    __slots__ = ("credit", "generator", "is_cancelled", "is_stepping", "message", "task")

    def __init__(self, message: Message, generator: Generator[Any, Any, Any] | AsyncGenerator[Any, Any]) -> None:
        self.message = message
        self.generator = generator
        self.credit = message.header.credit or STREAM_WINDOW
        self.is_stepping = False
        self.is_cancelled = False
        self.task: asyncio.Task[None] | None = None


class Streams:
    """All streams of one actor, found by whom they go to and the call that began them.

    `wake` is called when there is something to do, or a send may have swallowed the socket's edge.
    """

    def __init__(self, name: str, answers: Answers, wake: Callable[[], None]) -> None:
        self.ready: deque[Stream] = deque()
        """Sync generators that may give an item now."""
        self.stepping: Stream | None = None
        """The one that is giving an item."""
        self._name = name
        self._answers = answers
        self._wake = wake
        self._by_call: dict[tuple[bytes, int], Stream] = {}
        self._probe: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._by_call)

    def begin(self, message: Message, generator: Any) -> None:
        """A handler returned a generator: send its items."""
        if message.header.dedup:
            self._answers.raised(message, Rejected("a stream cannot be given a dedup key: leave it out"))
            return
        if message.header.kind != envelope.CALL:
            self._answers.raised(message, Rejected("a stream has nowhere to go: call it, do not tell it"))
            return
        key = message.route[0], message.header.id
        if key in self._by_call:
            text = f"id: expected one that no stream of this caller bears, got {message.header.id} again"
            self._answers.rejected(message, ProtocolError(text))
            return
        stream = self._by_call[key] = Stream(message._replace(parts=[]), generator)
        self._answers.count(rows.RUNNING)
        self._resume(stream)
        if self._probe is None:
            self._probe = asyncio.get_running_loop().call_later(PROBE_S, self._probe_consumers)

    def credit(self, peer: bytes, call_id: int, count: int) -> bool:
        """The consumer has room for `count` more items; False when it has no such stream."""
        stream = self._by_call.get((peer, call_id))
        if stream is not None and count > 0:
            stream.credit += count
            self._resume(stream)
        return stream is not None

    def cancel(self, peer: bytes, call_id: int) -> bool:
        """The consumer wants no more; False when it has no such stream."""
        stream = self._by_call.get((peer, call_id))
        if stream is not None and stream is self.stepping:  # it cannot be closed while it runs
            stream.is_cancelled = True
        elif stream is not None:
            self._answers.count(rows.FAILED)
            self._close(stream)
        return stream is not None

    def step(self) -> None:
        """One item of the sync generator that has been waiting longest."""
        stream = self.ready.popleft()
        if stream.credit <= 0:
            stream.is_stepping = False
            return
        if self._is_late(stream):
            return
        token = current.set(stream.message.header)
        self._answers.busy(monotonic_ns())
        self.stepping = stream
        try:
            item = next(stream.generator)  # type: ignore[arg-type]
        except StopIteration:
            self._end(stream, None)
        except BaseException as error:
            self._end(stream, error)
        else:
            stream.is_stepping = False
            if stream.is_cancelled:
                self._answers.count(rows.FAILED)
                self._close(stream)
            elif self._send(stream, item):
                self._resume(stream)
        finally:
            self.stepping = None
            current.reset(token)
            self._answers.busy(0)

    async def stop(self) -> None:
        """The actor ends: so do all its streams, and their consumers are told."""
        if self._probe is not None:
            self._probe.cancel()
        streams = list(self._by_call.values())
        for stream in streams:
            self._answers.count(rows.FAILED)
            self._close(stream)
            text = f"actor {self._name!r} was stopped in mid-stream"
            self._answers.refuse(stream.message, ActorDied(text, started=True, cause="stopped"))
        tasks = [stream.task for stream in streams if stream.task is not None]
        if tasks:  # the `finally` blocks of async generators
            await asyncio.wait(tasks)

    def _resume(self, stream: Stream) -> None:
        """Have a stream with credit go on."""
        if stream.credit <= 0 or stream.is_stepping:
            return
        stream.is_stepping = True
        if isinstance(stream.generator, GeneratorType):
            self.ready.append(stream)
            self._wake()
        else:
            stream.task = asyncio.get_running_loop().create_task(self._step_async(stream))

    async def _step_async(self, stream: Stream) -> None:
        """Items of an async generator, until its credit is used up."""
        current.set(stream.message.header)
        try:
            while stream.credit > 0 and not self._is_late(stream):
                item = await anext(stream.generator)  # type: ignore[arg-type]
                if not self._send(stream, item):
                    return
        except StopAsyncIteration:
            self._end(stream, None)
        except asyncio.CancelledError:
            await self._close_async(stream)
        except BaseException as error:
            self._end(stream, error)
        finally:
            stream.is_stepping = False
            stream.task = None
            self._wake()

    def _is_late(self, stream: Stream) -> bool:
        """Whether the deadline of a stream has passed; then it has ended with that."""
        header = stream.message.header
        if not header.deadline or header.deadline >= monotonic():
            return False
        if self._by_call.get((stream.message.route[0], header.id)) is stream:
            self._answers.count(rows.FAILED)
            text = f"the deadline of {self._name}.{header.name} passed between two items of its stream"
            self._answers.refuse(stream.message, CallTimeout(text))
            stream.task = None  # which is the one that looks
            self._close(stream)
        return True

    def _send(self, stream: Stream, item: Any) -> bool:
        """Send one item; False when the stream has ended over it."""
        try:
            body = codec.encode_value(item, stream.message.header.accept)
            if self._answers.send(stream.message, envelope.ITEM, body):
                stream.credit -= 1
                return True
        except LoomError as error:
            self._end(stream, error)
            return False
        self._answers.count(rows.FAILED)
        self._close(stream)
        return False

    def _end(self, stream: Stream, error: BaseException | None) -> None:
        """The generator returned or raised."""
        if not self._forget(stream):
            return
        if error is not None:
            self._answers.raised(stream.message, error)
        else:
            self._answers.ended(stream.message)

    def _forget(self, stream: Stream) -> bool:
        """Take a stream out of the books; False when it was out before."""
        key = stream.message.route[0], stream.message.header.id
        if self._by_call.get(key) is not stream:  # gone, and its caller may have used the id again
            return False
        del self._by_call[key]
        stream.credit = 0
        self._answers.count(rows.RUNNING, -1)
        return True

    def _close(self, stream: Stream) -> None:
        """End a stream whose consumer is gone or wants no more: its `finally` blocks run now."""
        self._forget(stream)
        if isinstance(stream.generator, GeneratorType):
            try:
                stream.generator.close()
            except Exception as error:
                self._complain(stream, error)
        elif stream.task is not None:
            stream.task.cancel()
        else:
            stream.task = asyncio.get_running_loop().create_task(self._close_async(stream))

    async def _close_async(self, stream: Stream) -> None:
        try:
            await stream.generator.aclose()  # type: ignore[union-attr]
        except Exception as error:
            self._complain(stream, error)

    def _complain(self, stream: Stream, error: BaseException) -> None:
        """A generator raised while it was closed, or is running and cannot be."""
        name = stream.message.header.name
        log.error("%s.%s could not be closed:\n%s", self._name, name, failures.traceback_of(error, 1))

    def _probe_consumers(self) -> None:
        """End the streams whose consumer is gone without a word."""
        self._probe = None
        for stream in list(self._by_call.values()):
            if not self._answers.probe(stream.message):
                self._answers.count(rows.FAILED)
                self._close(stream)
        if self._by_call:
            self._probe = asyncio.get_running_loop().call_later(PROBE_S, self._probe_consumers)
        self._wake()
