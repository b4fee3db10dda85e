"""What a supervisor does when a child ends: a pure function, OTP's rules, no clock and no I/O.

    decision = decide(spec, children, history, Exit("index", "abnormal"), now=clock.monotonic())

Who restarts (the child's `restart`):

                 normal   shutdown   abnormal   start_failed
    permanent    yes      yes        yes        yes
    transient    no       no         yes        yes
    temporary    no, whatever happens; it is forgotten

    normal         the actor stopped by itself, or its process ended with exit code 0
    shutdown       it was asked to stop, by somebody other than this supervisor
    abnormal       an exception, another exit code, a signal, a hang
    start_failed   a restart that this module ordered came to nothing

Who restarts with it (the supervisor's `strategy`): one_for_one and simple_one_for_one nobody; one_for_all every other
child; rest_for_one those that start after it. The others are stopped in reverse start order, then all are started in
start order, even those that had ended by themselves or been stopped by hand. A temporary child is stopped with the
others and forgotten.

Who is forgotten: a temporary child, when it ends or does not want to start; under simple_one_for_one every child that
is not restarted. The others keep their row, for restart_child.

Auto-shutdown (the supervisor's `auto_shutdown`): when a significant child ends by itself and is not restarted, the
supervisor stops its other children and ends: at the first of them ("any"), or when no significant child has a process,
or is to get one ("all"). A child that is stopped, by hand or with a sibling, has not ended by itself.

Intensity: each restart is one entry in `history`, be it of one child, of a group, or of a start that failed. When the
last within_s seconds hold more than max_restarts of them, this one included, the supervisor gives up: it stops every
child, and ends. An entry exactly within_s old still counts.

Backoff (not in OTP): the n-th restart in a row waits base_s * factor ** (n - 1), at most cap_s. A row ends when nothing
was restarted for reset_after_s, counted from when the last delay was over. The window forgets, too: choose within_s
longer than the delays together, or the supervisor never gives up.

How a supervisor applies a decision:

 1. Keep `history`. When `escalate` or `auto_shutdown`: stop `stop`, then end as "shutdown", as OTP does, with the
    child's death as the cause: a permanent supervisor is restarted by the one above it, a transient one is not.
 2. Mark the rows of `stop` "stopping" and stop them in that order, one after the other. A row of `start` is
    "restarting" as soon as it has no process; a row of `remove` is dropped.
 3. Wait delay_s, taking other messages meanwhile. Then start `start` in that order, each once the one before it runs.
    Skip what is no longer "restarting": it was stopped by hand. A later decision that starts one of these takes over.
 4. When a start fails, start nothing more and post Exit(name, "start_failed") to the own inbox: other messages get
    their turn, so a restart loop can be interrupted.

A child that its supervisor stops (steps 1 and 2, stop_child, delete_child) is "stopping" until its process is gone. Its
end is no event; should it come here all the same, the answer is to do nothing. The supervisor's own start is none
either: when a child fails in it, the supervisor stops those before it (`stop_order`) and fails to start.

Source: OTP, lib/stdlib/src/supervisor.erl, do_restart/3, restart/2 and add_restart/1.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import msgspec

from loom.supervise.spec import AutoShutdown, BackoffSpec, Restart, Strategy

State = Literal["starting", "running", "stopping", "restarting", "stopped"]
ExitKind = Literal["normal", "shutdown", "abnormal", "start_failed"]

ALIVE = ("starting", "running", "stopping")
"""The states that have a process."""

ROW = 100
"""How many restarts in a row the backoff tells apart: beyond that, all are as this one."""


class Rules(Protocol):
    """What the policy wants to know of a supervisor: a SupervisorSpec has it all."""

    @property
    def strategy(self) -> Strategy: ...
    @property
    def max_restarts(self) -> int: ...
    @property
    def within_s(self) -> float: ...
    @property
    def auto_shutdown(self) -> AutoShutdown: ...
    @property
    def backoff(self) -> BackoffSpec: ...


class ChildState(msgspec.Struct, frozen=True):
    """One row of the supervisor's table, as it was when the event happened.

    state: "starting", "running" and "stopping" have a process; "restarting" is to get one; "stopped" has none and waits
    for nobody: it ended without a restart, or was stopped by hand.
    """

    name: str
    restart: Restart = "permanent"
    state: State = "running"
    significant: bool = False


class Exit(msgspec.Struct, frozen=True):
    """A child ended, or its restart failed. The kinds are in this module's docstring."""

    name: str
    kind: ExitKind


