"""The node process: `python -m loom.node.main FD`, with a Boot in the memfd FD.

Started by `loom.Node()` as a child of the program, or by `loom-node up`, which turns into it. From boot to exit:
take the name and clear dead nodes away, start the zygote, make arena and board, open the node's mailbox, start the
tree, serve; then stop the tree in reverse order, sweep, and remove every file.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loom import telemetry
from loom.errors import ArenaFull, LoomError
from loom.node.folder import SHM, Facts, Folder, boot_id, clear_remains
from loom.node.plan import SupervisorPlan
from loom.supervise import sweep
from loom.supervise.launcher import Launcher
from loom.telemetry import log

if TYPE_CHECKING:
    from loom.arena import Arena

_PR_SET_CHILD_SUBREAPER, _PR_SET_NAME = 36, 15

ROUNDS_S = 1.0
"""How often orphans are reaped, and the arena is searched for what dead processes held."""


class Boot(msgspec.Struct):
    """How a node is to be. `parent_pid`: the program it dies with, 0 for none. `report_fd`: where it says that it is
    ready and why it ends, one JSON line each; -1 for nowhere.
    """

    name: str
    cookie: str
    arena_bytes: int
    root: SupervisorPlan
    parent_pid: int = 0
    report_fd: int = -1


def new_cookie() -> str:
    """A cookie that no other node has."""
    return secrets.token_hex(6)


def environment(cookie: str) -> dict[str, str]:
    """The environment of a node process: this one's, and the cookie."""
    environ = {**os.environ, sweep.variable(cookie): "1"}
    home = str(Path(__file__).parent.parent.parent)
    if not home.endswith("site-packages"):  # run from a source tree: the node must find the same loom
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), home]))
    return environ


def memfd(boot: Boot) -> int:
    """A descriptor that the node process can be given as its argument."""
    fd = os.memfd_create("loom-boot")
    os.set_inheritable(fd, True)
    view = memoryview(msgspec.msgpack.encode(boot))
    while view:
        view = view[os.write(fd, view) :]
    return fd


def command(fd: int) -> list[str]:
    """The command line of a node process."""
    return [sys.executable, "-P", "-m", "loom.node.main", str(fd)]


