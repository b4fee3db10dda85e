"""`loom-node resize`: start or stop members of a pool until there are as many as wanted."""

from __future__ import annotations

import argparse
import json

from loom.cli import running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `resize` takes."""
    running.add_arguments(
        parser,
        example="""\
  loom-node resize workers 8
  loom-node resize workers 8 --json
""",
    )
    parser.add_argument("pool", help="the name of a child with instances > 1")
    parser.add_argument("instances", type=int, help="how many members it is to have")


def run(arguments: argparse.Namespace) -> int:
    """Resize, and wait until it is done. Raises: NodeNotFound, NodeDown, ActorNotFound, ConfigError, StartFailed."""
    with running.connect(arguments) as client:
        names = client.resize(arguments.pool, arguments.instances)
    print(json.dumps(names) if arguments.json else " ".join(names))
    return 0
