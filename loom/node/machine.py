"""Machine: the facts about this machine that decide whether a node can run on it; `loom.node.fitness` judges them.

A part of Loom that cannot even be imported is a fact like others: so this imports nothing of it at the top.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_TRUE, _FALSE = ("yes", "true", "on", "1", "y", "t"), ("no", "false", "off", "0", "n", "f")
"""A boolean in systemd.syntax(7); anything else is ignored there."""

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


class Facts(NamedTuple):
    """One look at the machine. The defaults are those of a machine on which nothing is amiss.

    Sizes in bytes; a limit that is None does not exist; a text that is "" means that it worked.
    """

    shm_size_bytes: int | None = 16 * 2**30
    """None: there is no /dev/shm."""
    shm_free_bytes: int = 16 * 2**30
    shm_error: str = ""
    """Why no file can be made there."""
    spill: str = ""
    """The folder that a config names for what finds no room in memory, "" when none was asked about."""
    spill_error: str = ""
    """Why nothing can be spilled there."""
    spill_free_bytes: int = 0
    spill_kind: str = ""
    """Its file system, "" when it is not known."""
    arena_bytes: int = 256 * 2**20
    """What that config's node may take of memory; the default without one."""
    uid: int = 1000
    logind: bool = True
    lingers: bool = False
    remove_ipc: bool = False
    files_soft: int | None = 65536
    files_hard: int | None = 65536
    process_limits: tuple[tuple[str, int], ...] = ()
    """What bounds the number of processes: (which limit, how many)."""
    kernel: str = "6.1.0"
    pidfd_error: str = ""
    memfd_error: str = ""
    subreaper_error: str = ""
    runtime_dir: str = "/run/user/1000"
    """$XDG_RUNTIME_DIR, "" when it is not set."""
    folder: str = "/run/user/1000/loom"
    """Where nodes keep their sockets."""
    folder_error: str = ""
    remains: tuple[str, ...] = ()
    remains_error: str = ""
    python: tuple[int, int, int] = (3, 11, 0)
    native_error: str = ""
    cgroup_error: str = ""
    """Why no control groups can be made that limit memory."""
    py_spy: bool = True
    ptrace_scope: int = 1
    """kernel.yama.ptrace_scope; 0 where there is no Yama."""


def look(spill: str = "", arena_bytes: int = 256 * 2**20) -> Facts:
    """Gather the facts. The folder of this user's nodes is made, as any command makes it; else nothing changes.

    `spill`, `arena_bytes`: those of a config; "" for no folder.
    """
    size_bytes, free_bytes, shm_error = _shm()
    soft, hard = map(_limit, resource.getrlimit(resource.RLIMIT_NOFILE))
    folder, folder_error, remains, remains_error = _folder()
    spill_error, spill_free_bytes = _spill(spill) if spill else ("", 0)
    uid = os.getuid()
    return Facts(
        shm_size_bytes=size_bytes,
        shm_free_bytes=free_bytes,
        shm_error=shm_error,
        spill=spill,
        spill_error=spill_error,
        spill_free_bytes=spill_free_bytes,
        spill_kind=_file_system(spill) if spill else "",
        arena_bytes=arena_bytes,
        uid=uid,
        logind=os.path.isdir("/run/systemd/seats"),  # as sd_login(3) finds out
        lingers=_lingers(uid),
        remove_ipc=remove_ipc([Path(top) for top in ("/etc", "/run", "/usr/local/lib", "/usr/lib")]),
        files_soft=soft,
        files_hard=hard,
        process_limits=tuple(_process_limits()),
        kernel=os.uname().release,
        pidfd_error=_error_of(_try_pidfd),
        memfd_error=_error_of(lambda: os.close(os.memfd_create("loom-doctor"))),
        subreaper_error=_error_of(_try_subreaper),
        runtime_dir=os.environ.get("XDG_RUNTIME_DIR", ""),
        folder=folder,
        folder_error=folder_error,
        remains=remains,
        remains_error=remains_error,
        python=sys.version_info[:3],
        native_error=_error_of(_try_native),
        cgroup_error=_cgroup_error(),
        py_spy=_has_py_spy(),
        ptrace_scope=_ptrace_scope(),
    )


