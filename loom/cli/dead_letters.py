"""`loom-node dead-letters`: the last messages of a running node that were not run to their end, a line each."""

from __future__ import annotations

import argparse
import json
import time

import msgspec

from loom.cli import running
from loom.cli.text import size, table
from loom.errors import UsageError

_HEAD = ("TIME", "ACTOR", "METHOD", "FROM", "KIND", "SIZE", "REASON")
_REASON_CHARS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `dead-letters` takes."""
    running.add_arguments(
        parser,
        example="""\
  loom-node dead-letters
  loom-node dead-letters --limit 1000 --json | jq 'group_by(.actor) | map({actor: .[0].actor, n: length})'

columns:
  FROM    the actor that sent it, "-" for a program
  KIND    call, tell; the reason says when it is the answer to it that found nobody
  SIZE    of the arguments, as far as it is known
""",
    )
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="the last N of them, 1 to 1000 (100)")


def run(arguments: argparse.Namespace) -> int:
    """List them. Raises: NodeNotFound, NodeDown, UsageError."""
    if not 1 <= arguments.limit <= 1000:
        raise UsageError(f"--limit: expected 1 to 1000, got {arguments.limit}")
    with running.connect(arguments) as client:
        letters = client.dead_letters(arguments.limit)
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(letters), ensure_ascii=False))
        return 0
    rows = [
        (
            time.strftime("%H:%M:%S", time.localtime(one.time_s)),
            one.actor,
            one.method,
            one.sender or "-",
            one.kind,
            size(one.size_bytes),
            " ".join(one.reason.split())[:_REASON_CHARS],
        )
        for one in letters
    ]
    print("\n".join(table(_HEAD, rows)))
    return 0
