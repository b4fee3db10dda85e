"""`loom-node reload`: a changed config, applied to the node that runs: only what changed restarts."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import msgspec

from loom.cli import running
from loom.cli.config import load_checked
from loom.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `reload` takes."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="default: the file that the node was started from")
    parser.add_argument("--plan", action="store_true", help="only show what would be done")
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    running.add_arguments(
        parser,
        example="""\
  loom-node reload --plan      what the changed config would change
  loom-node reload             show it, ask, and do it
  loom-node reload --yes       the same without asking, as SIGHUP to the node's process does

An actor that is replaced first finishes its messages, and its state goes to the new one. When anything is wrong with
the new config, or an actor fails to start, nothing is changed. Code that changed without the config: 'upgrade'.
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Reload. Raises: ConfigError, ActorImportError, UsageError, StartFailed, UpgradeFailed, NodeNotFound."""
    with running.connect(arguments) as client:
        about = client.config()
        file = arguments.config or about["file"]
        if not file:
            raise UsageError("this node was not started from a config file: name one, as in 'loom-node reload CONFIG'")
        config = load_checked(file)
        from loom.node.plan import plan_of

        plan = msgspec.msgpack.encode(plan_of(config.supervisor, [*config.path, *about["search"]]))
        shown = client.reload(plan)
        changes = shown["changes"]
        later = [
            f"[node] {key}"
            for key, now in (("arena", config.arena_bytes), ("state", config.state))
            if now != about[f"node_{key}"]
        ]
        if not arguments.json:
            _show(changes, later)
        is_wanted = not arguments.plan and bool(changes)
        if is_wanted and (arguments.yes or _confirmed(arguments)):
            client.reload(plan, apply=True, version=shown["version"])
        else:
            is_wanted = False
    if arguments.json:
        print(json.dumps({"changes": changes, "needs_new_node": later, "applied": is_wanted}, ensure_ascii=False))
    elif is_wanted:
        print("done")
    return 0


def _show(changes: list[dict[str, Any]], later: list[str]) -> None:
    print("\n".join(change["text"] for change in changes) or "nothing to change")
    if later:
        print(f"not changed until the node is started anew: {', '.join(later)}")


def _confirmed(arguments: argparse.Namespace) -> bool:
    if arguments.json or not sys.stdin.isatty():
        raise UsageError("nobody to ask: add --yes to do it, or --plan to look only")
    return input("do it? [y/N] ").strip().lower() in ("y", "yes")
