"""Process: the node's hold on one incarnation, from the spawn request to the reaping.

A pidfd tells of its death, a control socket carries the few words that node and actor exchange. Both are watched by
the node's event loop; nothing polls.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import msgspec

from loom.actor.address import open_pidfd
from loom.actor.child import FAILED_START, Order


class Death(msgspec.Struct, frozen=True):
    """How an incarnation ended. `kind` is the restart policy's word for it; `text` is for people.

    `traceback`: the remote traceback of a failed start, else "".
    """

    kind: str
    text: str
    exit_code: int | None = None
    signal: int | None = None
    traceback: str = ""


class Process:
    """One incarnation, as the node sees it.

    Three futures tell its story: `hello` (it has a mailbox), `started` (its actor is made) and `died`, which always
    comes. `hello` and `started` are False when it died before.
    """

    def __init__(self, order: Order, control: socket.socket) -> None:
        self.order = order
        self.pid = 0
        self.start_time = 0
        self.participant = -1
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[bool] = loop.create_future()
        self.started: asyncio.Future[bool] = loop.create_future()
        self.died: asyncio.Future[Death] = loop.create_future()
        self._loop = loop
        self._control = control
        self._pidfd: int | None = None
        self._failure = ""
        self._brief = ""
        self._was_told = ""
        self._must_die = False
        control.setblocking(False)
        loop.add_reader(control.fileno(), self._listen)

    def stop(self, reason: str = "shutdown") -> None:
        """Ask it to end; `died` tells when it has."""
        self._was_told = reason
        try:
            self._control.send(msgspec.msgpack.encode({"stop": reason}))
        except OSError:  # it is dying already, or does not read: the shutdown time will end it
            pass

    def kill(self) -> None:
        """SIGKILL it; as soon as it says hello, when it has not yet."""
        self._was_told = self._was_told or "killed"
        self._must_die = True
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _listen(self) -> None:
        while True:
            try:
                data = self._control.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._control.fileno())
                if self._pidfd is None:
                    self._gone(
                        Death("start_failed", self._brief or "died before it said hello", traceback=self._failure)
                    )
                return
            self._hear(msgspec.msgpack.decode(data, type=dict[str, Any]))
            if self.died.done():
                return

    def _hear(self, message: dict[str, Any]) -> None:
        if "hello" in message:
            self.pid, self.start_time = message["hello"], message["start"]
            self.participant = message["participant"]
            # Our own child, and not yet reaped: the pid cannot have been reused.
            try:
                self._pidfd = open_pidfd(self.pid, self.start_time)
            except OSError as error:
                os.kill(self.pid, signal.SIGKILL)
                self._gone(Death("start_failed", f"the node has no descriptor left to watch it with: {error.strerror}"))
                return
            if self._pidfd is None:
                self._gone(Death("start_failed", "died as it said hello"))
                return
            self._loop.add_reader(self._pidfd, self._exited)
            _settle(self.hello, True)
            if self._must_die:
                self.kill()
        elif "started" in message:
            _settle(self.started, True)
        elif "failed" in message:
            self._failure, self._brief = str(message["failed"]), str(message["brief"])

    def _exited(self) -> None:
        assert self._pidfd is not None
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            self._gone(Death("abnormal", "ended, and somebody else reaped it"))
            return
        if status is None:
            return
        self._listen_once_more()
        self._gone(self._death(status.si_code, status.si_status))

    def _listen_once_more(self) -> None:
        """Its last words may still be in the socket."""
        try:
            while data := self._control.recv(1 << 17, socket.MSG_DONTWAIT):
                self._hear(msgspec.msgpack.decode(data, type=dict[str, Any]))
        except OSError:
            pass

    def _death(self, how: int, status: int) -> Death:
        if how != os.CLD_EXITED:
            name = signal.Signals(status).name if status in set(signal.Signals) else f"signal {status}"
            kind = "shutdown" if self._was_told else "abnormal"
            why = " (it did not stop in its shutdown time)" if self._was_told == "shutdown" else ""
            return Death(kind, f"killed by {name}{why}", signal=status)
        if status == FAILED_START and self._failure:
            return Death("start_failed", f"failed to start: {self._brief}", exit_code=status, traceback=self._failure)
        if self._was_told:
            return Death("shutdown", "stopped", exit_code=status)
        if status == 0:
            return Death("normal", "ended normally", exit_code=0)
        return Death("abnormal", f"exit code {status}", exit_code=status)

    def _gone(self, death: Death) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        if not self.started.done() and death.kind == "abnormal":
            death = msgspec.structs.replace(death, kind="start_failed", text=f"died while it started: {death.text}")
        _settle(self.hello, False)
        _settle(self.started, False)
        _settle(self.died, death)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
