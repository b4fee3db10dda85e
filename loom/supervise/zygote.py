"""The zygote: a single-threaded process with everything imported, whose forks become actors.

It waits on one socket for spawn requests: a message with two descriptors, the control socket and the order's memfd.
Each request makes it fork twice. The process in between exits at once, so the actor becomes the child of the nearest
subreaper, which is the node: the node itself reaps it, and the zygote's own death harms no actor.

When the socket ends, the node is dead. The zygote then sweeps up after it, and exits.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from loom.supervise import cgroup, sweep

LOCK_S = 2.0
"""How long the node's lock may be held after its socket has ended; then it is another node's."""


def preload() -> None:
    """Import what every actor needs, so that no actor pays for it."""
    import asyncio
    import logging
    import traceback

    import cloudpickle
    import numpy
    import uvloop
    import zmq

    import loom.actor.child
    import loom.store

    del asyncio, logging, traceback, cloudpickle, numpy, uvloop, zmq, loom


def main(requests_fd: int, folder: str, arena_name: str, cookie: str) -> NoReturn:
    """Serve spawn requests until the node is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    preload()
    requests = socket.socket(fileno=requests_fd)
    try:
        requests.send(b"ready")
    except BrokenPipeError:  # the node is dead already: the loop below finds that, too
        pass
    gc.collect()
    gc.freeze()  # a collection in an actor must not touch, and so copy, the pages it shares with all others
    gc.disable()
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(requests, 64, 2)
        except ConnectionError:
            break
        if not data:
            break
        if len(fds) == 2:
            _spawn(requests, fds[0], fds[1])
        for fd in fds:
            os.close(fd)
    sweep.kill_all(cookie)
    cgroup.clear(cookie)
    sweep.remove_shared_memory(arena_name)
    lock_fd = _lock(Path(folder))
    if lock_fd is not None:  # else a new node has the name already, and has cleared up
        sweep.remove_folder(Path(folder), lock_fd)
    os._exit(0)


def _lock(folder: Path) -> int | None:
    """The lock of the dead node. The kernel closes a dead process's files in no order: it may come after the socket."""
    until = time.monotonic() + LOCK_S
    while (lock_fd := sweep.lock(folder)) is None and time.monotonic() < until:
        time.sleep(0.01)
    return lock_fd


def _spawn(requests: socket.socket, control_fd: int, order_fd: int) -> None:
    try:
        between = os.fork()
    except OSError as error:
        _report(control_fd, error)
        return
    if between == 0:
        try:
            me = os.getpid()
            if os.fork() == 0:
                requests.close()
                from loom.actor import child

                child.main(control_fd, order_fd, me)
        except OSError as error:
            _report(control_fd, error)
        os._exit(0)
    os.waitpid(between, 0)


def _report(control_fd: int, error: OSError) -> None:
    """The fork failed: say so where the actor would have said hello."""
    with socket.socket(fileno=os.dup(control_fd)) as control:
        text = f"fork: {error.strerror}: too many processes, or too little memory, for one more actor"
        control.send(msgspec.msgpack.encode({"failed": text, "brief": text}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:5])
