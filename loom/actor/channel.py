"""Channel: this process's link to one incarnation of an actor, and the asks that are pending on it.

One line, straight to the actor's mailbox (line.py); one pidfd, so that its death is known the moment the kernel knows
it. Any thread may use a channel: the line is touched under a lock only, and waiting happens on the file descriptors,
outside the lock.

A socket's descriptor is edge-triggered: any operation may swallow the edge. A lane's bell is rung once for all who
sleep by it. Hence the rule throughout: whoever touched the line drains it before letting go of the lock, wakes the
threads whose replies it found, and has the bell ring again for those that still sleep.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loom.actor.address import Address, open_pidfd
from loom.actor.backlog import DEFAULT_PRIORITY
from loom.actor.board import OPEN, STALE
from loom.actor.gate import Gate
from loom.actor.line import RECORD_MAX, Line, open_line
from loom.actor.lost import settle
from loom.actor.reply import Reply
from loom.clock import monotonic, wall
from loom.errors import (
    ActorDied,
    CallTimeout,
    LoomError,
    MailboxFull,
    NodeDown,
    NotSendable,
    ProtocolError,
    StaleReference,
    UsageError,
)
from loom.telemetry import log
from loom.wire import codec, envelope, failures, frames
from loom.wire.envelope import NIL, Envelope

if TYPE_CHECKING:
    from loom.actor.links import Links
    from loom.actor.target import Target

HIGH_WATER_MARK = 4096
"""Messages ZeroMQ may hold for one direction of a link without a gate, before the sender has to wait."""

OUTBOX = 100_000
"""Messages a coroutine may leave waiting on such a link before it is refused with MailboxFull."""

ROOM_S = 0.001
"""How often a thread looks for room: ZeroMQ's descriptor does not always tell of it."""

LINGER_MS = 1000
"""How long a closing connection may take to get rid of what was sent on it."""


