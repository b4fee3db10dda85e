"""Backlog: messages that have arrived and not yet begun, in the order they are to run.

Higher priority first; first in, first out among equals. Nearly all messages have the default priority, so that one
has a plain deque and the others pay for a heap.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
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
        self._depth = 0

    def __len__(self) -> int:
        return self._depth

    def push(self, item: T, priority: int = DEFAULT_PRIORITY) -> None:
        """Put one message in."""
        self._depth += 1
        if priority == DEFAULT_PRIORITY:
            self._normal.append(item)
            return
        self._arrivals += 1
        heap = self._above if priority > DEFAULT_PRIORITY else self._below
        heapq.heappush(heap, (-priority, self._arrivals, item))

    def pop(self) -> T:
        """Take out the next message. Raises: IndexError when there is none."""
        if self._above:
            item = heapq.heappop(self._above)[2]
        elif self._normal:
            item = self._normal.popleft()
        else:
            item = heapq.heappop(self._below)[2]
        self._depth -= 1
        return item

    def drop(self) -> T:
        """Take out the oldest of the least urgent messages. Raises: IndexError when there is none."""
        self._depth -= 1
        for heap in (self._below, self._above):
            if heap and (heap is self._below or not self._normal):
                least = max(heap, key=lambda entry: (entry[0], -entry[1]))
                heap.remove(least)
                heapq.heapify(heap)
                return least[2]
        return self._normal.popleft()

    def find(self, is_wanted: Callable[[T], bool]) -> T | None:
        """One message that waits, for which `is_wanted`; None when there is none. Looks at every one of them."""
        for item in self._normal:
            if is_wanted(item):
                return item
        for _, _, item in (*self._above, *self._below):
            if is_wanted(item):
                return item
        return None

    def remove(self, item: T) -> None:
        """Take out a message that `find` has found."""
        self._depth -= 1
        for index, one in enumerate(self._normal):
            if one is item:
                del self._normal[index]
                return
        for heap in (self._above, self._below):
            heap[:] = [entry for entry in heap if entry[2] is not item]
            heapq.heapify(heap)
