"""Mailbox: the socket that an actor's messages arrive on, and its answers leave by.

A ROUTER socket bound to the incarnation's own file in the node's private folder. Senders connect to it directly. It
refuses to drop: an answer whose receiver is gone is an error here (mandatory routing), one whose receiver is full
waits, and so do later ones for the same receiver, and for no other. How much may come in is the gate's business
(gate.py); only senders that know of none are held back by ZeroMQ's queues, when the actor stops reading.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import zmq

from loom.actor import sockets
from loom.telemetry import log
from loom.wire.frames import MAX_FRAME_BYTES

HIGH_WATER_MARK = 4096
"""Messages ZeroMQ may hold for one peer and direction."""

UNSENT = 65536
"""Answers that may wait for one peer that does not read; further ones for that peer are dead letters."""


class Mailbox:
    """The receiving end of one incarnation."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        """Bind. Raises: zmq.ZMQError when the endpoint cannot be bound."""
        socket: zmq.Socket[Any] = context.socket(zmq.ROUTER)
        socket.set(zmq.LINGER, 1000)
        socket.set(zmq.SNDHWM, 4 * HIGH_WATER_MARK)
        socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.bind(endpoint)
        self._socket = socket
        self.fd = int(socket.get(zmq.FD))
        self.unsent = 0
        """How many answers wait for room."""
        self._queues: dict[bytes, deque[list[Any]]] = {}

    def receive(self, *, expected: bool = False) -> list[bytes] | None:
        """One message with its route in front, None when there is none now. `expected`: see sockets.receive."""
        return sockets.receive(self._socket, expected=expected)

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
        try:
            sockets.send(self._socket, frames)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self) -> None:
        """Stop receiving; answers already handed over are still sent."""
        self._socket.close()
