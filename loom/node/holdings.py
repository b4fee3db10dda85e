"""Holdings: who has what of a node's arena, added up from the listings of its shared tables."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import msgspec

from loom.arena import ArenaStats, BlockInfo, FullPolicy, Participant, SegmentInfo

_MOST = 2**64 - 1
"""Where sums end: what MessagePack can carry. A damaged table may add up to more."""

LISTED = 10
"""How many of the oldest, and of the largest, blocks a report names."""

_WHERE = ("reserved_bytes", "spill_reserved_bytes")

_by_age, _by_size = attrgetter("age_s"), attrgetter("size_bytes")


class Holding(msgspec.Struct, frozen=True):
    """What one process has of the arena. Sizes in bytes.

    It owns what was leased from its segments, by itself; it leases every block of which it has a view, or a reference
    in flight, whoever the owner is. A block that n processes hold is owned once and leased n times.
    """

    participant: int
    """Its number in the arena, 0 for the node."""
    name: str
    """The actor's; "node" for the node itself; "" for a program that is connected, and for the dead."""
    pid: int
    """0 when nobody takes part under that number any more."""
    alive: bool
    segments: int = 0
    reserved_bytes: int = 0
    """Of them that are in memory, used or kept warm."""
    spill_reserved_bytes: int = 0
    """Of them that are in the spill folder."""
    blocks: int = 0
    in_use_bytes: int = 0
    leases: int = 0
    leased_bytes: int = 0
    oldest_s: float = 0.0
    """Age of the oldest block in its segments, whoever holds it; 0 when there is none."""
    oldest_lease_s: float = 0.0
    """Age of the oldest block that it holds."""
    in_flight: int = 0
    """References it has sent that nobody has accepted yet."""

    @property
    def label(self) -> str:
        """How to call it: by its name, else "pid 17"."""
        return self.name or (f"pid {self.pid}" if self.pid else f"participant {self.participant}")


class SegmentHolding(msgspec.Struct, frozen=True):
    """One segment: what the table says of it, and how much of it is in use."""

    index: int
    state: str
    owner: int
    sequence: int
    size_bytes: int
    spilled: bool = False
    """It is a file in the spill folder."""
    blocks: int = 0
    in_use_bytes: int = 0
    oldest_s: float = 0.0


class ArenaReport(msgspec.Struct, frozen=True):
    """The arena's figures, its segments, and what each process has of it. No snapshot while messages fly."""

    name: str
    policy: FullPolicy
    """What happens when there is no room; `spill` is this arena's own folder."""
    stats: ArenaStats
    warm_bytes: int
    """Reserved and not in use: the next lease finds it at no cost."""
    segments: tuple[SegmentHolding, ...]
    holdings: tuple[Holding, ...]
    oldest: tuple[BlockInfo, ...]
    """The blocks that were leased longest ago, at most `LISTED` of them."""
    largest: tuple[BlockInfo, ...]

    def label(self, participant: int) -> str:
        """How to call the process with that number."""
        found = (one.label for one in self.holdings if one.participant == participant)
        return next(found, f"participant {participant}")


class Tally:
    """Adds up blocks, a few at a time, so that whoever counts can do other things in between."""

    def __init__(self, segments: Iterable[SegmentInfo]) -> None:
        self._segments = {one.index: SegmentHolding(**msgspec.structs.asdict(one)) for one in segments}
        self._sums: dict[int, dict[str, int]] = {}
        self._ages: dict[int, dict[str, float]] = {}
        self._oldest: list[BlockInfo] = []
        self._largest: list[BlockInfo] = []
        for one in self._segments.values():
            self._add(one.owner, segments=1, **{_WHERE[one.spilled]: one.size_bytes})

    def add(self, blocks: Iterable[BlockInfo]) -> None:
        """Count these blocks; those of a segment that was not there before are left out."""
        blocks = [block for block in blocks if block.segment in self._segments]
        self._oldest = heapq.nlargest(LISTED, [*self._oldest, *blocks], key=_by_age)
        self._largest = heapq.nlargest(LISTED, [*self._largest, *blocks], key=_by_size)
        for block in blocks:
            segment = self._segments[block.segment]
            self._segments[block.segment] = msgspec.structs.replace(
                segment,
                blocks=segment.blocks + 1,
                in_use_bytes=segment.in_use_bytes + block.size_bytes,
                oldest_s=max(segment.oldest_s, block.age_s),
            )
            self._add(block.owner, blocks=1, in_use_bytes=block.size_bytes)
            self._age(block.owner, "oldest_s", block.age_s)
            for holder in block.holders:
                self._add(holder, leases=1, leased_bytes=block.size_bytes)
                self._age(holder, "oldest_lease_s", block.age_s)

    def report(
        self,
        name: str,
        policy: FullPolicy,
        stats: ArenaStats,
        participants: Iterable[Participant],
        in_flight: Mapping[int, int],
        names: Mapping[int, str],
    ) -> ArenaReport:
        """All of it. `names`: those of actors, by pid. A participant that the tables name and do not know is kept."""
        for sender, references in in_flight.items():
            self._add(sender, in_flight=references)
        known = {one.index: one for one in participants}
        holdings = []
        for index in sorted({*known, *self._sums}):
            one = known.get(index, Participant(index, 0, 0, False))
            title = "node" if index == 0 else names.get(one.pid, "") if one.alive else ""
            figures: dict[str, Any] = {**self._sums.get(index, {}), **self._ages.get(index, {})}
            holdings.append(Holding(index, title, one.pid, one.alive, **figures))
        return ArenaReport(
            name=name,
            policy=policy,
            stats=stats,
            warm_bytes=stats.warm_bytes,
            segments=tuple(self._segments.values()),
            holdings=tuple(holdings),
            oldest=tuple(self._oldest),
            largest=tuple(self._largest),
        )

    def _add(self, participant: int, **amounts: int) -> None:
        sums = self._sums.setdefault(participant, {})
        for what, amount in amounts.items():
            sums[what] = min(sums.get(what, 0) + amount, _MOST)

    def _age(self, participant: int, what: str, age_s: float) -> None:
        ages = self._ages.setdefault(participant, {})
        ages[what] = max(ages.get(what, 0.0), age_s)
