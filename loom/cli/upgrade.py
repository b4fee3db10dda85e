"""`loom-node upgrade`: a running actor gets new code, and keeps its state and its messages."""

from __future__ import annotations

import argparse
import json

from loom.cli import running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `upgrade` takes."""
    parser.add_argument("name", metavar="NAME", help="an actor, or a group, whose members are upgraded one by one")
    parser.add_argument("target", metavar="MODULE:CLASS", nargs="?", help="the new class; default: the same, anew")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=running.seconds,
        default=30.0,
        help="how long the old one may take to finish its messages; default: %(default)g",
    )
    running.add_arguments(
        parser,
        example="""\
  loom-node upgrade index                     import its module anew, after its file was changed
  loom-node upgrade index myapp.fast:Index    another class, which is given the state of the old one

Messages that come meanwhile wait for the new one. If that fails to start, the old one starts again, with its state.
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Upgrade; returns when the new one runs. Raises: ActorNotFound, UpgradeFailed, StartFailed."""
    with running.connect(arguments) as client:
        done = client.upgrade(arguments.name, arguments.target, timeout_s=arguments.timeout)
    print(json.dumps({"upgraded": done}) if arguments.json else f"upgraded: {', '.join(done)}")
    return 0
