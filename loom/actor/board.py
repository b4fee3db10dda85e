"""The status board: one shared-memory row for every actor, readable by anyone at no cost to the actor.

A file `/dev/shm/<arena>.board`: ROWS rows of 32 little-endian 64-bit words. The node owns the words STATE, INCARNATION,
PID, START, SLOW and MEMORY_WARNINGS; the actor's process owns the rest, and is their only writer. Single words are
written whole, so a reader never sees half of one; words are not a snapshot together.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import msgspec

from loom.errors import NodeNotFound, StartFailed

ROWS = 1024
WORDS = 32

STATE, INCARNATION, PID, START = 0, 1, 2, 3
DEPTH, SINCE_NS, LAST_ID = 4, 5, 6
RECEIVED, PROCESSED, FAILED, REJECTED, EXPIRED, DEAD_LETTERED, RUNNING = 7, 8, 9, 10, 11, 12, 13
PROGRESS_NS, PONG, BEAT, SLOW = 22, 23, 24, 25  # heartbeat.py, and the node's watchdog
MEMORY_WARNINGS = 26

OF_ONE_INCARNATION = (DEPTH, SINCE_NS, LAST_ID, RUNNING, PROGRESS_NS, PONG, BEAT)
"""Words that say nothing of the next incarnation; the others go on from one to the next."""

FREE, STARTING, RUNNING_STATE, STOPPING, DOWN = range(5)
STATES = ("free", "starting", "running", "stopping", "down")


class Row(msgspec.Struct, frozen=True):
    """One actor's figures. `since_s` is how long the current message has been running, 0.0 when idle; `slow` how many
    messages its watchdog found slow, `memory_warnings` how often it exceeded its soft limit.

    received = processed + failed + rejected + expired + dead_lettered + depth + running, whenever the actor is at rest.
    """

    state: str
    incarnation: int
    pid: int
    depth: int
    since_s: float
    received: int
    processed: int
    failed: int
    rejected: int
    expired: int
    dead_lettered: int
    running: int
    slow: int
    memory_warnings: int


class Board:
    """The whole board, mapped. `words` is a flat memoryview of uint64, row after row."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self._mapping = mapping
        self.words = memoryview(mapping).cast("Q")

    @classmethod
    def create(cls, arena_name: str) -> Board:
        """Make the board of a node, pages reserved. Raises: StartFailed (L3001) when /dev/shm has no room for it."""
        path = _path(arena_name)
        size = ROWS * WORDS * 8
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
                return cls(path, mmap.mmap(fd, size))
            finally:
                os.close(fd)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StartFailed(f"the status board needs {size} bytes in /dev/shm: {error.strerror}") from None

    @classmethod
    def attach(cls, arena_name: str) -> Board:
        """Map the board of a running node. Raises: NodeNotFound (L1007)."""
        path = _path(arena_name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise NodeNotFound(f"no status board at {path}: {error.strerror}; is the node running?") from None
        try:
            return cls(path, mmap.mmap(fd, ROWS * WORDS * 8))
        finally:
            os.close(fd)

    def row(self, index: int, now_ns: int) -> Row:
        """A reading of one row. `now_ns`: time.monotonic_ns()."""
        word = self.words[index * WORDS : (index + 1) * WORDS].tolist()
        since = word[SINCE_NS]
        return Row(
            state=STATES[word[STATE]] if word[STATE] < len(STATES) else "unknown",
            incarnation=word[INCARNATION],
            pid=word[PID],
            depth=word[DEPTH],
            since_s=max(0.0, (now_ns - since) / 1e9) if since else 0.0,
            received=word[RECEIVED],
            processed=word[PROCESSED],
            failed=word[FAILED],
            rejected=word[REJECTED],
            expired=word[EXPIRED],
            dead_lettered=word[DEAD_LETTERED],
            running=word[RUNNING],
            slow=word[SLOW],
            memory_warnings=word[MEMORY_WARNINGS],
        )

    def clear(self, index: int) -> None:
        """Set every word of a row to zero, counters included."""
        for word in range(index * WORDS, (index + 1) * WORDS):
            self.words[word] = 0

    def close(self) -> None:
        """Unmap; the file stays."""
        self.words.release()
        self._mapping.close()

    def destroy(self) -> None:
        """Unmap and unlink."""
        self.close()
        self.path.unlink(missing_ok=True)


def _path(arena_name: str) -> Path:
    return Path("/dev/shm") / f"{arena_name}.board"
