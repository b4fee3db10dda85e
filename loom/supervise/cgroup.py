"""Control groups, version 2: one for each actor with a memory limit, where this user may make them.

    <the node's own group>/loom-<cookie>/<tag of the incarnation>     memory.max, memory.oom.group, memory.swap.max

Only a group without processes of its own may hand controllers on, so a node that is alone in its group (a service with
Delegate=yes) moves into a leaf of it, loom-<cookie>-node. Where that cannot be, there are none, and limits.py watches.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint", "Memory Interface Files".
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

CONTROLLERS = ("memory",)


def own() -> Path | str:
    """The group that this process is in; else why there is none."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError as error:
        return f"/proc cannot be read: {error.strerror}"
    own = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), None)
    places = [line.split() for line in mounts if " - cgroup2 " in line]
    if own is None or not places:
        return "no cgroup v2 is mounted"
    root, mounted = places[0][3], places[0][4]
    below = own[len(root) :] if root != "/" and own.startswith(root) else own
    return Path(mounted + below.rstrip("/"))


def find(controllers: Iterable[str] = CONTROLLERS) -> Path | str:
    """The group that this process is in, when groups can be made below it; else why not."""
    base = own()
    if isinstance(base, str):
        return base
    try:
        there = (base / "cgroup.controllers").read_text().split()
    except OSError as error:
        return f"{base}: {error.strerror}"
    for controller in controllers:
        if controller not in there:
            return f"{base} has no {controller!r} controller (cgroup v1 may have it, or the group above keeps it)"
    if not os.access(base, os.W_OK) or not os.access(base / "cgroup.procs", os.W_OK):
        return f"{base} is not this user's: run the node in a service with Delegate=yes"
    return base


class Cgroups:
    """The groups of one node's actors. Raises: OSError when the node may not have them."""

    def __init__(self, base: Path, cookie: str, ours: Iterable[int], controllers: Iterable[str] = CONTROLLERS) -> None:
        """`ours`: the processes of the node in its group, which are moved when nobody else is there."""
        self._top = base / f"loom-{cookie}"
        self._leaf = base / f"loom-{cookie}-node"
        self._controllers = tuple(controllers)
        self._left: set[Path] = set()
        self._top.mkdir()
        try:
            self._hand_on(base, set(ours))
            self._hand_on(self._top, set())
        except OSError:
            _clear(base, cookie)
            raise

    def _hand_on(self, group: Path, ours: set[int]) -> None:
        control = group / "cgroup.subtree_control"
        missing = [f"+{one}" for one in self._controllers if one not in control.read_text().split()]
        if not missing:
            return
        try:
            _write(control, " ".join(missing))
        except OSError:
            if not ours or not processes_in(group) <= ours:
                raise
            self._leaf.mkdir()
            for pid in ours:
                _write(self._leaf / "cgroup.procs", str(pid))
            _write(control, " ".join(missing))

    def make(self, tag: str, memory_bytes: int | None) -> str:
        """A group for one incarnation; its folder. Raises: OSError."""
        self.sweep()
        folder = self._top / tag
        folder.mkdir()
        if memory_bytes is not None:
            _write(folder / "memory.max", str(memory_bytes))
            for name, value in (("memory.oom.group", "1"), ("memory.swap.max", "0")):
                if (folder / name).exists():  # swap may be compiled out
                    _write(folder / name, value)
        return str(folder)

    def end(self, folder: str) -> None:
        """Kill whatever is left in a group, and remove it, now or later."""
        kill(Path(folder))
        self._left.add(Path(folder))
        self.sweep()

    def sweep(self) -> None:
        """Remove the groups that have no process any more."""
        self._left = {folder for folder in self._left if not _remove(folder)}


def oom_kills(folder: Path) -> int:
    """How many processes of a group the kernel has killed for want of memory, whoever's limit it was."""
    try:
        words = dict(line.split() for line in (folder / "memory.events").read_text().splitlines())
        return int(words.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def memory_bytes(folder: Path) -> int:
    """What a group takes now, 0 when it is gone."""
    try:
        return int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return 0


def processes_in(folder: Path) -> set[int]:
    """The processes in a group, those below it not included."""
    return set(map(int, (folder / "cgroup.procs").read_text().split()))


def kill(folder: Path) -> None:
    """SIGKILL everything in a group, however it was started."""
    try:
        _write(folder / "cgroup.kill", "1")
    except OSError:  # before Linux 5.14, or gone
        pass


def clear(cookie: str) -> None:
    """Remove the groups of a node that has no actor any more, from one of its processes or from a later node."""
    base = own()
    if isinstance(base, Path):
        _clear(base.parent if base.name == f"loom-{cookie}-node" else base, cookie)


def _clear(base: Path, cookie: str) -> None:
    top, leaf = base / f"loom-{cookie}", base / f"loom-{cookie}-node"
    if top.exists():
        kill(top)
        for folder in [*(one for one in top.iterdir() if one.is_dir()), top]:
            _remove(folder)
    if leaf.exists():
        try:
            control = base / "cgroup.subtree_control"
            _write(control, " ".join(f"-{one}" for one in control.read_text().split()))
            for pid in processes_in(leaf):
                _write(base / "cgroup.procs", str(pid))
        except OSError:  # others live here, too: then it is theirs to remove
            return
        _remove(leaf)


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # its processes are not gone yet
        return False
    return True


def _write(path: Path, text: str) -> None:
    """Write a file of the kernel's; one that it does not have is not made. Raises: OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
