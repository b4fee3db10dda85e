"""Starting and ending the rivals' processes.

They are children of multiprocessing's fork server, which has imported `bench.peers` before: the standard library's
nearest thing to Loom's zygote. Sockets are files in a folder of their own, gone when the question is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from tempfile import TemporaryDirectory
from typing import Any

import zmq

from bench import peers
from bench.question import expect

FORK_SERVER = get_context("forkserver")
FORK_SERVER.set_forkserver_preload([peers.__name__])


def start(serve: Callable[..., None], *args: Any) -> tuple[ForkServerProcess, Connection]:
    """A process that runs `serve(its end of a pipe, *args)`, and our end."""
    ours, theirs = FORK_SERVER.Pipe()
    process = FORK_SERVER.Process(target=serve, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def end(process: ForkServerProcess, control: Connection) -> None:
    """SIGKILL it, and wait until it is gone."""
    process.kill()
    process.join()
    process.close()
    control.close()


@contextmanager
def peer(serve: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """`start`, the peer's word that it is ready, and at the end `end`."""
    process, control = start(serve, *args)
    try:
        control.recv()
        yield control
    finally:
        end(process, control)


@contextmanager
def zmq_peer(serve: Callable[..., None], kind: int) -> Iterator[tuple[zmq.Socket[bytes], Connection]]:
    """A peer with a bound socket, our socket of that kind connected to it, and our end of its pipe."""
    with (
        TemporaryDirectory(prefix="loom-bench-") as folder,
        zmq.Context() as context,
        peer(serve, f"ipc://{folder}/peer") as control,
        context.socket(kind) as socket,
    ):
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{folder}/peer")
        yield socket, control


def first_reply() -> tuple[ForkServerProcess, Connection]:
    """Start a child and wait for its first reply."""
    process, control = start(peers.answer)
    control.send(True)
    control.recv()
    return process, control


def warm_up() -> None:
    """Start the fork server. Raises: RuntimeError when it could not preload what its children need."""
    process, control = first_reply()
    control.send(True)
    is_preloaded = control.recv()
    end(process, control)
    expect("the fork server preloads bench.peers (run `python -m bench` in the repository's root)", is_preloaded, True)


def end_all() -> None:
    """End the fork server and the resource tracker now; left alone they would end a moment after this process."""
    for helper in (forkserver._forkserver, resource_tracker._resource_tracker):
        stop = getattr(helper, "_stop", None)
        if stop is not None:
            stop()
