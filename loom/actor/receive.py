"""The receive loop: takes messages from the mailbox and runs them, one at a time.

Everything happens on one thread, in the process's event loop. A sync handler is called straight from here; a
coroutine becomes a task; a generator becomes a stream. What becomes of a message is the business of answers.py.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable
from time import monotonic_ns
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from loom.actor import board as rows
from loom.actor.answers import Answers, Message
from loom.actor.backlog import Backlog
from loom.actor.context import current
from loom.actor.links import Links
from loom.actor.mailbox import Mailbox
from loom.actor.reply import STREAM_WINDOW
from loom.actor.streams import Streams
from loom.clock import monotonic
from loom.errors import ActorDied, CallTimeout, LoomError, NoSuchMethod, ProtocolError, Rejected
from loom.wire import envelope, frames

SLICE_NS = 5_000_000
"""How long messages run before the event loop gets to look at timers and control messages."""

RETRY_S = 0.005
"""How soon an answer is tried again whose receiver had no room."""

_DEFERRED = (CoroutineType, GeneratorType, AsyncGeneratorType)


class Receiver:
    """Runs the messages of one mailbox against one table of methods.

    `row` is this actor's line on the status board; `capacity` is how many messages wait here before their senders
    have to. `is_node`: see Answers.
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
        self.answers = Answers(name, mailbox, links, row, is_node=is_node)
        self._table = table
        self._mailbox = mailbox
        self._arena = links.arena
        self._words = links.board.words
        self._at = row * rows.WORDS
        self._capacity = capacity
        self._backlog: Backlog[Message] = Backlog()
        self._streams = Streams(name, self.answers, self._schedule)
        self._tasks: dict[asyncio.Task[None], Message] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_scheduled = False
        self._is_stopping = False

    # --- life ---

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to receive on `loop`."""
        self._loop = loop
        loop.add_reader(self._mailbox.fd, self._on_readable)
        self._schedule()

    def hold(self) -> None:
        """Begin no further message; `stop` is to follow."""
        self._is_stopping = True

    async def stop(self) -> None:
        """Begin nothing more; end what is under way, refuse what waits: no caller is left without an answer."""
        assert self._loop is not None
        self._is_stopping = True
        self._loop.remove_reader(self._mailbox.fd)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._streams.stop()
        self._fill(until=None)
        while self._backlog:
            text = f"actor {self.name!r} was stopped before it began the call"
            self.answers.dead_letter(self._backlog.pop(), ActorDied(text, started=False, cause="stopped"))
        self._words[self._at + rows.DEPTH] = 0
        self._mailbox.flush()

    # --- the loop ---

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_stopping and self._loop is not None:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _on_readable(self) -> None:
        """A message, most likely: when nothing else waits it is run at once, before a look for more."""
        if not self._backlog and not self._is_stopping:
            parts = self._mailbox.receive(expected=True)
            if parts is not None:
                self._admit(parts)
        self._turn()

    def _turn(self) -> None:
        """Run what is there, for a slice of time at most."""
        self._is_scheduled = False
        if self._is_stopping:
            return
        if self._mailbox.unsent:
            self._mailbox.flush()
        until = monotonic_ns() + SLICE_NS
        backlog, ready = self._backlog, self._streams.ready
        if len(backlog) != 1:  # a single one, just read, is run at once; in a queue the urgent overtake
            self._fill(self._capacity)
        while backlog or ready:
            if backlog:
                self._run(backlog.pop())
            if ready:
                self._streams.step()
            if self._is_stopping:
                return
            if not backlog:
                self._fill(self._capacity)  # sending may have swallowed the socket's edge, so look once more
            if monotonic_ns() > until:
                self._schedule()
                return
        if self._mailbox.unsent and self._loop is not None:
            self._loop.call_later(RETRY_S, self._schedule)

    def _fill(self, until: int | None) -> None:
        """Read from the socket until it is empty, or the backlog holds `until` messages."""
        receive, admit, backlog = self._mailbox.receive, self._admit, self._backlog
        while until is None or len(backlog) < until:
            parts = receive()
            if parts is None:
                break
            admit(parts)
        self._words[self._at + rows.DEPTH] = len(backlog)

    def _admit(self, parts: list[bytes]) -> None:
        """Take in one message, however malformed."""
        first = 2 if len(parts) > 1 and not parts[1] else 1  # past a REQ socket's empty delimiter
        route = parts[:first]
        if len(parts) <= first:
            self.answers.malformed(route, 0, ProtocolError("message has no header frame"))
            return
        try:
            header = envelope.decode(parts[first])
        except LoomError as error:
            self.answers.malformed(route, envelope.id_of(parts[first]), error)
            return
        kind = header.kind
        message = Message(route, header, parts[first + 1 :])
        if kind == envelope.CALL or kind == envelope.TELL:
            self._words[self._at + rows.RECEIVED] += 1
            if header.hop >= header.ttl:
                text = f"message has passed {header.hop} hops, its ttl is {header.ttl}"
                self.answers.rejected(message, Rejected(text))
            else:
                self._backlog.push(message, header.priority)
        elif kind == envelope.CREDIT:
            self._credit(route[0], header.correlation_id, header.credit)
        elif kind == envelope.CANCEL:
            self._cancel(route[0], header.correlation_id)
        else:
            self.answers.discard(message)
            text = f"kind: expected 'call', 'tell', 'credit' or 'cancel', got {kind[:64]!r}"
            self.answers.malformed(route, header.id, ProtocolError(text))

    def _run(self, message: Message) -> None:
        """Run one message to its end, or to its first await or item."""
        words, at, header = self._words, self._at, message.header
        words[at + rows.DEPTH] = len(self._backlog)
        if header.deadline and not header.deadline >= monotonic():  # so that one that is not a number has passed
            text = f"the deadline of {self.name}.{header.name} passed in the mailbox"
            self.answers.expired(message, CallTimeout(text))
            return
        handler = self._table.get(header.name)
        if handler is None:
            self.answers.rejected(message, self._no_such_method(header.name))
            return
        words[at + rows.LAST_ID] = header.id
        words[at + rows.SINCE_NS] = monotonic_ns()
        try:
            args, kwargs = self._arguments(message)
        except LoomError as error:
            words[at + rows.SINCE_NS] = 0
            self.answers.rejected(message, error)
            return
        token = current.set(header)
        try:
            result = handler(*args, **kwargs)
            # Before the answer is sent: whoever gets it may count on what the arguments held being free again.
            del args, kwargs
            if type(result) in _DEFERRED:
                self._defer(message, result)
            else:
                self.answers.returned(message, result)
        except BaseException as error:
            self.answers.raised(message, error)
        finally:
            current.reset(token)
            words[at + rows.SINCE_NS] = 0

    def _arguments(self, message: Message) -> tuple[Any, Any]:
        value = frames.read(message.header, message.parts, self._arena)
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

    # --- coroutines ---

    def _defer(self, message: Message, result: Any) -> None:
        if not isinstance(result, CoroutineType):
            self._streams.begin(message, result)
            return
        assert self._loop is not None
        self.answers.count(rows.RUNNING)
        task = self._loop.create_task(self._finish(message, result))
        self._tasks[task] = message
        task.add_done_callback(self._tasks.pop)

    async def _finish(self, message: Message, coroutine: Any) -> None:
        try:
            result = await coroutine
        except asyncio.CancelledError:
            self.answers.count(rows.FAILED)
            text = f"actor {self.name!r} cancelled {message.header.name!r}"
            self.answers.refuse(message, ActorDied(text, started=True, cause="cancelled"))
        except BaseException as error:
            self.answers.raised(message, error)
        else:
            self.answers.returned(message, result)
        finally:
            self.answers.count(rows.RUNNING, -1)
            self._schedule()  # sending may have swallowed the socket's edge

    # --- what callers say about calls they have made ---

    def _credit(self, peer: bytes, call_id: int, count: int) -> None:
        """The consumer of a stream, which may not have begun yet, has room for more items."""
        if not self._streams.credit(peer, call_id, count):
            waiting = self._backlog.find(lambda message: _is_call(message, peer, call_id))
            if waiting is not None:
                waiting.header.credit = (waiting.header.credit or STREAM_WINDOW) + count

    def _cancel(self, peer: bytes, call_id: int) -> None:
        """The caller does not care any more."""
        if self._streams.cancel(peer, call_id):
            return
        for task, message in self._tasks.items():
            if _is_call(message, peer, call_id):
                task.cancel()
                return
        waiting = self._backlog.find(lambda message: _is_call(message, peer, call_id))
        if waiting is not None:
            self._backlog.remove(waiting)
            if waiting.header.deadline and not waiting.header.deadline >= monotonic():
                self.answers.expired(waiting, CallTimeout("its deadline passed in the mailbox"))
            else:
                self.answers.rejected(waiting, Rejected("cancelled by its caller before it began"))


def _is_call(message: Message, peer: bytes, call_id: int) -> bool:
    header = message.header
    return header.id == call_id and header.kind == envelope.CALL and message.route[0] == peer
