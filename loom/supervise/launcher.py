"""Launcher: the node's side of the zygote. Starts it, restarts it, and has it fork actors."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from loom.actor import tag
from loom.actor.child import Order
from loom.errors import StartFailed
from loom.supervise.process import Process
from loom.telemetry import log


class Launcher:
    """Makes processes. Folder, arena and cookie tell the zygote what to clear away should the node die."""

    def __init__(self, folder: Path, arena_name: str, cookie: str) -> None:
        self._arguments = [str(folder), arena_name, cookie]
        self._child: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._readiness: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start a zygote; it gets ready while the caller goes on. Raises: StartFailed (L3001)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "loom.supervise.zygote", str(theirs.fileno()), *self._arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, tag.variable(self._arguments[2]): tag.BLANK},
            )
        except OSError as error:
            ours.close()
            raise StartFailed(f"the zygote could not be started: {error.strerror}") from None
        finally:
            theirs.close()
        ours.setblocking(False)
        self._requests = ours
        self._readiness = None

    @property
    def pid(self) -> int:
        """The zygote's process, 0 when there is none."""
        return self._child.pid if self._child is not None else 0

    async def launch(self, order: Order) -> Process:
        """Have the zygote fork one incarnation. Raises: StartFailed (L3001) when no process can be had."""
        memfd = _memfd(order)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            os.close(memfd)
            raise StartFailed(f"no descriptor left for actor {order.name!r}: {error.strerror}") from None
        try:
            while True:
                requests = await self._ready()
                try:
                    socket.send_fds(requests, [b"spawn"], [theirs.fileno(), memfd])
                    break
                except BlockingIOError:  # a long queue of requests
                    await asyncio.sleep(0.001)
                except (BrokenPipeError, ConnectionResetError):  # it dies right now: the next one will do it
                    if self._requests is requests and self._child is not None:
                        self._child.kill()
                        self._child.wait()
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise StartFailed(f"the zygote does not answer: {error.strerror}") from None
            raise
        finally:
            theirs.close()
            os.close(memfd)
        return Process(order, ours)

    async def _ready(self) -> socket.socket:
        """The request socket of a zygote that is ready; another zygote's when the last one died."""
        if self._child is None or self._child.poll() is not None:
            if self._child is not None:
                log.warning("the zygote died (%s); starting another", self._child.returncode)
            self.close()
            self.start()
        assert self._requests is not None
        requests = self._requests
        if self._readiness is None:
            self._readiness = asyncio.get_running_loop().create_task(_await_ready(requests))
        await asyncio.shield(self._readiness)
        return requests

    def close(self) -> None:
        """End the zygote. It must not see its socket end while it lives: it would take the node for dead."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        if self._requests is not None:
            self._requests.close()
            self._requests = None


async def _await_ready(requests: socket.socket) -> None:
    if not await asyncio.get_running_loop().sock_recv(requests, 16):
        raise StartFailed("the zygote died while it started; what it said is on standard error")


def _memfd(order: Order) -> int:
    data = msgspec.msgpack.encode(order)
    try:
        fd = os.memfd_create(f"loom-order-{order.name}", os.MFD_CLOEXEC)
    except OSError as error:
        raise StartFailed(f"no descriptor left for actor {order.name!r}: {error.strerror}") from None
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        os.close(fd)
        raise StartFailed(f"no memory for the order of {order.name!r} ({len(data)} bytes): {error.strerror}") from None
    return fd
