"""Death: how an incarnation ended, in words for programs and in words for people."""

from __future__ import annotations

import msgspec


class Death(msgspec.Struct, frozen=True):
    """How an incarnation ended. `kind` is the restart policy's word for it; `text` is for people.

    `traceback`: the remote traceback of an exception or a failed start, else "". `how`, in a word: "normal", "stopped"
    (it was asked to), "exit" (an exit code), "signal", "exception", "start_failed", "oom" (by the kernel),
    "memory_limit", "cpu_limit", "hang" or "unknown". `stack`: of a hang, what its threads were at before the kill.
    """

    kind: str
    text: str
    exit_code: int | None = None
    signal: int | None = None
    traceback: str = ""
    how: str = "unknown"
    stack: str = ""


OVERTAKEN = Death("shutdown", "it was stopped while it started", how="stopped")
"""What a start gives that somebody cut short: the child is his now, not the starter's."""
