"""The sweep: ends every process and removes every file of a dead node.

Every descendant of a node inherits an environment variable with the node's cookie in its name, wherever it was
reparented to, with or without `setsid`. A look through /proc finds them all, as long as they kept their environment.
Nodes within actors of other nodes carry both cookies.
"""

from __future__ import annotations

import fcntl
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
    """Unlink a dead node's arena, with what it spilled, its status board, its ledger and its actors' inboxes."""
    destroy_files(arena_name)
    for inbox in Path("/dev/shm").glob(f"{arena_name}.*.inbox"):
        inbox.unlink(missing_ok=True)
    for kind in ("board", "ledger"):
        (Path("/dev/shm") / f"{arena_name}.{kind}").unlink(missing_ok=True)


def lock(folder: Path) -> int | None:
    """Hold the lock that belongs to a node's folder, a file beside it; None when a living node holds it.

    Returns: a descriptor; the lock is held until it is closed, by whatever means.
    """
    path = folder.with_name(f"{folder.name}.lock")
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino == os.stat(path).st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:  # its last holder removed it as we took it
            pass
        os.close(fd)


def remove_folder(folder: Path, lock_fd: int) -> None:
    """Remove a node's sockets and their folder, then its lock, which is let go of."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
    os.close(lock_fd)
