"""The receive loop: takes messages from the mailbox, runs them, sends what comes of them.

Everything happens on one thread, in the process's event loop. A sync handler is called straight from here; a
coroutine becomes a task; a generator becomes a stream. Every message ends in exactly one of the counters of the
status board: processed, failed, rejected, expired or dead-lettered.
"""

from __future__ import annotations

import asyncio
import difflib
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, NamedTuple

from loom.actor import board as rows
from loom.actor.backlog import Backlog
from loom.actor.context import current
from loom.actor.links import Links
from loom.actor.mailbox import Mailbox
from loom.actor.reply import STREAM_WINDOW
from loom.actor.streams import Stream, Streams
from loom.clock import monotonic
from loom.errors import ActorDied, CallTimeout, LoomError, NoSuchMethod, NotSendable, ProtocolError, Rejected
from loom.telemetry import log
from loom.wire import codec, envelope, failures, frames
from loom.wire.envelope import Envelope

SLICE_NS = 5_000_000
"""How long messages run before the event loop gets to look at timers and control messages."""

PROBE_S = 10.0
"""How often the consumers of idle streams are looked at."""

_DEFERRED = (CoroutineType, GeneratorType, AsyncGeneratorType)
_NIL = b"\xc0"


class Message(NamedTuple):
    """One call or tell: where its answer goes, its header, and its still encoded body."""

    route: list[bytes]
    header: Envelope
    body: bytes
    extra: list[bytes]


