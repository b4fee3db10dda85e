"""Which running node a command is about: `--node`, else $LOOM_NODE, else the only one there is."""

from __future__ import annotations

import argparse
import math
import os
from typing import TYPE_CHECKING

from loom.errors import CallTimeout, NodeNotFound

if TYPE_CHECKING:
    from loom.node.client import Client


ANSWER_S = 10.0
"""How long a node that runs may take to answer before it is said to hang."""


def add_arguments(parser: argparse.ArgumentParser, *, example: str) -> None:
    """The options that all commands about a running node have. `example`: lines for the end of its --help."""
    from loom.cli.main import EXIT_CODES

    parser.add_argument(
        "--node",
        metavar="NAME",
        help="the node's name, or its endpoint (ipc://...); default: $LOOM_NODE, else the only node that runs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, errors included")
    parser.add_argument(
        "--answer-s",
        metavar="S",
        type=seconds,
        default=ANSWER_S,
        help="how long the node may take to answer at all before it is said to hang; default: %(default)g",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of a remote error")
    parser.epilog = f"examples:\n{example}\n{EXIT_CODES}"


def connect(arguments: argparse.Namespace) -> Client:
    """A client of the node that is meant. Raises: NodeNotFound (L1007), CallTimeout (L2002) when it hangs."""
    name = arguments.node
    if name is None:
        name = os.environ.get("LOOM_NODE") or _only()
    from loom.node import client

    found = client.connect(name)
    try:
        found.info(arguments.answer_s)
    except BaseException as error:
        found.close()
        if isinstance(error, CallTimeout):
            raise _hangs(name, found.pid, arguments.answer_s) from None
        raise
    return found


def _hangs(name: str, pid: int, for_s: float) -> CallTimeout:
    from loom.actor.procfs import stat_of

    state = stat_of(pid).state
    why, remedy = f"state {state}", f"look at it with 'py-spy dump --pid {pid}', or end it with 'kill -9 {pid}'"
    if state in "Tt":
        why, remedy = "it is stopped (SIGSTOP, or a debugger)", f"'kill -CONT {pid}' lets it go on"
    return CallTimeout(f"node {name!r} (pid {pid}) does not answer within {for_s:g} s: {why}: {remedy}")


def _only() -> str:
    """The only running node. Raises: NodeNotFound (L1007) when there is none, or several, naming them."""
    from loom.node.folder import running

    names = sorted(facts.name for facts in running())
    if not names:
        raise NodeNotFound("no node is running: start one with 'loom-node up CONFIG'")
    if len(names) > 1:
        raise NodeNotFound(f"several nodes are running: say which with --node or $LOOM_NODE: {', '.join(names)}")
    return names[0]


def seconds(text: str) -> float:
    """A number of seconds > 0 from the command line. Raises: argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number of seconds > 0, got {text!r}")
    return value
