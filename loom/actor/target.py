"""Target: the route from this process to a name, whichever incarnation bears it now.

A message goes straight to the known incarnation. When there is none yet, or the board says that it is gone, the node
is asked for the current one; messages sent meanwhile wait here, in order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import zmq

from loom.actor.address import Address
from loom.actor.channel import Channel, running_loop
from loom.actor.reply import Reply
from loom.clock import monotonic
from loom.errors import LoomError, StartFailed
from loom.telemetry import log
from loom.wire import codec, envelope, frames
from loom.wire.envelope import Envelope

if TYPE_CHECKING:
    from loom.actor.links import Links


class Options(NamedTuple):
    """How to make one call. `timeout_s`: its deadline, from the moment of the call; `priority`: 0 (last) to 100."""

    timeout_s: float | None = None
    priority: int = 50


class _Waiting(NamedTuple):
    header: Envelope
    body: codec.Body
    reply: Reply | None


class Target:
    """Where messages to one name go. Shared by all references to that name in this process."""

    def __init__(self, links: Links, name: str) -> None:
        self.links = links
        self.name = name
        self._channel: Channel | None = None
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._lookup: Reply | None = None

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Reply:
        """Send a call. Raises: NotSendable (L1004), ArenaFull (L3003), MailboxFull (L2003)."""
        links = self.links
        body = codec.encode_call(args, kwargs)
        reply = Reply(links.next_id(), f"{self.name}.{method}")
        header = links.header(envelope.CALL, self.name, method, reply.id)
        if options.timeout_s is not None:
            reply.deadline = header.deadline = monotonic() + options.timeout_s
        header.priority = options.priority
        self._submit(header, body, reply)
        return reply

    def tell(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> None:
        """Send a message that has no reply. Raises: as `call`; ActorDied (L2001), ActorNotFound (L1003)."""
        links = self.links
        body = codec.encode_call(args, kwargs)
        header = links.header(envelope.TELL, self.name, method, links.next_id())
        if options.timeout_s is not None:
            header.deadline = monotonic() + options.timeout_s
        header.priority = options.priority
        self._submit(header, body, None)

    def _submit(self, header: Envelope, body: codec.Body, reply: Reply | None) -> None:
        channel = self._channel
        if channel is None or channel.dead or self._waiting or not self.links.is_current(channel.address):
            self._look_up(header, body, reply)
        else:
            channel.post(header, body, reply)

    def _look_up(self, header: Envelope, body: codec.Body, reply: Reply | None) -> None:
        """Queue the message and have the node say where to. A thread waits for that, a coroutine does not."""
        if body.buffers:
            body = body._replace(buffers=[self._kept(buffer) for buffer in body.buffers])
        with self._lock:
            old, self._channel = self._channel, None
            self._waiting.append(_Waiting(header, body, reply))
            if reply is not None:
                reply.channel = self.links.node
            lookup = self._lookup
            mine = lookup is None
            if lookup is None:
                lookup = self._lookup = self.links.new_ask("resolve")
        # Out of the lock: both of these may run callbacks, which may call this very actor.
        if old is not None:
            old.retire()
        if mine:
            self.links.send_ask(lookup, "resolve", self.name)
            lookup.add_done_callback(self._found)
        loop = running_loop()
        if loop is not None:
            self.links.node.watch(loop)
        else:
            self._wait_until_sent(lookup, reply)

    def _kept(self, buffer: Any) -> Any:
        """A buffer as it is now, whatever its owner does before it is sent: an arena array sealed, else a copy."""
        if self.links.arena is None or not self.links.arena.holds(buffer):
            return memoryview(buffer).tobytes("A")
        frames.seal(buffer)
        return buffer

    def _wait_until_sent(self, lookup: Reply, reply: Reply | None) -> None:
        """Read from the node until what waits here is sent, or the deadline of `reply` passes."""
        deadline = reply.deadline if reply is not None else 0.0
        while self._lookup is lookup and not (reply is not None and reply.is_done):
            if lookup.is_done or lookup.channel is None:
                time.sleep(0)  # another thread is sending what waits
            elif not lookup.channel.wait(lookup, deadline or None):
                return
        if reply is None and lookup.error is not None:
            raise lookup.error

    def _found(self, lookup: Reply) -> None:
        """The node's answer: send what waited, or end it with the node's error."""
        error = lookup.error
        if error is None:
            try:
                channel = self._connect(lookup)
            except (OSError, zmq.ZMQError) as problem:
                error = StartFailed(f"no connection to actor {self.name!r} can be opened: {problem}")
        while True:
            with self._lock:
                if not self._waiting:
                    self._lookup = None
                    if error is None:
                        self._channel = channel
                    return
                header, body, reply = self._waiting.popleft()
            if reply is not None and reply.is_done:
                continue
            try:
                if error is not None:
                    raise error
                channel.post(header, body, reply)
            except LoomError as problem:
                if reply is not None:
                    self.links.node.fail_all([reply], lambda _, problem=problem: problem)  # type: ignore[misc]
                else:
                    log.warning("dead letter: %s.%s: %s", self.name, header.name, problem)

    def _connect(self, lookup: Reply) -> Channel:
        self.links.bury_dead()
        channel = Channel(self.links, msgspec.convert(lookup.result(), Address))
        for loop in self.links.node.loops():  # coroutines may be waiting for what is about to move there
            loop.call_soon_threadsafe(channel.watch, loop)
        return channel

    def abandon(self) -> None:
        """After a fork, in the child: see Channel.abandon."""
        self._lock = threading.Lock()
