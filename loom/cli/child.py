"""`loom-node child`: the children of any supervisor of a running node, changed while it runs."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import msgspec

from loom.cli import running
from loom.cli.text import table
from loom.cli.values import read_arguments

if TYPE_CHECKING:
    from loom.node.client import Client

_HEAD = ("NAME", "KIND", "STATE", "PID", "INCARNATION", "RESTART", "LAST DEATH")
_DEATH_CHARS = 60

_EXAMPLE = """\
  loom-node child list                                      the children of the first supervisor, root
  loom-node child list edge --json | jq '.children[].name'
  loom-node child start root 64 --actor myapp.work:Worker --name extra --restart transient
  loom-node child start sessions alice                      one more of a simple_one_for_one, "alice" its argument
  loom-node child stop root extra                           its row stays
  loom-node child restart root extra
  loom-node child delete root extra                         a stopped child, for good
  loom-node child count edge
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `child` takes: a verb, and what that verb takes."""
    from loom.cli.main import EXIT_CODES

    parser.epilog = f"examples:\n{_EXAMPLE}\n{EXIT_CODES}"
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True, parser_class=type(parser))
    start = _verb(verbs, "start", "start one more child; returns when it runs")
    start.add_argument(
        "values", metavar="ARG", nargs="*", default=[], help="JSON, or else a string; KEY=VALUE passes VALUE by name"
    )
    start.add_argument("--actor", metavar="MODULE:CLASS", help="what to start; not under simple_one_for_one")
    start.add_argument("--name", help="its name; default: the class's, or a new one")
    start.add_argument("--restart", choices=("permanent", "transient", "temporary"), help="default: permanent")
    start.add_argument("--shutdown", metavar="S", help='seconds, "infinity" or "brutal_kill"; default: 5')
    start.add_argument("--significant", action="store_true", help="its end may end its supervisor")
    for verb, summary in (
        ("stop", "stop a child in its shutdown time; its row stays"),
        ("restart", "start a child that is stopped"),
        ("delete", "forget a child that is stopped"),
    ):
        _verb(verbs, verb, summary).add_argument("name", metavar="CHILD", help="the child's name")
    _verb(verbs, "list", "list the children in start order", default="root")
    _verb(verbs, "count", "count the children", default="root")


def run(arguments: argparse.Namespace) -> int:
    """Do what the verb says. Raises: NodeNotFound, ActorNotFound, ChildError, StartFailed, ConfigError, NodeDown."""
    with running.connect(arguments) as client:
        if arguments.verb == "list":
            return _list(client, arguments)
        if arguments.verb == "count":
            count = msgspec.structs.asdict(client.supervisor(arguments.supervisor).count())
            print(json.dumps(count) if arguments.json else "\n".join(f"{key:<12}{n}" for key, n in count.items()))
            return 0
        done = _change(client, arguments)
    if arguments.json:
        print(json.dumps({"supervisor": arguments.supervisor, **done}, ensure_ascii=False))
    elif arguments.verb == "start":
        print(done["name"] if done["state"] != "stopped" else f"{done['name']} did not want to start")
    return 0


def _verb(verbs: Any, name: str, summary: str, default: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    many: Any = {"nargs": "?", "default": default} if default else {}
    about = "the supervisor's name" + (f"; default: {default}" if default else "; the first one is root")
    parser.add_argument("supervisor", metavar="SUPERVISOR", help=about, **many)
    lines = [line for line in _EXAMPLE.splitlines() if f" child {name}" in line]
    running.add_arguments(parser, example="\n".join(lines) + "\n")
    return parser


def _change(client: Client, arguments: argparse.Namespace) -> dict[str, Any]:
    above = client.supervisor(arguments.supervisor)
    if arguments.verb == "start":
        args, kwargs = read_arguments(arguments.values)
        if arguments.actor is None:
            return above.start_from_template(args, kwargs, arguments.name)
        return above.start_described({"actor": arguments.actor, "args": args, "kwargs": kwargs, **_options(arguments)})
    if arguments.verb == "stop":
        above.stop_child(arguments.name)
        return {"stopped": arguments.name}
    if arguments.verb == "delete":
        above.delete_child(arguments.name)
        return {"deleted": arguments.name}
    return {"name": arguments.name, "state": "stopped" if above.restart_child(arguments.name) is None else "running"}


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The child's keys that were given, as a config file has them."""
    found: dict[str, Any] = {key: getattr(arguments, key) for key in ("name", "restart") if getattr(arguments, key)}
    if arguments.significant:
        found["significant"] = True
    if arguments.shutdown is not None:
        try:
            found["shutdown_s"] = float(arguments.shutdown)
        except ValueError:
            found["shutdown_s"] = arguments.shutdown
    return found


def _list(client: Client, arguments: argparse.Namespace) -> int:
    children = client.supervisor(arguments.supervisor).children()
    if arguments.json:
        rows = [msgspec.structs.asdict(child) for child in children]
        print(json.dumps({"supervisor": arguments.supervisor, "children": rows}, ensure_ascii=False))
        return 0
    lines = [
        (
            child.name,
            child.kind,
            child.state,
            str(child.pid or "-"),
            str(child.incarnation),
            f"{child.restart}{' significant' if child.significant else ''}",
            " ".join(child.last_death.split())[:_DEATH_CHARS] or "-",
        )
        for child in children
    ]
    print("\n".join(table(_HEAD, lines)))
    return 0
