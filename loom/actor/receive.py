"""The receive loop: takes messages from the mailbox and runs them, one at a time.

Everything happens on one thread, in the process's event loop. A sync handler is called straight from here; a
coroutine becomes a task; a generator becomes a stream. What becomes of a message is the business of answers.py.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import threading
from collections.abc import Callable
from time import monotonic_ns
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from loom.actor import board as rows
from loom.actor.answers import PING_BODY, Answers, Message
from loom.actor.backlog import Backlog
from loom.actor.context import current
from loom.actor.links import Links
from loom.actor.mailbox import Mailbox
from loom.actor.reply import STREAM_WINDOW
from loom.actor.streams import Streams
from loom.clock import monotonic
from loom.errors import ActorDied, CallTimeout, LoomError, MailboxFull, NoSuchMethod, ProtocolError, Rejected
from loom.telemetry import log
from loom.wire import envelope, frames
from loom.wire.envelope import NIL, Envelope

SLICE_NS = 5_000_000
"""How long messages run before the event loop gets to look at timers and control messages."""

RETRY_S = 0.005
"""How soon an answer is tried again whose receiver had no room."""

SLACK = 64
"""Messages past the bound of a mailbox that are read even so, for the sake of control messages behind them."""

SETTLE_S = 0.2
"""How long the last messages of a dead sender may take from this process's ZeroMQ to its mailbox."""

_DEFERRED = (CoroutineType, GeneratorType, AsyncGeneratorType)


