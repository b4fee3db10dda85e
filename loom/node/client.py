"""Client and Node: a program's end of a node.

`connect` joins a running node. `Node` starts one of its own, a separate process that ends with the program; so
supervision never waits for the program's GIL, and nothing forks a process that has threads.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from loom import arena as arenas
from loom.actor import links as all_links
from loom.actor.actor import Actor
from loom.actor.address import Address
from loom.actor.board import Board
from loom.actor.dead_letter import DeadLetter
from loom.actor.links import Links
from loom.actor.monitor import Monitor
from loom.actor.ref import ActorRef
from loom.actor.reply import Reply
from loom.actor.verbs import Verbs, search_path
from loom.arena import Arena
from loom.arena.policy import Full
from loom.errors import (
    ActorDied,
    ArenaFull,
    ConfigError,
    LoomError,
    NameTaken,
    NodeDown,
    RuntimeFolderError,
    StartFailed,
    StoreError,
)
from loom.node.folder import find
from loom.node.holdings import ArenaReport
from loom.node.main import Boot, command, environment, memfd, new_cookie
from loom.node.plan import plan_of
from loom.node.stats import DrainReport, NodeStats, Tree
from loom.node.supervisor_ref import SupervisorRef, add_supervisor
from loom.supervise.spec import ROOT, Restart, SupervisorSpec, check_name
from loom.supervise.stack import Stacks
from loom.wire import codec

START_S = 60.0
"""How long a node may take to get ready, its actors' `__init__` included, before it is given up."""

CLEAR_UP_S = 5.0
"""How long a node that could not start may take to remove its files."""


