"""Actors of the soaks, where an actor's process finds them without a test's imports; and the tree of the chaos."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import numpy as np

import loom
from loom.errors import LoomError

MANY = {"max_restarts": 1_000_000, "within_s": 1.0}


class Player(loom.Actor):
    """Does a little of everything."""

    def echo(self, value: Any) -> Any:
        return value

    def sum(self, array: np.ndarray) -> int:
        return int(array.sum())

    def work(self, value: int, s: float) -> int:
        time.sleep(s)
        return value

    async def nap(self, value: int, s: float) -> int:
        await asyncio.sleep(s)
        return value

    async def relay(self, name: str, value: int) -> Any:
        try:
            return await self.ctx.lookup(name).echo.options(timeout_s=5.0)(value)
        except LoomError:
            return "the other one failed"

    def fail(self, value: int) -> None:
        raise ValueError(value)


class Keeper(Player):
    """Remembers each number that it answers, whatever becomes of it."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def snapshot(self) -> Any:
        return np.array(self._numbers, np.int64).tobytes()

    def restore(self, state: Any) -> None:
        self._numbers = np.frombuffer(state, np.int64).tolist()

    def keep(self, value: int) -> int:
        self._numbers.append(value)
        return value

    def numbers(self) -> list[int]:
        return self._numbers


class Noted(loom.Actor):
    """Notes when it starts and stops."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_start(self) -> None:
        self.note("start")

    def on_stop(self, reason: str) -> None:
        self.note("stop")

    def note(self, what: str) -> None:
        fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{what} {self.ctx.name}\n".encode())
        os.close(fd)


def _child(cls: type, name: str, **options: Any) -> loom.ChildSpec:
    return loom.ChildSpec(cls, name=name, shutdown_s=1.0, **options)


def _below(name: str, strategy: Any, *children: loom.ChildSpec) -> loom.ChildSpec:
    spec = loom.SupervisorSpec(strategy=strategy, children=children, backoff=loom.BackoffSpec(base_s=0.001), **MANY)
    return loom.ChildSpec(spec, name=name)


def tree() -> loom.SupervisorSpec:
    """The tree; ACTORS are the names in it."""
    full = (
        loom.MailboxSpec(capacity=10),
        loom.MailboxSpec(capacity=10, policy="refuse"),
        loom.MailboxSpec(capacity=10, policy="drop_oldest"),
        loom.MailboxSpec(capacity=10, on_death="hand_on"),
    )
    keeping = loom.SnapshotSpec(every_messages=1)
    return loom.SupervisorSpec(
        children=(
            *(_child(Player, f"plain.{number}") for number in range(16)),
            *(_child(Player, f"small.{number}", mailbox=full[number % len(full)]) for number in range(10)),
            *(_child(Keeper, f"keeper.{number}", snapshot=keeping) for number in range(4)),
            _below("all", "one_for_all", *(_child(Player, f"all.{number}") for number in range(5))),
            _below("rest", "rest_for_one", *(_child(Player, f"rest.{number}") for number in range(7))),
            _below(
                "deep",
                "one_for_one",
                *(_child(Player, f"deep.{number}") for number in range(3)),
                _below("deeper", "rest_for_one", *(_child(Player, f"deeper.{number}") for number in range(5))),
            ),
        ),
        **MANY,
    )


def _names(spec: loom.SupervisorSpec) -> list[str]:
    found = []
    for child in spec.children:
        found += _names(child.supervisor) if child.supervisor is not None else [child.name]
    return found


ACTORS = tuple(_names(tree()))
KEEPERS = tuple(name for name in ACTORS if name.startswith("keeper."))
