"""Multipart messages over ZeroMQ, without the convenience layer.

pyzmq's Python-level `Socket` turns every option and flag into an enum, which costs more than the system calls of a
small message. These functions call the compiled base class that it is built on; the sockets are ordinary ones.
"""

from __future__ import annotations

from typing import Any

import zmq
from zmq.backend import Socket as _Socket

_EVENTS = int(zmq.EVENTS)
_RCVMORE = int(zmq.RCVMORE)
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE_NOBLOCK = int(zmq.SNDMORE) | _NOBLOCK
_POLLIN = int(zmq.POLLIN)

_get: Any = _Socket.get
_send: Any = _Socket.send
_recv: Any = _Socket.recv


def receive(socket: zmq.Socket[Any], *, expected: bool = False) -> list[bytes] | None:
    """One whole message, None when there is none now.

    `expected`: the descriptor says that there is one. Then it is simply taken; otherwise the socket is asked first,
    which costs several system calls, but less than the exception of a vain attempt.
    """
    if expected:
        try:
            parts = [_recv(socket, _NOBLOCK)]
        except zmq.Again:
            return None
    elif _get(socket, _EVENTS) & _POLLIN:
        parts = [_recv(socket, _NOBLOCK)]
    else:
        return None
    while _get(socket, _RCVMORE):
        parts.append(_recv(socket, _NOBLOCK))
    return parts


def send(socket: zmq.Socket[Any], parts: list[Any]) -> None:
    """Send one whole message, or none of it.

    Raises: zmq.Again when there is no room; zmq.ZMQError with EHOSTUNREACH when a mandatory route leads nowhere.
    """
    for part in parts[:-1]:
        _send(socket, part, _SNDMORE_NOBLOCK)
    _send(socket, parts[-1], _NOBLOCK)
