"""What the rivals run in their own processes: multiprocessing, pyzmq and NumPy, and nothing of Loom.

NumPy and zmq are imported here whether a peer needs them or not, as they are in every actor: the fork server imports
this module once, and all its children share it.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq

IMPORTED_BY = os.getpid()
"""The process that imported this: the fork server, if preloading worked."""

ASK_COUNT = b"?"
"""The first frame of the message that asks `count_zmq` for its count."""


def echo_zmq(control: Connection, endpoint: str) -> None:
    """A ROUTER that sends every message back."""
    socket = _bound(control, zmq.ROUTER, endpoint)
    while True:
        socket.send_multipart(socket.recv_multipart())


def count_zmq(control: Connection, endpoint: str) -> None:
    """A PULL that counts messages, and says how many when one starts with ASK_COUNT."""
    socket = _bound(control, zmq.PULL, endpoint)
    count = 0
    while True:
        if socket.recv_multipart()[0] == ASK_COUNT:
            control.send(count)
        else:
            count += 1


def echo_pipe(control: Connection) -> None:
    """Sends every object back."""
    control.send(True)
    while (value := _next(control)) is not None:
        control.send(value)


def first_of_pipe(control: Connection) -> None:
    """Takes arrays of float64 as bytes, and answers with the first element."""
    control.send(True)
    while True:
        try:
            data = control.recv_bytes()
        except EOFError:
            return
        control.send(float(np.frombuffer(data, np.float64)[0]))


def sum_pages_of_pipe(control: Connection) -> None:
    """Takes arrays of float64 as bytes, and answers with `sum_pages` of each."""
    control.send(True)
    while True:
        try:
            control.send(sum_pages(np.frombuffer(control.recv_bytes(), np.float64)))
        except EOFError:
            return


def sum_pages(array: Any) -> float:
    """The sum of one element of every page (4 KiB) of an array of float64. Loom's readers take the same sum."""
    return float(array[::512].sum())


def answer(control: Connection) -> None:
    """Answers whether this module was preloaded, as often as it is asked, and is idle in between."""
    while _next(control) is not None:
        control.send(os.getpid() != IMPORTED_BY)


def add_one(number: int) -> int:
    """A pool's first task."""
    return number + 1


def _next(control: Connection) -> Any:
    try:
        return control.recv()
    except EOFError:
        return None


def _bound(control: Connection, kind: int, endpoint: str) -> zmq.Socket[bytes]:
    """A bound socket without a high-water mark; the other side is told, and this process ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(control,), daemon=True).start()
    socket = zmq.Context().socket(kind)
    socket.set_hwm(0)
    socket.bind(endpoint)
    control.send(True)
    return socket


def _end_with(control: Connection) -> None:
    """End this process, blocked in ZeroMQ as it is, once the other end of its pipe is gone. The thread only sleeps."""
    control.poll(None)
    os._exit(0)
