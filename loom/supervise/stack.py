"""Stack: what the threads of a process are at, without its help.

py-spy reads it from outside, in a process of its own, so that nothing here waits for the one looked at. It needs the
right to trace, which an actor gives to its node (`PR_SET_PTRACER`); a container may forbid it all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loom.clock import monotonic

DUMP_S = 5.0
"""How long py-spy may take: then the process is stuck in the kernel, and it is given up."""

QUIET_S = 0.02
"""A file that has not grown for so long is taken to be complete."""

under_way: set[int] = set()
"""The pids of the py-spy processes that run: whoever reaps the children of this process must leave them alone."""

_HOME = f"{Path(__file__).parent.parent}{os.sep}"
_OUTER = tuple(
    _HOME + part for part in ("actor/receive.py", "actor/streams.py", "actor/child.py", "supervise/zygote.py")
)
_OWN_THREAD = "loom-heartbeat"


class Frame(msgspec.Struct, frozen=True):
    """One call under way."""

    name: str
    filename: str
    line: int


class Thread(msgspec.Struct, frozen=True):
    """One thread. `frames`: the innermost first. `active`: it does not sleep. `owns_gil`: Python runs on it."""

    os_thread_id: int = 0
    thread_name: str | None = None
    active: bool = False
    owns_gil: bool = False
    frames: tuple[Frame, ...] = ()


class Stacks(msgspec.Struct, frozen=True):
    """The threads of one process; when none could be seen, `error` says why. `str()` is for people."""

    pid: int
    threads: tuple[Thread, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        return "\n".join(self._lines()) if self.threads else f"no stack: {self.error}"

    def _lines(self) -> Iterator[str]:
        for thread in self.threads:
            about = ", ".join(filter(None, ["active" * thread.active or "idle", "holds the GIL" * thread.owns_gil]))
            yield f'Thread {thread.os_thread_id} "{thread.thread_name or ""}" ({about}), innermost call first'
            for frame in thread.frames:
                yield f"    {frame.name} ({frame.filename}:{frame.line})"


async def capture(pid: int, *, pause: bool = True, native: bool = False, timeout_s: float = DUMP_S) -> Stacks:
    """Look at a Python process. Never raises: what went wrong is in `error`.

    `pause`: hold it still meanwhile (a stopped process holds still by itself). `native`: with the calls into C.
    """
    found = program()
    if found is None:
        return Stacks(pid, error="py-spy is not installed beside this Python: pip install py-spy")
    options = [*(["--native"] if native else []), *([] if pause else ["--nonblocking"])]
    command = [found, "dump", "--json", "--full-filenames", *options, "--pid", str(pid)]
    try:
        code, said, complaint = await _run(command, timeout_s)
    except OSError as error:
        return Stacks(pid, error=f"py-spy could not be started: {error.strerror}")
    try:
        threads = msgspec.json.decode(said, type=tuple[Thread, ...])
    except msgspec.DecodeError:
        why = " ".join(complaint.decode(errors="replace").split()) or f"py-spy ended with {code} and said nothing"
        if code is None:
            why = f"py-spy did not get it within {timeout_s:g} s"
        return Stacks(pid, error=why)
    return Stacks(pid, tuple(map(_trimmed, (one for one in threads if one.thread_name != _OWN_THREAD))))


def program() -> str | None:
    """Where py-spy is: beside the Python that runs, or on the path."""
    for folder in (os.path.dirname(sys.executable), sysconfig.get_path("scripts")):
        if os.access(os.path.join(folder, "py-spy"), os.X_OK):
            return os.path.join(folder, "py-spy")
    return shutil.which("py-spy")


def _trimmed(thread: Thread) -> Thread:
    """Without the calls that every actor stands on: Loom's own, from the zygote's first to the receive loop's."""
    at = next((at for at, frame in enumerate(thread.frames) if frame.filename.startswith(_OUTER)), len(thread.frames))
    return msgspec.structs.replace(thread, frames=thread.frames[:at] or thread.frames)


async def _run(command: list[str], timeout_s: float) -> tuple[int | None, bytes, bytes]:
    """Run a program beside the event loop: (exit code, what it said, what it complained of); None: it took too long."""
    loop = asyncio.get_running_loop()
    with _memfd() as said, _memfd() as complaint:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=complaint)
        under_way.add(process.pid)
        code: int | None = None
        try:
            pidfd = os.pidfd_open(process.pid)  # our own child, not yet reaped
            ended = asyncio.Event()
            loop.add_reader(pidfd, ended.set)
            try:
                await asyncio.wait_for(ended.wait(), timeout_s)
                code = process.wait()
            except TimeoutError:
                pass
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
        finally:
            if code is None:
                process.kill()
                process.wait()
            under_way.discard(process.pid)
        return code, _content(said), _content(complaint)


@contextlib.contextmanager
def _memfd() -> Iterator[int]:
    fd = os.memfd_create("loom-stack", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


async def written(fd: int, begin: int, timeout_s: float) -> str:
    """What somebody adds to a file behind `begin`, once it stays the same for a moment; "" when nothing comes."""
    until, size = monotonic() + timeout_s, begin
    while monotonic() < until:
        await asyncio.sleep(QUIET_S)
        now = os.fstat(fd).st_size
        if now > begin and now == size:
            break
        size = now
    return os.pread(fd, size - begin, begin).decode(errors="replace")
