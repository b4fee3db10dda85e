"""Limits: what an actor's process may use of the machine, and how it puts them on before any of the actor's code runs.

What a process started by the actor may use is the same again, for itself: rlimits, niceness and affinity are inherited.
Memory is not among the rlimits here: RLIMIT_AS counts address space, so it would count every mapping of the arena, and
RLIMIT_DATA cannot be told from a failed allocation. It is limited from outside (loom/supervise/limits.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from loom.errors import StartFailed


class Limits(msgspec.Struct, frozen=True):
    """None leaves a thing as the node has it. What each means: loom.LimitsSpec."""

    memory_bytes: int | None = None
    memory_soft_bytes: int | None = None
    cpu_s: int | None = None
    open_files: int | None = None
    nice: int | None = None
    cpus: tuple[int, ...] | None = None


NONE = Limits()


def put_on(limits: Limits, cgroup: str) -> None:
    """Limit this process. It must have one thread only: niceness and affinity are a thread's, and are inherited.

    `cgroup`: the folder of the control group it is to join, "" for none.
    Raises: StartFailed (L3001) naming the limit that the system refuses.
    """
    import resource

    def join() -> None:
        with open(os.path.join(cgroup, "cgroup.procs"), "w") as file:
            file.write("0")

    def rlimit(which: int, soft: int, hard: int) -> None:
        _, most = resource.getrlimit(which)
        if most != resource.RLIM_INFINITY and soft > most:
            raise ValueError(f"the system allows at most {most}")
        resource.setrlimit(which, (soft, hard if most == resource.RLIM_INFINITY else min(hard, most)))

    if cgroup:
        _try("memory_bytes", f"a place in {cgroup}", join)
    if (cpus := limits.cpus) is not None:
        _try("cpus", cpus, lambda: _bind(set(cpus)))
    if (nice := limits.nice) is not None:
        _try("nice", nice, lambda: os.setpriority(os.PRIO_PROCESS, 0, nice))
    if (cpu_s := limits.cpu_s) is not None:
        # SIGXCPU first, which a program may use to clear up; SIGKILL a second later.
        _try("cpu_s", cpu_s, lambda: rlimit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1))
    if (files := limits.open_files) is not None:
        _try("open_files", files, lambda: rlimit(resource.RLIMIT_NOFILE, files, files))


def _bind(cpus: set[int]) -> None:
    os.sched_setaffinity(0, cpus)
    if missing := cpus - os.sched_getaffinity(0):  # the system takes those that there are
        raise ValueError(f"there is no CPU {', '.join(map(str, sorted(missing)))} for this process")


def _try(field: str, value: object, act: Callable[[], None]) -> None:
    try:
        act()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        remedy = "give what this user may have, or run the node as one who may have more"
        raise StartFailed(f"limits.{field}: expected to get {value}, got {why}: {remedy}") from None
