"""`loom-node tree`: the supervisors and actors of a running node, as they hang together."""

from __future__ import annotations

import argparse
import json

import msgspec

from loom.cli import running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tree` takes."""
    running.add_arguments(
        parser,
        example="""\
  loom-node tree
  loom-node tree --node alpha --json
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw the tree. Raises: NodeNotFound, NodeDown."""
    with running.connect(arguments) as client:
        tree = client.tree()
    print(json.dumps(msgspec.to_builtins(tree), ensure_ascii=False) if arguments.json else tree)
    return 0
