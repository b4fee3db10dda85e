"""Watchdog: tells an actor that hangs from one that is slow, and says in what way it hangs.

It sits in the node and believes only what it sees from outside: the status board, /proc, and answers that have not
come (loom/actor/heartbeat.py). What it tells apart:

    stopped   the process stands still in state T: SIGSTOP, or a debugger
    gil       no Python thread gets to run: something in C holds the GIL
    handler   one message, or one item of a stream, has run for longer than watchdog_s without `ctx.progress()`, while
              other Python threads of the process do get to run
    loop      no handler has the thread, yet the event loop does nothing: the code of an `async` handler, a callback
    start     `__init__` and `on_start` are not done after start_s
    slow      a message that has run for half of watchdog_s, or for all of it with progress: told, and never killed

The first five are hangs: the stacks are taken, the process is killed, and the restart policy has its say. An `async`
handler that waits at an `await` is none of these, for however long: it holds up nobody. An actor that was asked to stop
is not watched any more; how long that may take is the business of its shutdown_s.

Time in which nobody looked does not count, so that neither a machine that slept nor a node that was busy makes actors
look stuck. That makes a hang known at the latest 1.5 times its limit and PING_S after it began.
"""

from __future__ import annotations

import asyncio
import textwrap
from typing import Literal, NamedTuple

from loom.actor import board as rows
from loom.actor.procfs import stat_of
from loom.clock import monotonic
from loom.supervise import stack
from loom.supervise.process import Death, Process
from loom.telemetry import log
from loom.wire import failures

PING_S = 1.0
"""An idle actor's event loop is asked no more often than this."""

BEAT_S = 0.5
"""How long the heartbeat thread may take to answer, at the least, before the GIL is said to be held."""

LOOK_MIN_S, LOOK_MAX_S = 0.02, 1.0

Kind = Literal["stopped", "gil", "handler", "loop", "start"]

_TEXTS: dict[Kind, str] = {
    "stopped": "stopped process: it stood still in state T (SIGSTOP, or a debugger)",
    "gil": "GIL held in C: no Python thread could run",
    "handler": "stuck handler: it ran without ctx.progress()",
    "loop": "blocked event loop: it did nothing else",
    "start": "stuck start: __init__ and on_start were not done",
}


class Look(NamedTuple):
    """What is seen of a process at one moment. `state`: the letter in /proc/PID/stat. `since_ns`: 0 when no handler has
    the thread. `progress_ns`: the last progress told. `has_pong`, `has_beat`: whether the last questions to the event
    loop and to the heartbeat thread have been answered.
    """

    state: str = "S"
    is_started: bool = True
    since_ns: int = 0
    progress_ns: int = 0
    has_pong: bool = True
    has_beat: bool = True


class Hang(NamedTuple):
    """A process that hangs: in what way, and for how long it has been seen to."""

    kind: Kind
    for_s: float
    limit: str

    def __str__(self) -> str:
        return f"hang: {_TEXTS[self.kind]} for {self.for_s:.1f} s ({self.limit})"


class Slow(NamedTuple):
    """A message that takes long, and is left alone."""

    for_s: float
    limit: str

    def __str__(self) -> str:
        return f"slow: a message has been running for {self.for_s:.1f} s ({self.limit})"


