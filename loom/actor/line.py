"""Line: a sender's connection to one mailbox: a lane of its shared-memory inbox, or a ZeroMQ socket.

Two processes of one node use a lane: no thread in between, and no system call but to wake whoever sleeps. Everybody
else uses a socket: other languages, and Python where a lane cannot be had (/dev/shm is full, the process has no index
in the arena). Which one is settled when the line is opened, and never changes: the order of messages does not either.

A message is a list of frames. A lane takes only one: `is_whole` tells the packer to leave nothing beside the header.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import zmq

from loom import _native
from loom.actor import sockets
from loom.actor.spin import Spin
from loom.errors import ProtocolError
from loom.telemetry import log

RECORD_MAX = _native.RECORD_MAX
"""Bytes of the largest message that a lane takes."""


class Line(Protocol):
    """What a channel needs. Calls are made under its lock, but for `spin`, which any thread may make at any time."""

    is_whole: bool
    fd: int
    """Readable when it is time to look."""

    def send(self, parts: list[Any]) -> bool:
        """Send one message; False when there is no room now. Room makes `fd` readable."""

    def receive(self, *, expected: bool) -> list[bytes] | None:
        """One message, None when there is none now. `expected`: `fd` says that there is one.

        Raises: ProtocolError (L2006) when no message can ever be read here again.
        """

    def spin(self) -> bool:
        """Look for a message for a moment: whether there is one."""

    def rest(self) -> bool:
        """Whether nothing is there, and what comes from now on makes `fd` readable."""

    def wake(self) -> None:
        """`fd` was readable: somebody will look."""

    def close(self, linger_ms: int) -> None:
        """Disconnect; what was sent gets so long to leave."""


class SocketLine:
    """A DEALER socket. Its descriptor is edge-triggered: whoever touched it must read until there is nothing."""

    is_whole = False

    def __init__(self, context: zmq.Context[Any], endpoint: str, high_water_mark: int) -> None:
        """Connect; `high_water_mark`: messages that may wait to be sent, 0 for any number."""
        socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
        socket.set(zmq.SNDHWM, high_water_mark)
        socket.set(zmq.RCVHWM, 0)  # as many replies as we asked for, as many items as we gave credit for
        socket.set(zmq.RECONNECT_IVL, 1)
        socket.set(zmq.RECONNECT_IVL_MAX, 100)
        self.fd = int(socket.get(zmq.FD))
        self._socket = socket
        socket.connect(endpoint)

    def send(self, parts: list[Any]) -> bool:
        try:
            sockets.send(self._socket, parts)
        except zmq.Again:
            return False
        return True

    def receive(self, *, expected: bool) -> list[bytes] | None:
        return sockets.receive(self._socket, expected=expected)

    def spin(self) -> bool:
        return False

    def rest(self) -> bool:
        return True

    def wake(self) -> None: ...

    def close(self, linger_ms: int) -> None:
        self._socket.close(linger_ms)


class LaneLine:
    """A lane of the mailbox's inbox."""

    is_whole = True

    def __init__(self, name: str, bells: str, participant: int) -> None:
        """Open it. Raises: OSError, ValueError when it cannot be had."""
        self._lane = _native.Lane(name, bells, participant)
        self._spin = Spin()
        self.fd = self._lane.fd
        self.rest = self._lane.rest
        self.wake = self._lane.wake

    def send(self, parts: list[Any]) -> bool:
        try:
            return self._lane.send(parts[0])
        except ValueError as error:
            raise ProtocolError(f"the lane cannot be written to: {error}; something else has written to it") from None

    def receive(self, *, expected: bool) -> list[bytes] | None:
        try:
            message = self._lane.receive()
        except ValueError as error:
            raise ProtocolError(f"its lane cannot be read: {error}; something else has written to it") from None
        return None if message is None else [message]

    def spin(self) -> bool:
        spin = self._spin
        if not spin.ns:
            spin.rested()
            return False
        try:
            is_found = self._lane.spin(spin.ns)
        except ValueError:  # another thread has closed it
            return False
        spin.was(is_found)
        return is_found

    def close(self, linger_ms: int) -> None:
        self._lane.close()


def has_lanes() -> bool:
    """Whether lanes are to be used at all: LOOM_LANES=off in the environment of a node and its clients says no."""
    return os.environ.get("LOOM_LANES") != "off"


def inbox_name(arena: str, endpoint: str) -> str:
    """The name of a mailbox's inbox: of /dev/shm/NAME.inbox."""
    return f"{arena}.{os.path.basename(endpoint)}"


def bells_of(endpoint: str) -> str:
    """Where the bells of a mailbox are: PATH.bell and PATH.PARTICIPANT."""
    return endpoint.removeprefix("ipc://")


def remove_remains(arena: str, endpoint: str) -> None:
    """Unlink what a dead mailbox has left: its inbox, and all its bells."""
    path = Path(bells_of(endpoint))
    Path(f"/dev/shm/{inbox_name(arena, endpoint)}.inbox").unlink(missing_ok=True)
    with os.scandir(path.parent) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(f"{path.name}.")]
    for one in left:
        Path(one).unlink(missing_ok=True)


def open_line(context: zmq.Context[Any], arena: str, participant: int, endpoint: str, high_water_mark: int) -> Line:
    """The best line to the mailbox at `endpoint`. `participant`: this process's index in `arena`, -1 for none."""
    if participant >= 0 and arena and has_lanes():
        try:
            return LaneLine(inbox_name(arena, endpoint), bells_of(endpoint), participant)
        except FileNotFoundError:
            pass  # a mailbox without an inbox, or one that is just going
        except (OSError, ValueError) as error:
            log.warning("no lane to %s, so it is a socket: %s", endpoint, error)
    return SocketLine(context, endpoint, high_water_mark)
