"""Limiter: the limits of one node's actors that the node keeps itself, and what it makes of a death that came of one.

CPU time, open files, niceness and CPUs are limits that the kernel keeps (loom/actor/limits.py). Memory is kept in one
of two ways, whichever the machine gives (`loom-node doctor` says which):

    cgroup    where the node may make control groups with the memory controller: the kernel kills, at the byte. What
              counts is what the process, and those it started, were the first to touch, the arena's pages included
    watched   elsewhere the node looks every LOOK_S and kills. What counts is the process's own (anonymous) memory, of
              pages shared with the zygote its part, and nothing of the arena. It may exceed the limit between two looks

A death by SIGKILL that nobody here ordered, while the kernel's count of OOM kills went up, is told as one ("oom").
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from loom.actor import board as rows
from loom.actor import procfs
from loom.actor.child import Order
from loom.actor.limits import Limits
from loom.supervise import cgroup
from loom.supervise.process import Death, Process
from loom.telemetry import log

LOOK_S = 0.1
"""How often the memory of a limited process is looked at."""

REARM = 0.95
"""A soft limit is crossed anew once less than this part of it was in use."""

MIB = 2**20


class Meter:
    """Says when a limit is crossed. Pure: readings in, words out."""

    def __init__(self, limits: Limits) -> None:
        self._hard, self._soft = limits.memory_bytes, limits.memory_soft_bytes
        self._is_above = False

    def crossed(self, used_bytes: int) -> str:
        """ "hard", "soft" (once for each crossing) or ""."""
        if self._hard is not None and used_bytes > self._hard:
            return "hard"
        if self._soft is None:
            return ""
        was_above = self._is_above
        self._is_above = used_bytes > (self._soft * REARM if was_above else self._soft)
        return "soft" if self._is_above and not was_above else ""


class Limiter:
    """Of one node. `ours`: gives the processes of the node itself, zygote included."""

    def __init__(self, cookie: str, ours: Callable[[], Iterable[int]]) -> None:
        self._cookie = cookie
        self._ours = ours
        self._cgroups: cgroup.Cgroups | None = None
        self._has_tried = False
        self._oom_kills = oom_kills()

    def prepare(self, order: Order) -> str:
        """The control group that this incarnation is to join, "" for none."""
        limit = order.limits.memory_bytes
        if limit is None or (groups := self._groups()) is None:
            return ""
        try:
            return groups.make(order.tag, limit)
        except OSError as error:
            log.warning("%s: no control group, so its memory is watched: %s", order.name, error)
            return ""

    def guard(self, process: Process, words: memoryview) -> None:
        """Watch the memory of a process that has said hello, if that is the node's business."""
        limits = process.order.limits
        if limits.memory_soft_bytes is None and (limits.memory_bytes is None or process.order.cgroup):
            return
        task = asyncio.get_running_loop().create_task(_watch(process, words))
        process.died.add_done_callback(lambda _: task.cancel())

    def explain(self, order: Order, death: Death, cpu_s: float) -> Death:
        """A death, told as what it came of. `cpu_s`: the CPU time that the process has had."""
        limits = order.limits
        if death.how != "signal":
            return death
        if death.kind == "shutdown" or death.signal not in (signal.SIGXCPU, signal.SIGKILL):
            return death
        if limits.cpu_s is not None and (death.signal == signal.SIGXCPU or cpu_s >= limits.cpu_s):
            text = f"CPU limit: it has had {cpu_s:.1f} s of CPU time (limits.cpu_s = {limits.cpu_s})"
            return msgspec.structs.replace(death, how="cpu_limit", text=text)
        if death.signal == signal.SIGXCPU:
            return death
        if order.cgroup and cgroup.oom_kills(Path(order.cgroup)):
            text = f"memory limit: killed by the kernel ({_said(limits)})"
            return msgspec.structs.replace(death, how="memory_limit", text=text)
        if self._has_oomed():
            return msgspec.structs.replace(death, how="oom", text="out of memory: killed by the kernel (SIGKILL)")
        return death

    def end(self, order: Order) -> None:
        """An incarnation is dead: end its control group, and all that is in it."""
        if order.cgroup and self._cgroups is not None:
            self._cgroups.end(order.cgroup)

    def _groups(self) -> cgroup.Cgroups | None:
        """The node's control groups, made when the first actor needs one."""
        if not self._has_tried:
            self._has_tried = True
            base = cgroup.find()
            try:
                if isinstance(base, Path):
                    self._cgroups = cgroup.Cgroups(base, self._cookie, self._ours())
            except OSError as error:
                log.info("memory limits are watched: no control groups: %s", error)
        return self._cgroups

    def _has_oomed(self) -> bool:
        """Whether the kernel has killed for want of memory since this was last asked."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        return self._oom_kills > before


async def _watch(process: Process, words: memoryview) -> None:
    order, at = process.order, process.order.row * rows.WORDS
    folder = Path(order.cgroup) if order.cgroup else None
    limits = order.limits if folder is None else msgspec.structs.replace(order.limits, memory_bytes=None)
    meter, own = Meter(limits), OwnMemory(process.pid)
    least = min(limit for limit in (limits.memory_bytes, limits.memory_soft_bytes) if limit is not None)
    while not process.died.done():
        used = own.look(least) if folder is None else cgroup.memory_bytes(folder)
        crossed = meter.crossed(used)
        if crossed == "hard":
            text = f"memory limit: it had {_mib(used)} of its own ({_said(limits)})"
            log.warning("%s: %s; killed", order.name, text)
            process.condemn(Death("abnormal", text, how="memory_limit"))
            return
        if crossed == "soft":
            words[at + rows.MEMORY_WARNINGS] += 1
            log.warning(
                "%s: memory: it has %s (limits.memory_soft_bytes = %s)",
                order.name,
                _mib(used),
                limits.memory_soft_bytes,
            )
        await asyncio.sleep(LOOK_S)


class OwnMemory:
    """The own memory of one process.

    The cheap figure counts in full what it shares with its zygote, so the exact one is asked for only when that exceeds
    a limit by more than was shared at the last time.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._shared = 0

    def look(self, above: int) -> int:
        """Bytes: exact when they are more than `above`, an estimate otherwise."""
        cheap = procfs.anonymous_bytes(self._pid)
        if cheap - self._shared <= above:
            return cheap - self._shared
        exact = procfs.own_bytes(self._pid)
        self._shared = max(0, cheap - exact)
        return exact


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, in our own control group if that can be told.

    Source: cgroup-v2.rst, memory.events; cgroup-v1/memory.rst, memory.oom_control; /proc/vmstat otherwise.
    """
    group = cgroup.own()
    places = [f"/sys/fs/cgroup/memory{_own_v1_group()}/memory.oom_control", "/proc/vmstat"]
    for place in [f"{group}/memory.events", *places] if isinstance(group, Path) else places:
        try:
            words = dict(line.split()[:2] for line in Path(place).read_text().splitlines())
            return int(words["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return 0


def _own_v1_group() -> str:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(",")), "")


def _said(limits: Limits) -> str:
    assert limits.memory_bytes is not None
    return f"limits.memory_bytes = {limits.memory_bytes}, {_mib(limits.memory_bytes)}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.0f} MiB"
