"""Snapshots: an actor's state, saved as often as its child spec says, and given back to its next incarnation.

An actor whose class defines `snapshot(self) -> object` and `restore(self, state)` has a row in the node's store, under
its child's name: a restart, a crash and a new node of the same store find the last one that was saved, whole.

    __init__ -> restore(state), if anything was saved -> on_start -> messages ... -> snapshot at stop -> on_stop

When it is saved (SnapshotSpec; loom/supervise/spec.py has the keys):
- every_messages=N: after each Nth message that was run to its end, BEFORE that message is answered. So of the messages
  that were answered at most N - 1 are lost by a crash, and with N = 1 none: who has an answer has it for good. While a
  snapshot that is due cannot be taken or written, each call is answered with that error.
- every_s=T: every T seconds, between messages, when anything has changed.
- at_stop (default): when the actor is stopped in order, after its last message and before `on_stop`.
- `self.ctx.save()`: now; it has been saved when that returns.

A snapshot is taken on the actor's thread; async handlers may be at an await meanwhile. The state may be anything that
can be sent in a message, arrays included; it is pickled. Nothing is saved before the start is complete, so a start
that fails leaves the last good one.

`snapshot_version = 2` on a class is kept with each of its snapshots (default 1). An older one is handed to `restore`,
which finds the number in `self.ctx.snapshot_version`; a newer one is a failed start. So are a `restore` that raises,
and a snapshot that cannot be read: the error says what to do, `loom-node state` shows and deletes.

Snapshots belong to a name, and stay until somebody deletes them: stopping a child, for good or not, does not. A name
that Loom made up (`spawn` without one) begins with nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import zlib
from typing import TYPE_CHECKING, Any

import msgspec

from loom.clock import wall
from loom.errors import LoomError, StoreError, UsageError
from loom.telemetry import log
from loom.wire import codec, failures

if TYPE_CHECKING:
    from loom.actor.actor import Actor
    from loom.store import Table

TABLE = "snapshots"
FORMAT = 1
"""Of the rows; a higher one is refused."""


class Cadence(msgspec.Struct, frozen=True):
    """When to save; the words are in this module's docstring."""

    every_messages: int | None = None
    every_s: float | None = None
    at_stop: bool = True


class Keeping(msgspec.Struct, frozen=True):
    """Where an actor's snapshots are, and when they are taken. `is_fresh`: begin with nothing, whatever is there."""

    folder: str
    durable: bool = True
    cadence: Cadence = Cadence()
    is_fresh: bool = False


class Snapshot(msgspec.Struct, frozen=True):
    """One row of the store. `version` is the class's; `saved_at` in Unix seconds; `data` a pickle; `crc` its CRC-32."""

    actor: str
    version: int
    incarnation: int
    saved_at: float
    data: bytes
    crc: int
    format: int = FORMAT


def table(folder: str, *, durable: bool = True) -> Table[Snapshot]:
    """The snapshots in a store, by the names of children. Raises: StoreError (L3004)."""
    from loom.store import Store, Table  # not with this module: whoever reads a config needs no LMDB

    return Table(Store.open(folder, durable=durable), TABLE, Snapshot)


def has_state(cls: type) -> bool:
    """Whether a class defines `snapshot` and `restore`. Raises: UsageError (L1008) when it defines one of them."""
    has = [name for name in ("snapshot", "restore") if getattr(cls, name, None) is not None]
    if len(has) == 1:
        other = "restore" if has == ["snapshot"] else "snapshot"
        raise UsageError(f"{cls.__qualname__} defines {has[0]} but not {other}: define both, or none")
    return bool(has)


