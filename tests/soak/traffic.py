"""The actors of the soaks, and arrays that tell what ought to be in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import loom
from loom.errors import ActorDied

Words = NDArray[np.uint64]

LEAST = 4096
"""Words in the smallest array: 32 KiB, where arrays begin to go through the arena."""

_NOISE: Words = np.random.default_rng(20240229).integers(0, 2**64, 2 * LEAST, dtype=np.uint64)

READER_DIED = -1
"""What `Owner.pass_on` answers when the reader it asked died."""


def array_of(seed: int) -> Words:
    """The array of one seed, between LEAST and 2 * LEAST words; those of two seeds differ in every word."""
    return _NOISE[: LEAST + seed % LEAST] + np.uint64(seed)


def wrong_bytes(array: Words, seed: int) -> int:
    """How many bytes of `array` are not those of its seed; a wrong shape or dtype makes all of them wrong."""
    right = array_of(seed)
    if array.dtype != right.dtype or array.shape != right.shape:
        return max(array.nbytes, 1)
    if np.array_equal(array, right):
        return 0
    return int(np.count_nonzero(array.view(np.uint8) != right.view(np.uint8)))


class Reader(loom.Actor):
    """Receives arrays."""

    def check(self, seed: int, array: Words) -> int:
        """Wrong bytes in it."""
        return wrong_bytes(array, seed)

    def echo(self, array: Words) -> Words:
        """Hand it on, uncopied."""
        return array

    def settle(self) -> None:
        """Take back what is free again."""
        loom.arena.current().collect()


class Owner(loom.Actor):
    """Owns arrays and hands them over."""

    def __init__(self) -> None:
        self._kept: dict[int, Words] = {}
        self._readers: dict[str, loom.ActorRef] = {}

    def make(self, seed: int) -> Words:
        """An array from private memory: copied into the arena once, owned by nobody but the message."""
        return array_of(seed)

    def kept(self, seed: int) -> Words:
        """An array that lives in the arena and stays here: handed over again and again without a copy."""
        if len(self._kept) > 64:
            self._kept.clear()
        if seed not in self._kept:
            self._kept[seed] = loom.arena.share(array_of(seed))
        return self._kept[seed]

    async def pass_on(self, seed: int, reader: str) -> int:
        """Hand an array to a reader; what it found, or READER_DIED."""
        if reader not in self._readers:
            self._readers[reader] = self.ctx.lookup(reader)
        try:
            found: int = await self._readers[reader].check(seed, array_of(seed))
        except ActorDied:
            return READER_DIED
        return found

    def settle(self) -> None:
        """Let go of everything, and take back what is free again."""
        self._kept.clear()
        loom.arena.current().collect()
