"""Which running node a command is about: `--node`, else $LOOM_NODE, else the only one there is."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from loom.errors import NodeNotFound

if TYPE_CHECKING:
    from loom.node.client import Client


def add_arguments(parser: argparse.ArgumentParser, *, example: str) -> None:
    """The options that all commands about a running node have. `example`: lines for the end of its --help."""
    from loom.cli.main import EXIT_CODES

    parser.add_argument(
        "--node",
        metavar="NAME",
        help="the node's name, or its endpoint (ipc://...); default: $LOOM_NODE, else the only node that runs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, errors included")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of a remote error")
    parser.epilog = f"examples:\n{example}\n{EXIT_CODES}"


def connect(arguments: argparse.Namespace) -> Client:
    """A client of the node that is meant. Raises: NodeNotFound (L1007)."""
    name = arguments.node
    if name is None:
        name = os.environ.get("LOOM_NODE") or _only()
    from loom.node import client

    return client.connect(name)


def _only() -> str:
    """The only running node. Raises: NodeNotFound (L1007) when there is none, or several, naming them."""
    from loom.node.folder import running

    names = sorted(facts.name for facts in running())
    if not names:
        raise NodeNotFound("no node is running: start one with 'loom-node up CONFIG'")
    if len(names) > 1:
        raise NodeNotFound(f"several nodes are running: say which with --node or $LOOM_NODE: {', '.join(names)}")
    return names[0]
