"""Pump: a thread that sends what found no room in a lane, while its program does something else.

A lane holds some 32 KiB. Most programs never fill one; a program that tells an actor faster than it reads, and then
goes about its business, would leave the rest unsent until it next came by. The thread is started by the first message
that finds no room, and ends when nothing has waited for a while.
"""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

from loom.telemetry import log

if TYPE_CHECKING:
    from loom.actor.channel import Channel

IDLE_S = 1.0
"""How long the thread stays when nothing waits."""


class Pump:
    """At most one thread, for all channels of one process to one node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[Channel] = set()
        self._thread: threading.Thread | None = None
        self._wake = -1

    def add(self, channel: Channel) -> None:
        """See to it that what waits in `channel` is sent. Call it without that channel's lock."""
        with self._lock:
            self._waiting.add(channel)
            if self._thread is None:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._thread = threading.Thread(target=self._run, name="loom-pump", daemon=True)
                self._thread.start()
            else:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while True:
            with self._lock:
                waiting = list(self._waiting)
            done = [channel for channel in waiting if self._is_done(channel)]
            with self._lock:
                self._waiting.difference_update(done)
                waiting = list(self._waiting)
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for channel in waiting:
                channel.register(poll)
            waiting = done = []  # a closed channel is nobody's while this sleeps
            found = poll.poll(IDLE_S * 1000)  # not for ever: a descriptor that is closed wakes nobody
            with self._lock:
                if any(fd == self._wake for fd, _ in found):
                    os.eventfd_read(self._wake)
                elif not found and not self._waiting:
                    os.close(self._wake)
                    self._thread = None
                    return

    def _is_done(self, channel: Channel) -> bool:
        try:
            return channel.pump()
        except Exception as error:  # it is this channel's, and must not stop the others
            log.error("what waits for %r cannot be sent: %s", channel.address.name, error)
            return True

    def abandon(self) -> None:
        """After a fork, in the child: the thread is the parent's."""
        self._lock = threading.Lock()
        self._waiting.clear()
        self._thread = None