class NodeProcess:
    """One node, from boot to exit."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self._reports = os.fdopen(boot.report_fd, "w", buffering=1) if boot.report_fd >= 0 else None
        self._why = ""
        self._code = 0
        self._ended: asyncio.Event | None = None
        self._root: Any = None
        self._folder: Folder | None = None
        self._stops = 0

    def run(self) -> int:
        """Be the node; the exit code."""
        boot = self.boot
        telemetry.setup(boot.name)
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_NAME, b"loom-node", 0, 0, 0)
        arena_name = f"loom-{os.getuid()}-{boot.cookie}"
        launcher: Launcher | None = None
        try:
            clear_remains()
            folder = self._folder = Folder.take(boot.name)
            _check_room(boot.arena_bytes)
            launcher = Launcher(folder.path, arena_name, boot.cookie)
            launcher.start()
            self._serve(folder, arena_name, launcher)
        except LoomError as error:
            self._fail(error)
        finally:
            if launcher is not None:
                launcher.close()
            sweep.kill_all(boot.cookie)
            self._remove_files()
        self._report(exit=self._why or "stopped", code=self._code)
        return self._code

    def _remove_files(self) -> None:
        if self._folder is not None:
            sweep.remove_shared_memory(f"loom-{os.getuid()}-{self.boot.cookie}")
            self._folder.remove()

    def _fail(self, error: LoomError) -> None:
        self._code = 1
        self._why = str(error)
        self._report(failed=str(error.args[0]), error=error.code)
        if self._reports is None:
            print(f"loom-node: {error}", file=sys.stderr)

    def _report(self, **line: Any) -> None:
        if self._reports is not None:
            try:
                print(json.dumps(line), file=self._reports, flush=True)
            except OSError:  # the program is gone
                self._reports = None

    def _serve(self, folder: Folder, arena_name: str, launcher: Launcher) -> None:
        import uvloop

        uvloop.run(self._main(folder, arena_name, launcher))

    async def _main(self, folder: Folder, arena_name: str, launcher: Launcher) -> None:
        # Imported here, with the zygote already busy importing the same on the other core.
        from loom.actor import board as rows
        from loom.actor.actor import HOOKS
        from loom.actor.address import Address, start_time_of
        from loom.actor.board import Board
        from loom.actor.links import Links
        from loom.actor.mailbox import Mailbox
        from loom.actor.receive import Receiver
        from loom.arena import Arena
        from loom.node.site import Service, Site

        boot = self.boot
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        arena = Arena.create(arena_name, boot.arena_bytes)
        board = Board.create(arena_name)
        address = Address("node", folder.endpoint, os.getpid(), start_time_of(), 1, 0, arena.participant)
        board.words[rows.STATE], board.words[rows.INCARNATION] = rows.RUNNING_STATE, 1
        board.words[rows.PID], board.words[rows.START] = address.pid, address.start_time
        folder.write(Facts(boot.name, os.getpid(), address.start_time, boot_id(), boot.cookie, arena_name))

        links = Links(address, arena, board, owner="node")
        mailbox = Mailbox(links.context, folder.endpoint)
        site = Site(launcher, board, arena, folder.path, address, boot.cookie)
        self._watch(loop)
        root = self._root = site.build(boot.root, self._gave_up)
        service = Service(site, boot.name, root, self.stop)
        verbs = {
            name: getattr(service, name) for name in dir(service) if not name.startswith("_") and name not in HOOKS
        }
        receiver = Receiver("node", verbs, mailbox, links, 0, is_node=True)
        receiver.start(loop)
        sweeping = loop.create_task(self._rounds(arena, launcher))
        starting = loop.create_task(root.start())
        ending = loop.create_task(self._ended.wait())
        await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and (death := starting.result()) is not None:
            self._code, self._why = 1, f"the tree failed to start: {death.text}"
            self._report(failed=self._why, traceback=death.traceback)
            if self._reports is None:
                print(f"loom-node: {self._why}\n{death.traceback}".rstrip(), file=sys.stderr)
        elif starting.done():
            self._report(ready=folder.endpoint, pid=os.getpid())
            _notify_systemd("READY=1")
            await ending
        _notify_systemd("STOPPING=1")
        starting.cancel()
        await root.stop()
        sweeping.cancel()
        await receiver.stop()
        mailbox.close()
        links.close()
        board.destroy()
        arena.destroy()

    def stop(self, why: str, code: int = 0) -> None:
        """Stop the tree in order and end. The second time: kill everything, now."""
        self._stops += 1
        if self._stops == 1:
            self._why, self._code = why, code
            log.info("stopping: %s", why)
            assert self._ended is not None
            self._ended.set()
        else:
            sweep.kill_all(self.boot.cookie)

    def _gave_up(self, root: Any, death: Any) -> None:
        self.stop(death.text, code=1)
        if self._reports is None:
            print(f"loom-node: {death.text}", file=sys.stderr)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Signals, and the program that this node belongs to."""
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        parent = self.boot.parent_pid
        if parent:
            try:
                pidfd = os.pidfd_open(parent)
            except OSError:
                self._orphaned()
                return
            if os.getppid() != parent:
                self._orphaned()
            loop.add_reader(pidfd, self._orphaned)

    def _on_signal(self, name: str) -> None:
        self.stop(f"received {name}")

    def _orphaned(self) -> None:
        """The program died: nobody is left to stop for, so nothing is stopped gently."""
        sweep.kill_all(self.boot.cookie)
        self._remove_files()
        os._exit(1)

    async def _rounds(self, arena: Arena, launcher: Launcher) -> None:
        """Once a second: reap orphans, and take back what dead processes held of the arena.

        What a dead sender had in flight may still be picked up until it has been seen dead twice.
        """
        seen: set[int] = set()
        while True:
            await asyncio.sleep(ROUNDS_S)
            self._reap_orphans(launcher)
            dead = {one.index for one in arena.participants() if not one.alive and one.index != arena.participant}
            for index in dead:
                arena.reap(index, revoke=index in seen)
            seen = dead
            arena.sweep()

    def _reap_orphans(self, launcher: Launcher) -> None:
        """Reap what was reparented to us; actors are reaped through their pidfds, the zygote by its launcher."""
        ours = {child.address.pid for child in self._actors() if child.address is not None}
        try:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        except OSError:
            return
        for pid in map(int, children):
            if pid not in ours and pid != launcher.pid and self._is_zombie(pid):
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    continue

    def _actors(self) -> list[Any]:
        from loom.supervise.child import ActorChild
        from loom.supervise.supervisor import Supervisor

        found: list[Any] = []
        tops: list[Any] = [self._root] if self._root is not None else []
        while tops:
            for child in tops.pop().children:
                if isinstance(child, Supervisor):
                    tops.append(child)
                elif isinstance(child, ActorChild):
                    found.append(child)
        return found

    def _is_zombie(self, pid: int) -> bool:
        try:
            return b") Z" in Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return False


def _check_room(arena_bytes: int) -> None:
    """Raises: ArenaFull (L3003) when /dev/shm could never hold the arena."""
    about = os.statvfs(SHM)
    free = about.f_bavail * about.f_frsize
    if arena_bytes > free:
        raise ArenaFull(
            f"/dev/shm has {free / 2**20:.0f} MiB free, the arena may grow to {arena_bytes / 2**20:.0f} MiB: "
            "set a smaller 'arena' in [node], or enlarge it with 'mount -o remount,size=... /dev/shm'"
        )


def _notify_systemd(state: str) -> None:
    """Tell systemd, when it is the one that started us. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd could not be told %s: %s", state, error)


def main() -> None:
    """Entry point of the node process."""
    fd = int(sys.argv[1])
    boot = msgspec.msgpack.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=Boot)
    os.close(fd)
    if boot.report_fd >= 0:
        os.set_inheritable(boot.report_fd, False)
    sys.exit(NodeProcess(boot).run())


if __name__ == "__main__":
    main()
