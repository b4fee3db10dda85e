"""Backlog: messages that have arrived and not yet begun, in the order they are to run.

Higher priority first; first in, first out among equals. Nearly all messages have the default priority, so that one
has a plain deque and the others pay for a heap.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

DEFAULT_PRIORITY = 50


class Backlog(Generic[T]):
    """A priority queue; `len()` is its depth."""

    def __init__(self) -> None:
        self._normal: deque[T] = deque()
        self._above: list[tuple[int, int, T]] = []
        self._below: list[tuple[int, int, T]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._normal) + len(self._above) + len(self._below)

    def push(self, item: T, priority: int = DEFAULT_PRIORITY) -> None:
        """Put one message in."""
        if priority == DEFAULT_PRIORITY:
            self._normal.append(item)
            return
        self._arrivals += 1
        heap = self._above if priority > DEFAULT_PRIORITY else self._below
        heapq.heappush(heap, (-priority, self._arrivals, item))

    def pop(self) -> T:
        """Take out the next message. Raises: IndexError when there is none."""
        if self._above:
            return heapq.heappop(self._above)[2]
        if self._normal:
            return self._normal.popleft()
        return heapq.heappop(self._below)[2]
