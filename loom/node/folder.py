"""The runtime folder: where a node keeps its sockets, and how a dead node's remains are found and cleared.

    BASE/alpha.lock     held with flock by the node for as long as it lives; the kernel lets go when it dies
    BASE/alpha/facts    who the node is: pid, start time, boot, cookie, arena
    BASE/alpha/node     the node's own mailbox
    BASE/alpha/3.17     the mailbox of row 3's present incarnation, the 17th that the node made

BASE is $XDG_RUNTIME_DIR/loom, or /run/user/UID/loom, or /tmp/loom-UID. It and all below is ours alone (0700): whoever
can reach a socket in it is the same user, which is what makes pickles acceptable there.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loom.arena import clear_spill
from loom.errors import ConfigError, NameTaken, NodeNotFound, RuntimeFolderError
from loom.supervise import cgroup, sweep
from loom.telemetry import log

SHM = Path("/dev/shm")

SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket (sun_path of unix(7), less its final zero)."""


class Facts(msgspec.Struct, frozen=True):
    """Who a node is. `start_time` in clock ticks since the boot that `boot_id` names."""

    name: str
    pid: int
    start_time: int
    boot_id: str
    cookie: str
    arena: str


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def base() -> Path:
    """The folder of all of this user's nodes, made if need be.

    Raises: RuntimeFolderError (L3002) when it cannot be made, or is not ours alone.
    """
    uid = os.getuid()
    parent = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    found = Path(parent) / "loom" if os.access(parent, os.W_OK | os.X_OK) else Path(f"/tmp/loom-{uid}")
    try:
        found.mkdir(mode=0o700, exist_ok=True)
        about = os.lstat(found)
    except OSError as error:
        raise RuntimeFolderError(
            f"{found}: cannot be made: {error.strerror}; set XDG_RUNTIME_DIR to a folder of yours"
        ) from None
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != uid or about.st_mode & 0o077:
        raise RuntimeFolderError(
            f"{found}: expected a folder of user {uid} with mode 0700, got one of user {about.st_uid} with mode "
            f"{stat.S_IMODE(about.st_mode):04o}: remove it, or set XDG_RUNTIME_DIR to a folder of yours"
        )
    return found


class Folder:
    """A node's own folder, held by its lock."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def take(cls, name: str) -> Folder:
        """Make the folder of a new node.

        Raises: NameTaken (L1002) when a node of that name runs; RuntimeFolderError (L3002).
        """
        if name.endswith(".lock"):
            raise ConfigError(f"node name: expected one that does not end in '.lock', got {name!r}: choose another")
        path = base() / name
        longest = f"{path}/1023.9999999"
        if len(longest.encode()) > SOCKET_PATH_BYTES:
            raise RuntimeFolderError(
                f"{path}: a socket in it would have a path of more than {SOCKET_PATH_BYTES} bytes: "
                "choose a shorter node name or XDG_RUNTIME_DIR"
            )
        lock_fd = sweep.lock(path)
        if lock_fd is None:
            raise NameTaken(f"a node named {name!r} is running: choose another name, or end it with 'loom-node stop'")
        _clear(path)
        path.mkdir(mode=0o700, exist_ok=True)
        return cls(path, lock_fd)

    @property
    def endpoint(self) -> str:
        """The node's own mailbox."""
        return f"ipc://{self.path}/node"

    def write(self, facts: Facts) -> None:
        """Say who the node is; whole or not at all."""
        draft = self.path / "facts.new"
        draft.write_bytes(msgspec.json.encode(facts))
        draft.rename(self.path / "facts")

    def remove(self) -> None:
        """Remove the folder and let go of the name."""
        sweep.remove_folder(self.path, self._lock_fd)


def facts_of(path: Path) -> Facts | None:
    """What a node's folder says of it, None when it says nothing that can be read."""
    try:
        return msgspec.json.decode((path / "facts").read_bytes(), type=Facts)
    except (OSError, msgspec.DecodeError):
        return None


def find(name_or_endpoint: str) -> tuple[Path, Facts]:
    """The folder and facts of a running node, by its name or its endpoint. Raises: NodeNotFound (L1007)."""
    if name_or_endpoint.startswith("ipc://"):
        path = Path(name_or_endpoint.removeprefix("ipc://")).parent
    elif "://" in name_or_endpoint:
        raise NodeNotFound(f"{name_or_endpoint}: expected a node's name or ipc://FOLDER/node")
    else:
        path = base() / name_or_endpoint
    facts = facts_of(path)
    if facts is None or not _lives(facts):
        others = ", ".join(sorted(found.name for found in running())) or "none"
        raise NodeNotFound(
            f"no node is running at {name_or_endpoint!r}; running: {others}; start one with 'loom-node up'"
        )
    return path, facts


def _lives(facts: Facts) -> bool:
    from loom.actor.address import is_alive

    return facts.boot_id == boot_id() and is_alive(facts.pid, facts.start_time)


def running() -> Iterator[Facts]:
    """This user's running nodes."""
    for entry in base().iterdir():
        if entry.is_dir():
            facts = facts_of(entry)
            if facts is not None and _lives(facts):
                yield facts


def remains() -> list[str]:
    """What dead nodes of this user have left behind, one line each; touches nothing."""
    folders = {entry: facts_of(entry) for entry in sorted(base().iterdir()) if entry.is_dir()}
    found = [f"folder {path}" for path, facts in folders.items() if facts is not None and not _lives(facts)]
    prefix = f"loom-{os.getuid()}-"
    living = {facts.cookie for facts in folders.values() if facts is not None and _lives(facts)}
    cookies = {entry.name.removeprefix(prefix).split(".")[0] for entry in SHM.glob(f"{prefix}*")}
    for cookie in sorted(cookies - living):
        if not sweep.processes_of(cookie) and sweep.variable(cookie) not in os.environ:
            found.append(f"shared memory {SHM}/{prefix}{cookie}.*")
    return found


def clear_remains(spill: str = "") -> int:
    """Clear away what dead nodes of this user have left behind, in the folder `spill` too; how many nodes it was of."""
    cleared = 0
    for entry in base().iterdir():
        path = entry.with_suffix("") if entry.suffix == ".lock" else entry
        if not path.exists() and not entry.exists():
            continue
        try:
            lock_fd = sweep.lock(path)
        except OSError as error:  # not ours to clear
            log.warning("%s: %s", path, error.strerror)
            continue
        if lock_fd is None:
            continue
        cleared += _clear(path)
        sweep.remove_folder(path, lock_fd)
    prefix = f"loom-{os.getuid()}-"
    cookies = {entry.name.removeprefix(prefix).split(".")[0] for entry in SHM.glob(f"{prefix}*")}
    for cookie in cookies:
        if not sweep.processes_of(cookie) and sweep.variable(cookie) not in os.environ:
            sweep.remove_shared_memory(prefix + cookie)
            cleared += 1
    if spill:
        cleared += clear_spill(spill)  # of those whose control file is gone as well: there was a reboot
    return cleared


def _clear(path: Path) -> int:
    """Clear away a dead node, whose lock we hold; 1 when there was one."""
    facts = facts_of(path)
    if facts is not None:
        killed = sweep.kill_all(facts.cookie) if facts.boot_id == boot_id() else 0
        cgroup.clear(facts.cookie)
        sweep.remove_shared_memory(facts.arena)
        log.warning("cleared away what the dead node %r had left (%d processes)", facts.name, killed)
    if not path.exists():
        return 0
    shutil.rmtree(path, ignore_errors=True)
    return 1
