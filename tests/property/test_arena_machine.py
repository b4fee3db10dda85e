"""The arena as a state machine against plain Python: a holder reads what was written, until the last one lets go.

Participants are handles in this process; to the shared tables that is the same as processes. Deaths are imitated by
abandoning a handle, which leaves everything exactly as it lies. Real kills are in tests/crash.
"""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loom._native import Block
from loom.arena import Arena, BlockInfo, FullPolicy, Reference, destroy_files
from loom.errors import ArenaFull, StaleReference

BUDGET = 12 << 20
names = itertools.count()


@dataclass(eq=False)
class Held:
    holder: Arena
    block: Block
    bytes_expected: bytes
    lease: int
    """Generation of the block: which one it is."""


@dataclass(eq=False)
class Sent:
    sender: Arena | None
    """None once the sender has closed: nobody can recall it."""
    receiver: int | None
    reference: Reference
    bytes_expected: bytes
    lease: int


class ArenaMachine(RuleBasedStateMachine):
    budget = BUDGET

    def create(self, name: str) -> Arena:
        return Arena.create(name, self.budget)

    @initialize()
    def start(self) -> None:
        self.node = self.create(f"loom-machine-{os.getpid()}-{next(names)}")
        self.arenas = [self.node]
        self.held: list[Held] = []
        self.sent: list[Sent] = []
        self.dead: list[Reference] = []

    def pick(self, data: st.DataObject, things: list[Any]) -> Any:
        return things[data.draw(st.integers(0, len(things) - 1))]

    def bury(self, gone: list[Sent]) -> None:
        self.dead += [sent.reference for sent in gone]
        self.sent = [sent for sent in self.sent if sent not in gone]

    # --- Coming and going ---

    @precondition(lambda self: len(self.arenas) < 5)
    @rule()
    def attach(self) -> None:
        self.arenas.append(Arena.attach(self.node.name))

    @precondition(lambda self: len(self.arenas) > 1)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        """Leave without views. References in flight stay good; those addressed here do not."""
        arena = self.pick(data, self.arenas[1:])
        self.held = [held for held in self.held if held.holder is not arena]
        arena.close()
        self.arenas.remove(arena)
        self.bury([sent for sent in self.sent if sent.receiver == arena.participant])
        for sent in self.sent:
            sent.sender = None if sent.sender is arena else sent.sender

    @precondition(lambda self: len(self.arenas) > 1)
    @rule(data=st.data(), grace=st.booleans())
    def die(self, data: st.DataObject, grace: bool) -> None:
        arena = self.pick(data, self.arenas[1:])
        arena._handle.abandon()
        self.arenas.remove(arena)
        self.held = [held for held in self.held if held.holder is not arena]
        self.bury([sent for sent in self.sent if sent.receiver == arena.participant])
        mine = [sent for sent in self.sent if sent.sender is arena]
        if grace:
            assert self.node.reap(arena.participant, revoke=False) == len(mine)
            for sent in mine:
                sent.sender = None
        else:
            assert self.node.reap(arena.participant) == 0
            assert self.node.reap(arena.participant) == 0
            self.bury(mine)

    # --- Blocks ---

    @rule(data=st.data(), size=st.integers(0, 5000) | st.integers(0, 3 << 20), seed=st.binary(min_size=1, max_size=8))
    def lease(self, data: st.DataObject, size: int, seed: bytes) -> None:
        arena = self.pick(data, self.arenas)
        try:
            block = arena.lease(size, timeout_s=0)
        except ArenaFull:
            assert not self.node.policy.spill
            return
        contents = (seed * (size // len(seed) + 1))[:size]
        with memoryview(block) as view:
            view[:] = contents
        self.held.append(Held(arena, block, contents, block.generation))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.pick(data, self.held)
        self.held.remove(held)
        held.block.release()

    # --- References ---

    @precondition(lambda self: self.held)
    @rule(data=st.data(), anybody=st.booleans())
    def send(self, data: st.DataObject, anybody: bool) -> None:
        held = self.pick(data, self.held)
        receiver = None if anybody else self.pick(data, self.arenas).participant
        start = data.draw(st.integers(0, len(held.bytes_expected)))
        stop = data.draw(st.integers(start, len(held.bytes_expected)))
        with memoryview(held.block) as view:
            if stop == start:
                return  # an empty slice may be anywhere
            reference, copied = held.holder.send(view[start:stop], receiver)
        assert not copied
        self.sent.append(Sent(held.holder, receiver, reference, held.bytes_expected[start:stop], held.lease))

    @rule(data=st.data(), contents=st.binary(max_size=9000))
    def send_copy(self, data: st.DataObject, contents: bytes) -> None:
        arena = self.pick(data, self.arenas)
        try:
            reference, copied = arena.send(contents, timeout_s=0)
        except ArenaFull:
            assert not self.node.policy.spill
            return
        assert copied
        self.sent.append(Sent(arena, None, reference, contents, reference[2]))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        sent, arena = self.pick(data, self.sent), self.pick(data, self.arenas)
        if sent.receiver not in (None, arena.participant):
            with pytest.raises(StaleReference):
                arena.accept(sent.reference)
            return
        block = arena.accept(sent.reference)
        assert block.readonly
        self.held.append(Held(arena, block, sent.bytes_expected, sent.lease))
        self.bury([sent])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        sent = self.pick(data, self.sent)
        if sent.sender:
            assert sent.sender.recall(sent.reference)
            self.bury([sent])

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def use_a_dead_reference(self, data: st.DataObject) -> None:
        with pytest.raises(StaleReference):
            self.pick(data, self.arenas).accept(self.pick(data, self.dead))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), field=st.integers(0, 7), value=st.integers(0, 5000) | st.integers(0, 2**53 - 1))
    def use_a_damaged_reference(self, data: st.DataObject, field: int, value: int) -> None:
        """Offset and size may be made smaller, nothing else may pass."""
        sent = self.pick(data, self.sent)
        fields = list(sent.reference)
        if field in (3, 4) or fields[field] == value:
            return
        fields[field] = value
        others = [tuple(fields[i] for i in (0, 1, 2, 5, 6, 7)) == tuple(s.reference[i] for i in (0, 1, 2, 5, 6, 7))
                  for s in self.sent]  # fmt: skip
        if not any(others):
            with pytest.raises(StaleReference):
                self.pick(data, self.arenas).accept(fields)

    # --- Housekeeping ---

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.pick(data, self.arenas).trim()

    @rule()
    def sweep(self) -> None:
        self.node.sweep()

    # --- What must hold ---

    @invariant()
    def every_holder_reads_what_was_written(self) -> None:
        for held in getattr(self, "held", []):
            assert bytes(held.block) == held.bytes_expected

    @invariant()
    def the_tables_agree_with_the_model(self) -> None:
        if not hasattr(self, "node"):
            return
        for arena in self.arenas:
            arena.collect()
        self.node.sweep()
        stats = self.node.stats()
        assert stats.in_flight == len(self.sent)
        assert stats.blocks == len({held.lease for held in self.held} | {sent.lease for sent in self.sent})
        assert stats.reserved_bytes <= self.budget
        rows = sorted(self.node.blocks(), key=lambda row: row.generation)
        for segment in {row.segment for row in rows}:  # each is read at one time
            ages = [row.age_s for row in rows if row.segment == segment]
            assert ages == sorted(ages, reverse=True)
        self.the_spill_folder_agrees_too(rows)

    def the_spill_folder_agrees_too(self, rows: list[BlockInfo]) -> None:
        """Nothing is there but segments that hold something."""
        stats, spilled = self.node.stats(), [row for row in self.node.segments() if row.spilled]
        if not self.node.policy.spill:
            assert not spilled
            return
        assert sorted(os.listdir(self.node.policy.spill)) == sorted(str(row.sequence) for row in spilled)
        assert stats.spill_reserved_bytes == sum(row.size_bytes for row in spilled)
        there = {row.index for row in spilled}
        assert there == {row.segment for row in rows if row.segment in there}
        assert stats.spilled_blocks == sum(row.segment in there for row in rows)

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        try:
            self.everything_comes_back()
        finally:
            self.node.destroy()
            self.node.close()
        assert destroy_files(self.node.name) == 0

    def everything_comes_back(self) -> None:
        self.held.clear()
        gc.collect()
        for sent in self.sent:
            assert sent.sender is None or sent.sender.recall(sent.reference)
        for arena in self.arenas[1:]:
            arena.close()
        for row in self.node.participants()[1:]:
            assert self.node.reap(row.index) == 0
        self.node.trim()
        self.node.sweep()
        stats = self.node.stats()
        assert (stats.participants, stats.blocks, stats.segments) == (1, 0, 0)


class SpillingMachine(ArenaMachine):
    """The same, with room in memory for next to nothing: whatever finds none is spilled, and no lease fails."""

    budget = 4 << 20

    def create(self, name: str) -> Arena:
        self.folder = tempfile.mkdtemp(prefix="loom-machine-")
        return Arena.create(name, self.budget, FullPolicy("spill", 1.0, self.folder))

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            os.rmdir(self.folder)


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestSpillingMachine = SpillingMachine.TestCase
TestSpillingMachine.settings = settings(max_examples=30, stateful_step_count=60, deadline=None)
