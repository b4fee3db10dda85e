"""Target: the route from this process to a name, whichever incarnation bears it now.

A message goes straight to the known incarnation, when that has room. When there is none, or none that lives, the node
is asked for the current one. Messages that cannot go at once, for want of either, stand in line here, in order: a
thread waits beside its own, a coroutine leaves its own to the event loop. Nothing in the line has been let in to a
mailbox yet, so it goes to whichever incarnation comes next, and a slow actor holds up nobody but those who send to it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import zmq

from loom.actor import board as rows
from loom.actor.address import Address
from loom.actor.channel import Channel, running_loop
from loom.actor.dead_letter import letter
from loom.actor.gate import Sent
from loom.actor.reply import Reply
from loom.clock import monotonic
from loom.errors import CallTimeout, LoomError, MailboxFull, StartFailed
from loom.telemetry import log
from loom.wire import codec, envelope, frames
from loom.wire.envelope import Envelope

if TYPE_CHECKING:
    from loom.actor.links import Links
    from loom.actor.pool import Pool

NOTHING = codec.Body(envelope.MSGPACK, b"\xc0")
"""The body of messages that have nothing to say: nil."""

LINE = 100_000
"""Messages that coroutines may leave in line for one actor before they are refused with MailboxFull."""

ROOM_S = 0.05
"""How often a thread looks for room by itself, should the actor's word that there is some get lost."""


class Options(NamedTuple):
    """How to make one call.

    `timeout_s`: its deadline, from the moment of the call; `priority`: 0 (last) to 100; `dedup`: of several calls of
    one method with one key, one is run; `kill_after_s`: how long after its deadline it may still run, see Reply.cancel;
    `key`: what a pool chooses a member by.
    """

    timeout_s: float | None = None
    priority: int = 50
    dedup: str = ""
    kill_after_s: float | None = None
    key: str = ""


class _Waiting:
    """A message in line. `waker`: the eventfd of the thread that waits beside it, -1 for none."""

    __slots__ = ("body", "error", "header", "is_gone", "reply", "waker")

    def __init__(self, header: Envelope, body: codec.Body, reply: Reply | None, waker: int) -> None:
        self.header = header
        self.body = body
        self.reply = reply
        self.waker = waker
        self.is_gone = False
        self.error: LoomError | None = None


