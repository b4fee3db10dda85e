"""From the core's return codes to `loom.errors`, with the numbers and the remedy."""

from __future__ import annotations

import os

from loom import _native
from loom.arena.policy import FullPolicy
from loom.arena.stats import ArenaStats, human
from loom.errors import (
    ArenaFull,
    InternalError,
    LoomError,
    NodeNotFound,
    ProtocolError,
    StaleReference,
    StartFailed,
    UsageError,
)

_ERRORS: dict[int, tuple[type[LoomError], str]] = {
    _native.STALE: (StaleReference, "use a reference once, and while its sender and the message live"),
    _native.ABSENT: (StaleReference, "the receiver left or died; ask its supervisor for the new incarnation"),
    _native.CORRUPT: (ProtocolError, "something else wrote to the file; stop the node and start it again"),
    _native.VERSION: (ProtocolError, "start the node and its programs from one version of loom-runtime"),
    _native.DENIED: (ProtocolError, "remove the file, or run as the user who started the node"),
    _native.NOT_FOUND: (NodeNotFound, "is the node running? `loom-node ps` lists those that are"),
    _native.EXISTS: (StartFailed, "choose another name, or remove the dead node's files with destroy_files()"),
    _native.SLOTS: (ArenaFull, f"at most {_native.PARTICIPANTS - 1} processes and {_native.SEGMENTS} segments"),
    _native.FULL: (ArenaFull, "free space in /dev/shm, or mount it larger: mount -o remount,size=8G /dev/shm"),
    _native.FORKED: (UsageError, "open an arena in the child: Arena.attach(name)"),
    _native.CLOSED: (UsageError, "do not use an arena or a block after close() or release()"),
    _native.USAGE: (UsageError, "names match [A-Za-z0-9_-]{1,96}; reap, sweep and destroy are the node's"),
    _native.ALIVE: (UsageError, "reap a participant only when its process is dead"),
}


def failure(error: _native.Error, doing: str) -> LoomError:
    """The public error for one from the core; `doing` says what was tried: "attach to 'loom-0-ab'"."""
    code, text, number = error.args
    if code == _native.OS:
        return StartFailed(f"cannot {doing}: {os.strerror(number)} (errno {number})")
    kind, remedy = _ERRORS.get(code, (InternalError, "this is a bug in Loom, please report it"))
    return kind(f"cannot {doing}: {text}; {remedy}")


def full(name: str, asked_bytes: int, waited_s: float, code: int, stats: ArenaStats, policy: FullPolicy) -> ArenaFull:
    """No room for `asked_bytes` after `waited_s` seconds: who has it, and what to do."""
    asked = f"arena {name!r} has no room for {human(asked_bytes)} (waited {round(waited_s, 3):g} s)"
    numbers = (
        f"budget {human(stats.budget_bytes)}, reserved {human(stats.reserved_bytes)} in {stats.segments} segments, "
        f"in use {human(stats.in_use_bytes)} in {stats.blocks} blocks, {stats.in_flight} references in flight, "
        f"{human(stats.free_bytes)} free in /dev/shm"
    )
    if policy.spill:
        numbers += f", {human(stats.spill_reserved_bytes)} in files in {policy.spill}"
        numbers += f", {human(stats.spill_free_bytes)} free on that disk"
    if code == _native.TOKENS:
        remedy = (
            f"one process has at most {_native.TOKEN_LIMIT} references in flight: wait for replies before sending more"
        )
    elif code == _native.SLOTS:
        remedy = f"all {_native.SEGMENTS} segments are taken: lease fewer, larger blocks"
    elif policy.spill:
        remedy = "that disk is full too: free space there, or name another folder (`arena_spill` under [node])"
    elif asked_bytes > stats.budget_bytes:
        remedy = "it can never fit: raise the node's arena size (`arena` under [node])"
    elif stats.free_bytes < asked_bytes and stats.reserved_bytes + asked_bytes <= stats.budget_bytes:
        remedy = "/dev/shm is smaller than the budget: mount -o remount,size=8G /dev/shm, or free space there"
    else:
        remedy = "drop arrays that are not needed any more, or raise the node's arena size (`arena` under [node])"
    return ArenaFull(f"{asked}: {numbers}. Remedy: {remedy}")