class Decision(msgspec.Struct, frozen=True):
    """What to do now; how to apply it is in this module's docstring.

    stop: names with a process, in the order to stop them. start: names, in the order to start them. remove: names to
    forget. history: the restarts to remember, oldest first. delay_s: how long to wait between stop and start.
    escalate, auto_shutdown: the supervisor is to end, because it gives up, or because its work is done.
    """

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    escalate: bool = False
    auto_shutdown: bool = False
    history: tuple[float, ...] = ()
    delay_s: float = 0.0


def decide(spec: Rules, children: Sequence[ChildState], history: Sequence[float], event: Exit, now: float) -> Decision:
    """What `event` asks for. `children` in start order; `history` and `now` in seconds of one monotonic clock.

    An event about a child that is unknown, stopping or stopped is stale and changes nothing (a temporary one goes).
    """
    index = next((at for at, child in enumerate(children) if child.name == event.name), None)
    if index is None:
        return Decision(history=tuple(history))
    child = children[index]
    is_stale = child.state in ("stopping", "stopped")
    if is_stale or not restarts(child.restart, event.kind):
        is_forgotten = child.restart == "temporary" or (spec.strategy == "simple_one_for_one" and not is_stale)
        is_over = not is_stale and _is_over(spec, children, child)
        return Decision(
            stop=stop_order(children, but=child.name) if is_over else (),
            remove=(child.name,) if is_forgotten else (),
            auto_shutdown=is_over,
            history=tuple(history),
        )

    recent = in_window(history, now, spec.within_s)
    kept = _remembered(spec, history, recent, now)
    if len(recent) > spec.max_restarts:
        return Decision(stop=stop_order(children, but=child.name), escalate=True, history=kept)
    if spec.strategy in ("one_for_one", "simple_one_for_one"):
        group: Sequence[ChildState] = (child,)
    elif spec.strategy == "one_for_all":
        group = children
    else:
        group = children[index:]
    return Decision(
        stop=stop_order(group, but=child.name),
        start=tuple(one.name for one in group if one.restart != "temporary"),
        remove=tuple(one.name for one in group if one.restart == "temporary"),
        history=kept,
        delay_s=delay_s(spec.backoff, row_length(spec, kept), child.name, now),
    )


def restarts(restart: Restart, kind: ExitKind) -> bool:
    """Whether a child of that restart type comes back after such an end."""
    if restart == "transient":
        return kind in ("abnormal", "start_failed")
    return restart == "permanent"


def in_window(history: Iterable[float], now: float, within_s: float) -> tuple[float, ...]:
    """The restarts that still count at `now`, and one more, now."""
    return (*(then for then in history if now - then <= within_s), now)


def stop_order(children: Sequence[ChildState], but: str = "") -> tuple[str, ...]:
    """Those with a process, last started first; `but` is the one that has just lost its own."""
    return tuple(child.name for child in reversed(children) if child.state in ALIVE and child.name != but)


def row_length(spec: Rules, history: Sequence[float]) -> int:
    """Which restart in a row the last one of `history` is, from 1: the backoff goes by that."""
    quiet_s = spec.within_s if spec.backoff.reset_after_s is None else spec.backoff.reset_after_s
    last = history[-ROW:]
    nth = 1 if len(history) < ROW else ROW
    for before, then in itertools.pairwise(last):
        nth = nth + 1 if then - before - _full_delay_s(spec.backoff, nth) <= quiet_s else 1
    return nth


def delay_s(backoff: BackoffSpec, nth: int, name: str, now: float) -> float:
    """Seconds to wait before the nth restart (from 1) in a row.

    The jitter is drawn from the child's name and the time: still a pure function, yet no two children agree.
    """
    draw = zlib.crc32(f"{name} {now!r}".encode()) / 2**32
    return _full_delay_s(backoff, nth) * (1 - backoff.jitter * draw)


def _full_delay_s(backoff: BackoffSpec, nth: int) -> float:
    try:
        return min(backoff.cap_s, backoff.base_s * backoff.factor ** (nth - 1))
    except OverflowError:  # factor ** nth is beyond a float
        return backoff.cap_s if backoff.base_s else 0.0


def _remembered(spec: Rules, history: Sequence[float], recent: tuple[float, ...], now: float) -> tuple[float, ...]:
    """The restarts to remember: those of the window, and for the backoff the last few before it."""
    if not spec.backoff.base_s or len(recent) >= ROW:
        return recent
    return (*history, now)[-ROW:]


def _is_over(spec: Rules, children: Sequence[ChildState], ended: ChildState) -> bool:
    """Whether the end of that child, by itself and for good, is the end of its supervisor."""
    if not ended.significant or spec.auto_shutdown == "never":
        return False
    if spec.auto_shutdown == "any":
        return True
    return not any(one.significant and one.state != "stopped" for one in children if one is not ended)
