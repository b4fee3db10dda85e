"""`loom-node stop`: one actor or supervisor for good, or the whole node."""

from __future__ import annotations

import argparse
import json

from loom.cli import running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `stop` takes."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="an actor or a supervisor, to end for good; default: the node"
    )
    running.add_arguments(
        parser,
        example="""\
  loom-node stop                 stop the only running node: its actors in reverse order, then itself
  loom-node stop --node alpha    stop that node
  loom-node stop workers.2       stop one actor; returns when it is gone
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Stop what is named; returns when it is gone. Raises: NodeNotFound, ActorNotFound, NodeDown."""
    with running.connect(arguments) as client:
        name = arguments.name
        if name is None:
            name = client.stats().name
            client.shutdown("asked to by 'loom-node stop'")
        else:
            client.stop(name)
    if arguments.json:
        print(json.dumps({"stopped": name}))
    return 0