class Receiver:
    """Runs the messages of one mailbox against one table of methods.

    `words` is the status board, `row` this actor's line on it. `is_node`: Loom's own errors, raised by a handler, go
    to the caller as themselves and not as RemoteError.
    """

    def __init__(
        self,
        name: str,
        table: dict[str, Callable[..., Any]],
        mailbox: Mailbox,
        links: Links,
        row: int,
        *,
        capacity: int = 1000,
        is_node: bool = False,
    ) -> None:
        assert links.board is not None
        self.name = name
        self._table = table
        self._mailbox = mailbox
        self._links = links
        self._arena = links.arena
        self._words = links.board.words
        self._at = row * rows.WORDS
        self._capacity = capacity
        self._is_node = is_node
        self._backlog: Backlog[Message] = Backlog()
        self._streams = Streams()
        self._ready: deque[Stream] = deque()
        self._tasks: dict[asyncio.Task[None], Message] = {}
        self._loop = asyncio.get_event_loop_policy().get_event_loop()
        self._is_scheduled = False
        self._is_stopping = False
        self._probe: asyncio.TimerHandle | None = None
        self.on_exit: Callable[[int], None] = lambda code: None

    # --- life ---

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to receive on `loop`."""
        self._loop = loop
        loop.add_reader(self._mailbox.fd, self._turn)
        self._schedule()

    async def stop(self) -> None:
        """Begin nothing more; end what is under way, refuse what waits: no caller is left without an answer."""
        self._is_stopping = True
        self._loop.remove_reader(self._mailbox.fd)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        text = f"actor {self.name!r} was stopped"
        for stream in self._streams:
            self._count(rows.FAILED)
            self._close_stream(stream)
            self._refuse(
                stream.route, stream.message, ActorDied(f"{text} in mid-stream", started=True, cause="stopped")
            )
        self._fill(until=None)
        while self._backlog:
            message = self._backlog.pop()
            self._count(rows.DEAD_LETTERED)
            frames.discard(message.header, self._arena)
            error = ActorDied(f"{text} before it began the call", started=False, cause="stopped")
            self._refuse(message.route, message.header, error)
        self._words[self._at + rows.DEPTH] = 0
        self._mailbox.flush()
        if self._probe is not None:
            self._probe.cancel()

    # --- the loop ---

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_stopping:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Run what is there, for a slice of time at most."""
        self._is_scheduled = False
        if self._is_stopping:
            return
        if self._mailbox.unsent:
            self._count(rows.DEAD_LETTERED, self._mailbox.flush())
        until = monotonic_ns() + SLICE_NS
        backlog = self._backlog
        self._fill(self._capacity)
        while True:
            if not backlog:
                self._fill(self._capacity)
                if not backlog and not self._ready:
                    break
            if backlog:
                self._run(backlog.pop())
            if self._ready:
                self._step(self._ready.popleft())
            if self._is_stopping:
                return
            if monotonic_ns() > until:
                self._schedule()
                return
        if self._mailbox.unsent:
            self._loop.call_later(0.005, self._schedule)

    def _fill(self, until: int | None) -> None:
        """Read from the socket until it is empty, or the backlog holds `until` messages."""
        receive = self._mailbox.receive
        backlog = self._backlog
        while until is None or len(backlog) < until:
            parts = receive()
            if parts is None:
                break
            self._admit(parts)
        self._words[self._at + rows.DEPTH] = len(backlog)

    def _admit(self, parts: list[bytes]) -> None:
        """Take in one message, however malformed."""
        first = 1
        if len(parts) > 1 and not parts[1]:  # a REQ socket's empty delimiter
            first = 2
        route = parts[:first]
        if len(parts) <= first:
            self._bad_message(route, 0, ProtocolError("message has no header frame"))
            return
        try:
            header = envelope.decode(parts[first])
        except LoomError as error:
            self._bad_message(route, envelope.id_of(parts[first]), error)
            return
        kind = header.kind
        if kind == envelope.CALL or kind == envelope.TELL:
            self._count(rows.RECEIVED)
            if len(parts) < first + 2:
                frames.discard(header, self._arena)
                self._reject(route, header, ProtocolError("message has no body frame"))
            elif header.hop >= header.ttl:
                frames.discard(header, self._arena)
                self._reject(route, header, Rejected(f"message has passed {header.hop} hops, its ttl is {header.ttl}"))
            else:
                self._backlog.push(Message(route, header, parts[first + 1], parts[first + 2 :]), header.priority)
        elif kind == envelope.CREDIT:
            self._credit(self._streams.find(route[0], header.correlation_id), header.credit)
        elif kind == envelope.CANCEL:
            self._cancel(route[0], header.correlation_id)
        else:
            frames.discard(header, self._arena)
            self._bad_message(route, header.id, ProtocolError(f"kind: expected 'call' or 'tell', got {kind!r}"))

    def _run(self, message: Message) -> None:
        """Run one message to its end, or to its first await or item."""
        words, at = self._words, self._at
        route, header = message.route, message.header
        words[at + rows.DEPTH] = len(self._backlog)
        if header.deadline and not header.deadline >= monotonic():  # so that one that is not a number has passed
            self._count(rows.EXPIRED)
            frames.discard(header, self._arena)
            self._refuse(route, header, CallTimeout(f"the deadline of {self.name}.{header.name} passed in the mailbox"))
            return
        handler = self._table.get(header.name)
        if handler is None:
            frames.discard(header, self._arena)
            self._reject(route, header, self._no_such_method(header.name))
            return
        words[at + rows.LAST_ID] = header.id
        words[at + rows.SINCE_NS] = monotonic_ns()
        try:
            args, kwargs = self._arguments(message)
        except LoomError as error:
            words[at + rows.SINCE_NS] = 0
            self._reject(route, header, error)
            return
        token = current.set(header)
        try:
            result = handler(*args, **kwargs)
        except BaseException as error:
            self._raised(route, header, error)
        else:
            if type(result) in _DEFERRED:
                self._defer(message, result)
            else:
                self._returned(route, header, result)
        finally:
            current.reset(token)
            words[at + rows.SINCE_NS] = 0

    def _arguments(self, message: Message) -> tuple[Any, Any]:
        _, header, body, extra = message
        buffers = frames.unpack(header, extra, self._arena) if header.buffers or extra else ()
        value = codec.decode_value(header.encoding, body, buffers)
        if type(value) in (list, tuple) and 1 <= len(value) <= 2 and isinstance(value[0], (list, tuple)):
            args, kwargs = value if len(value) == 2 else (value[0], {})
            if isinstance(kwargs, dict) and all(type(name) is str for name in kwargs):
                return args, kwargs
        raise ProtocolError("body of a call: expected [[argument, ...], {name: argument}]")

    def _no_such_method(self, name: str) -> NoSuchMethod:
        name = name[:64]  # a stranger's text: neither the search nor the answer may grow with it
        near = difflib.get_close_matches(name, self._table, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(self._table)) or 'none'}"
        return NoSuchMethod(f"actor {self.name!r} has no public method {name!r}: {hint}")

    # --- how a message ends ---

    def _returned(self, route: list[bytes], header: Envelope, result: Any) -> None:
        if header.kind == envelope.CALL:
            try:
                body = codec.encode_value(result, header.accept)
                self._send(route, header, envelope.REPLY, body)
            except LoomError as error:  # the result cannot travel
                self._raised(route, header, error)
                return
        self._count(rows.PROCESSED)

    def _raised(self, route: list[bytes], header: Envelope, error: BaseException) -> None:
        self._count(rows.FAILED)
        if isinstance(error, SystemExit):
            died = ActorDied(f"actor {self.name!r} ended itself in {header.name!r}", started=True, cause="SystemExit")
            self._refuse(route, header, died)
            self.on_exit(error.code if isinstance(error.code, int) else int(error.code is not None))
            return
        if self._is_node and isinstance(error, LoomError):
            self._refuse(route, header, error)
        elif header.kind == envelope.CALL:
            if isinstance(error, NotSendable):
                log.error("%s.%s: %s", self.name, header.name, error)
            self._send(route, header, envelope.ERROR, codec.encode_neutral(failures.raised(error)))
        else:
            log.error("%s.%s raised, and nobody asked:\n%s", self.name, header.name, failures.traceback_of(error, 1))

    def _reject(self, route: list[bytes], header: Envelope, error: LoomError) -> None:
        self._count(rows.REJECTED)
        self._refuse(route, header, error)

    def _bad_message(self, route: list[bytes], message_id: int, error: LoomError) -> None:
        self._count(rows.RECEIVED)
        log.warning("%s rejected a message: %s", self.name, error)
        self._reject(route, Envelope(message_id, envelope.CALL), error)

    def _refuse(self, route: list[bytes], header: Envelope, error: LoomError) -> None:
        """Tell the caller that the message was not run, or not to its end."""
        if header.kind == envelope.CALL:
            self._send(route, header, envelope.ERROR, codec.encode_neutral(failures.refusal(error)))
        else:
            log.warning("%s refused a message from %r: %s", self.name, header.sender or "a client", error)

    def _send(self, route: list[bytes], header: Envelope, kind: str, body: codec.Body) -> bool:
        answer = Envelope(self._links.next_id(), kind, sender=self.name, correlation_id=header.id)
        parts = frames.pack(answer, body, self._arena, header.participant)
        if self._mailbox.send([*route, *parts]):
            return True
        frames.recall(answer.buffers, self._arena)
        log.info("dead letter: the answer to %s.%s found its caller gone", self.name, header.name)
        return False

    def _count(self, word: int, by: int = 1) -> None:
        self._words[self._at + word] += by

    # --- coroutines ---

    def _defer(self, message: Message, result: Any) -> None:
        if isinstance(result, CoroutineType):
            self._count(rows.RUNNING)
            task = self._loop.create_task(self._finish(message, result))
            self._tasks[task] = message
            task.add_done_callback(self._tasks.pop)
        elif message.header.kind == envelope.CALL:
            if self._streams.find(message.route[0], message.header.id) is not None:
                text = f"id: expected one that no stream of this caller bears, got {message.header.id} again"
                self._reject(message.route, message.header, ProtocolError(text))
                return
            stream = Stream(message.route, message.header, result, message.header.credit or STREAM_WINDOW)
            self._count(rows.RUNNING)
            self._streams.add(stream)
            self._resume(stream)
            if self._probe is None:
                self._probe = self._loop.call_later(PROBE_S, self._probe_consumers)
        else:
            self._raised(message.route, message.header, Rejected("a stream has nowhere to go: call it, do not tell it"))

    async def _finish(self, message: Message, coroutine: Any) -> None:
        route, header = message.route, message.header
        try:
            result = await coroutine
        except asyncio.CancelledError:
            self._count(rows.FAILED)
            self._refuse(route, header, ActorDied(f"actor {self.name!r} cancelled {header.name!r}", started=True))
        except BaseException as error:
            self._raised(route, header, error)
        else:
            self._returned(route, header, result)
        finally:
            self._count(rows.RUNNING, -1)
            self._schedule()  # sending may have swallowed the socket's edge

    # --- streams ---

    def _resume(self, stream: Stream) -> None:
        """Have a stream with credit go on."""
        if stream.credit <= 0 or stream.is_stepping:
            return
        stream.is_stepping = True
        if isinstance(stream.generator, GeneratorType):
            self._ready.append(stream)
        else:
            task = self._loop.create_task(self._step_async(stream))
            self._tasks[task] = Message(stream.route, stream.message, b"", [])
            task.add_done_callback(self._tasks.pop)

    def _step(self, stream: Stream) -> None:
        """One item of a sync generator."""
        words, at = self._words, self._at
        token = current.set(stream.message)
        words[at + rows.SINCE_NS] = monotonic_ns()
        try:
            item = next(stream.generator)  # type: ignore[arg-type]
        except StopIteration:
            self._end_stream(stream, None)
        except BaseException as error:
            self._end_stream(stream, error)
        else:
            if self._send_item(stream, item):
                stream.is_stepping = False
                self._resume(stream)
        finally:
            current.reset(token)
            words[at + rows.SINCE_NS] = 0

    async def _step_async(self, stream: Stream) -> None:
        """Items of an async generator, until its credit is used up."""
        current.set(stream.message)
        try:
            while stream.credit > 0:
                item = await anext(stream.generator)  # type: ignore[arg-type]
                if not self._send_item(stream, item):
                    return
            stream.is_stepping = False
        except StopAsyncIteration:
            self._end_stream(stream, None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._end_stream(stream, error)
        finally:
            self._schedule()

    def _send_item(self, stream: Stream, item: Any) -> bool:
        """Send one item; False when the stream has ended over it."""
        try:
            body = codec.encode_value(item, stream.message.accept)
            if self._send(stream.route, stream.message, envelope.ITEM, body):
                stream.credit -= 1
                return True
        except LoomError as error:
            self._end_stream(stream, error)
            return False
        self._count(rows.FAILED)
        self._close_stream(stream)
        return False

    def _end_stream(self, stream: Stream, error: BaseException | None) -> None:
        if self._streams.find(stream.route[0], stream.message.id) is None:
            return
        self._close_stream(stream)
        if error is not None:
            self._raised(stream.route, stream.message, error)
        else:
            self._send(stream.route, stream.message, envelope.END, codec.Body(envelope.MSGPACK, _NIL))
            self._count(rows.PROCESSED)

    def _close_stream(self, stream: Stream) -> None:
        self._streams.remove(stream)
        self._count(rows.RUNNING, -1)
        stream.credit = 0
        try:
            if isinstance(stream.generator, GeneratorType):
                stream.generator.close()
            elif not self._is_stopping:
                self._loop.create_task(stream.generator.aclose())  # type: ignore[union-attr]
        except (ValueError, RuntimeError) as error:  # it is running, or it yields in its finally
            log.warning("%s.%s could not be closed: %s", self.name, stream.message.name, error)
        except Exception as error:
            log.error(
                "%s.%s raised while closing:\n%s", self.name, stream.message.name, failures.traceback_of(error, 1)
            )

    def _credit(self, stream: Stream | None, count: int) -> None:
        if stream is not None and count > 0:
            stream.credit += count
            self._resume(stream)

    def _cancel(self, peer: bytes, call_id: int) -> None:
        """The caller does not care any more."""
        stream = self._streams.find(peer, call_id)
        if stream is not None:
            self._count(rows.FAILED)
            self._close_stream(stream)
            return
        for task, message in self._tasks.items():
            if message.header.id == call_id and message.route[0] == peer:
                task.cancel()
                return

    def _probe_consumers(self) -> None:
        """End the streams whose consumer is gone without a word."""
        self._probe = None
        for stream in self._streams:
            ping = envelope.encode(Envelope(self._links.next_id(), envelope.PING))
            if stream.credit <= 0 and not self._mailbox.send([*stream.route, ping, _NIL]):
                self._count(rows.FAILED)
                self._close_stream(stream)
        if len(self._streams):
            self._probe = self._loop.call_later(PROBE_S, self._probe_consumers)
        self._schedule()
