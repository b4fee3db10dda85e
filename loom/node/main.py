"""The node process: `python -m loom.node.main FD`, with a Boot in the memfd FD.

Started by `loom.Node()` as a child of the program, or by `loom-node up`, which turns into it. From boot to exit:
take the name and clear dead nodes away, start the zygote, make arena and board, open the node's mailbox, start the
tree, serve; then stop the tree in reverse order, sweep, and remove every file.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from loom import telemetry
from loom.arena.policy import FullPolicy
from loom.errors import ArenaFull, LoomError, NodeDown, StartFailed
from loom.node import statefolder
from loom.node.folder import SHM, Facts, Folder, boot_id, clear_remains
from loom.node.plan import SupervisorPlan
from loom.supervise import cgroup, orphans, sweep
from loom.supervise.launcher import Launcher
from loom.telemetry import log

if TYPE_CHECKING:
    from loom.arena import Arena, Participant
    from loom.node.site import Site

_PR_SET_CHILD_SUBREAPER, _PR_SET_NAME = 36, 15

ROUNDS_S = 1.0
"""How often orphans are reaped, and the arena is searched for what dead processes held."""


class Boot(msgspec.Struct):
    """How a node is to be.

    `state`: the folder of its actors' snapshots, "" for one that goes with the node; `is_state_shared`: other nodes may
    have been told to use it, too. `parent_pid`: the program it dies with, 0 for none. `report_fd`: where it says that
    it is ready, what went wrong and why it ends, one JSON line each; -1 for standard error, in words for people.
    """

    name: str
    cookie: str
    arena_bytes: int
    root: SupervisorPlan
    parent_pid: int = 0
    report_fd: int = -1
    arena_policy: FullPolicy = FullPolicy()
    state: str = ""
    is_state_shared: bool = False
    config: str = ""
    search: tuple[str, ...] = ()


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
        self._state_lock = -1
        self._signals = 0
        self._reloading: subprocess.Popen[bytes] | None = None
        # Only the node that systemd started may talk to it: not its actors, nor the nodes of other programs.
        self._notify = "" if boot.parent_pid else os.environ.pop("NOTIFY_SOCKET", "")

    def run(self) -> int:
        """Be the node; the exit code."""
        boot = self.boot
        telemetry.setup(boot.name)
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_NAME, b"loom-node", 0, 0, 0)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # some four descriptors an actor
        arena_name = f"loom-{os.getuid()}-{boot.cookie}"
        launcher: Launcher | None = None
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _interrupt)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))  # `loom-node up` blocks them
            clear_remains(boot.arena_policy.spill)
            folder = self._folder = Folder.take(boot.name)
            if not boot.arena_policy.spill:
                _check_room(boot.arena_bytes)
            if boot.is_state_shared:
                self._state_lock = statefolder.lock(boot.state)
            launcher = Launcher(folder.path, arena_name, boot.cookie)
            launcher.start()
            self._serve(folder, arena_name, launcher)
        except LoomError as error:
            self._fail(error.code, str(error.args[0]))
        except KeyboardInterrupt as early:  # a signal before there was a tree to stop
            self._why = f"received {early}"
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):  # what is left to do is short, and has to be done
                signal.signal(number, signal.SIG_IGN)
            if launcher is not None:
                launcher.close()
            sweep.kill_all(boot.cookie)
            orphans.end_children()
            self._remove_files()
        self._report(exit=self._why or "stopped", code=self._code)
        if self._code == 0:
            self._say(f"{boot.name} has stopped")
        return self._code

    def _remove_files(self) -> None:
        if self._folder is not None:
            cgroup.clear(self.boot.cookie)
            sweep.remove_shared_memory(f"loom-{os.getuid()}-{self.boot.cookie}")
            self._folder.remove()

    def _fail(self, code: str, why: str, traceback: str = "") -> None:
        """Tell why this node cannot be, and end with exit code 1."""
        self._code, self._why = 1, f"{code} {why}"
        self._report(error={"code": code, "message": why, "traceback": traceback})
        self._say(self._why, traceback)

    def _say(self, text: str, traceback: str = "") -> None:
        """Tell people, unless it is a program that listens. Tracebacks are for LOOM_LOG=info and debug."""
        if self._reports is None:
            print(f"loom-node: {' '.join(text.split())}", file=sys.stderr)
            if traceback and log.isEnabledFor(logging.INFO):
                print(textwrap.indent(traceback.rstrip(), "    "), file=sys.stderr)

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
        from loom.actor.snapshot import Keeping
        from loom.arena import Arena
        from loom.node.children import ChildVerbs
        from loom.node.graceful import GracefulVerbs
        from loom.node.monitors import MonitorVerbs
        from loom.node.reload import ReloadVerbs
        from loom.node.site import Service, Site

        boot = self.boot
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        arena = Arena.create(arena_name, boot.arena_bytes, boot.arena_policy)
        board = Board.create(arena_name)
        address = Address("node", folder.endpoint, os.getpid(), start_time_of(), 1, 0, arena.participant)
        board.words[rows.STATE], board.words[rows.INCARNATION] = rows.RUNNING_STATE, 1
        board.words[rows.PID], board.words[rows.START] = address.pid, address.start_time
        folder.write(Facts(boot.name, os.getpid(), address.start_time, boot_id(), boot.cookie, arena_name))

        links = Links(address, arena, board, owner="node")
        mailbox = Mailbox(links.context, folder.endpoint, "")
        keeping = Keeping(boot.state or str(folder.path / "state"), durable=bool(boot.state))
        site = Site(launcher, board, arena, folder.path, address, boot.cookie, keeping)
        self._watch(loop)
        root = self._root = site.build(boot.root, self._root_ended)
        facts = {"file": boot.config, "search": list(boot.search), "node_arena": boot.arena_bytes}
        reload = ReloadVerbs(site, boot.root, {**facts, "node_state": boot.state if boot.is_state_shared else ""})
        graceful = GracefulVerbs(site, lambda but: receiver.refuse_clients(but), self.stop)
        verbs = {
            name: getattr(service, name)
            for service in (
                Service(site, boot.name, root, self.stop),
                ChildVerbs(site),
                MonitorVerbs(site.monitors),
                graceful,
                reload,
            )
            for name in dir(service)
            if not name.startswith("_") and name not in HOOKS
        }
        receiver = Receiver("node", verbs, mailbox, links, 0, is_node=True)
        receiver.start(loop)
        sweeping = loop.create_task(self._rounds(arena, site))
        starting = loop.create_task(root.start())
        ending = loop.create_task(self._ended.wait())
        await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and (death := starting.result()) is not None:
            self._fail(StartFailed.code, f"the tree failed to start: {death.text}", death.traceback)
            self._ended.set()
        elif starting.done():
            count = len(self._actors())
            self._report(ready=folder.endpoint, pid=os.getpid(), name=boot.name, actors=count)
            actors = "1 actor" if count == 1 else f"{count} actors"
            self._say(f"{boot.name} is up: {folder.endpoint} ({actors}); Ctrl-C stops it, a second one kills it")
            _notify_systemd(self._notify, "READY=1")
            await ending
        _notify_systemd(self._notify, "STOPPING=1")
        starting.cancel()
        await root.stop()
        sweeping.cancel()
        await receiver.stop()
        mailbox.close()
        links.close()
        board.destroy()
        arena.destroy()

    def stop(self, why: str) -> None:
        """Stop the tree in order and end. Does nothing when it is stopping already."""
        assert self._ended is not None
        if not self._ended.is_set():
            self._why = why
            self._say(f"{self.boot.name} is stopping: {why}")
            log.info("stopping: %s", why)
            self._ended.set()

    def _root_ended(self, root: Any, death: Any) -> None:
        """The first supervisor gave up, or shut itself down: well (its death has exit code 0), or not."""
        assert self._ended is not None
        if not self._ended.is_set():
            self._why, self._code = death.text, death.exit_code
            code = f"{NodeDown.code} " if death.exit_code else ""
            self._say(f"{code}{self.boot.name} ends: {death.text}", death.traceback)
            self._ended.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Signals, and the program that this node belongs to."""
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
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

    def _reload(self) -> None:
        """SIGHUP: `loom-node reload --yes`, a process that may import what the config names, as this one may not."""
        is_under_way = self._reloading is not None and self._reloading.poll() is None
        if not self.boot.config or is_under_way or self._folder is None:
            return
        words = [sys.executable, "-P", "-m", "loom.cli.main", "reload", "--yes", "--node", self._folder.endpoint]
        try:
            self._reloading = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        except OSError as error:
            self._say(f"{self.boot.name} could not reload its config: {error.strerror}")

    def _on_signal(self, name: str) -> None:
        """The first stops the tree in order; the second kills everything, now."""
        self._signals += 1
        if self._signals == 1:
            self.stop(f"received {name}")
        else:
            self._why, self._code = f"killed: received {name} while it was stopping", 1
            self._say(f"{self.boot.name} is {self._why}")
            sweep.kill_all(self.boot.cookie)

    def _orphaned(self) -> None:
        """The program died: nobody is left to stop for, so nothing is stopped gently."""
        sweep.kill_all(self.boot.cookie)
        self._remove_files()
        os._exit(1)

    async def _rounds(self, arena: Arena, site: Site) -> None:
        """Once a second: end and reap orphans, and take back what dead processes held of the arena and of mailboxes.

        What a dead sender had in flight may still be picked up until it has been seen dead twice.
        """
        seen: set[Participant] = set()  # not their indexes, which others may have by now
        while True:
            await asyncio.sleep(ROUNDS_S)
            site.orphans.sweep()
            dead = {one for one in arena.participants() if not one.alive and one.index != arena.participant}
            for one in dead:
                arena.reap(one.index, revoke=one in seen)
            seen = dead
            arena.sweep()
            site.settle()

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


def _check_room(arena_bytes: int) -> None:
    """Raises: ArenaFull (L3003) when /dev/shm could never hold the arena."""
    about = os.statvfs(SHM)
    free = about.f_bavail * about.f_frsize
    if arena_bytes > free:
        raise ArenaFull(
            f"/dev/shm has {free / 2**20:.0f} MiB free, the arena may grow to {arena_bytes / 2**20:.0f} MiB: "
            "set a smaller 'arena' in [node], or enlarge it with 'mount -o remount,size=... /dev/shm'"
        )


def _notify_systemd(address: str, state: str) -> None:
    """Tell systemd, when it is the one that started us; `address` is its NOTIFY_SOCKET. Source: sd_notify(3)."""
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


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


if __name__ == "__main__":
    main()
