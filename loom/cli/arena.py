"""`loom-node arena`: a running node's shared memory, and who has what of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from loom.cli import running
from loom.cli.text import age, plural, size, table

if TYPE_CHECKING:
    from loom.arena import ArenaStats, BlockInfo
    from loom.node.holdings import ArenaReport, Holding

_WHO = ("NAME", "PID", "SEGMENTS", "RESERVED", "BLOCKS", "IN USE", "OLDEST", "LEASES", "LEASED", "OLDEST", "IN FLIGHT")
_SEGMENTS = ("SEGMENT", "STATE", "OWNER", "WHERE", "SIZE", "BLOCKS", "IN USE", "OLDEST")
_BLOCKS = ("BLOCK", "OWNER", "SIZE", "AGE", "HELD BY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `arena` takes."""
    running.add_arguments(
        parser,
        example="""\
  loom-node arena
  loom-node arena --json | jq '.holdings | max_by(.in_use_bytes) | .name'
  loom-node arena --json | jq '.oldest[] | select(.age_s > 60)'

columns:
  SEGMENTS, RESERVED  files in /dev/shm that the process allocates in, used or kept warm
  BLOCKS, IN USE      in those segments, as long as anybody holds them, and the age of the OLDEST
  LEASES, LEASED      blocks that the process holds, its own and others': views, and references in flight
  WHERE               in memory, or spilled to a file because there was no room: 'arena_full' in loom/node/config.py
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
    yield _full(report)
    if stats.orphaned:
        yield f"{plural(stats.orphaned, 'segment')} of dead owners, kept for those who hold blocks in it"
    yield (
        f"{plural(stats.in_flight, 'reference')} in flight; since the start {size(stats.bytes_shared)} shared, "
        f"{size(stats.bytes_copied)} copied"
    )
    if stats.reclaimed_blocks or stats.reclaimed_references or stats.reclaimed_segments:
        yield _reclaimed(stats)
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
                "spilled" if one.spilled else "memory",
                size(one.size_bytes),
                str(one.blocks),
                size(one.in_use_bytes),
                age(one.oldest_s) if one.blocks else "-",
            )
            for one in report.segments
        ]
        yield from table(_SEGMENTS, rows)
    for title, blocks in (("oldest", report.oldest), ("largest", report.largest)):
        if blocks:
            yield ""
            yield f"{title} {plural(len(blocks), 'block')}"
            yield from table(_BLOCKS, [_block(report, one) for one in blocks])


def _full(report: ArenaReport) -> str:
    """What happens when there is no room, and what has."""
    stats, policy = report.stats, report.policy
    if policy.full != "spill":
        wait = f"at most {policy.wait_s:g} s, or until a message's deadline" if policy.full == "wait" else "ArenaFull"
        return f"when full: {policy.full}, {wait}"
    return (
        f"when full: spill to {policy.spill}: {size(stats.spilled_bytes)} there now in "
        f"{plural(stats.spilled_blocks, 'block')}, since the start {size(stats.bytes_spilled)} in "
        f"{plural(stats.blocks_spilled, 'block')}; {size(stats.spill_free_bytes)} free"
    )


def _reclaimed(stats: ArenaStats) -> str:
    return (
        f"reclaimed from processes that died or left: {size(stats.reclaimed_bytes)} in "
        f"{plural(stats.reclaimed_blocks, 'block')}, {plural(stats.reclaimed_references, 'reference')}, "
        f"{plural(stats.reclaimed_segments, 'segment')}"
    )


def _block(report: ArenaReport, one: BlockInfo) -> tuple[str, ...]:
    holders = ", ".join(report.label(holder) for holder in one.holders)
    return (f"{one.segment}.{one.index}", report.label(one.owner), size(one.size_bytes), age(one.age_s), holders)


def _who(one: Holding) -> tuple[str, ...]:
    return (
        one.name or "-",
        f"{one.pid or '-'}{'' if one.alive else ' (dead)'}",
        str(one.segments),
        size(one.reserved_bytes),
        str(one.blocks),
        size(one.in_use_bytes),
        age(one.oldest_s) if one.blocks else "-",
        str(one.leases),
        size(one.leased_bytes),
        age(one.oldest_lease_s) if one.leases else "-",
        str(one.in_flight),
    )