class Snapshots:
    """The snapshots of one incarnation."""

    def __init__(self, name: str, incarnation: int, actor: Actor, keeping: Keeping) -> None:
        """Open the store. Raises: StoreError (L3004)."""
        self.is_ready = False
        """Whether the actor has started: nothing is saved before."""
        self._name = name
        self._incarnation = incarnation
        self._actor = actor
        self._cadence = keeping.cadence
        self._remedy = f"'loom-node state delete {name}' starts it with nothing, 'loom-node state show {name}' shows it"
        self._table = table(keeping.folder, durable=keeping.durable)
        self._digest = b""
        """Of what was saved last, for a timer need not write that again."""
        self._since = 0
        if keeping.is_fresh and incarnation == 1:
            self._table.delete(name)

    def restore(self) -> None:
        """Give the actor what was saved last, if anything was. Raises: StoreError (L3004)."""
        found = self._table.get(self._name)
        if found is None:
            return
        version = _version_of(self._actor)
        what = f"the snapshot of {self._name!r}, taken by {found.actor}"
        if found.format > FORMAT or found.version > version:
            got = f"version {found.version} of format {found.format}"
            text = f"{what}: expected at most version {version} of format {FORMAT}, got {got}: run the newer code"
            raise StoreError(f"{text}; {self._remedy}")
        self._actor.ctx.snapshot_version = found.version
        try:
            state = _load(found)
        except Exception as error:
            text = f"{what}, cannot be read: {type(error).__name__}: {error}"
            raise StoreError(f"{text}; {self._remedy}") from error
        try:
            self._actor.restore(state)  # type: ignore[attr-defined]
        except Exception as error:
            text = f"{what}: restore() raised {type(error).__name__}: {failures.message_of(error)}"
            raise StoreError(f"{text}; {self._remedy}") from error

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """The actor has started: from now on its state is saved."""
        self.is_ready = True
        if self._cadence.every_s is not None:
            loop.call_later(self._cadence.every_s, self._tick, loop, self._cadence.every_s)

    def save(self, *, if_changed: bool = False) -> None:
        """Take a snapshot and write it. Raises: StoreError, NotSendable, or whatever `snapshot` does."""
        if not self.is_ready:
            raise UsageError("ctx.save(): the actor has not started yet; what it had before is still saved")
        state = self._actor.snapshot()  # type: ignore[attr-defined]
        if asyncio.iscoroutine(state):
            state.close()
            raise UsageError("snapshot() is async: expected a plain method, which no message can interrupt")
        data = codec.dumps(state, f"the snapshot of {self._name!r}")
        digest = hashlib.blake2b(data).digest() if self._cadence.every_s is not None else b""
        if not (if_changed and digest == self._digest):
            cls, version = type(self._actor), _version_of(self._actor)
            name = f"{cls.__module__}:{cls.__qualname__}"
            row = Snapshot(name, version, self._incarnation, wall(), data, zlib.crc32(data))
            self._table.put(self._name, row)
            self._digest = digest
        self._since = 0

    @property
    def counts_messages(self) -> bool:
        """Whether `message_done` is to be called."""
        return self._cadence.every_messages is not None

    def message_done(self) -> None:
        """A message has been run: save, if that is due. Raises: as `save`."""
        self._since += 1
        if self._since >= (self._cadence.every_messages or 1):
            self.save()

    def stop(self) -> None:
        """The actor ends: save if it is to. Raises: as `save`."""
        if self._cadence.at_stop:
            self.save()

    def _tick(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        loop.call_later(every_s, self._tick, loop, every_s)
        try:
            self.save(if_changed=True)
        except Exception as error:  # tried again at the next tick; meanwhile the last good one stays
            log.error("%s: its state was not saved: %s", self._name, _line(error))


def _version_of(actor: Actor) -> int:
    return int(getattr(actor, "snapshot_version", 1))


def _load(found: Snapshot) -> Any:
    if zlib.crc32(found.data) != found.crc:
        raise ValueError("its checksum is wrong")
    return pickle.loads(found.data)


def state_of(found: Snapshot) -> Any:
    """The state in a snapshot; the classes in it are imported. Raises: whatever unpickling does; ValueError."""
    return _load(found)


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, LoomError) else failures.traceback_of(error, 1)
