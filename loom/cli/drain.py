"""`loom-node drain`: a node takes no new work, finishes what it has, and stops."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import msgspec

from loom.cli import running
from loom.cli.text import plural

if TYPE_CHECKING:
    from loom.node.stats import DrainReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `drain` takes."""
    parser.add_argument("name", metavar="NODE", nargs="?", help="as --node")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=running.seconds,
        help="stop after so many seconds all the same; default: when everything is done",
    )
    running.add_arguments(
        parser,
        example="""\
  loom-node drain                      refuse clients, finish what is there, stop the tree in order
  loom-node drain alpha --timeout 60   the same, but stop after a minute; exit code 1 if something was left

Clients are refused with L2004 at once. What is in mailboxes is run, with all that comes of it among the actors. Each
change is a line on standard error. Ctrl-C only stops watching.
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Drain; returns when the node is gone. Raises: NodeNotFound, NodeDown."""
    if arguments.name is not None:
        arguments.node = arguments.name
    with running.connect(arguments) as client:
        name = client.info()["name"]
        report = client.drain(arguments.timeout, None if arguments.json else _show)
    if arguments.json:
        print(json.dumps({"drained": report.left == 0, "node": name, **msgspec.to_builtins(report)}))
    elif report.left:
        print(f"{name} has stopped with {plural(report.left, 'message')} left: {_who(report)}")
    else:
        print(f"{name} is drained and has stopped, after {report.took_s:.1f} s")
    return 1 if report.left else 0


def _show(report: DrainReport) -> None:
    if report.left:
        print(f"draining: {plural(report.left, 'message')} left: {_who(report)}", file=sys.stderr)


def _who(report: DrainReport) -> str:
    most = sorted(report.actors.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {left}" for name, left in most[:5]) + (", ..." if len(most) > 5 else "")
