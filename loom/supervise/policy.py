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

Who restarts with it (the supervisor's `strategy`): one_for_one nobody; one_for_all every other child; rest_for_one
those that start after it. The others are stopped in reverse start order, then all are started in start order, even
those that had ended by themselves or been stopped by hand. A temporary child is stopped with the others and forgotten.

Intensity: each restart is one entry in `history`, be it of one child, of a group, or of a start that failed. When the
last within_s seconds hold more than max_restarts of them, this one included, the supervisor gives up: it stops every
child, and ends. An entry exactly within_s old still counts.

Backoff (not in OTP): the n-th restart of the window waits base_s * factor ** (n - 1), at most cap_s. The window forgets
and so does the backoff: choose within_s longer than the delays together, or the supervisor never gives up.

How a supervisor applies a decision:

 1. Keep `history`. When `escalate`: stop `stop`, then end as "shutdown", as OTP does, with the child's death as the
    cause: a permanent supervisor is restarted by the one above it, a transient one is not.
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

import zlib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from loom.supervise.spec import BackoffSpec, Restart, SupervisorSpec

State = Literal["starting", "running", "stopping", "restarting", "stopped"]
ExitKind = Literal["normal", "shutdown", "abnormal", "start_failed"]

ALIVE = ("starting", "running", "stopping")
"""The states that have a process."""


class ChildState(msgspec.Struct, frozen=True):
    """One row of the supervisor's table, as it was when the event happened.

    state: "starting", "running" and "stopping" have a process; "restarting" is to get one; "stopped" has none and waits
    for nobody: it ended without a restart, or was stopped by hand.
    """

    name: str
    restart: Restart = "permanent"
    state: State = "running"


class Exit(msgspec.Struct, frozen=True):
    """A child ended, or its restart failed. The kinds are in this module's docstring."""

    name: str
    kind: ExitKind


class Decision(msgspec.Struct, frozen=True):
    """What to do now; how to apply it is in this module's docstring.

    stop: names with a process, in the order to stop them. start: names, in the order to start them. remove: names to
    forget. history: the restarts to remember, oldest first. delay_s: how long to wait between stop and start.
    """

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    escalate: bool = False
    history: tuple[float, ...] = ()
    delay_s: float = 0.0


def decide(
    spec: SupervisorSpec, children: Sequence[ChildState], history: Sequence[float], event: Exit, now: float
) -> Decision:
    """What `event` asks for. `children` in start order; `history` and `now` in seconds of one monotonic clock.

    An event about a child that is unknown, stopping or stopped is stale and changes nothing (a temporary one goes).
    """
    index = next((at for at, child in enumerate(children) if child.name == event.name), None)
    if index is None:
        return Decision(history=tuple(history))
    child = children[index]
    if child.restart == "temporary":
        return Decision(remove=(child.name,), history=tuple(history))
    if child.state in ("stopping", "stopped") or not restarts(child.restart, event.kind):
        return Decision(history=tuple(history))

    recent = in_window(history, now, spec.within_s)
    if len(recent) > spec.max_restarts:
        return Decision(stop=stop_order(children, but=child.name), escalate=True, history=recent)
    if spec.strategy == "one_for_one":
        group: Sequence[ChildState] = (child,)
    elif spec.strategy == "one_for_all":
        group = children
    else:
        group = children[index:]
    return Decision(
        stop=stop_order(group, but=child.name),
        start=tuple(one.name for one in group if one.restart != "temporary"),
        remove=tuple(one.name for one in group if one.restart == "temporary"),
        history=recent,
        delay_s=delay_s(spec.backoff, len(recent), child.name, now),
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


def delay_s(backoff: BackoffSpec, nth: int, name: str, now: float) -> float:
    """Seconds to wait before the nth restart (from 1) of the window.

    The jitter is drawn from the child's name and the time: still a pure function, yet no two children agree.
    """
    try:
        full = min(backoff.cap_s, backoff.base_s * backoff.factor ** (nth - 1))
    except OverflowError:  # factor ** nth is beyond a float
        full = backoff.cap_s if backoff.base_s else 0.0
    draw = zlib.crc32(f"{name} {now!r}".encode()) / 2**32
    return full * (1 - backoff.jitter * draw)
