"""The child's entry point: what an actor's process does from the fork to its exit.

It runs in a process that the zygote has just forked. It ties its life to the node's, says hello on its control socket,
makes the actor, says that it started (or why not), and receives until it is told to stop. The control socket carries
small MessagePack maps: {"hello"}, {"trap"}, {"started"}, {"ignored"} and {"failed"} to the node, {"stop"},
{"ping"} and {"exit_signal"} from it.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import importlib
import io
import os
import pickle
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import uvloop

from loom import arena as arenas
from loom import telemetry
from loom.actor import limits, tag
from loom.actor.actor import Actor, Ignore, table_of
from loom.actor.address import Address, start_time_of
from loom.actor.board import Board
from loom.actor.context import Context
from loom.actor.heartbeat import Heartbeat
from loom.actor.limits import Limits
from loom.actor.links import Links
from loom.actor.mailbox import Mailbox
from loom.actor.questions import Questions
from loom.actor.receive import Receiver
from loom.actor.snapshot import Keeping, Snapshots, has_state
from loom.actor.verbs import Verbs
from loom.arena import Arena
from loom.errors import ActorImportError, LoomError
from loom.wire import codec, failures

_libc = ctypes.CDLL(None)  # loaded here, in the zygote, for every actor
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_PTRACER = 1, 15, 0x59616D61

FAILED_START = 70
"""Exit code of a process whose actor could not be made (EX_SOFTWARE of sysexits.h)."""


BRIEF_CHARS = 1000
"""How much of the message of a failed start travels beside its traceback."""


class Order(msgspec.Struct):
    """All that a process needs to become one incarnation; travels from the node in a sealed memfd.

    `target` is "module:Class", or empty when `pickled` holds the class itself. `pickled` is a pickle of
    (class or None, args, kwargs), `further` one of (None, args, kwargs) that come on top, or empty. `watchdog_s`,
    `start_s`: None for no limit. `cgroup`: the folder of its control group, "" for none.
    `is_draining`: clients are refused. `replacement`: a pickle of the class that an upgrade put in the other's place.
    `is_trial`: import the class, and end with Ignore.
    """

    name: str
    incarnation: int
    endpoint: str
    row: int
    node: Address
    arena: str
    cookie: str
    pickled: bytes
    target: str = ""
    further: bytes = b""
    path: list[str] = []
    capacity: int = 1000
    policy: str = "wait"
    term: int = 0
    watchdog_s: float | None = None
    start_s: float | None = None
    limits: Limits = limits.NONE
    cgroup: str = ""
    keeping: Keeping | None = None
    is_draining: bool = False
    replacement: bytes = b""
    is_trial: bool = False

    @property
    def tag(self) -> str:
        """No other incarnation on the node has it: the last part of its mailbox's endpoint."""
        return self.endpoint.rpartition("/")[2]

    @property
    def is_watched(self) -> bool:
        """Whether the node looks for hangs of it."""
        return self.watchdog_s is not None or self.start_s is not None


class Control:
    """The actor's end of its control socket, to the node."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def send(self, message: dict[str, Any], fds: list[int] = []) -> None:  # noqa: B006 (not changed)
        """Tell the node something; a node that is gone is no error here, its death ends this process anyway."""
        try:
            socket.send_fds(self.socket, [msgspec.msgpack.encode(message)], fds)
        except OSError:
            pass

    def fail(self, error: BaseException, text: str) -> None:
        """Tell the node which exception ends this process; `text` is its traceback."""
        brief = f"{type(error).__qualname__}: {failures.message_of(error)}"[:BRIEF_CHARS]
        self.send({"failed": text, "brief": brief})

    def receive(self) -> dict[str, Any] | None:
        """The node's next message; None when the node is gone."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return {}
        except OSError:
            return None
        return msgspec.msgpack.decode(data, type=dict[str, Any]) if data else None


def main(control_fd: int, order_fd: int, parent: int) -> NoReturn:
    """Be one incarnation of an actor. `parent`: the process that forked this one, and exits right away."""
    code = 1
    control = Control(socket.socket(fileno=control_fd))
    try:
        order = _read(order_fd)
        _tie_to_node(order.node.pid, parent)
        code = _live(order, control)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        text = failures.traceback_of(error)
        sys.stderr.write(text)
        control.fail(error, text)
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)  # the zygote's own exit handlers and finalizers are not ours to run