class Judge:
    """Takes one look after the other and says what they come to. No clock, no I/O.

    After each look, `wants_ping` and `wants_beat` tell which question is to be asked now. watchdog_s, start_s: in
    seconds, None for no limit.
    """

    def __init__(self, watchdog_s: float | None, start_s: float | None) -> None:
        self.wants_ping = self.wants_beat = False
        self._watchdog_s, self._start_s = watchdog_s, start_s
        self._stopped_s = self._stuck_s = self._message_s = self._deaf_s = self._quiet_s = 0.0
        self._key: tuple[bool, int, int] = (False, 0, 0)
        self._has_asked_beat = False
        self._is_told = False

    @property
    def every_s(self) -> float:
        """How often to look. The looks cost the actor nothing."""
        least = min(limit for limit in (self._watchdog_s, self._start_s, LOOK_MAX_S * 4) if limit is not None)
        return max(LOOK_MIN_S, min(LOOK_MAX_S, least / 4))

    def judge(self, look: Look, passed_s: float) -> Hang | Slow | None:
        """`passed_s`: since the last look. The same message is told to be slow once."""
        self.wants_ping = self.wants_beat = False
        limit_s = self._watchdog_s if look.is_started else self._start_s
        if limit_s is None:
            return None
        passed_s = min(passed_s, 2 * self.every_s)
        limit = f"watchdog_s = {limit_s:g}" if look.is_started else f"start_s = {limit_s:g}"
        if look.state in "Tt":
            self._stopped_s += passed_s
            return Hang("stopped", self._stopped_s, limit) if self._stopped_s > limit_s else None
        self._stopped_s = 0.0
        self._count(look, passed_s)
        overdue_s = max(self._stuck_s, self._deaf_s)
        if overdue_s > limit_s / 2 and not self._has_asked_beat:
            self.wants_beat = self._has_asked_beat = True
        elif overdue_s > limit_s:
            if look.has_beat:
                kind: Kind = "start" if not look.is_started else "handler" if self._stuck_s > limit_s else "loop"
                return Hang(kind, overdue_s, limit)
            if self._quiet_s >= max(BEAT_S, limit_s / 2):
                return Hang("gil", overdue_s, limit)
        if look.is_started and look.since_ns and self._message_s > limit_s / 2 and not self._is_told:
            self._is_told = True
            return Slow(self._message_s, limit)
        return None

    def _count(self, look: Look, passed_s: float) -> None:
        key = (look.is_started, look.since_ns, look.progress_ns)
        is_same = key[:2] == self._key[:2]
        if not is_same:
            self._message_s, self._is_told = 0.0, False
        self._message_s += passed_s if is_same else 0.0
        is_in_hand = look.since_ns != 0 or not look.is_started
        self._stuck_s = self._stuck_s + passed_s if is_in_hand and key == self._key else 0.0
        self._key = key
        # A handler that has the thread keeps the loop from answering; then it is judged, and not the loop.
        is_deaf = look.is_started and not is_in_hand and not look.has_pong
        self._deaf_s = self._deaf_s + passed_s if is_deaf else 0.0
        if not (self._stuck_s or self._deaf_s):
            self._has_asked_beat = False
        self._quiet_s = self._quiet_s + passed_s if self._has_asked_beat and not look.has_beat else 0.0
        self.wants_ping = look.is_started and look.has_pong


def guard(process: Process, words: memoryview) -> None:
    """Watch a process that has said hello for as long as it lives, if its order says so. `words`: the status board."""
    if process.order.is_watched:
        task = asyncio.get_running_loop().create_task(_watch(process, words))
        process.died.add_done_callback(lambda _: task.cancel())
        task.add_done_callback(_complain)


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("watchdog: %s", failures.traceback_of(error))


async def _watch(process: Process, words: memoryview) -> None:
    order, at = process.order, process.order.row * rows.WORDS
    judge = Judge(order.watchdog_s, order.start_s)
    pings = beats = 0
    last_s, pinged_s = monotonic(), 0.0
    while not process.is_stopping:
        await asyncio.sleep(judge.every_s)
        look = Look(
            state=stat_of(process.pid).state,
            is_started=process.started.done(),
            since_ns=words[at + rows.SINCE_NS],
            progress_ns=words[at + rows.PROGRESS_NS],
            has_pong=words[at + rows.PONG] == pings,
            has_beat=words[at + rows.BEAT] == beats,
        )
        now_s = monotonic()
        found = judge.judge(look, now_s - last_s)
        last_s = now_s
        if isinstance(found, Hang):
            await _end(process, found)
            return
        if found is not None:
            words[at + rows.SLOW] += 1
            log.warning("%s: %s", process.order.name, found)
        if judge.wants_ping and now_s - pinged_s >= PING_S:
            pings, pinged_s = pings + 1, now_s
            process.ping(pings)
        if judge.wants_beat:
            beats += 1
            process.ask_beat(beats)


async def _end(process: Process, hang: Hang) -> None:
    """Take the stacks of a process that hangs, and kill it."""
    text = await stack_of(process, hang.kind)
    if process.is_stopping:  # stopped by somebody meanwhile, who waits for its death with a time of his own
        return
    log.warning("%s: %s; killed\n%s", process.order.name, hang, textwrap.indent(text, "    "))
    process.condemn(Death("abnormal", str(hang), how="hang", stack=text))


async def stack_of(process: Process, kind: Kind) -> str:
    """What its threads are at: as py-spy sees it, else as it can say itself, else why there is none."""
    seen = await stack.capture(process.pid, pause=kind != "stopped", native=kind == "gil")
    if not seen.threads and kind == "gil":
        seen = await stack.capture(process.pid)
    if seen.threads or kind == "stopped":
        return str(seen)
    asked = process.ask_stacks()
    text = await stack.written(*asked, timeout_s=1.0) if asked is not None else ""
    return text.rstrip() or str(seen)
