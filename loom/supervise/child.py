"""Child: one row of a supervisor's table, from incarnation to incarnation."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any, Protocol

import msgspec

from loom.actor import board as rows
from loom.actor import line
from loom.actor.address import Address
from loom.actor.board import Board
from loom.actor.child import Order
from loom.actor.death import OVERTAKEN, Death
from loom.arena import Arena
from loom.clock import monotonic
from loom.errors import LoomError
from loom.supervise import watchdog
from loom.supervise.launcher import Launcher
from loom.supervise.limits import Limiter
from loom.supervise.orphans import Orphans
from loom.supervise.policy import ChildState, State
from loom.supervise.process import Process, executed
from loom.supervise.spec import Restart, Shutdown

_mailboxes = itertools.count(1)
"""Numbers the mailboxes of this node: no endpoint is used twice, or a late message would find somebody else there."""

DROP_SLACK = 10_000
"""Messages past its capacity that a mailbox takes whose oldest go, while its actor is too busy to let them go."""

REMEMBERED = 16
"""Deaths that are remembered for each child, for callers that ask how it died."""


class Site(Protocol):
    """What children need of the node they run on."""

    launcher: Launcher
    board: Board
    arena: Arena
    folder: Path
    address: Address
    cookie: str
    orphans: Orphans
    limiter: Limiter
    is_draining: bool

    def take_row(self) -> int: ...
    def free_row(self, row: int) -> None: ...
    def mourn(self, child: Child, death: Death) -> None: ...


class Restarted(msgspec.Struct, frozen=True):
    """One restart: who, after what, and the seconds from the death to the replacement's being ready."""

    name: str
    cause: str
    took_s: float


class Remembered(msgspec.Struct, frozen=True):
    """A death, and the id of the last message that the incarnation began."""

    death: Death
    last_id: int
    begun: dict[int, int] = {}
    """Ticket of the ledger -> how many of its messages had begun."""


class Child:
    """What every child is to its supervisor: something with a name and a state that starts and stops.

    `incarnation` counts its starts. `round` goes up whenever its supervisor decides about it, so that the news of
    before are known to be old.
    """

    name: str
    restart: Restart
    state: State = "stopped"
    significant: bool = False
    incarnation: int = 0
    round: int = 0
    last: Death | None = None
    _stopping: asyncio.Task[None] | None = None

    async def start(self) -> Death | None:
        """Start it: None when it runs, or does not want to and is "stopped"; else how the start failed.

        OVERTAKEN when somebody stopped it meanwhile.
        """
        raise NotImplementedError

    async def stop(self, reason: str = "shutdown") -> None:
        """Stop it and return when it is gone. May be called again while it stops."""
        if self._stopping is None or self._stopping.done():
            self.set_state("stopping")
            self._stopping = asyncio.get_running_loop().create_task(self._stop(reason))
        await asyncio.shield(self._stopping)  # whoever waits may give up waiting: it stops all the same

    async def _stop(self, reason: str) -> None:
        """End in the state "stopped"."""
        raise NotImplementedError

    def is_starting(self, incarnation: int) -> bool:
        """Whether the start of that incarnation is still under way, and wanted."""
        return self.state == "starting" and self.incarnation == incarnation

    def set_state(self, state: State) -> None:
        """Change its state, and tell those who wait for that."""
        self.state = state

    def empty(self) -> None:
        """It will never start again: let go of what it was started with, for its death may be remembered for long."""

    def row(self) -> ChildState:
        """Its row, as the restart policy wants it."""
        return ChildState(self.name, self.restart, self.state, self.significant)