def _read(fd: int) -> Order:
    """The order, from its memfd."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    os.close(fd)
    return msgspec.msgpack.decode(data, type=Order)


def _tie_to_node(node_pid: int, parent: int) -> None:
    """Die with the node. This process becomes the node's own child when `parent`, its maker, has exited.

    The signal is armed after that, and then the parent is looked at once more: a node that died before the arming
    is noticed by the look, one that dies later by the signal.
    Source: prctl(2), PR_SET_PDEATHSIG: "cleared for the child of a fork"; it follows the current parent.
    """
    while os.getppid() == parent:
        os.sched_yield()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != node_pid:
        os._exit(1)


def _settle_in(order: Order) -> None:
    """Make this fork of the zygote a process of its own."""
    _libc.prctl(_PR_SET_NAME, f"loom:{order.name}"[:15].encode(), 0, 0, 0)
    _libc.prctl(_PR_SET_PTRACER, order.node.pid, 0, 0, 0)  # Yama would keep the node's py-spy from looking at it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the node's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tag.put(order.cookie, order.tag)
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    telemetry.setup(f"{os.path.basename(os.path.dirname(order.node.endpoint[len('ipc://') :]))}/{order.name}")
    if order.path:
        sys.path[:] = order.path
    gc.enable()


def _live(order: Order, control: Control) -> int:
    """From the sockets to the exit code."""
    _settle_in(order)
    if order.limits != limits.NONE:
        try:
            limits.put_on(order.limits, order.cgroup)
        except LoomError as error:
            control.send({"failed": str(error), "brief": str(error)})
            return FAILED_START
    arena = Arena.attach(order.arena)
    arenas.use(arena)
    board = Board.attach(order.arena)
    links = Links(order.node, arena, board, owner=order.name)
    mailbox = Mailbox(links.context, order.endpoint, order.arena)
    heartbeat = Heartbeat(board.words, order.row)
    fds = heartbeat.start() if order.is_watched else []
    control.send({"hello": os.getpid(), "start": start_time_of(), "participant": arena.participant}, fds)
    if fds:
        os.close(fds[0])

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    verbs = Verbs(links)
    life = _Life(loop, control, heartbeat.pong)
    context = Context(order.name, order.incarnation, links, verbs, life.stop, heartbeat.progress)
    life.on_exit_signal = lambda news: context.hooks.exit_signal(news)
    try:
        actor = _make(order, context, control)
        snapshots = _restored(order, actor)
        context.snapshots = snapshots
        started = actor.on_start()
        if started is not None:
            loop.run_until_complete(started)
    except Ignore as why:
        control.send({"ignored": failures.message_of(why)[:BRIEF_CHARS]})
        return 0
    except BaseException as error:
        skip = 2 if not isinstance(error, ActorImportError) else 0
        control.fail(error, failures.traceback_of(error, skip))
        return FAILED_START
    receiver = Receiver(
        order.name, table_of(actor), mailbox, links, order.row, capacity=order.capacity, policy=order.policy
    )
    receiver.answers.on_exit = life.exit
    if snapshots is not None:
        snapshots.start(loop)
        if snapshots.counts_messages:
            receiver.answers.on_done = snapshots.message_done
    receiver.on_stuck = life.be_killed
    life.on_settle = receiver.settle
    context._is_cancelled = receiver.is_cancelled
    life.on_end = receiver.hold
    life.on_question = Questions(receiver, links, snapshots, control.send).answer
    if order.is_draining:
        receiver.refuse_clients()
    receiver.start(loop)
    control.send({"started": True})
    control.socket.setblocking(False)
    loop.add_reader(control.socket.fileno(), life.listen)
    reason = loop.run_until_complete(life.ended)
    loop.remove_reader(control.socket.fileno())
    code = loop.run_until_complete(_end(actor, receiver, snapshots, control, reason, life.code))
    mailbox.close()
    links.close()
    return code


class _Life:
    """How this process is told to end: by the node, by its own code, or by the node's death."""

    def __init__(self, loop: asyncio.AbstractEventLoop, control: Control, pong: Callable[[int], None]) -> None:
        self.ended: asyncio.Future[str] = loop.create_future()
        self.code = 0
        self.on_end: Callable[[], None] = lambda: None
        self.on_settle: Callable[[int, int], None] = lambda ticket, sent: None
        self.on_exit_signal: Callable[[Any], None] = lambda news: None
        self.on_question: Callable[[int, str], None] = lambda number, what: None
        self._control = control
        self._pong = pong

    def stop(self, reason: str) -> None:
        """End with `on_stop(reason)` and exit code 0."""
        if not self.ended.done():
            self.on_end()
            self.ended.set_result(reason)

    def exit(self, code: int) -> None:
        """End because a handler raised SystemExit."""
        self.code = code
        self.stop("normal" if code == 0 else "exit")

    def be_killed(self, why: str) -> None:
        """Have the node kill this process, saying why."""
        self._control.send({"kill": why})

    def listen(self) -> None:
        """The control socket is readable."""
        message = self._control.receive()
        if message is None:
            os._exit(1)
        if "stop" in message:
            self.stop(str(message["stop"]))
        elif "ping" in message:
            self._pong(message["ping"])
        elif "settle" in message:
            self.on_settle(*message["settle"])
        elif "exit_signal" in message:
            self.on_exit_signal(message["exit_signal"])
        elif "ask" in message:
            self.on_question(message["ask"], message["what"])