def remove_ipc(tops: Sequence[Path]) -> bool:
    """What RemoveIPC= is in logind.conf(5) below these folders, the most important one first; yes by default.

    The first logind.conf counts, then the drop-ins of all folders in the order of their names; of two with one name
    that of the more important folder.
    """
    main = [top / "systemd/logind.conf" for top in tops]
    dropins: dict[str, Path] = {}
    for top in reversed(tops):
        dropins.update({path.name: path for path in (top / "systemd/logind.conf.d").glob("*.conf")})
    value = True
    for path in [*[path for path in main if path.exists()][:1], *[dropins[name] for name in sorted(dropins)]]:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, text = line.partition("=")
            if key.strip() == "RemoveIPC":
                word = text.strip().lower()
                value = word in _TRUE if word in (*_TRUE, *_FALSE) else value
    return value


def _shm() -> tuple[int | None, int, str]:
    try:
        about = os.statvfs("/dev/shm")
    except OSError:
        return None, 0, ""
    error = "" if os.access("/dev/shm", os.W_OK | os.X_OK) else "permission denied"
    return about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize, error


def _spill(folder: str) -> tuple[str, int]:
    """(why nothing can be spilled to a folder, bytes left on its disk). For a moment there is a file in it."""
    try:
        about = os.statvfs(folder)
        with tempfile.TemporaryFile(dir=folder, prefix="loom-doctor-") as file:
            libc = ctypes.CDLL(None, use_errno=True)  # os.posix_fallocate would make up for what a file system lacks
            if libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(4096)):
                number = ctypes.get_errno()
                if number != errno.ENOSPC:
                    return f"its file system reserves no room: {os.strerror(number)}", 0
    except OSError as error:
        return _text(error), 0
    return "", about.f_bavail * about.f_frsize


def _file_system(path: str) -> str:
    """The type of the file system that a path is on: "ext4". Source: proc_pid_mountinfo(5)."""
    best, kind = "", ""
    try:
        path = os.path.realpath(path)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        at = fields.split()[4].encode().decode("unicode_escape")  # blanks are written \040
        if len(at) >= len(best) and (path == at or path.startswith(at.rstrip("/") + "/")):
            best, kind = at, rest.split()[0]
    return kind


def _lingers(uid: int) -> bool:
    import pwd

    try:
        return Path("/var/lib/systemd/linger", pwd.getpwuid(uid).pw_name).exists()
    except (KeyError, OSError):
        return False


def _limit(number: int) -> int | None:
    return None if number == resource.RLIM_INFINITY else number


def _process_limits() -> Iterator[tuple[str, int]]:
    soft = _limit(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    if soft is not None and os.getuid() != 0:
        yield "RLIMIT_NPROC", soft
    for name, path in (("kernel.pid_max", "/proc/sys/kernel/pid_max"), ("pids.max of the cgroup", _pids_max())):
        try:
            yield name, int(Path(path).read_text())
        except (OSError, ValueError):  # "max", or there is none
            continue


def _pids_max() -> str:
    """Of the process's own cgroup (version 2); in a container that is the root of what it sees."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    group = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    return f"/sys/fs/cgroup{group.rstrip('/')}/pids.max"


def _folder() -> tuple[str, str, tuple[str, ...], str]:
    """(folder, why it cannot be used, what is left of dead nodes, why that is not known)."""
    try:
        from loom.errors import LoomError
        from loom.node import folder
    except Exception as error:
        return "", "", (), _text(error)
    try:
        base = str(folder.base())
    except LoomError as error:
        return "", str(error), (), "there is no runtime folder"
    try:
        return base, "", tuple(folder.remains()), ""
    except OSError as error:
        return base, "", (), _text(error)


def _cgroup_error() -> str:
    try:
        from loom.supervise import cgroup
    except Exception as error:
        return _text(error)
    found = cgroup.find()
    return found if isinstance(found, str) else ""


def _has_py_spy() -> bool:
    try:
        from loom.supervise import stack
    except Exception:  # then it cannot be found, either
        return False
    return stack.program() is not None


def _ptrace_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return 0


def _error_of(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except Exception as error:
        return _text(error)
    return ""


def _text(error: Exception) -> str:
    return " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())


def _try_native() -> None:
    import loom._native  # noqa: F401


def _try_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _try_subreaper() -> None:
    """Set the attribute, and set it back to what it was."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    before = ctypes.c_int()
    for call in (
        (_PR_GET_CHILD_SUBREAPER, ctypes.byref(before)),
        (_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1)),
        (_PR_SET_CHILD_SUBREAPER, None),
    ):
        if prctl(call[0], ctypes.c_ulong(before.value) if call[1] is None else call[1], 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
