"""Fitness: what a node needs of the machine it runs on, as checks of the facts that `loom.node.machine` gathers.

Each check is a function of the facts alone. A problem means that no node runs; a warning, that something may go wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from loom.node.machine import Facts

MIB = 2**20
DEFAULT_ARENA_BYTES = 256 * MIB
"""That of loom/node/config.py, which needs parts that may not be importable."""

SMALL_SHM_BYTES = 64 * MIB
"""What Docker gives a container that asks for nothing."""

COPY_ON_WRITE, IN_MEMORY = ("btrfs", "zfs", "bcachefs"), ("tmpfs", "ramfs")
"""File systems that are not for spilling to."""

FILES = 4096
"""Open files below which a node is short: an actor has some sockets for every actor it talks to."""

ACTORS = 1024
"""Rows of a node's board; each actor is a process."""

KERNEL = (5, 4)
PYTHON = (3, 11)
SYSTEM_UID_MAX = 999
"""Users up to this one are the system's; logind spares them (SYSTEM_UID_MAX of systemd)."""

PTRACE_ADMIN_ONLY = 2
"""From this kernel.yama.ptrace_scope on (Yama.rst), a process cannot allow others to trace it, as actors do."""

LONGEST_NAME, PRIVATE_NAME = 64, len("private-") + 12
"""Letters in the longest name of a node, and in that of a program's own node."""

SOCKET = "/1023.9999999"
"""The longest name of a mailbox in a node's folder."""

SOCKET_PATH_BYTES = 107
"""unix(7): sun_path, less its final zero."""