class ActorChild(Child):
    """A child that is an actor.

    `address` is where its mailbox is now, None while it has none. `restarts` tells of the last REMEMBERED of them.
    """

    def __init__(
        self,
        site: Site,
        name: str,
        order: Order,
        restart: Restart,
        shutdown_s: Shutdown,
        on_exit: Callable[[ActorChild, Death], None],
        on_death: str = "dead_letter",
    ) -> None:
        self.name = name
        self.restart = restart
        self.address: Address | None = None
        self.restarts: deque[Restarted] = deque(maxlen=REMEMBERED)
        self.board_row = site.take_row()
        self.has_row = True
        self._site = site
        self._order = order
        self.shutdown_s = shutdown_s
        self._on_exit = on_exit
        self._on_death = on_death
        self._process: Process | None = None
        self._terminating: asyncio.Task[None] | None = None
        self._is_held = False
        self._changed = asyncio.Event()
        self._launched = asyncio.Event()
        self._launched.set()
        self._deaths: dict[int, Remembered] = {}
        self._died_at = 0.0

    async def start(self) -> Death | None:
        """Start a new incarnation; its mailbox can be written to before its `__init__` is done."""
        site = self._site
        self.incarnation += 1
        mine = self.incarnation
        self.set_state("starting")
        number = next(_mailboxes)
        order = msgspec.structs.replace(
            self._order,
            incarnation=mine,
            endpoint=f"ipc://{site.folder}/{self.board_row}.{number}",
            row=self.board_row,
            term=number,
            node=site.address,
            arena=site.arena.name,
            cookie=site.cookie,
            is_draining=site.is_draining,
        )
        self._launched.clear()
        site.orphans.living.add(order.tag)
        order = msgspec.structs.replace(order, cgroup=site.limiter.prepare(order))
        try:
            process = await site.launcher.launch(order)
            self._process = process
            process.explain = site.limiter.explain
            process.died.add_done_callback(lambda _: site.orphans.living.discard(order.tag))
            process.died.add_done_callback(lambda died: self._buried(process, died.result()))
        except BaseException as error:
            site.orphans.living.discard(order.tag)
            site.limiter.end(order)
            if not isinstance(error, LoomError):
                raise
            death = Death("start_failed", str(error), how="start_failed")
            site.mourn(self, death)
            return self._failed(mine, death)
        finally:
            self._launched.set()
        if not self.is_starting(mine):  # stopped meanwhile: whoever did that waits for its death
            process.kill()
        # Shielded: when this start is cut short, the process goes on, and its futures with it.
        if await asyncio.shield(process.hello):
            words, at = site.board.words, self.board_row * rows.WORDS
            words[at + rows.PID], words[at + rows.START] = process.pid, process.start_time
            words[at + rows.INCARNATION] = mine
            words[at + rows.BOUND] = bound(order.capacity, order.policy)
            site.board.gate.seal(self.board_row, number)
            self.address = Address(
                self.name,
                order.endpoint,
                process.pid,
                process.start_time,
                mine,
                self.board_row,
                process.participant,
                number,
                order.policy,
                self._on_death,
            )
            watchdog.guard(process, words)
            site.limiter.guard(process, words)
            self._announce()
        if not await asyncio.shield(process.started):
            death = await asyncio.shield(process.died)
            if process.ignored is not None and self.is_starting(mine):
                self.set_state("stopped")
                return None
            return self._failed(mine, death)
        if not self.is_starting(mine):
            return OVERTAKEN
        self.set_state("running")
        if self.last is not None:
            self.restarts.append(Restarted(self.name, self.last.text, monotonic() - self._died_at))
        if process.died.done():  # between its last two words, and nobody has been told
            self._ended(process.died.result())
        return None

    def _failed(self, incarnation: int, death: Death) -> Death:
        if not self.is_starting(incarnation):
            return OVERTAKEN
        self.last = death
        self.set_state("restarting")
        return death

    def _ended(self, death: Death) -> None:
        """It ran, and ended without having been asked to: the supervisor decides."""
        self.set_state("restarting")
        self._on_exit(self, death)

    def _buried(self, process: Process, death: Death) -> None:
        """An incarnation is dead: settle its accounts, then tell the supervisor, unless it asked for this."""
        site, words, at = self._site, self._site.board.words, self.board_row * rows.WORDS
        self.address = None
        self.last = death
        self._died_at = monotonic()
        words[at + rows.STATE] = rows.DOWN
        words[at + rows.PID] = 0
        site.board.gate.seal(self.board_row, 0)  # from here on nobody is let in: what is there is all there is
        words[at + rows.DEAD_LETTERED] += _unended(words[at : at + rows.WORDS])
        words[at + rows.LEFT] = rows.accepted(words[at : at + rows.WORDS])
        begun = site.board.begun(self.board_row)
        site.board.gate.reset(self.board_row)
        self._deaths[process.order.incarnation] = Remembered(death, words[at + rows.LAST_ID], begun)
        for word in rows.OF_ONE_INCARNATION:
            words[at + word] = 0
        while len(self._deaths) > REMEMBERED:
            del self._deaths[min(self._deaths)]
        try:
            os.unlink(process.order.endpoint.removeprefix("ipc://"))
        except FileNotFoundError:
            pass
        line.remove_remains(site.arena.name, process.order.endpoint)
        site.limiter.end(process.order)
        site.orphans.sweep()
        if process.participant >= 0:
            site.arena.reap(process.participant, revoke=False)  # the node's rounds do the rest, in a while
        self._announce()
        site.mourn(self, death)
        if self.state == "running":
            self._ended(death)

    async def _stop(self, reason: str) -> None:
        """By word first, and when its shutdown time is over by SIGKILL; what has not started yet cannot hear a word."""
        await self._launched.wait()
        process = self._process
        if process is not None and not process.died.done():
            await self._terminate(process, reason)
        self.set_state("stopped")

    async def _terminate(self, process: Process, reason: str) -> None:
        limit = self.shutdown_s
        if limit == "brutal_kill" or not process.started.done():
            process.kill()
        else:
            process.stop(reason)
            done, _ = await asyncio.wait([process.died], timeout=None if limit == "infinity" else float(limit))
            if not done:
                process.kill()
        await asyncio.wait([process.died])

    def exit_signal(self, news: dict[str, Any], death: Death, trap: bool = False) -> None:
        """A linked actor has ended, as `news` tells: so does this one, unless it traps that or the end was normal."""
        process = self._process
        if process is None or process.died.done() or process.is_stopping:
            return
        if trap or process.traps:
            process.tell_surely({"exit_signal": news})
        elif death.kind == "shutdown":
            self._terminating = asyncio.get_running_loop().create_task(self._terminate(process, "shutdown"))
        elif death.kind != "normal":
            text = f"killed by its link to {news['name']!r}: {death.text}"
            process.condemn(msgspec.structs.replace(death, kind="abnormal", text=text))

    def forget(self) -> None:
        """It will not start again: tell those who wait for it, and give its row back."""
        if self.state in ("starting", "restarting"):
            self.set_state("stopped")
        self.has_row = False
        self._site.free_row(self.board_row)
        self._announce()

    def empty(self) -> None:
        """It will never start again: its arguments may be large."""
        self._process = None
        self._order = msgspec.structs.replace(self._order, pickled=b"", further=b"")

    def revive(self) -> None:
        """It was forgotten, and may start again: take a row. Raises: StartFailed (L3001) when there is none left."""
        self.board_row = self._site.take_row()

    async def resolve(self) -> Address | None:
        """Where its mailbox is, waiting while it starts or restarts; None when it is stopped."""
        while self._is_held or (self.address is None and self.state in ("starting", "restarting")):
            self._changed.clear()
            await self._changed.wait()
        return self.address

    def hold(self) -> None:
        """Have those who would send to it wait, until `let_go`; what has been sent already arrives."""
        self._is_held = True
        self._site.board.gate.seal(self.board_row, 0)  # nobody is let in; what was, arrives
        self._site.board.words[self.board_row * rows.WORDS + rows.STATE] = rows.DOWN  # so they ask for its address

    def let_go(self) -> None:
        """Send those who wait to whoever bears the name now."""
        self._is_held = False
        if self.address is not None:
            self._site.board.gate.seal(self.board_row, self.address.term)
        self.set_state(self.state)

    async def try_out(self, order: Order) -> Death | None:
        """Whether a process made from `order` could import its class: None, or how it failed. Nothing changes here."""
        site = self._site
        order = msgspec.structs.replace(
            order,
            is_trial=True,
            endpoint=f"ipc://{site.folder}/{self.board_row}.{next(_mailboxes)}",
            row=self.board_row,
            watchdog_s=None,
            start_s=None,
            cgroup="",
        )
        site.orphans.living.add(order.tag)
        try:
            process = await site.launcher.launch(order)
            death = await asyncio.shield(process.died)
        except LoomError as error:
            return Death("start_failed", str(error), how="start_failed")
        finally:
            site.orphans.living.discard(order.tag)
        Path(order.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        if process.participant >= 0:
            site.arena.reap(process.participant, revoke=False)
        return None if process.ignored is not None else death

    async def started(self) -> None:
        """Wait while it starts or restarts."""
        while self.state in ("starting", "restarting"):
            self._changed.clear()
            await self._changed.wait()

    def fail_start(self, death: Death) -> None:
        """It could not be started, by somebody other than its supervisor: that decides what becomes of it."""
        self.set_state("restarting")
        self._on_exit(self, death)

    @property
    def process(self) -> Process | None:
        """The present incarnation's process, None when there is none that lives."""
        return self._process if self._process is not None and not self._process.died.done() else None

    @property
    def order(self) -> Order:
        """What its next incarnation is made from."""
        return self._order

    @order.setter
    def order(self, order: Order) -> None:
        self._order = order

    async def obituary(self, incarnation: int) -> Remembered | None:
        """How that incarnation died, waiting for its death to be noticed; None when it is too long ago."""
        while incarnation not in self._deaths and self.address is not None and self.incarnation == incarnation:
            self._changed.clear()
            await self._changed.wait()
        return self._deaths.get(incarnation)

    def kill_call(self, incarnation: int, call_id: int, why: str) -> None:
        """Kill that incarnation if it is still running that message."""
        words, at = self._site.board.words, self.board_row * rows.WORDS
        running = words[at + rows.SINCE_NS] and words[at + rows.LAST_ID] == call_id
        if running and self.incarnation == incarnation and self._process is not None:
            self._process.condemn(executed(why))

    def settle(self, seen: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """Have the actor account for what dead senders let in and never sent.

        `seen` and what is returned: ticket -> (begun, sent) of those. Only what has not moved since the last look is
        settled: the rest is still being worked on.
        """
        found: dict[int, tuple[int, int]] = {}
        if self.address is not None and self._process is not None and self._site.board.depth(self.board_row):
            found = self._site.board.orphans(self.board_row)
            for ticket, counts in found.items():
                if seen.get(ticket) == counts:
                    self._process.settle(ticket, counts[1])
        return found

    def reading(self) -> rows.Row:
        """Its row of the status board."""
        return self._site.board.row(self.board_row, monotonic_ns())

    def set_state(self, state: State) -> None:
        """Change its state, on the status board too, and wake those who wait for that."""
        self.state = state
        word = {"starting": rows.STARTING, "running": rows.RUNNING_STATE, "stopping": rows.STOPPING}.get(
            state, rows.DOWN
        )
        self._site.board.words[self.board_row * rows.WORDS + rows.STATE] = word
        self._announce()

    def _announce(self) -> None:
        self._changed.set()


def _unended(row: memoryview) -> int:
    """How many messages of a dead incarnation ended in no counter: wherever they wait, under way, or just taken in."""
    return max(0, rows.accepted(row) - sum(row[word] for word in rows.ENDS))


def bound(capacity: int, policy: str) -> int:
    """How many messages the gate lets wait: where the oldest go, some more, which a busy actor cannot yet let go."""
    return capacity + DROP_SLACK if policy == "drop_oldest" else capacity
