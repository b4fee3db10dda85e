"""`loom-node arena`: a running node's shared memory, and who has what of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from loom.cli import running
from loom.cli.text import plural, size, table

if TYPE_CHECKING:
    from loom.node.holdings import ArenaReport, Holding

_WHO = ("NAME", "PID", "SEGMENTS", "RESERVED", "BLOCKS", "IN USE", "LEASES", "LEASED", "IN FLIGHT")
_SEGMENTS = ("SEGMENT", "STATE", "OWNER", "SIZE", "BLOCKS", "IN USE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `arena` takes."""
    running.add_arguments(
        parser,
        example="""\
  loom-node arena
  loom-node arena --json | jq '.holdings | max_by(.in_use_bytes) | .name'

columns:
  SEGMENTS, RESERVED  files in /dev/shm that the process allocates in, used or kept warm
  BLOCKS, IN USE      in those segments, as long as anybody holds them
  LEASES, LEASED      blocks that the process holds, its own and others': views, and references in flight
  IN FLIGHT           references that it has sent and nobody has accepted yet

A process without a name is a program that is connected to the node. Arrays are in use until they are dropped by
whoever sent and received them, and the owner has looked.
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the arena. Raises: NodeNotFound, NodeDown."""
    with running.connect(arguments) as client:
        report = client.arena()
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(report), ensure_ascii=False))
    else:
        print("\n".join(as_text(report)))
    return 0


def as_text(report: ArenaReport) -> Iterator[str]:
    """A report for people: sums, then who has what, then the segments."""
    stats = report.stats
    yield (
        f"{size(stats.reserved_bytes)} of {size(stats.budget_bytes)} reserved in {plural(stats.segments, 'segment')}: "
        f"{size(stats.in_use_bytes)} in use in {plural(stats.blocks, 'block')}, {size(report.warm_bytes)} warm"
    )
    if stats.orphaned:
        yield f"{plural(stats.orphaned, 'segment')} of dead owners, kept for those who hold blocks in it"
    yield (
        f"{plural(stats.in_flight, 'reference')} in flight; since the start {size(stats.bytes_shared)} shared, "
        f"{size(stats.bytes_copied)} copied"
    )
    yield f"/dev/shm has {size(stats.free_bytes)} free"
    yield ""
    yield from table(_WHO, [_who(one) for one in report.holdings])
    if report.segments:
        yield ""
        rows = [
            (
                str(one.index),
                one.state,
                report.label(one.owner),
                size(one.size_bytes),
                str(one.blocks),
                size(one.in_use_bytes),
            )
            for one in report.segments
        ]
        yield from table(_SEGMENTS, rows)


def _who(one: Holding) -> tuple[str, ...]:
    return (
        one.name or "-",
        f"{one.pid or '-'}{'' if one.alive else ' (dead)'}",
        str(one.segments),
        size(one.reserved_bytes),
        str(one.blocks),
        size(one.in_use_bytes),
        str(one.leases),
        size(one.leased_bytes),
        str(one.in_flight),
    )