class Client:
    """A connection to a node. Use it as a context manager, or call `close`."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._verbs = Verbs(links)

    @property
    def endpoint(self) -> str:
        """The node's address: `loom.connect(endpoint)` reaches the same node from elsewhere."""
        return self._links.node.address.endpoint

    @property
    def pid(self) -> int:
        """The node process."""
        return self._links.node.address.pid

    def spawn(self, actor: Any, *args: Any, name: str | None = None, **kwargs: Any) -> ActorRef:
        """Start an actor under the root supervisor; returns at once, before its `__init__` has run.

        It is a permanent child: whenever it ends, it is restarted. `name`: unique on the node; made from the class's
        name when not given. An exception in `__init__` makes calls raise ActorDied with its traceback; an actor that
        fails to start is not tried again.
        Raises: NameTaken (L1002), NotSendable (L1004), UsageError (L1008), StartFailed (L3001), NodeDown (L2008).
        """
        return self._verbs.spawn(actor, *args, name=name, **kwargs)

    def lookup(self, name: str) -> ActorRef:
        """A reference to a running actor, or to a pool (ChildSpec(instances=N)), which spreads messages by its routing.

        Raises: ActorNotFound (L1003) naming the nearest name; ActorDied (L2001) when it is gone for good.
        """
        return self._verbs.lookup(name)

    def stop(self, actor: ActorRef | str) -> None:
        """Stop one actor (or supervisor) for good; returns when it is gone. Raises: ActorNotFound (L1003)."""
        self._verbs.stop_child(actor if isinstance(actor, str) else actor.name)

    def info(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Who the node is: its `name`, `pid`, `endpoint`, `arena`, `state` (a folder) and `uptime_s`.

        Raises: CallTimeout (L2002).
        """
        found: dict[str, Any] = self._links.ask_node("info").result(timeout_s)
        return found

    def stack(self, actor: ActorRef | str) -> Stacks:
        """What the threads of an actor are at, seen from outside, so that a hung one can be asked about, too.

        Raises: ActorNotFound (L1003), ActorDied (L2001).
        """
        name = actor if isinstance(actor, str) else actor.name
        return msgspec.convert(self._links.ask_node("stack", name).result(), Stacks)

    def supervise(self, spec: SupervisorSpec, name: str | None = None, restart: Restart = "permanent") -> SupervisorRef:
        """Start one more supervisor, with its children, under the root; returns when all of them run.

        `name`: unique on the node; "supervisor", "supervisor-2" ... when not given. `restart`: what the root does when
        it gives up. Raises: StartFailed (L3001), NameTaken (L1002), ChildError (L1010), NotSendable (L1004), NodeDown.
        """
        if name is not None:
            check_name("supervise", "name", name)
        return add_supervisor(self._links, plan_of(spec, search_path(), name or "", restart))

    def supervisor(self, name: str = ROOT) -> SupervisorRef:
        """A supervisor of the node, to start, stop, restart, delete, list and count its children; by default the root.

        It is looked for when it is used: see SupervisorRef.
        """
        return SupervisorRef(self._links, name)

    def monitor(self, actor: ActorRef | SupervisorRef | str) -> Monitor:
        """Monitor an actor, a group or a supervisor: a context manager that yields a loom.Down for each death.

        Whichever incarnation dies. One that is dead, or unknown, is told of at once; the iteration ends when nobody
        bears the name any more. Raises: NodeDown (L2008).
        """
        return Monitor(self._links, actor if isinstance(actor, str) else actor.name)

    def stats(self) -> NodeStats:
        """Figures of the node, its actors and its arena, as a frozen struct."""
        return msgspec.convert(self._links.ask_node("stats").result(), NodeStats)

    def arena(self) -> ArenaReport:
        """Who has what of the node's shared memory. It walks every block: for people, not for every message."""
        return msgspec.convert(self._links.ask_node("arena").result(), ArenaReport)

    def resize(self, pool: str, instances: int) -> list[str]:
        """Start or stop members of a pool until there are `instances`; returns their names.

        Members that go get nothing new, and some seconds to finish what they have.
        Raises: ActorNotFound (L1003), ConfigError (L1001), StartFailed (L3001).
        """
        return msgspec.convert(self._links.ask_node("resize", pool, instances).result(), list[str])

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The last messages that were not run to their end, oldest first; the node keeps 1000."""
        found = self._links.ask_node("dead_letters", limit).result()
        return msgspec.convert(found["letters"], list[DeadLetter])

    def ping(self, actor: ActorRef | str) -> Reply:
        """Ask an actor for a sign of life; the Reply becomes None. Overtakes a full mailbox, not a running handler."""
        return self._links.target(actor if isinstance(actor, str) else actor.name).ping()

    def tree(self) -> Tree:
        """The supervisors and actors; `str()` draws it."""
        return msgspec.convert(self._links.ask_node("tree").result(), Tree)

    def upgrade(
        self, actor: ActorRef | str, new: type[Actor] | str | None = None, *, timeout_s: float = 30.0
    ) -> list[str]:
        """Give a running actor, or each member of a group, a new class in a new process; the names of those upgraded.

        `new`: a class, or "module:Class"; None for the same, imported anew. It is made with the old one's arguments
        and given its snapshot. Messages wait meanwhile and are not lost. `timeout_s`: for the old one to finish what it
        has. Use `lookup` for a reference that knows the new methods.
        Raises: UpgradeFailed (L2010), and the old one goes on; StartFailed (L3001) when the new one failed to start,
            and the old one was started again; ActorNotFound (L1003), UsageError (L1008).
        """
        name = actor if isinstance(actor, str) else actor.name
        target, pickled = "", b""
        if isinstance(new, str):
            target = new
        elif new is not None:
            pickled = codec.dumps(new, "the new class")
        path = None if new is None or isinstance(new, str) else search_path()
        done: list[str] = self._links.ask_node("upgrade", name, target, pickled, path, timeout_s).result()
        return done

    def config(self) -> dict[str, Any]:
        """Where the node's config came from: `file` ("" for none), `search` (its sys.path), `version` (of the plan)."""
        found: dict[str, Any] = self._links.ask_node("config").result()
        return found

    def reload(self, plan: bytes, *, apply: bool = False, version: int | None = None) -> dict[str, Any]:
        """The `changes` that lead to another plan of the tree (a SupervisorPlan, as MessagePack), and its `version`.

        `apply`: do them; all or none. `version`: refuse with UsageError when the plan is no longer that one.
        Raises: StartFailed (L3001), UpgradeFailed (L2010), NameTaken (L1002).
        """
        found: dict[str, Any] = self._links.ask_node("reload", plan, apply, version).result()
        return found

    def drain(
        self, timeout_s: float | None = None, progress: Callable[[DrainReport], None] | None = None
    ) -> DrainReport:
        """Have the node refuse clients, finish what is in its mailboxes, and stop in order; returns when it is gone.

        `timeout_s`: stop then all the same. `progress` is called at every change. What is left in the end, the returned
        report says: calls among it end as ActorDied. Raises: NodeDown (L2008) when it is killed meanwhile.
        """
        address = self._links.node.address
        pidfd = os.pidfd_open(address.pid)
        try:
            for item in self._links.ask_node("drain", timeout_s):
                report = msgspec.convert(item, DrainReport)
                if progress is not None:
                    progress(report)
            _wait_for(pidfd, None)
        finally:
            os.close(pidfd)
        return report

    def shutdown(self, reason: str = "asked to by a client") -> None:
        """Have the node stop its tree in order and end; returns when its process is gone."""
        address = self._links.node.address
        try:
            pidfd = os.pidfd_open(address.pid)
        except OSError:
            return
        try:
            self._links.ask_node("shutdown", reason).result()
            _wait_for(pidfd, None)
        except (NodeDown, ActorDied):
            pass
        finally:
            os.close(pidfd)

    def close(self) -> None:
        """Disconnect. Replies that are still pending end as ActorDied."""
        self._links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<loom.{type(self).__name__} {self.endpoint}>"


class Node(Client):
    """A node of this program's own: started here, stopped with the `with` block, dead with the program.

    `name`: for `loom-node --node NAME` and `loom.connect(NAME)`; a private one when not given. `arena`: what
    shared-memory tensors may take in all, as "256MiB" or a number of bytes. `arena_full`: what happens when they do:
    "wait" (the default) until the call's deadline, for `arena_wait_s` (1 s) when it has none; "raise" ArenaFull at
    once; "spill" to files below the folder `arena_spill` (loom/node/room.py). `state`: the folder that its actors'
    snapshots are kept in, and found again by a later node; without one they end with this node. `supervisor`: the root
    supervisor's rules
    and first children; by default one_for_one with 1 restart in 5 s.
    Raises: NameTaken (L1002), ArenaFull (L3003), StartFailed (L3001), ConfigError (L1001).
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        arena: int | str = "256MiB",
        arena_full: Full | None = None,
        arena_wait_s: float | None = None,
        arena_spill: str | Path | None = None,
        state: str | os.PathLike[str] | None = None,
        supervisor: SupervisorSpec = SupervisorSpec(),  # noqa: B008 (immutable)
    ) -> None:
        from loom.node.config import size_bytes
        from loom.node.room import check_spill, full_policy

        cookie = new_cookie()
        chosen = f"private-{cookie}" if name is None else name
        check_name("Node", "name", chosen)
        root = plan_of(supervisor, search_path())
        arena_bytes = size_bytes(arena)
        policy = full_policy(arena_full, arena_wait_s, arena_spill, Path.cwd())
        check_spill(policy.spill)
        reports, report_fd = os.pipe()
        os.set_inheritable(report_fd, True)
        folder = "" if state is None else os.path.abspath(os.path.expanduser(state))
        boot = Boot(chosen, cookie, arena_bytes, root, os.getpid(), report_fd, policy, folder, bool(folder))
        boot_fd = memfd(boot)
        try:
            self._process = subprocess.Popen(
                command(boot_fd),
                stdin=subprocess.DEVNULL,
                env=environment(cookie),
                pass_fds=[boot_fd, report_fd],
                start_new_session=True,
            )
        except OSError as error:
            os.close(reports)
            raise StartFailed(f"the node process could not be started: {error.strerror}") from None
        finally:
            os.close(boot_fd)
            os.close(report_fd)
        self._reports = _Reports(reports)
        ready = self._reports.wait(START_S)
        if "ready" not in ready:
            _end(self._process)
            self._reports.close()
            raise _start_error(ready)
        super().__init__(_links_to(str(ready["ready"])))
        self._links.why_down = self._reports.why_ended
        self._owner = os.getpid()
        _open_nodes.add(self)

    def close(self) -> None:
        """Stop every actor in order, each in its shutdown time, then the node; returns when all is gone."""
        if self not in _open_nodes or self._owner != os.getpid():
            return  # closed before, or inherited over a fork: the node is the parent's
        _open_nodes.discard(self)
        try:
            if self._process.poll() is None:
                try:
                    self._links.ask_node("shutdown", "its program closed it").result()
                except LoomError:  # it is dying already, or talks another protocol
                    self._process.terminate()
        finally:
            self._process.wait()
            self._links.close(linger_ms=0)
            self._reports.close("its program closed it")


_open_nodes: set[Node] = set()


@atexit.register
def _close_open_nodes() -> None:
    for node in list(_open_nodes):
        node.close()


class _Reports:
    """The pipe on which a node of ours says that it is ready, and why it ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = b""
        self._why = ""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_s: float) -> dict[str, Any]:
        """The next report; {"error"} when the node ends, or says nothing in time."""
        until = time.monotonic() + timeout_s
        while b"\n" not in self._text:
            if not self._poll.poll(max(0.0, until - time.monotonic()) * 1000):
                return {"error": {"message": f"the node was not ready within {timeout_s:g} s"}}
            data = os.read(self._fd, 65536)
            if not data:
                text = "the node process died while it started; what it said is on standard error"
                return {"error": {"message": text}}
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def why_ended(self) -> str:
        """Why the node ended, as far as it could say."""
        if not self._why:
            self._why = str(self.wait(0.5).get("exit", "it was killed"))
        return self._why

    def close(self, why: str = "") -> None:
        """Close the pipe; from now on `why` is why the node ended."""
        self._why = self._why or why
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait until a node that failed has removed its files and ended; kill it when that takes too long."""
    try:
        process.wait(CLEAR_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_START_ERRORS: dict[str, type[LoomError]] = {
    one.code: one for one in (NameTaken, ArenaFull, StartFailed, StoreError, RuntimeFolderError, ConfigError)
}


def _start_error(report: dict[str, Any]) -> LoomError:
    error = report.get("error", {})
    text = "\n".join(filter(None, [str(error.get("message")), str(error.get("traceback", "")).rstrip()]))
    return _START_ERRORS.get(str(error.get("code")), StartFailed)(text)


def connect(node: str) -> Client:
    """Join a running node, by its name or its endpoint (`ipc:///run/user/1000/loom/alpha/node`).

    Raises: NodeNotFound (L1007).
    """
    return Client(_links_to(node))


def _links_to(node: str) -> Links:
    path, facts = find(node)
    arena = Arena.attach(facts.arena)
    board = Board.attach(facts.arena)
    address = Address("node", f"ipc://{path}/node", facts.pid, facts.start_time, 1, 0, 0)
    links = Links(address, arena, board)
    arenas.use(arena)
    return links


def _wait_for(pidfd: int, timeout_s: float | None) -> bool:
    """Wait until the process behind a pidfd is gone; False when the time was over first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


all_links.set_factory(_links_to)
