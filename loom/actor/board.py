"""The status board: one shared-memory row for every actor, readable by anyone at no cost to the actor.

A file `/dev/shm/<arena>.board`: ROWS rows of 32 little-endian 64-bit words. The node owns the words STATE, INCARNATION,
PID, START, SLOW and MEMORY_WARNINGS; the actor's process owns most of the rest, and is their only writer. LEFT, GATE,
MOVED, REFUSED and HANDED_ON have several writers, and are changed through `Board.gate` alone. Single words are written
whole, so a reader never sees half of one; words are not a snapshot together.

Beside it lies `/dev/shm/<arena>.ledger`, with the accounts of each pair of sender and mailbox. What the gate and the
ledger are: native/include/loom_mailbox.h.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from loom._native import LEDGER_ROW_BYTES, Gate
from loom.actor.address import start_time_of
from loom.errors import NodeNotFound, StartFailed

ROWS = 1024
WORDS = 32

STATE, INCARNATION, PID, START = 0, 1, 2, 3
LEFT, SINCE_NS, LAST_ID = 4, 5, 6
UNGATED, PROCESSED, FAILED, REJECTED, EXPIRED, DEAD_LETTERED, RUNNING = 7, 8, 9, 10, 11, 12, 13
GATE, BOUND, MOVED, DROPPED, CANCELLED, REFUSED, UNDELIVERED, HANDED_ON = 14, 15, 16, 17, 18, 19, 20, 21
PROGRESS_NS, PONG, BEAT, SLOW = 22, 23, 24, 25  # heartbeat.py, and the node's watchdog
MEMORY_WARNINGS = 26

OF_ONE_INCARNATION = (SINCE_NS, LAST_ID, RUNNING, PROGRESS_NS, PONG, BEAT)
"""Words that say nothing of the next incarnation; the others go on from one to the next."""

GATE_MASK = (1 << 40) - 1
"""The part of the word GATE that counts messages."""

OPEN, FULL, STALE, NO_SLOT = range(4)
"""What a gate says to a sender."""

FREE, STARTING, RUNNING_STATE, STOPPING, DOWN = range(5)
STATES = ("free", "starting", "running", "stopping", "down")


ENDS = (PROCESSED, FAILED, REJECTED, EXPIRED, CANCELLED, DROPPED, MOVED, DEAD_LETTERED)
"""The words that count how messages ended, each message in one of them."""


class Row(msgspec.Struct, frozen=True):
    """One actor's figures. `since_s` is how long the current message has been running, 0.0 when idle; `slow` how many
    messages its watchdog found slow, `memory_warnings` how often it exceeded its soft limit.

    `received` counts every message that its sender was told is accepted, wherever it is; `depth` those of them that
    wait, wherever they do: with their sender's socket, on the way, or in the actor. Whenever the actor is at rest

        received = processed + failed + rejected + expired + cancelled + dropped + moved + handed_on + dead_lettered
                   + depth + running

    `cancelled`: by the caller before it began; `dropped`: by the policy "drop_oldest"; `moved`: taken back by its
    sender for an idle member of the pool; `handed_on`: sent again to the next incarnation. `refused`, beside that sum:
    never accepted, by the policy "refuse".
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
    cancelled: int = 0
    dropped: int = 0
    moved: int = 0
    handed_on: int = 0
    refused: int = 0


