"""Mailbox: where an actor's messages arrive, and its answers leave.

It has two entrances. Processes of this node come through the inbox, lanes in shared memory
(native/include/loom_ring.h); everybody else by a ROUTER socket, bound to the incarnation's own file in the node's
private folder. Neither drops: an answer whose receiver is gone is an error here, one whose receiver is full waits, and
so do later ones for the same receiver, and for no other. How much may come in is the gate's business (gate.py); only
senders that know of none are held back by ZeroMQ's queues, when the actor stops reading.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from loom import _native
from loom.actor import sockets
from loom.actor.line import bells_of, has_lanes, inbox_name
from loom.actor.spin import Spin
from loom.telemetry import log
from loom.wire.frames import MAX_FRAME_BYTES

HIGH_WATER_MARK = 4096
"""Messages ZeroMQ may hold for one peer and direction."""

UNSENT = 65536
"""Answers that may wait for one peer that does not read; further ones for that peer are dead letters."""

TURNS = 32
"""Messages from the inbox before the socket gets its turn, while both have some."""

_LANE_ROUTE_BYTES = 3
"""A route into a lane is so long; ZeroMQ's are five bytes."""


class Mailbox:
    """The receiving end of one incarnation."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, arena: str) -> None:
        """Bind. `arena`: whose participants have lanes, "" for none: everybody comes by the socket then.

        Raises: zmq.ZMQError when the endpoint cannot be bound.
        """
        socket: zmq.Socket[Any] = context.socket(zmq.ROUTER)
        socket.set(zmq.LINGER, 1000)
        socket.set(zmq.SNDHWM, 4 * HIGH_WATER_MARK)
        socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket = socket
        self._fd = int(socket.get(zmq.FD))
        self._is_touched = True  # the descriptor is edge-triggered: whoever touched the socket must look once more
        self._inbox: _native.Inbox | None = None
        self._spin = Spin()
        self._turns = 0
        self.unsent = 0
        """How many answers wait for room."""
        self._queues: dict[bytes, deque[list[Any]]] = {}
        try:
            if arena and has_lanes():
                self._inbox = _native.Inbox(inbox_name(arena, endpoint), bells_of(endpoint))
        except OSError as error:
            log.warning("no shared-memory inbox for %s, so there is the socket only: %s", endpoint, error)
        socket.bind(endpoint)

    def watch(self, loop: asyncio.AbstractEventLoop, on_news: Callable[[], None]) -> None:
        """Call `on_news` on `loop` whenever there may be a message."""

        def on_socket() -> None:
            self._is_touched = True
            on_news()

        def on_bell() -> None:
            if self._inbox is not None:
                self._inbox.wake()
            on_news()

        loop.add_reader(self._fd, on_socket)
        if self._inbox is not None:
            loop.add_reader(self._inbox.fd, on_bell)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call it no more."""
        loop.remove_reader(self._fd)
        if self._inbox is not None:
            loop.remove_reader(self._inbox.fd)

    def receive(self) -> list[bytes] | None:
        """One message with its route in front, None when there is none now."""
        if self._inbox is not None and not (self._is_touched and self._turns >= TURNS):
            parts = self._inbox.receive()
            if parts is not None:
                self._turns += 1
                return parts
        self._turns = 0
        if self._is_touched:
            parts = sockets.receive(self._socket)
            if parts is not None:
                return parts
            self._is_touched = False
            if self._inbox is not None:
                return self._inbox.receive()
        return None

    def rest(self) -> bool:
        """Whether there is nothing now, and what comes later will be told; looks for a moment before it says so."""
        if self._is_touched:
            return False
        inbox, spin = self._inbox, self._spin
        if inbox is None:
            return True
        if not spin.ns:
            spin.rested()
            return inbox.rest(0)
        rests = inbox.rest(spin.ns)
        spin.was(not rests)
        return rests

    def touch(self) -> None:
        """Look at the socket, too, the next time."""
        self._is_touched = True

    def send(self, frames: list[Any]) -> bool:
        """Send one answer, route in front; False when its receiver is gone, or too many answers wait for it already."""
        peer = frames[0]
        queue = self._queues.get(peer) if self._queues else None
        if queue is None:
            is_sent = self._try(frames)
            if is_sent is not None:
                return is_sent
            queue = self._queues[peer] = deque()
        elif len(queue) >= UNSENT:
            return False
        queue.append(frames)
        self.unsent += 1
        return True

    def flush(self) -> None:
        """Try again what could not be sent, for each peer in order."""
        for peer, queue in list(self._queues.items()):
            while queue:
                is_sent = self._try(queue[0])
                if is_sent is None:
                    break
                if is_sent:
                    queue.popleft()
                    self.unsent -= 1
                else:
                    log.info("dead letters: %d answers found their caller gone", len(queue))
                    self.unsent -= len(queue)
                    queue.clear()
            if not queue:
                del self._queues[peer]

    def _try(self, frames: list[Any]) -> bool | None:
        """Whether the answer is on its way, or its receiver gone; None when there is no room for it now."""
        route = frames[0]
        if is_lane(route):
            if self._inbox is None:
                return False
            is_sent = self._inbox.answer(route, frames[1])
            return is_sent if is_sent is not None or self._inbox.reaches(route) else False
        self._is_touched = True
        try:
            sockets.send(self._socket, frames)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def reaches(self, frames: list[Any]) -> bool:
        """Whether the receiver of an answer can still be reached: `frames` are sent to see that, where need be."""
        if is_lane(frames[0]):
            return self._inbox is not None and self._inbox.reaches(frames[0])
        return self.send(frames)

    def close(self) -> None:
        """Stop receiving; answers already handed over are still sent."""
        self._socket.close()
        if self._inbox is not None:
            self._inbox.close()


def is_lane(route: bytes) -> bool:
    """Whether a route leads into a lane."""
    return len(route) == _LANE_ROUTE_BYTES


def participant_of(route: bytes) -> int:
    """Whose lane it is."""
    return route[1] << 8 | route[2]