async def _end(
    actor: Actor, receiver: Receiver, snapshots: Snapshots | None, control: Control, reason: str, code: int
) -> int:
    await receiver.stop()
    if snapshots is not None and code == 0:  # an actor that ends with an error does not vouch for its state
        try:
            snapshots.stop()
        except BaseException as error:
            telemetry.log.error("its last snapshot was not saved:\n%s", failures.traceback_of(error, 1))
            code = code or 1
    try:
        stopped = actor.on_stop(reason)
        if stopped is not None:
            await stopped
    except BaseException as error:
        text = failures.traceback_of(error, 1)
        telemetry.log.error("on_stop raised:\n%s", text)
        control.fail(error, text)
        return code or 1
    return code


def _make(order: Order, context: Context, control: Control) -> Actor:
    """Import or unpickle the class, and make the instance; `ctx` is there before `__init__` runs."""
    cls, args, kwargs = _loads(order)
    if order.further:
        _, more, named = codec.decode_value("pickle", order.further)
        args, kwargs = (*args, *more), {**kwargs, **named}
    if not (isinstance(cls, type) and issubclass(cls, Actor)):
        raise ActorImportError(f"expected a subclass of loom.Actor, got {cls!r}")
    if order.is_trial:
        raise Ignore("the class can be imported")
    actor = cls.__new__(cls)
    actor.ctx = context
    context.actor = actor
    if cls.trap is True:
        control.send({"trap": True})
    actor.__init__(*args, **kwargs)  # type: ignore[misc]
    return actor


def _loads(order: Order) -> tuple[Any, Any, Any]:
    """The class, and what it is called with. A class that was replaced need not exist any more."""
    if not (order.target or order.replacement):
        found: tuple[Any, Any, Any] = pickle.loads(order.pickled)
        return found
    _, args, kwargs = _Lenient(io.BytesIO(order.pickled)).load()
    cls = pickle.loads(order.replacement) if order.replacement else load(order.target)
    return cls, args, kwargs


class _Lenient(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            if self._is_first:
                return None
            raise
        finally:
            self._is_first = False

    _is_first = True
    """The class comes first in an order."""


def _restored(order: Order, actor: Actor) -> Snapshots | None:
    """The actor's snapshots, the last of them given back to it; None when its class keeps none."""
    if not has_state(type(actor)) or order.keeping is None:
        return None
    snapshots = Snapshots(order.name, order.incarnation, actor, order.keeping)
    snapshots.restore()
    return snapshots


def load(target: str) -> Any:
    """The object that "module:Class" names. Raises: ActorImportError (L1006)."""
    module_name, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ActorImportError(f"{target}: cannot be imported: {type(error).__name__}: {error}") from error
    return found