class Board:
    """The whole board, mapped. `words` is a flat memoryview of uint64, row after row; `gate` lets messages in."""

    def __init__(self, arena_name: str, mapping: mmap.mmap, ledger: mmap.mmap) -> None:
        self.path = _path(arena_name)
        self.words = memoryview(mapping).cast("Q")
        self.ledger = memoryview(ledger).cast("Q")
        self.gate = Gate(mapping, ledger)
        self._ledger_path = ledger_path(arena_name)
        self._mappings = (mapping, ledger)

    @classmethod
    def create(cls, arena_name: str) -> Board:
        """Make the board of a node, pages reserved. Raises: StartFailed (L3001) when /dev/shm has no room for it."""
        board = _make(_path(arena_name), ROWS * WORDS * 8)
        try:
            # Sparse: the pages of a row are reserved when the row is taken.
            return cls(arena_name, board, _make(ledger_path(arena_name), ROWS * LEDGER_ROW_BYTES, 1))
        except BaseException:
            _path(arena_name).unlink(missing_ok=True)
            raise

    @classmethod
    def attach(cls, arena_name: str) -> Board:
        """Map the board of a running node. Raises: NodeNotFound (L1007)."""
        return cls(
            arena_name,
            _map(_path(arena_name), ROWS * WORDS * 8),
            _map(ledger_path(arena_name), ROWS * LEDGER_ROW_BYTES),
        )

    def reserve(self, row: int) -> None:
        """Reserve the ledger's pages for one row, and set every word of it to zero, counters included.

        Raises: StartFailed (L3001) when /dev/shm has no room for them.
        """
        fd = os.open(self._ledger_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, row * LEDGER_ROW_BYTES, LEDGER_ROW_BYTES)
        except OSError as error:
            text = f"a mailbox needs {LEDGER_ROW_BYTES} bytes in /dev/shm: {error.strerror}"
            raise StartFailed(text) from None
        finally:
            os.close(fd)
        for word in range(row * WORDS, (row + 1) * WORDS):
            self.words[word] = 0
        self.gate.reset(row)

    def row(self, index: int, now_ns: int) -> Row:
        """A reading of one row. `now_ns`: time.monotonic_ns()."""
        word = self.words[index * WORDS : (index + 1) * WORDS].tolist()
        since = word[SINCE_NS]
        inside = accepted(word)
        return Row(
            state=STATES[word[STATE]] if word[STATE] < len(STATES) else "unknown",
            incarnation=word[INCARNATION],
            pid=word[PID],
            depth=max(0, inside - word[LEFT]),
            since_s=max(0.0, (now_ns - since) / 1e9) if since else 0.0,
            received=inside + word[UNDELIVERED],
            processed=word[PROCESSED],
            failed=word[FAILED],
            rejected=word[REJECTED],
            expired=word[EXPIRED],
            dead_lettered=word[DEAD_LETTERED] + word[UNDELIVERED] - word[HANDED_ON],
            running=word[RUNNING],
            slow=word[SLOW],
            memory_warnings=word[MEMORY_WARNINGS],
            cancelled=word[CANCELLED],
            dropped=word[DROPPED],
            moved=word[MOVED],
            handed_on=word[HANDED_ON],
            refused=word[REFUSED],
        )

    def depth(self, index: int) -> int:
        """How many messages wait for one actor, wherever they do."""
        words, at = self.words, index * WORDS
        return max(0, (words[at + GATE] & GATE_MASK) + words[at + UNGATED] - words[at + LEFT])

    def begun(self, row: int) -> dict[int, int]:
        """Ticket -> how many of its messages have begun, for all slots of a row that have an owner."""
        return {ticket: begun for ticket, _, begun, _ in self._slots(row)}

    def orphans(self, row: int) -> dict[int, tuple[int, int]]:
        """Ticket -> (begun, sent), for the slots of a row whose owner is dead and has messages that have not begun."""
        return {
            ticket: (begun, sent)
            for ticket, owner, begun, sent in self._slots(row)
            if begun < sent and start_time_of(owner >> 32) & 0xFFFFFFFF != owner & 0xFFFFFFFF
        }

    def _slots(self, row: int) -> Iterator[tuple[int, int, int, int]]:
        """(ticket, owner, begun, sent) of each slot of a row that has an owner."""
        words = LEDGER_ROW_BYTES // 8
        table = self.ledger[row * words : (row + 1) * words].tolist()
        for number, owner in enumerate(table[::4]):
            if owner:
                sent, state = table[4 * number + 1 : 4 * number + 3]
                yield (state >> 40) << 16 | (number + 1), owner, state & GATE_MASK, sent

    def close(self) -> None:
        """Unmap; the files stay."""
        self.gate.close()
        self.words.release()
        self.ledger.release()
        for mapping in self._mappings:
            mapping.close()

    def destroy(self) -> None:
        """Unmap and unlink."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._ledger_path.unlink(missing_ok=True)


def accepted(row: Sequence[int]) -> int:
    """How many messages one row's actor has been sent, through the gate and past it."""
    return (row[GATE] & GATE_MASK) + row[UNGATED]


def _path(arena_name: str) -> Path:
    return Path("/dev/shm") / f"{arena_name}.board"


def ledger_path(arena_name: str) -> Path:
    """The file of a node's ledger."""
    return Path("/dev/shm") / f"{arena_name}.ledger"


def _make(path: Path, size_bytes: int, reserved_bytes: int = 0) -> mmap.mmap:
    """A new file, mapped; all its pages reserved, or those of the first `reserved_bytes`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            os.posix_fallocate(fd, 0, reserved_bytes or size_bytes)
            return mmap.mmap(fd, size_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        path.unlink(missing_ok=True)
        text = f"the status board needs {reserved_bytes or size_bytes} bytes in /dev/shm: {error.strerror}"
        raise StartFailed(text) from None


def _map(path: Path, size_bytes: int) -> mmap.mmap:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NodeNotFound(f"no status board at {path}: {error.strerror}; is the node running?") from None
    try:
        return mmap.mmap(fd, size_bytes)
    finally:
        os.close(fd)
