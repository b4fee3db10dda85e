"""`loom-node ps`: the actors of a running node, a line each."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

import msgspec

from loom.cli import running
from loom.cli.text import size, table

if TYPE_CHECKING:
    from loom.node.stats import ActorStats

_HEAD = ("NAME", "STATE", "PID", "INCARNATION", "RESTARTS", "MAILBOX", "PROCESSED", "FAILED", "RUNNING", "MEMORY")
_DEATH_CHARS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `ps` takes."""
    running.add_arguments(
        parser,
        example="""\
  loom-node ps
  loom-node ps --json | jq '.actors[] | select(.depth > 100) | .name'

columns:
  INCARNATION        which process of that name it is; RESTARTS is one less
  MAILBOX            messages waiting
  PROCESSED, FAILED  messages since the first incarnation: ended with a result, with an exception
  RUNNING            for how long the present message has been running
  MEMORY             of the process; pages it shares with others count in part (PSS)
  LAST DEATH         how the last incarnation ended, if any did
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """List the actors. Raises: NodeNotFound, NodeDown."""
    with running.connect(arguments) as client:
        stats = client.stats()
        memory = [actor.pss_bytes for actor in stats.actors]
    if arguments.json:
        actors = [
            {**msgspec.to_builtins(actor), "restarts": _restarts(actor), "pss_bytes": pss_bytes}
            for actor, pss_bytes in zip(stats.actors, memory, strict=True)
        ]
        print(json.dumps({**msgspec.to_builtins(stats), "actors": actors}, ensure_ascii=False))
        return 0
    head: tuple[str, ...] = _HEAD
    rows = [_row(actor, pss_bytes) for actor, pss_bytes in zip(stats.actors, memory, strict=True)]
    deaths = [" ".join(actor.last_death.split())[:_DEATH_CHARS] for actor in stats.actors]
    if any(deaths):
        head = (*_HEAD, "LAST DEATH")
        rows = [(*row, death) for row, death in zip(rows, deaths, strict=True)]
    print("\n".join(table(head, rows)))
    return 0


def _restarts(actor: ActorStats) -> int:
    return max(0, actor.incarnation - 1)


def _row(actor: ActorStats, pss_bytes: int) -> tuple[str, ...]:
    return (
        actor.name,
        actor.state,
        str(actor.pid or "-"),
        str(actor.incarnation),
        str(_restarts(actor)),
        str(actor.depth),
        str(actor.processed),
        str(actor.failed),
        f"{actor.since_s:.1f} s" if actor.since_s else "-",
        size(pss_bytes) if pss_bytes else "-",
    )
