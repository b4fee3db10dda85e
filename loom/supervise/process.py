"""Process: the node's hold on one incarnation, from the spawn request to the reaping.

A pidfd tells of its death, a control socket carries the few words that node and actor exchange. Both are watched by
the node's event loop; nothing polls.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from loom.actor import heartbeat
from loom.actor.address import open_pidfd
from loom.actor.child import FAILED_START, Order
from loom.actor.death import Death
from loom.actor.procfs import stat_of

__all__ = ["Death", "Process"]

RETRY_S = 0.02
"""How soon something is said again to a process that did not read."""

held: set[int] = set()
"""The pids of the processes that this node holds a pidfd of, and reaps through it."""


_numbers = itertools.count(1)


class Process:
    """One incarnation, as the node sees it.

    Three futures tell its story: `hello` (it has a mailbox), `started` (its actor is made) and `died`, which always
    comes. `hello` and `started` are False when it died before. `ignored` says why it did not want to start, None when
    it did want to. `traps`: it is told how its linked actors end, and does not end with them.
    """

    def __init__(self, order: Order, control: socket.socket) -> None:
        self.order = order
        self.pid = 0
        self.start_time = 0
        self.participant = -1
        self.ignored: str | None = None
        self.traps = False
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
        self.explain: Callable[[Order, Death, float], Death] = lambda order, death, cpu_s: death
        """What its death came of, when the status alone does not say it; given the CPU time it has had, seconds."""
        self._sentence: Death | None = None
        self._fds: list[int] = []
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}
        control.setblocking(False)
        loop.add_reader(control.fileno(), self._listen)

    def stop(self, reason: str = "shutdown") -> None:
        """Ask it to end; `died` tells when it has."""
        self._was_told = reason
        self.tell({"stop": reason})  # when it cannot hear, the shutdown time will end it

    def tell(self, message: dict[str, Any]) -> None:
        """Tell it something; one that is dying, or does not read, misses it."""
        self._send(message)

    def tell_surely(self, message: dict[str, Any]) -> None:
        """Tell it something as soon as it reads; only its death, or its end, makes it miss that."""
        if not self._send(message) and not self.died.done():
            self._loop.call_later(RETRY_S, self.tell_surely, message)

    def _send(self, message: dict[str, Any]) -> bool:
        try:
            self._control.send(msgspec.msgpack.encode(message))
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def kill(self) -> None:
        """SIGKILL it; as soon as it says hello, when it has not yet."""
        self._was_told = self._was_told or "killed"
        self._must_die = True
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end, or killed: how long that may take is the business of who asked."""
        return bool(self._was_told)

    def condemn(self, death: Death) -> None:
        """SIGKILL it for what it does; unless it dies of something else first, `death` says how it ended."""
        if not self.died.done():
            self._sentence = death
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def ping(self, number: int) -> None:
        """Ask a watched process's event loop for a PONG (loom/actor/heartbeat.py)."""
        self.tell({"ping": number})

    def ask(self, what: str) -> asyncio.Future[dict[str, Any]]:
        """Ask the actor something (loom/actor/questions.py). Cancelled when it dies, or has no ear."""
        number = next(_numbers)
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        try:
            self._control.send(msgspec.msgpack.encode({"ask": number, "what": what}))
        except OSError:
            answer.cancel()
        else:
            self._questions[number] = answer
        return answer

    def ask_beat(self, number: int) -> None:
        """Ask a watched process's heartbeat thread for a BEAT."""
        try:
            heartbeat.ask(self._fds[0], number)
        except OSError:
            pass

    def ask_stacks(self) -> tuple[int, int] | None:
        """Have a watched process write its stacks into a file: (descriptor, where they begin), None when it is gone."""
        if self._pidfd is None or len(self._fds) < 2:
            return None
        begin = os.fstat(self._fds[1]).st_size
        signal.pidfd_send_signal(self._pidfd, heartbeat.STACK_SIGNAL)
        return self._fds[1], begin

    def settle(self, ticket: int, sent: int) -> None:
        """The sender with that ticket of the ledger is dead, and had sent that many messages."""
        self.tell({"settle": [ticket, sent]})

    def _listen(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, 1 << 17, 2)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            self._fds += fds
            if not data:
                self._loop.remove_reader(self._control.fileno())
                if self._pidfd is None:
                    self._gone(_unstarted(self._brief or "died before it said hello", self._failure))
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
                self._gone(_unstarted(f"the node has no descriptor left to watch it with: {error.strerror}"))
                return
            if self._pidfd is None:
                self._gone(_unstarted("died as it said hello"))
                return
            held.add(self.pid)
            self._loop.add_reader(self._pidfd, self._exited)
            _settle(self.hello, True)
            if self._must_die:
                self.kill()
            elif self._sentence is not None:
                self.condemn(self._sentence)
        elif "answer" in message:
            question = self._questions.pop(message["answer"], None)
            if question is not None and not question.done():
                question.set_result(message)
        elif "started" in message:
            _settle(self.started, True)
        elif "failed" in message:
            self._failure, self._brief = str(message["failed"]), str(message["brief"])
        elif "trap" in message:
            self.traps = True
        elif "ignored" in message:
            self.ignored = str(message["ignored"])
        elif "kill" in message:
            self.condemn(executed(str(message["kill"])))

    def _exited(self) -> None:
        assert self._pidfd is not None
        cpu_s = stat_of(self.pid).cpu_s  # a process that is not yet reaped still has it
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            self._gone(Death("abnormal", "ended, and somebody else reaped it", how="unknown"))
            return
        if status is None:
            return
        self._listen_once_more()
        self._gone(self.explain(self.order, self._death(status.si_code, status.si_status), cpu_s))

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
            if self._sentence is not None and status == signal.SIGKILL:
                return msgspec.structs.replace(self._sentence, kind=kind, signal=status)
            why = " (it did not stop in its shutdown time)" if self._was_told == "shutdown" else ""
            return Death(kind, f"killed by {name}{why}", signal=status, how="stopped" if self._was_told else "signal")
        if status == FAILED_START and self._failure:
            return _unstarted(f"failed to start: {self._brief}", self._failure, exit_code=status)
        if self._was_told:
            return Death("shutdown", "stopped", exit_code=status, traceback=self._failure, how="stopped")
        if self.ignored is not None:
            return Death("normal", f"did not want to start: {self.ignored}", exit_code=status, how="normal")
        if status == 0:
            return Death("normal", "ended normally", exit_code=0, how="normal")
        if self._failure:
            return Death("abnormal", self._brief, exit_code=status, traceback=self._failure, how="exception")
        return Death("abnormal", f"exit code {status}", exit_code=status, how="exit")

    def _gone(self, death: Death) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
            held.discard(self.pid)
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        if not self.started.done() and death.kind == "abnormal":
            text = f"died while it started: {death.text}"
            death = msgspec.structs.replace(death, kind="start_failed", text=text)
        for question in self._questions.values():
            question.cancel()
        _settle(self.hello, False)
        _settle(self.started, False)
        _settle(self.died, death)


def _unstarted(text: str, traceback: str = "", exit_code: int | None = None) -> Death:
    return Death("start_failed", text, exit_code=exit_code, traceback=traceback, how="start_failed")


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def executed(why: str) -> Death:
    """The death of a process that is killed for what it did: a crash like any other to its supervisor."""
    return Death("abnormal", f"killed by SIGKILL: {why}", signal=int(signal.SIGKILL), how="signal")