class Target:
    """Where messages to one name go. Shared by all references to that name in this process."""

    def __init__(self, links: Links, name: str) -> None:
        self.links = links
        self.name = name
        self._channel: Channel | None = None
        self._lock = threading.Lock()
        self._line: deque[_Waiting] = deque()
        self._lookup: Reply | None = None
        self._inheritances = 0
        self._moving = threading.Lock()
        self._is_moved_on = False
        self._mover = 0
        self.pool: Pool | None = None
        """What the name turned out to be, when it is a pool's."""

    @property
    def line_length(self) -> int:
        """How many messages stand in line."""
        return len(self._line)

    # --- what callers want ---

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Reply:
        """Send a call. Raises: NotSendable (L1004), ArenaFull (L3003), MailboxFull (L2003)."""
        if self.pool is not None:
            return self.pool.call(method, args, kwargs, options)
        links = self.links
        body = codec.encode_call(args, kwargs)
        reply = Reply(links.next_id(), f"{self.name}.{method}")
        header = links.header(envelope.CALL, self.name, method, reply.id)
        if options.timeout_s is not None:
            reply.deadline = header.deadline = monotonic() + options.timeout_s
            reply.kill_after_s = options.kill_after_s
        header.priority = options.priority
        header.dedup = options.dedup
        self.submit(header, body, reply)
        return reply

    def tell(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> None:
        """Send a message that has no reply. Raises: as `call`; ActorDied (L2001), ActorNotFound (L1003)."""
        if self.pool is not None:
            self.pool.tell(method, args, kwargs, options)
            return
        links = self.links
        body = codec.encode_call(args, kwargs)
        header = links.header(envelope.TELL, self.name, method, links.next_id())
        if options.timeout_s is not None:
            header.deadline = monotonic() + options.timeout_s
        header.priority = options.priority
        header.dedup = options.dedup
        self.submit(header, body, None)

    def ping(self) -> Reply:
        """Ask the actor's event loop for a sign of life, past what waits for it."""
        reply = Reply(self.links.next_id(), f"a ping to {self.name}")
        header = self.links.header(envelope.PING, self.name, "", reply.id)
        channel = self._channel
        if channel is None or channel.post(header, NOTHING, reply) != rows.OPEN:
            self._stand_in_line(header, NOTHING, reply)
        return reply

    def submit(self, header: Envelope, body: codec.Body, reply: Reply | None) -> None:
        """Send one message, or have it stand in line."""
        channel = self._channel
        if channel is not None and not self._line:
            code = channel.post(header, body, reply)
            if code == rows.OPEN:
                return
            if code == rows.FULL and channel.address.policy == "refuse":
                raise self._refusal(channel)
        self._stand_in_line(header, body, reply)

    def _refusal(self, channel: Channel) -> MailboxFull:
        board = self.links.board
        assert board is not None
        board.gate.add(channel.address.row, rows.REFUSED, 1)
        bound = board.words[channel.address.row * rows.WORDS + rows.BOUND]
        return MailboxFull(
            f"actor {self.name!r} has {bound} messages waiting, and its mailbox refuses more: "
            "send less, or give it another policy or capacity"
        )

    # --- the line ---

    def _stand_in_line(self, header: Envelope, body: codec.Body, reply: Reply | None) -> None:
        """Queue the message. A thread waits until it has been sent, a coroutine does not."""
        loop = running_loop()
        if loop is not None and len(self._line) >= LINE:
            raise MailboxFull(f"{LINE} messages wait to be sent to actor {self.name!r}: await some replies first")
        entry = _Waiting(header, self._kept(body), reply, -1 if loop is not None else self.links.waker())
        if reply is not None:
            reply.channel = self._channel or self.links.node
        with self._lock:
            self._line.append(entry)
        self._move()
        if loop is None:
            if self._mover != threading.get_ident():  # else this is a callback, run by whoever moves the line
                self._wait(entry)
        elif not entry.is_gone:
            self.links.node.watch(loop)
            channel = self._channel
            if channel is not None:
                channel.watch(loop)

    def _kept(self, body: codec.Body) -> codec.Body:
        """A body as it is now, whatever its owner does before it is sent: arena arrays sealed, others copied."""
        if not body.buffers:
            return body
        return body._replace(buffers=[self._kept_buffer(buffer) for buffer in body.buffers])

    def _kept_buffer(self, buffer: Any) -> Any:
        if self.links.arena is None or not self.links.arena.holds(buffer):
            return memoryview(buffer).tobytes("A")
        frames.seal(buffer)
        return buffer

    def _wait(self, entry: _Waiting) -> None:
        """Read until `entry` is sent, or its deadline passes. Raises: what it could not be sent for."""
        deadline = entry.header.deadline
        while not entry.is_gone:
            lookup, channel = self._lookup, self._channel
            until = min(deadline, monotonic() + ROOM_S) if deadline else monotonic() + ROOM_S
            if lookup is not None or channel is None:
                self.links.node.sleep(until)
            else:
                channel.sleep(until)
            self._move()
            if deadline and monotonic() >= deadline and self._leave_line(entry):
                if self._channel is None:
                    entry.error = CallTimeout(f"actor {self.name!r} was not there to be called before the deadline")
                else:
                    entry.error = MailboxFull(f"actor {self.name!r} had no room for the message before its deadline")
                if entry.reply is not None:
                    self._fail(entry.reply, entry.error)
        if entry.reply is None and entry.error is not None:
            raise entry.error

    def _leave_line(self, entry: _Waiting) -> bool:
        with self._lock:
            if entry.is_gone:
                return False
            self._line.remove(entry)
            entry.is_gone = True
            return True

    def _fail(self, reply: Reply, error: LoomError) -> None:
        self.links.node.fail_all([reply], lambda _: error)

    def _move(self, _: object = None) -> None:
        """Send what can be sent. Whoever comes while another thread does so leaves it to that one."""
        self._is_moved_on = True
        while self._is_moved_on and self._moving.acquire(blocking=False):
            try:
                self._is_moved_on = False
                self._mover = threading.get_ident()
                self._advance()
            finally:
                self._mover = 0
                self._moving.release()

    def _advance(self) -> None:
        while self._line and not self._inheritances:
            channel = self._channel
            if channel is None:
                self._look_up()
                return
            with self._lock:
                if not self._line:
                    return
                entry = self._line[0]
                if entry.reply is not None and entry.reply.is_done:  # cancelled, or its deadline has passed
                    self._go(entry, None)
                    continue
            try:
                code = channel.post(entry.header, entry.body, entry.reply)
            except LoomError as error:
                self._end(entry, error)
                continue
            if code == rows.OPEN:
                with self._lock:
                    self._go(entry, None)
            elif code == rows.FULL:
                if channel.address.policy == "refuse":
                    self._end(entry, self._refusal(channel))
                else:
                    channel.ask_room(self._move)
                    return
            else:
                self._retire(channel)

    def _go(self, entry: _Waiting, error: LoomError | None) -> None:
        """Lock held: `entry` is out of the line."""
        if not entry.is_gone:
            self._line.remove(entry)
            entry.error = error
            entry.is_gone = True
            if entry.waker >= 0:
                os.eventfd_write(entry.waker, 1)

    def _end(self, entry: _Waiting, error: LoomError) -> None:
        """`entry` cannot be sent: tell whoever can still be told."""
        with self._lock:
            self._go(entry, error)
        if entry.reply is not None:
            if not entry.reply.is_done:
                self._fail(entry.reply, error)
        elif entry.waker < 0:
            log.debug("dead letter: %s.%s: %s", self.name, entry.header.name, error)
            one = letter(entry.header, self.name, f"could not be sent: {error.text}")
            self.links.report([msgspec.structs.replace(one, is_counted=isinstance(error, MailboxFull))])

    # --- which incarnation ---

    def _retire(self, channel: Channel) -> None:
        with self._lock:
            if self._channel is channel:
                self._channel = None
        channel.retire()  # out of the lock: callbacks may run, and call this very actor

    def _look_up(self) -> None:
        """Have the node say where to."""
        with self._lock:
            if self._lookup is not None:
                return
            lookup = self._lookup = self.links.new_ask("resolve")
            for entry in self._line:
                if entry.reply is not None:
                    entry.reply.channel = self.links.node
        self.links.send_ask(lookup, "resolve", self.name)
        lookup.add_done_callback(self._found)

    def _found(self, lookup: Reply) -> None:
        """The node's answer: send what waits, or end it with the node's error."""
        error = lookup.error
        if error is None:
            try:
                self._channel = self._connect(lookup)
                if self._channel.address.name != self.name:  # a pool's member: the next messages go by its routing
                    self.links.learn_pool(self.name)
            except (OSError, zmq.ZMQError) as problem:
                error = StartFailed(f"no connection to actor {self.name!r} can be opened: {problem}")
        with self._lock:
            self._lookup = None
            stranded = list(self._line) if error is not None else []
        for entry in stranded:
            assert isinstance(error, LoomError)
            self._end(entry, error)
        self._move()

    def _connect(self, lookup: Reply) -> Channel:
        self.links.bury_dead()
        channel = Channel(self.links, msgspec.convert(lookup.result(), Address), self)
        for loop in self.links.node.loops():  # coroutines may be waiting for what is about to move there
            loop.call_soon_threadsafe(channel.watch, loop)
        return channel

    # --- what an incarnation left ---

    def expect(self) -> None:
        """What an incarnation had not begun is about to come back by `inherit`: nothing overtakes it."""
        with self._lock:
            self._inheritances += 1

    def inherit(self, left: list[tuple[Sent, Reply | None]]) -> None:
        """Put messages that a dead incarnation had not begun at the head of the line, in their order."""
        with self._lock:
            self._inheritances -= 1
            for sent, reply in reversed(left):
                assert sent.body is not None
                self._line.appendleft(_Waiting(sent.header, sent.body, reply, -1))
        self._move()
        if self._line and running_loop() is None:
            # Whoever sent these has gone on, and nobody may be reading for a while.
            threading.Thread(target=self._see_off, name=f"loom: to {self.name}", daemon=True).start()

    def _see_off(self) -> None:
        """Read until nothing stands in line any more."""
        while self._line and not self.links.node.dead:
            channel = self._channel or self.links.node
            channel.sleep(monotonic() + ROOM_S)
            self._move()

    def abandon(self) -> None:
        """After a fork, in the child: see Channel.abandon."""
        self._lock = threading.Lock()
        self._moving = threading.Lock()
