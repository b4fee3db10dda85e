"""`loom-node stack`: what the threads of an actor are at, seen from outside."""

from __future__ import annotations

import argparse
import json

import msgspec

from loom.cli import running
from loom.errors import StartFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `stack` takes."""
    parser.add_argument("name", metavar="NAME", help="the actor")
    running.add_arguments(
        parser,
        example="""\
  loom-node stack index
  loom-node stack index --json | jq '.threads[] | select(.owns_gil) | .frames[0]'

It needs no help from the actor, so it works for one that hangs. The node looks, with py-spy, which holds the actor
still for a moment. Of the thread that runs the messages only what they call is shown.
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the stacks. Raises: ActorNotFound, ActorDied, NodeNotFound, StartFailed when the machine forbids it."""
    with running.connect(arguments) as client:
        stacks = client.stack(arguments.name)
    if stacks.error:
        raise StartFailed(f"no stack of {arguments.name!r} (pid {stacks.pid}): {stacks.error}")
    print(json.dumps(msgspec.to_builtins(stacks), ensure_ascii=False) if arguments.json else stacks)
    return 0