Status = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """The outcome of one check: what was found, and what to do about it ("" when there is nothing to do)."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def check_python(facts: Facts) -> Finding:
    """Python is new enough."""
    found = ".".join(map(str, facts.python))
    if facts.python[:2] >= PYTHON:
        return Finding("python", "ok", found)
    return Finding("python", "problem", found, "install Python 3.11 or later, and Loom in a virtual environment of it")


def check_native(facts: Facts) -> Finding:
    """The compiled core can be loaded."""
    if not facts.native_error:
        return Finding("native core", "ok", "loom._native is importable")
    remedy = "reinstall loom-runtime with a C compiler at hand: pip install --force-reinstall loom-runtime"
    return Finding("native core", "problem", f"loom._native is not importable: {facts.native_error}", remedy)


def check_kernel(facts: Facts) -> Finding:
    """Linux is new enough."""
    numbers = tuple(int(digits) for digits in facts.kernel.split("-")[0].split(".")[:2] if digits.isdecimal())
    if numbers >= KERNEL:
        return Finding("kernel", "ok", f"Linux {facts.kernel}")
    return Finding("kernel", "problem", f"Linux {facts.kernel}", "Loom needs Linux 5.4 or later: upgrade the kernel")


def check_calls(facts: Facts) -> Finding:
    """The system calls that supervision stands on work, here and for this user."""
    failed = {
        "pidfd_open": facts.pidfd_error,
        "memfd_create": facts.memfd_error,
        "PR_SET_CHILD_SUBREAPER": facts.subreaper_error,
    }
    found = ", ".join(f"{name}: {error}" for name, error in failed.items() if error)
    if not found:
        return Finding("system calls", "ok", ", ".join(failed))
    remedy = "allow them in the sandbox's seccomp profile (Docker: a later version, or --security-opt seccomp=FILE)"
    return Finding("system calls", "problem", found, remedy)


def check_shm(facts: Facts) -> Finding:
    """There is room for arenas."""
    remedy = "mount -o remount,size=1G /dev/shm; for a container: docker run --shm-size=1g"
    if facts.shm_size_bytes is None:
        return Finding("/dev/shm", "problem", "there is none", "mount -t tmpfs -o mode=1777 tmpfs /dev/shm")
    if facts.shm_error:
        return Finding("/dev/shm", "problem", f"no file can be made in it: {facts.shm_error}", "chmod 1777 /dev/shm")
    found = f"{_mib(facts.shm_size_bytes)}, {_mib(facts.shm_free_bytes)} of them free"
    if facts.shm_free_bytes < MIB:
        return Finding("/dev/shm", "problem", f"{found}: no node can start", f"remove files there, or {remedy}")
    if facts.shm_size_bytes <= SMALL_SHM_BYTES:
        return Finding("/dev/shm", "warning", f"{found}: small, as containers have it by default", remedy)
    if facts.shm_free_bytes < DEFAULT_ARENA_BYTES:
        needed = f"a node with the default arena of {_mib(DEFAULT_ARENA_BYTES)} does not start"
        return Finding("/dev/shm", "warning", f"{found}: {needed}", f"set a smaller 'arena' in [node], or {remedy}")
    return Finding("/dev/shm", "ok", found)


def check_spill(facts: Facts) -> Finding:
    """There is room for what finds none in memory."""
    if not facts.spill:
        return Finding("spill folder", "ok", "none asked about: name a config with arena_full = 'spill'")
    remedy = "name another folder: arena_spill in [node]"
    if facts.spill_error:
        return Finding(
            "spill folder", "warning", f"{facts.spill}: {facts.spill_error}", f"create or mend it, or {remedy}"
        )
    found = f"{facts.spill}: {_mib(facts.spill_free_bytes)} free"
    if facts.spill_free_bytes < facts.arena_bytes:
        more = f"{found}: less than the arena's {_mib(facts.arena_bytes)}, so it helps little when that is full"
        return Finding("spill folder", "warning", more, f"free space there, or {remedy}")
    if facts.spill_kind in COPY_ON_WRITE:
        more = f"{found}, on {facts.spill_kind}, where a reservation need not hold: a full disk may kill who writes"
        return Finding("spill folder", "warning", more, f"use ext4 or XFS, or {remedy}")
    if facts.spill_kind in IN_MEMORY:
        more = f"{found}, on {facts.spill_kind}, which is memory too"
        return Finding("spill folder", "warning", more, f"use a disk, or {remedy}")
    return Finding("spill folder", "ok", found)


def check_remove_ipc(facts: Facts) -> Finding:
    """Nobody removes a running node's shared memory."""
    if not facts.logind:
        return Finding("RemoveIPC", "ok", "systemd-logind does not run here")
    if facts.uid <= SYSTEM_UID_MAX:
        return Finding("RemoveIPC", "ok", f"systemd-logind spares user {facts.uid}, a user of the system")
    if not facts.remove_ipc:
        return Finding("RemoveIPC", "ok", "systemd-logind leaves shared memory alone: RemoveIPC=no")
    if facts.lingers:
        return Finding("RemoveIPC", "ok", f"RemoveIPC=yes, but user {facts.uid} lingers and so never logs out")
    return Finding(
        "RemoveIPC",
        "warning",
        f"RemoveIPC=yes: when the last session of user {facts.uid} ends, systemd-logind removes all their files in "
        "/dev/shm, those of running nodes too",
        "set RemoveIPC=no in /etc/systemd/logind.conf and restart systemd-logind, or run 'loginctl enable-linger', or "
        "run the node as a system user",
    )


def check_files(facts: Facts) -> Finding:
    """There are enough file descriptors."""
    soft, hard = facts.files_soft, facts.files_hard
    found = f"{_count(soft)} open files for each process, at most {_count(hard)} on demand"
    if soft is None or soft >= FILES:
        return Finding("open files", "ok", found)
    if hard is None or hard >= FILES:
        remedy = f"'ulimit -n {FILES if hard is None else min(hard, 65536)}' before the start, or LimitNOFILE=65536"
    else:
        remedy = "raise 'nofile' in /etc/security/limits.conf, or LimitNOFILE=65536"
    return Finding("open files", "warning", f"{found}: few for many actors", f"{remedy} in the systemd unit")


