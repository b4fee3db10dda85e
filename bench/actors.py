"""The actor that is measured, and the node it lives on."""

from __future__ import annotations

import os
from typing import Any

import loom


class Subject(loom.Actor):
    """Answers at once, whatever it is asked."""

    def __init__(self) -> None:
        self._told = 0

    def echo(self, number: int) -> int:
        """A sync handler with a small argument and a small answer."""
        return number

    async def echo_async(self, number: int) -> int:
        """The same as a coroutine, which becomes a task of the actor's event loop."""
        return number

    def nothing(self) -> None:
        """The empty call."""

    def note(self, number: int) -> None:
        """What is told; `noted` says how often."""
        self._told += 1

    def noted(self) -> int:
        """How many messages `note` has had."""
        return self._told

    def first(self, array: Any) -> float:
        """Touch one element of a tensor."""
        return float(array[0])

    def sum_pages(self, array: Any) -> float:
        """Touch every page of a tensor."""
        from bench import peers  # here, so that an actor that only answers pays for no import of ours

        return peers.sum_pages(array)

    def pid(self) -> int:
        """The process it runs in."""
        return os.getpid()


def home(arena: str = "256MiB") -> loom.Node:
    """A node whose supervisor puts up with any number of kills."""
    return loom.Node(arena=arena, supervisor=loom.SupervisorSpec(max_restarts=10_000))
