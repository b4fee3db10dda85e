"""Mailbox: the socket that an actor's messages arrive on, and its answers leave by.

A ROUTER socket bound to the incarnation's own file in the node's private folder. Senders connect to it directly. It
refuses to drop: an answer whose receiver is gone is an error here (mandatory routing), one whose receiver is full
waits in `unsent`, and reading stops while the actor has more than it can hold, so that its senders wait too.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import zmq

from loom.actor import sockets

HIGH_WATER_MARK = 4096
"""Messages ZeroMQ may hold for one peer and direction."""

UNSENT = 65536
"""Answers that may wait for peers that do not read; the oldest is a dead letter beyond that."""

MAX_FRAME_BYTES = 2**31
"""A longer frame ends its sender's connection."""


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
        self.unsent: deque[list[Any]] = deque()

    def receive(self, *, expected: bool = False) -> list[bytes] | None:
        """One message with its route in front, None when there is none now. `expected`: see sockets.receive."""
        return sockets.receive(self._socket, expected=expected)

    def send(self, frames: list[Any]) -> bool:
        """Send one answer, route in front; False when its receiver is gone, or it displaced an older one."""
        try:
            sockets.send(self._socket, frames)
        except zmq.Again:
            self.unsent.append(frames)
            if len(self.unsent) > UNSENT:
                self.unsent.popleft()
                return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def flush(self) -> int:
        """Try again what could not be sent; the number of answers whose receiver is gone."""
        lost = 0
        for _ in range(len(self.unsent)):
            lost += not self.send(self.unsent.popleft())
        return lost

    def close(self) -> None:
        """Stop receiving; answers already handed over are still sent."""
        self._socket.close()