def check_processes(facts: Facts) -> Finding:
    """There can be as many processes as a node has room for actors."""
    if not facts.process_limits:
        return Finding("processes", "ok", "no limit")
    which, least = min(facts.process_limits, key=lambda limit: limit[1])
    found = f"at most {least}, by {which}"
    if least >= ACTORS:
        return Finding("processes", "ok", found)
    remedy = "raise it (ulimit -u, sysctl kernel.pid_max, docker run --pids-limit, TasksMax= in the unit)"
    return Finding("processes", "warning", f"{found}: each actor is a process, and threads count too", remedy)


def check_memory_limits(facts: Facts) -> Finding:
    """How the memory limits of actors are kept. Either way is right."""
    if not facts.cgroup_error:
        return Finding("memory limits", "ok", "kept by the kernel, with control groups (cgroup v2)")
    found = f"kept by the node, which looks at limited actors ten times a second: {facts.cgroup_error}"
    return Finding("memory limits", "ok", found)


def check_stacks(facts: Facts) -> Finding:
    """A hung actor can be looked at."""
    if not facts.py_spy:
        return Finding("stacks", "warning", "py-spy is not there: hung actors say less", "pip install py-spy")
    if facts.ptrace_scope < PTRACE_ADMIN_ONLY or (facts.ptrace_scope == PTRACE_ADMIN_ONLY and facts.uid == 0):
        return Finding("stacks", "ok", "py-spy can look at actors")
    found = f"kernel.yama.ptrace_scope is {facts.ptrace_scope}: py-spy may not look at actors, hung ones say less"
    return Finding("stacks", "warning", found, "sysctl kernel.yama.ptrace_scope=1 (3 can be undone by a reboot only)")


def check_folder(facts: Facts) -> Finding:
    """Nodes have a place for their sockets, and a path to it that is short enough."""
    if facts.folder_error:
        return Finding("runtime folder", "problem", facts.folder_error, "set XDG_RUNTIME_DIR to a folder of yours")
    room = SOCKET_PATH_BYTES - len(os.fsencode(facts.folder)) - 1 - len(SOCKET)
    shorter = "set XDG_RUNTIME_DIR to a shorter path, such as /run/user/UID"
    if room < PRIVATE_NAME:
        found = f"{facts.folder}: sockets in it would have paths of more than {SOCKET_PATH_BYTES} bytes"
        return Finding("runtime folder", "problem", found, shorter)
    if room < LONGEST_NAME:
        found = f"{facts.folder}: nodes' names can have {room} letters, not {LONGEST_NAME}"
        return Finding("runtime folder", "warning", found, shorter)
    if facts.runtime_dir and Path(facts.folder).parent != Path(facts.runtime_dir):
        found = f"{facts.folder}: XDG_RUNTIME_DIR={facts.runtime_dir} cannot be written to"
        remedy = (
            "make that folder (mode 0700), or unset XDG_RUNTIME_DIR everywhere: else programs miss each other's nodes"
        )
        return Finding("runtime folder", "warning", found, remedy)
    return Finding("runtime folder", "ok", facts.folder)


def check_remains(facts: Facts) -> Finding:
    """Dead nodes have left nothing."""
    if facts.remains_error:
        return Finding(
            "dead nodes", "warning", f"could not be looked for: {facts.remains_error}", "see the lines above"
        )
    if not facts.remains:
        return Finding("dead nodes", "ok", "have left nothing")
    found = f"have left {', '.join(facts.remains)}"
    return Finding("dead nodes", "warning", found, "nothing need be done: the next node that starts clears it away")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    check_python,
    check_native,
    check_kernel,
    check_calls,
    check_shm,
    check_spill,
    check_folder,
    check_files,
    check_processes,
    check_memory_limits,
    check_stacks,
    check_remove_ipc,
    check_remains,
)


def check(facts: Facts) -> list[Finding]:
    """All checks, in the order in which a node would fail over them."""
    return [one(facts) for one in CHECKS]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.0f} MiB"


def _count(limit: int | None) -> str:
    return "any number of" if limit is None else str(limit)