class Receiver:
    """Runs the messages of one mailbox against one table of methods.

    `row` is this actor's line on the status board; `capacity` is how many messages may wait for it, here and on their
    way, and `policy` what becomes of more. `is_node`: see Answers.
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
        policy: str = "wait",
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
        self._board = links.board
        self._gate = links.board.gate
        self._row = row
        self._capacity = capacity
        self._drops = policy == "drop_oldest"
        self._refuses = policy == "refuse"
        self._most = 2 * capacity + SLACK  # of senders that know no gate; the others never get that far
        self._room_for: list[list[bytes]] = []
        self._current: Message | None = None
        self._is_cancelled = False
        self.on_stuck: Callable[[str], None] = lambda why: None
        """Called when this process is to be killed, with the reason."""
        self._backlog: Backlog[Message] = Backlog()
        self._streams = Streams(name, self.answers, self._schedule)
        self._tasks: dict[asyncio.Task[None], Message] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_scheduled = False
        self._is_stopping = False
        self._is_draining = False
        self._allowed: frozenset[str] = frozenset()

    # --- life ---

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to receive on `loop`."""
        self._loop = loop
        self._thread = threading.get_ident()
        self.answers.on_letter = self._report_soon
        self._mailbox.watch(loop, self._turn)
        self._schedule()

    def _report_soon(self) -> None:
        assert self._loop is not None
        self._loop.call_soon(self.answers.report)

    def hold(self) -> None:
        """Begin no further message; `stop` is to follow."""
        self._is_stopping = True

    def resume(self) -> None:
        """Go on after a `hold` that no `stop` followed."""
        self._is_stopping = False
        self._schedule()

    def refuse_clients(self, but: frozenset[str] = frozenset()) -> None:
        """Take in no further message from a client, `but` for those methods; what is there already is run."""
        self._fill(until=None)
        self._is_draining, self._allowed = True, but
        self._schedule()

    def left(self) -> int:
        """How much is yet to be done: messages that wait, those under way, and answers that found no room yet."""
        self._fill(until=None)
        self._schedule()  # reading has swallowed the socket's edge
        return len(self._backlog) + len(self._tasks) + len(self._streams) + self._mailbox.unsent

    async def stop(self) -> None:
        """Begin nothing more; end what is under way, refuse what waits: no caller is left without an answer."""
        assert self._loop is not None
        self._is_stopping = True
        self._mailbox.unwatch(self._loop)
        self._mailbox.touch()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._streams.stop()
        self._fill(until=None)
        for message in self.answers.once.leave():
            self.answers.count(rows.RUNNING, -1)
            text = f"actor {self.name!r} was stopped while a call with this dedup key was under way"
            self.answers.dead_letter(message, ActorDied(text, started=True, cause="stopped"))
        while self._backlog:
            message = self._backlog.pop()
            if self._leaves(message):
                text = f"actor {self.name!r} was stopped before it began the call"
                self.answers.dead_letter(message, ActorDied(text, started=False, cause="stopped"))
        self._mailbox.flush()
        self.answers.report()

    # --- the loop ---

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_stopping and self._loop is not None:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Run what is there, for a slice of time at most."""
        self._is_scheduled = False
        if self._is_stopping:
            return
        mailbox, backlog, ready = self._mailbox, self._backlog, self._streams.ready
        until = monotonic_ns() + SLICE_NS
        if not backlog:
            parts = mailbox.receive()
            if parts is not None:
                self._admit(parts)
        if len(backlog) != 1:  # a single one, just read, is run at once; in a queue the urgent overtake
            self._fill(self._most)
        while True:
            while backlog or ready:
                if backlog:
                    self._run(backlog.pop())
                    if self._room_for:
                        self._tell_of_room()
                if ready:
                    self._streams.step()
                if self._is_stopping:
                    return
                if not backlog:
                    self._fill(self._most)  # sending may have swallowed the socket's edge, so look once more
                if monotonic_ns() > until:
                    self._schedule()
                    return
            if mailbox.unsent:
                mailbox.flush()
            if mailbox.rest():
                break
            self._fill(self._most)
        if mailbox.unsent and self._loop is not None:
            self._loop.call_later(RETRY_S, self._schedule)

    def _fill(self, until: int | None) -> None:
        """Read from the socket until it is empty, or the backlog holds `until` messages."""
        receive, admit, backlog = self._mailbox.receive, self._admit, self._backlog
        while until is None or len(backlog) < until:
            parts = receive()
            if parts is None:
                break
            admit(parts)

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
            if not header.ticket:
                self._words[self._at + rows.UNGATED] += 1
                if self._refuses and len(self._backlog) >= self._capacity:
                    self._gate.add(self._row, rows.LEFT, 1)
                    text = f"actor {self.name!r} has {self._capacity} messages waiting, and its mailbox refuses more"
                    self.answers.rejected(message, MailboxFull(text))
                    return
            if self._is_draining and not header.sender and header.name not in self._allowed:
                if self._leaves(message):
                    text = "the node is draining: it takes no new work, finishes what it has, and stops"
                    self.answers.rejected(message, Rejected(text))
                return
            self._backlog.push(message, header.priority)
            if self._drops and len(self._backlog) > self._capacity:
                oldest = self._backlog.drop()
                if self._leaves(oldest):
                    self.answers.dropped(oldest)
        elif kind == envelope.CREDIT:
            self._credit(route[0], header.correlation_id, header.credit)
        elif kind == envelope.CANCEL:
            self._cancel(route[0], header.correlation_id, header.deadline)
        elif kind == envelope.ROOM:
            self._room_for.append(route)
            self._tell_of_room()
        elif kind == envelope.PING:
            self.answers.send(message, envelope.REPLY, PING_BODY)
        else:
            self.answers.discard(message)
            text = f"kind: expected 'call', 'tell', 'credit', 'cancel', 'room' or 'ping', got {kind[:64]!r}"
            self.answers.malformed(route, header.id, ProtocolError(text))

    def _run(self, message: Message) -> None:
        """Run one message to its end, or to its first await or item."""
        words, at, header = self._words, self._at, message.header
        if header.ticket and not self._gate.leave(self._row, header.ticket):
            pass  # the usual way
        elif not self._leaves(message):
            return
        if header.kind == envelope.CANCEL:  # it was a call until its caller gave it up, which has its answer
            self.answers.cancelled(message)
            return
        if header.hop >= header.ttl:
            text = f"message has passed {header.hop} hops, its ttl is {header.ttl}"
            self.answers.rejected(message, Rejected(text))
            return
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
        if header.dedup and self.answers.is_repeat(message):
            words[at + rows.SINCE_NS] = 0
            return
        token = current.set(header)
        self._current = message
        self._is_cancelled = False
        try:
            result = handler(*args, **kwargs)
            # Before the answer is sent: whoever gets it may count on what the arguments held being free again.
            del args, kwargs
            if type(result) in _DEFERRED:
                self._defer(message, result)
            else:
                self.answers.returned(message, result)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is None:  # no frame of the handler's
                self.answers.misused(message, error)
            else:
                self.answers.raised(message, error)
        except BaseException as error:
            self.answers.raised(message, error)
        finally:
            self._current = None
            current.reset(token)
            words[at + rows.SINCE_NS] = 0

    def _leaves(self, message: Message) -> bool:
        """A message is out of the backlog: say so. False when it is not ours any more, but its sender's."""
        ticket = message.header.ticket
        code = self._gate.leave(self._row, ticket) if ticket else rows.NO_SLOT
        if code == rows.STALE:
            self.answers.discard(message)
            return False
        if code == rows.NO_SLOT:
            if ticket:  # a ticket that nobody can have been given
                self._words[self._at + rows.UNGATED] += 1
            self._gate.add(self._row, rows.LEFT, 1)
        return True

    def _tell_of_room(self) -> None:
        """Tell those who wait for room, when half of the mailbox is free."""
        if self._board.depth(self._row) > self._capacity // 2:
            return
        waiting, self._room_for = self._room_for, []
        for route in waiting:
            self._mailbox.send([*route, envelope.encode(Envelope(self.answers.next_id(), envelope.ROOM, body=NIL))])

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
        task.add_done_callback(functools.partial(self._finished, result))

    def _finished(self, coroutine: Any, task: asyncio.Task[None]) -> None:
        message = self._tasks.pop(task)
        if task.cancelled():  # before its first step, so that `_finish` has not run at all
            coroutine.close()
            self._interrupted(message)
            self.answers.count(rows.RUNNING, -1)
            self._schedule()

    def _interrupted(self, message: Message) -> None:
        text = f"actor {self.name!r} cancelled {message.header.name!r}"
        self.answers.interrupted(message, ActorDied(text, started=True, cause="cancelled"))

    async def _finish(self, message: Message, coroutine: Any) -> None:
        try:
            result = await coroutine
        except asyncio.CancelledError:
            self._interrupted(message)
        except BaseException as error:
            self.answers.raised(message, error)
        else:
            self.answers.returned(message, result)
        finally:
            self.answers.count(rows.RUNNING, -1)
            self._schedule()  # sending may have swallowed the socket's edge, and cost the inbox its rest

    # --- what callers say about calls they have made ---

    def _credit(self, peer: bytes, call_id: int, count: int) -> None:
        """The consumer of a stream, which may not have begun yet, has room for more items."""
        if not self._streams.credit(peer, call_id, count):
            waiting = self._backlog.find(lambda message: _is_call(message, peer, call_id))
            if waiting is not None:
                waiting.header.credit = (waiting.header.credit or STREAM_WINDOW) + count

    def _cancel(self, peer: bytes, call_id: int, kill_at: float) -> None:
        """The caller does not care any more; what still runs at `kill_at` is to take its process with it, 0.0 never."""
        if self._streams.cancel(peer, call_id):
            return
        if self._current is not None and _is_call(self._current, peer, call_id):
            self._is_cancelled = True
            return
        for task, message in self._tasks.items():
            if _is_call(message, peer, call_id):
                task.cancel()
                if kill_at > 0 and self._loop is not None:
                    self._loop.call_later(max(0.0, kill_at - monotonic()), self._kill_if_stuck, task, message)
                return
        waiting = self._backlog.find(lambda message: _is_call(message, peer, call_id))
        if waiting is not None and not (waiting.header.deadline and waiting.header.deadline < monotonic()):
            # It stays where it is, for the ledger counts what leaves in the order it came.
            self.answers.refuse(waiting, Rejected("cancelled by its caller before it began"))
            waiting.header.kind = envelope.CANCEL

    def _kill_if_stuck(self, task: asyncio.Task[None], message: Message) -> None:
        if not task.done():
            self.on_stuck(f"{self.name}.{message.header.name} was cancelled, and did not end in the time it was given")

    def is_cancelled(self, header: Envelope) -> bool:
        """Whether the caller of the message that is being handled has given it up. Looks into the mailbox for that."""
        if header.deadline and not header.deadline >= monotonic():
            return True
        if self._loop is None or threading.get_ident() != self._thread:
            return self._is_cancelled
        self._mailbox.touch()
        stepping = self._streams.stepping
        if stepping is not None:
            self._fill(self._most)
            return stepping.is_cancelled
        if self._current is not None and self._current.header is header:
            self._fill(self._most)
            return self._is_cancelled
        task = asyncio.current_task(self._loop)
        return task is not None and task.cancelling() > 0

    def settle(self, ticket: int, sent: int) -> None:
        """The sender with that ticket is dead: what it had let in and never came is a dead letter."""
        assert self._loop is not None
        self._mailbox.touch()
        self._fill(None)
        self._loop.call_later(SETTLE_S, self._settle, ticket, sent)

    def _settle(self, ticket: int, sent: int) -> None:
        if self._is_stopping:
            return
        self._mailbox.touch()
        self._fill(None)
        self._schedule()
        if self._backlog.find(lambda message: message.header.ticket == ticket) is not None:
            return  # it is being worked on, and the node will ask again
        code, begun, _, _ = self._gate.void(self._row, ticket, False)
        if code == rows.OPEN and sent > begun:
            log.warning("%s: %d messages of a sender that died never came", self.name, sent - begun)
            self._gate.add(self._row, rows.LEFT, sent - begun)
            self.answers.count(rows.DEAD_LETTERED, sent - begun)
        if self._room_for:
            self._tell_of_room()


def _is_call(message: Message, peer: bytes, call_id: int) -> bool:
    header = message.header
    return header.id == call_id and header.kind == envelope.CALL and message.route[0] == peer
