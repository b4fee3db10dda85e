"""Links: all that one process needs to talk to the actors of one node.

The ZeroMQ context, the arena, the status board, the channel to the node itself, and one channel for each actor that
this process has called. A client has one; an actor's process has one; nothing here is shared between processes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from loom.actor import board as rows
from loom.actor.address import Address, start_time_of
from loom.actor.board import Board
from loom.actor.channel import LINGER_MS, Channel, running_loop
from loom.actor.dead_letter import KEPT, DeadLetter
from loom.actor.pump import Pump
from loom.actor.reply import Reply
from loom.actor.target import Target
from loom.arena import Arena, forget
from loom.clock import monotonic
from loom.errors import LoomError
from loom.telemetry import log
from loom.wire import codec, envelope
from loom.wire.envelope import Envelope

_by_endpoint: weakref.WeakValueDictionary[str, Links] = weakref.WeakValueDictionary()
_all: weakref.WeakSet[Links] = weakref.WeakSet()
_factory: list[Callable[[str], Links]] = []

MAX_SOCKETS = 4096
"""Actors that one process can be connected to; ZeroMQ's own limit is 1023."""

COLLECT_EVERY_S = 1.0
COLLECT_FOR_S = 60.0


class _Waker:
    """An eventfd that lives as long as its thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self.fd)


class Links:
    """This process's connections to one node.

    `arena` and `board` may be None for a peer that only exchanges messages. `owner` is the name under which this
    process sends: an actor's name, or "" for a client.
    """

    def __init__(self, node: Address, arena: Arena | None, board: Board | None, owner: str = "") -> None:
        self.context = zmq.Context(io_threads=1)
        self.context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        self.arena = arena
        self.board = board
        self.owner = owner
        self.pid, self.start_time = os.getpid(), start_time_of()
        self.why_down: Callable[[], str] = lambda: ""
        self.participant = -1 if arena is None else arena.participant
        # Ids stay below 2**53, the largest integer that every language's MessagePack reads exactly.
        self._id_base = secrets.randbits(20) << 32
        self._counter = itertools.count(1)
        self._local = threading.local()
        self._targets: dict[str, Target] = {}
        self._words = None if board is None else board.words
        self._is_abandoned = False
        self._is_collecting = False
        self._collect_until = 0.0
        self.has_sent = False
        self.pump = Pump()
        self.channels: set[Channel] = set()
        """Every open channel, those of dead incarnations that nobody reads included."""
        self.node = Channel(self, node)
        _by_endpoint.setdefault(node.endpoint, self)
        _all.add(self)

    def next_id(self) -> int:
        """A message id that is unique among those of this process and, nearly, of the node."""
        return self._id_base + next(self._counter)

    def collect_soon(self) -> None:
        """References were sent: the blocks behind them are free once their receivers let go and we have looked.

        An event loop looks once a second, while any is in flight or spilled and for a while longer; a thread looks when
        it has a reply.
        """
        self.has_sent = True
        self._collect_until = monotonic() + COLLECT_FOR_S
        loop = running_loop()
        if loop is not None and not self._is_collecting:
            self._is_collecting = True
            loop.call_later(COLLECT_EVERY_S, self._collect_again, loop)

    def _collect_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_abandoned:
            self.collect()
        self._is_collecting = (self.has_sent or monotonic() < self._collect_until) and not self._is_abandoned
        if self._is_collecting:
            loop.call_later(COLLECT_EVERY_S, self._collect_again, loop)

    def collect(self) -> None:
        """Take back what the receivers of our references have let go of."""
        self.has_sent = self.arena is not None and not self.context.closed and self.arena.collect() > 0

    def waker(self) -> int:
        """This thread's eventfd; other threads write to it to end this one's sleep."""
        waker: _Waker | None = getattr(self._local, "waker", None)
        if waker is None:
            waker = self._local.waker = _Waker()
        return waker.fd

    def target(self, name: str) -> Target:
        """The route to whichever incarnation of `name` lives now."""
        target = self._targets.get(name)
        if target is None:
            target = self._targets.setdefault(name, Target(self, name))
        return target

    def is_current(self, address: Address) -> bool:
        """Whether that incarnation is the one the node last knew of. Costs three reads of shared memory."""
        if self._words is None or address.row < 0:
            return True
        at = address.row * rows.WORDS
        return (
            self._words[at + rows.INCARNATION] == address.incarnation
            and self._words[at + rows.PID] == address.pid  # the row may have gone to another actor
            and self._words[at + rows.STATE] != rows.DOWN
        )

    def ask_node(self, verb: str, *args: Any) -> Reply:
        """Call one of the node's own verbs."""
        reply = self.new_ask(verb)
        self.send_ask(reply, verb, *args)
        return reply

    def new_ask(self, verb: str) -> Reply:
        """The reply of a call to the node that is yet to be sent."""
        reply = Reply(self.next_id(), f"the node's {verb!r}")
        reply.channel = self.node
        return reply

    def send_ask(self, reply: Reply, verb: str, *args: Any) -> None:
        """Send the call to the node that `reply` is for."""
        header = self.header(envelope.CALL, "node", verb, reply.id)
        self.node.post(header, codec.encode_call(args, {}), reply)

    def unfinished(self) -> int:
        """What this process has yet to send to other actors, or to hear from them; not from the node."""
        return sum(channel.unfinished for channel in list(self.channels) if channel is not self.node)

    def bury_dead(self) -> None:
        """Close the channels of actors that are gone and that nobody reads from."""
        for channel in list(self.channels):
            channel.look()

    def header(self, kind: str, to: str, name: str, message_id: int) -> Envelope:
        """A header with what is the same for all messages of this process filled in."""
        return Envelope(
            message_id,
            kind,
            to=to,
            sender=self.owner,
            name=name,
            accept=envelope.PICKLE,
            participant=self.participant,
        )

    def is_in_loop(self) -> bool:
        """Whether this thread is running an event loop, and so must not wait."""
        return running_loop() is not None

    def watch_node(self) -> None:
        """Have this thread's event loop read what the node says."""
        loop = running_loop()
        if loop is not None:
            self.node.watch(loop)

    def learn_pool(self, name: str) -> Reply:
        """Ask the node for the members of a pool, which is what the name is from now on."""
        from loom.actor.pool import Members, Pool  # for those who talk to one

        def learn(asking: Reply) -> None:
            if asking.error is None:
                target, members = self.target(name), msgspec.convert(asking.result(), Members)
                if target.pool is None:
                    target.pool = Pool(self, name, members)
                target.pool.members = members

        asking = self.ask_node("pool", name)
        asking.add_done_callback(learn)
        return asking

    def report(self, letters: list[DeadLetter]) -> None:
        """Have the node keep these dead letters."""
        if not letters or self.node.dead or self._is_abandoned:
            return
        header = self.header(envelope.TELL, "node", "bury", self.next_id())
        body = codec.encode_call(([msgspec.structs.astuple(one) for one in letters[-KEPT:]],), {})
        try:
            self.node.post(header, body, None)
        except LoomError as error:  # the node is down, and its dead letters with it
            log.debug("%d dead letters could not be reported: %s", len(letters), error)

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close every channel and wait, at most `linger_ms`, until what was sent is on its way."""
        if self._is_abandoned:
            return
        for channel in list(self.channels):
            if channel is not self.node:
                channel.close(linger_ms)
        self.node.close(linger_ms)
        self.context.term()
        if _by_endpoint.get(self.node.address.endpoint) is self:
            del _by_endpoint[self.node.address.endpoint]
        forget(self.arena)

    def abandon(self) -> None:
        """After a fork, in the child: the sockets are the parent's, and every call through them ends as NodeDown."""
        self._is_abandoned = True
        self.pump.abandon()
        self.why_down = lambda: "this connection belongs to the process that forked this one; call loom.connect() anew"
        for channel in self.channels:
            channel.abandon()
        for target in self._targets.values():
            target.abandon()


def _abandon_all() -> None:
    for links in list(_all):
        links.abandon()
    _by_endpoint.clear()


os.register_at_fork(after_in_child=_abandon_all)


def of(endpoint: str) -> Links:
    """This process's links to the node at `endpoint`, connecting to it when there are none."""
    links = _by_endpoint.get(endpoint)
    return links if links is not None else _factory[0](endpoint)


def set_factory(connect: Callable[[str], Links]) -> None:
    """Tell `of` how to connect to a node (the node layer's business)."""
    _factory[:] = [connect]
