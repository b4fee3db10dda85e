"""The sweep: ends every process and removes every file of a dead node.

Every descendant of a node inherits an environment variable with the node's cookie in its name, wherever it was
reparented to, with or without `setsid`. A look through /proc finds them all, as long as they kept their environment.
Nodes within actors of other nodes carry both cookies.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path

from loom.actor.address import open_pidfd, start_time_of
from loom.arena import destroy_files


def variable(cookie: str) -> str:
    """Name of the environment variable that marks the descendants of the node with that cookie."""
    return f"LOOM_COOKIE_{cookie}"


def processes_of(cookie: str) -> list[int]:
    """Pids of all living processes of this user that carry the cookie, this one and zombies not included."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        if pid == os.getpid():
            continue
        if _carries(pid, cookie):
            found.append(pid)
    return found


def kill_all(cookie: str, spare: frozenset[int] = frozenset()) -> int:
    """SIGKILL every process that carries the cookie, again until a look finds none; how many were killed.

    Through pidfds: a pid that is reused between the look and the kill is not hit.
    """
    killed = 0
    while True:
        pidfds = []
        for pid in processes_of(cookie):
            if pid in spare:
                continue
            pidfd = open_pidfd(pid, start_time_of(pid))
            if pidfd is None:
                continue
            if _carries(pid, cookie):
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    pidfds.append(pidfd)
                    continue
                except OSError:
                    pass
            os.close(pidfd)
        if not pidfds:
            return killed
        killed += len(pidfds)
        for pidfd in pidfds:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(1000)  # a process in an uninterruptible sleep must not hold up the others
            os.close(pidfd)


def _carries(pid: int, cookie: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{variable(cookie)}=1".encode() in file.read().split(b"\0")
    except OSError:  # gone meanwhile, or somebody else's
        return False


def remove_shared_memory(arena_name: str) -> None:
    """Unlink a dead node's arena and status board."""
    destroy_files(arena_name)
    (Path("/dev/shm") / f"{arena_name}.board").unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a dead node's sockets and their folder."""
    shutil.rmtree(folder, ignore_errors=True)
