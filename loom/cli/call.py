"""`loom-node call`: one call to an actor, from a shell."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from loom.cli import running
from loom.cli.values import as_json, as_text, read_arguments
from loom.errors import NoSuchMethod, UsageError

if TYPE_CHECKING:
    from loom.actor.ref import Method
    from loom.actor.reply import Reply
    from loom.node.client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `call` takes."""
    parser.add_argument("target", metavar="NAME.METHOD", help="the actor, a dot, and its method")
    parser.add_argument(
        "values", metavar="ARG", nargs="*", default=[], help="JSON, or else a string; KEY=VALUE passes VALUE by name"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=running.seconds, help="give up after that many seconds; default: never"
    )
    parser.add_argument("--full", action="store_true", help="print arrays in full, however large")
    running.add_arguments(
        parser,
        example="""\
  loom-node call index.count
  loom-node call index.add '[[1, 0, 0], [0, 1, 0]]' --timeout 5
  loom-node call index.search '[1, 0, 0]' k=1 --json
  loom-node call index.scan 2                 a stream: an item a line, as they come
  loom-node call log.write '"a=b"'            in quotes it is one string, not KEY=VALUE
  loom-node call log.write -- -x              after -- a dash starts no option

output:
  For people: strings as they are, other values as JSON, large arrays in short, nothing for None.
  With --json one line of JSON, or one for each item of a stream. Arrays are lists; one of more than 10,000 items is
  {"dtype": ..., "shape": ..., "bytes": ...} unless --full is given. NaN and infinities are null, bytes are base64.
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Call, and print what comes. Raises: LoomError of any kind: the actor's exception is RemoteError (L2005)."""
    name, _, method_name = arguments.target.rpartition(".")
    if not (name and method_name):
        raise UsageError(f"expected NAME.METHOD, got {arguments.target!r}: write it as in index.count")
    args, kwargs = read_arguments(arguments.values)
    with running.connect(arguments) as client:
        method = _method(client, name, method_name)
        if arguments.timeout is not None:
            method = method.options(timeout_s=arguments.timeout)
        reply = method(*args, **kwargs)
        try:
            _print_all(reply, arguments)
        finally:
            reply.cancel()  # after Ctrl-C or a broken pipe; does nothing when it is done
    return 0


def _method(client: Client, name: str, method: str) -> Method:
    from loom.actor.ref import Method

    found = None if method.startswith("_") else getattr(client.lookup(name), method)
    if not isinstance(found, Method):
        raise NoSuchMethod(f"{method!r} of actor {name!r} cannot be called: expected a public method")
    return found


def _print_all(reply: Reply, arguments: argparse.Namespace) -> None:
    try:
        for item in reply:
            _print(item, arguments)
    except UsageError:
        if reply.error is not None:
            raise
        _print(reply.result(), arguments)  # one value, not a stream


def _print(value: Any, arguments: argparse.Namespace) -> None:
    text = as_json(value, full=arguments.full) if arguments.json else as_text(value, full=arguments.full)
    if text is not None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