class Channel:
    """A link to one incarnation. `dead` turns True when the process is gone or the link closed, and never back."""

    def __init__(self, links: Links, address: Address, heir: Target | None = None) -> None:
        """Connect. A peer that is gone already makes no error: the channel is `dead` from the start.

        `heir` is given what the incarnation leaves unbegun, when its mailbox says so.
        """
        self.address = address
        self.heir = heir
        self.gate = Gate.open(links.board, address, links.pid, links.start_time)
        self._links = links
        self._arena = links.arena
        self._lock = threading.Lock()
        self._pending: dict[int, Reply] = {}
        self._outbox: deque[list[Any]] = deque()
        self._streams: dict[int, weakref.ref[Reply]] = {}
        self._dropped: deque[int] = deque()
        self._callbacks: deque[tuple[Callable[[Any], None], Reply | None]] = deque()
        self._on_room: Callable[[object], None] | None = None
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._pollers = threading.local()
        self._pidfd = open_pidfd(address.pid, address.start_time)
        self.dead = self._pidfd is None
        self.is_ordered = True
        """Whether all messages had the same priority, so that they begin in the order they were sent."""
        self._sleepers = 0
        self._line: Line | None = None
        self._fd = -1
        if self.dead:
            if self.gate is not None:
                self.gate.close()
        else:
            mark = HIGH_WATER_MARK if self.gate is None else 0  # the gate is the bound
            # The node is asked rarely, and by everybody: a lane for each would only take memory.
            arena = links.arena.name if links.arena is not None and heir is not None else ""
            self._line = open_line(links.context, arena, links.participant, address.endpoint, mark)
            self._fd = self._line.fd
            links.channels.add(self)

    # --- sending ---

    def post(self, header: Envelope, body: codec.Body, reply: Reply | None) -> int:
        """Hand one message over; `reply` is told how it ends, None for a message without a reply.

        Returns: OPEN when the mailbox has let it in; FULL when it has no room; STALE when that incarnation is gone.
        Raises: NotSendable (L1004), ArenaFull (L3003); MailboxFull (L2003) when a coroutine overruns a mailbox that has
        no gate; NodeDown (L2008) when it is the node that is gone, and there is no reply to tell it to.
        """
        gate = self.gate
        if gate is None or header.kind == envelope.PING:
            return self._post_ungated(header, body, reply)
        header.timestamp = wall()
        header.ticket = gate.ticket
        parts = self._pack(header, body)
        overflows = False
        with self._lock:
            code = STALE if parts is None or self.dead else gate.admit()
            if parts is not None and code == OPEN:
                if header.priority != DEFAULT_PRIORITY:
                    self.is_ordered = False
                if reply is not None:
                    reply.channel = self
                    self._pending[header.id] = reply
                    if reply.wakers:  # it stood in line, and somebody waits for it elsewhere
                        self._wake(reply)
                gate.remember(header, body)
                self._send(parts)
                overflows = bool(self._outbox)
                if len(self._pending) > (reply is not None) or self._loops or self._streams:
                    self._drain()  # somebody else may be waiting for the edge that this swallowed
        if header.buffers:
            if code == OPEN:
                self._links.collect_soon()
            else:
                frames.recall(header.buffers, self._arena)
        if overflows:
            self._links.pump.add(self)
        if self._callbacks:
            self._run_callbacks()
        return code

    def _post_ungated(self, header: Envelope, body: codec.Body, reply: Reply | None) -> int:
        """As `post`, with no more than ZeroMQ's own bounds."""
        if not self._links.is_current(self.address):
            return STALE
        if len(self._outbox) >= OUTBOX and running_loop() is not None:
            text = f"{len(self._outbox)} messages wait for actor {self.address.name!r}: await some replies first"
            raise MailboxFull(text)
        header.timestamp = wall()
        if header.priority != DEFAULT_PRIORITY:
            self.is_ordered = False
        parts = self._pack(header, body)
        with self._lock:
            refused = self.dead or parts is None
            if parts is not None and not refused:
                if reply is not None:
                    reply.channel = self
                    self._pending[header.id] = reply
                self._send(parts)
                if len(self._pending) > (reply is not None) or self._loops:
                    self._drain()
        if refused:
            frames.recall(header.buffers, self._arena)
            if self.heir is not None:
                return STALE
            if reply is None:
                raise NodeDown("the node is down, and takes no message")
            settle(self._links, self, [reply], was_sent=False)
            return OPEN
        if header.buffers:
            self._links.collect_soon()
        if self._callbacks:
            self._run_callbacks()
        if self._outbox:
            self._wait_for_room()
        return OPEN

    def ask_room(self, callback: Callable[[object], None]) -> None:
        """Call `callback(None)` when the mailbox, which was full, has room again, or the actor has died."""
        with self._lock:
            is_asked = self._on_room is not None
            self._on_room = callback
            if not self.dead and not is_asked:
                self._send([envelope.encode(Envelope(self._links.next_id(), envelope.ROOM, body=NIL))])
                self._drain()
            overflows = bool(self._outbox)
        if overflows:
            self._links.pump.add(self)
        self._run_callbacks()

    def _pack(self, header: Envelope, body: codec.Body) -> list[Any] | None:
        """The frames of a message; None when the actor died meanwhile and left the arena.

        Its participant number may have gone to its successor while arrays were copied: then the references would be
        made out to somebody who never hears of them. The board is written before the number is given up.
        """
        if header.buffers:  # packed before, for another incarnation, or when there was no room
            header.buffers, header.bulk_body = (), False
        try:
            is_whole = self._line is not None and self._line.is_whole
            parts = frames.pack(header, body, self._arena, self.address.participant, is_whole=is_whole)
        except StaleReference:
            return None
        if is_whole and len(parts[0]) > RECORD_MAX:
            frames.recall(header.buffers, self._arena)
            raise NotSendable(f"a header of {len(parts[0])} bytes, the most is {RECORD_MAX}: shorten its fields")
        return parts if not header.buffers or self._links.is_current(self.address) else None

    def credit(self, reply: Reply, count: int) -> None:
        """Let the stream behind `reply` send `count` more items."""
        self._control(Envelope(self._links.next_id(), envelope.CREDIT, correlation_id=reply.id, credit=count))

    def cancel(self, reply: Reply, kill_after_s: float | None = None) -> None:
        """Tell the actor to stop working on `reply`, which is forgotten, unless there is a time to kill it after."""
        with self._lock:
            is_sent = reply.id in self._pending
        if kill_after_s is not None and is_sent:
            self._tell_to_stop(reply.id, kill_after_s)
        elif self._give_up(reply, CallTimeout(f"the call to {reply.what} was cancelled by its caller")):
            self._tell_to_stop(reply.id, None)

    def expire(self, reply: Reply) -> None:
        """The deadline of `reply` has passed: it ends as CallTimeout, a later answer is discarded."""
        error = CallTimeout(f"no reply from {reply.what} before its deadline; the call may still run")
        if self._give_up(reply, error):
            self._tell_to_stop(reply.id, reply.kill_after_s)

    def _tell_to_stop(self, call_id: int, kill_after_s: float | None) -> None:
        """A handler that awaits hears of it in its own process; what is stuck there, only the node can end."""
        header = Envelope(self._links.next_id(), envelope.CANCEL, correlation_id=call_id)
        if kill_after_s is not None and self is not self._links.node:
            header.deadline = monotonic() + kill_after_s
            address = self.address
            self._links.ask_node("kill_call", address.name, address.incarnation, call_id, kill_after_s)
        self._control(header)

    def _control(self, header: Envelope) -> None:
        header.body = NIL
        with self._lock:
            if not self.dead:
                self._send([envelope.encode(header)])
                self._drain()
            overflows = bool(self._outbox)
        if overflows:
            self._links.pump.add(self)
        self._run_callbacks()

    def _give_up(self, reply: Reply, error: LoomError) -> bool:
        with self._lock:
            if reply.is_done:
                return False
            self._pending.pop(reply.id, None)
            self._streams.pop(reply.id, None)
            reply.fail(error)
            self._announce(reply)
        self._run_callbacks()
        return True

    def _send(self, parts: list[Any]) -> None:
        """Lock held: send, or leave it in the outbox when the actor is behind."""
        assert self._line is not None
        if self._outbox or not self._line.send(parts):
            self._outbox.append(parts)

    def _wait_for_room(self) -> None:
        """The outbox is not empty: a thread waits until it is, a coroutine leaves that to its event loop."""
        loop = running_loop()
        if loop is not None:
            self.watch(loop)
            return
        self._flush(None)

    def _flush(self, until: float | None) -> None:
        """Wait until the outbox is empty, the actor dead, or `until` (monotonic seconds) has passed."""
        while self._outbox and not self.dead and (until is None or monotonic() < until):
            self._sleep(ROOM_S, self._links.waker())
            with self._lock:
                if not self.dead:
                    self._drain()
            self._run_callbacks()

    # --- receiving ---

    def wait(self, reply: Reply, until: float | None) -> bool:
        """Read until there is news for `reply`, or it moved to another channel; False when `until` passed first."""
        waker = self._links.waker()
        if self.address.name == self._links.owner:
            name = self.address.name
            raise UsageError(f"actor {name!r} waits for itself, which never ends: use 'await' in an async handler")
        readable = False
        while True:
            with self._lock:
                reply.wakers.discard(waker)
                if not self.dead:
                    self._drain(expected=readable)
                if not self._callbacks:
                    if reply.is_done or reply.has_items or reply.channel is not self:
                        break
                    reply.wakers.add(waker)
                    if reply.channel is not self:  # moved in this very moment, by somebody who saw no waker
                        break
            if self._callbacks:
                self._run_callbacks()  # these may settle this very reply
                continue
            if self._line is not None and not self.dead and self._line.spin():
                continue
            timeout_s = None if until is None else until - monotonic()
            if timeout_s is not None and timeout_s <= 0:
                reply.wakers.discard(waker)
                return False
            readable = self._sleep(timeout_s, waker)
        reply.wakers.discard(waker)
        if self._links.has_sent:
            self._links.collect()
        return True

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `loop` read this channel from now on."""
        with self._lock:
            if self._pidfd is not None and loop not in self._loops:
                self._loops.add(loop)
                loop.add_reader(self._fd, self._on_readable)
                loop.add_reader(self._pidfd, self._on_readable)
        loop.call_soon(self._on_readable)  # the edge may have been swallowed before

    def _on_readable(self) -> None:
        with self._lock:
            if not self.dead and self._line is not None:
                self._line.wake()
                self._drain()
        if not self.dead and self._exited():
            self._bury()
        self._run_callbacks()

    @property
    def unfinished(self) -> int:
        """Asks without an answer, and messages that wait for room."""
        return len(self._pending) + len(self._outbox)

    def _exited(self) -> bool:
        if self._pidfd is None:
            return False
        poll = select.poll()  # not select(): descriptors above 1023 would be too much for it
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def sleep(self, until: float) -> None:
        """Read what comes, until something has come or `until` (monotonic seconds) has passed."""
        with self._lock:
            if not self.dead:
                self._drain()  # sending may have swallowed the edge of what has come already
        if self._callbacks:
            self._run_callbacks()
            return
        self._sleep(max(0.0, until - monotonic()), self._links.waker())
        with self._lock:
            if not self.dead:
                self._drain()
        self._run_callbacks()

    def _sleep(self, timeout_s: float | None, waker: int) -> bool:
        """Wait on the descriptors, without the lock, until one is readable or the time is over.

        Returns: whether it is the socket that is readable.
        """
        poll: select.poll | None = getattr(self._pollers, "poll", None)
        with self._lock:
            if poll is None or self.dead:
                poll = select.poll()
                poll.register(waker, select.POLLIN)
                if not self.dead and self._pidfd is not None:
                    poll.register(self._fd, select.POLLIN)
                    poll.register(self._pidfd, select.POLLIN)
                    self._pollers.poll = poll
            self._sleepers += 1
            is_awake = not self.dead and self._line is not None and not self._line.rest()
        readable = False
        try:
            for fd, _ in poll.poll(0 if is_awake else None if timeout_s is None else timeout_s * 1000 + 0.5):
                if fd == self._fd:
                    readable = True
                elif fd == waker:
                    os.eventfd_read(fd)
                elif fd == self._pidfd:
                    self._bury()
        finally:  # a signal's handler may raise
            with self._lock:
                self._sleepers -= 1
                if readable and not self.dead and self._line is not None:
                    self._line.wake()
        return readable

    def _drain(self, *, expected: bool = False) -> None:
        """Lock held: read all there is that anybody waits for, then send what waits."""
        line = self._line
        assert line is not None
        if self._dropped:
            self._end_dropped()
        while True:
            try:
                parts = line.receive(expected=expected)
            except ProtocolError as error:  # whatever comes after that cannot be read either
                self._fail_pending(error)
                return
            expected = False
            if parts is not None:
                self._receive(parts)
                if not (self._pending or self._outbox or self._streams or line.is_whole) and self._on_room is None:
                    return
            elif self._outbox and line.send(self._outbox[0]):
                self._outbox.popleft()
            elif not (self._sleepers or self._loops) or line.rest():
                return

    def _fail_pending(self, error: LoomError) -> None:
        """Lock held: nothing more can be understood of what this actor answers."""
        log.error("from actor %r: %s", self.address.name, error)
        pending = [*self._pending.values(), *(one for ref in self._streams.values() if (one := ref()) is not None)]
        self._pending.clear()
        self._streams.clear()
        for reply in pending:
            reply.fail(error)
            self._announce(reply)

    def pump(self) -> bool:
        """Send what waits, as far as there is room; whether nothing waits any more."""
        with self._lock:
            if self.dead or self._line is None:
                return True
            self._line.wake()
            self._drain()
            is_done = not self._outbox
            if not is_done:
                self._line.rest()
        self._run_callbacks()
        return is_done

    def register(self, poll: select.poll) -> None:
        """Have `poll` tell when there may be room, or the actor has died."""
        with self._lock:
            if not self.dead and self._pidfd is not None:
                poll.register(self._fd, select.POLLIN)
                poll.register(self._pidfd, select.POLLIN)

    def _receive(self, parts: list[bytes]) -> None:
        """Lock held: one message from the actor."""
        try:
            header = envelope.decode(parts[0])
        except LoomError as error:
            log.warning("from actor %r: %s", self.address.name, error)
            return
        reply = self._pending.get(header.correlation_id)
        if reply is None and self._streams:
            stream = self._streams.get(header.correlation_id)
            reply = stream() if stream is not None else None
        if reply is None:  # late, or never ours
            if header.kind == envelope.ROOM and self._on_room is not None:
                self._callbacks.append((self._on_room, None))
                self._on_room = None
                return
            frames.discard(header, self._arena)
            return
        try:
            value = frames.read(header, parts[1:], self._arena)
        except LoomError as error:
            reply.fail(error)
        else:
            if header.kind == envelope.REPLY:
                reply.resolve(value)
            elif header.kind == envelope.ITEM:
                reply.push(value)
            elif header.kind == envelope.END:
                reply.end()
            elif header.kind == envelope.ERROR:
                reply.fail(failures.from_wire(value, self.address.name))
            else:
                log.warning("from actor %r: a %r message is no answer", self.address.name, header.kind)
                return
        if reply.is_done:
            self._pending.pop(reply.id, None)
            self._streams.pop(reply.id, None)
        elif reply.id in self._pending and not reply.callbacks:  # a stream is kept by whoever reads it
            del self._pending[reply.id]
            self._streams[reply.id] = weakref.ref(reply, self._forsaken(reply.id))
        if reply.wakers or reply.callbacks:
            self._announce(reply)

    def _forsaken(self, call_id: int) -> Callable[[object], None]:
        """What is called, at any moment, when nobody holds the Reply of a stream any more: it is to end."""

        def forsake(_: object) -> None:
            self._dropped.append(call_id)
            if self._lock.acquire(blocking=False):  # else whoever has it will see
                try:
                    self._end_dropped()
                finally:
                    self._lock.release()

        return forsake

    def _end_dropped(self) -> None:
        """Lock held: tell the actor to end the streams that nobody holds any more."""
        while self._dropped:
            call_id = self._dropped.popleft()
            if self._streams.pop(call_id, None) is not None and not self.dead:
                header = Envelope(self._links.next_id(), envelope.CANCEL, correlation_id=call_id, body=NIL)
                self._send([envelope.encode(header)])

    def _announce(self, reply: Reply) -> None:
        """Lock held: wake the threads that wait for `reply`, and queue its callbacks."""
        if reply.wakers:
            self._wake(reply)
        if reply.callbacks:
            self._callbacks.extend((callback, reply) for callback in reply.callbacks)
            reply.callbacks = []

    def _wake(self, reply: Reply) -> None:
        """Wake the other threads that wait for `reply`."""
        own = self._links.waker()
        for waker in list(reply.wakers):
            if waker != own:
                os.eventfd_write(waker, 1)

    def _run_callbacks(self) -> None:
        while self._callbacks:
            try:
                callback, reply = self._callbacks.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                callback(reply)
            except Exception as error:  # it is nobody's here: neither the reader's nor the next callback's
                log.error("a callback of %r raised:\n%s", reply, failures.traceback_of(error))

    def on_news(self, reply: Reply, callback: Callable[[Reply], None]) -> None:
        """Call `callback(reply)` at the next news for `reply`: at once when there is some."""
        with self._lock:
            if not reply.is_done and not reply.has_items:
                reply.callbacks.append(callback)
                return
        callback(reply)

    # --- the end ---

    def _bury(self) -> None:
        """The process is gone: read its last words, then ask the node why, for those who still wait."""
        gate, heir = self.gate, self.heir
        bequeaths = gate is not None and gate.keeps and heir is not None
        if bequeaths and heir is not None:
            heir.expect()  # before anybody can notice that this channel is dead
        orphans = self._shut(heir=self._links.node, linger_ms=0)
        if orphans is not None and (orphans or (gate is not None and not gate.is_settled)):
            settle(self._links, self, orphans)
        elif bequeaths and heir is not None:  # nothing is left, or another thread was faster
            heir.inherit([])
        self._run_callbacks()

    def _shut(self, heir: Channel, linger_ms: int) -> list[Reply] | None:
        """Close the socket. The replies that were pending are returned, and wait on `heir` from now on.

        None when that was done before.
        """
        with self._lock:
            if self.dead:
                return None
            self._drain()
            self.dead = True
            orphans = [*self._pending.values(), *(one for ref in self._streams.values() if (one := ref()) is not None)]
            self._pending.clear()
            self._streams.clear()
            if self._outbox:
                log.warning("dead letters: %d messages to %r were never sent", len(self._outbox), self.address.name)
                self._outbox.clear()
            self._links.channels.discard(self)
            if self._on_room is not None:
                self._callbacks.append((self._on_room, None))
            for reply in orphans:
                reply.channel = heir
                self._wake(reply)
            pidfd, self._pidfd = self._pidfd, None
            if pidfd is not None:
                for loop in self.loops():
                    loop.remove_reader(self._fd)
                    loop.remove_reader(pidfd)
                os.close(pidfd)
            if self._line is not None:
                self._line.close(linger_ms)
            return orphans

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """The event loops that read this channel."""
        return [loop for loop in self._loops if not loop.is_closed()]

    def abandon(self) -> None:
        """Never use this again, and touch nothing of it: it belongs to the process that this one was forked from."""
        self.dead = True
        self._lock = threading.Lock()
        self._pending.clear()
        self._streams.clear()
        self._outbox.clear()
        self.gate = None

    def __del__(self) -> None:
        # Retired with replies pending, and gone with the last of them.
        pidfd = getattr(self, "_pidfd", None)
        if pidfd is not None:
            os.close(pidfd)

    def fail_all(self, replies: list[Reply], error: Callable[[Reply], LoomError]) -> None:
        """End each of `replies` with its own error."""
        with self._lock:
            for reply in replies:
                if not reply.is_done:
                    reply.fail(error(reply))
                    self._announce(reply)
        self._run_callbacks()

    def retire(self) -> None:
        """The actor has a newer incarnation: nothing is sent here any more."""
        self.look()
        with self._lock:
            idle = not self._pending and not self._streams
        if idle:
            self.close()

    def look(self) -> None:
        """Notice the actor's death when nobody is reading here."""
        if not self.dead and self._exited():
            self._bury()

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Disconnect; messages handed over before get `linger_ms` to leave. Pending replies end as ActorDied."""
        if linger_ms and self._outbox:
            self._flush(monotonic() + linger_ms / 1000)
        orphans = self._shut(heir=self, linger_ms=linger_ms)
        if orphans is not None and self.gate is not None:
            self.gate.close()
        self.fail_all(orphans or [], lambda reply: ActorDied(f"the connection to {reply.what} was closed"))


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, None when there is none."""
    return asyncio._get_running_loop()
