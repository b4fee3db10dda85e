"""Question: who is measured beside whom, and how one is put.

Everyone is set up at once; then come the rounds. In each, everyone has one turn (a block of samples that opens with a
warm-up of its own), and who goes first moves on by one from round to round. So whatever else the machine is doing at
the time, it does it to all of them alike, and the ratio of one round is told before the machine has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from time import perf_counter_ns
from typing import Any, NamedTuple, TypeAlias

from bench.figures import RATES, Result, Rival, Round, figures, ratio

Turn: TypeAlias = Callable[[], list[float]]
"""One block of samples: seconds, bytes, or things a second."""


class Line(NamedTuple):
    """One line of the table: one of Loom's contestants against its rivals, the first of them the one that counts."""

    name: str
    title: str
    loom: str
    rivals: tuple[str, ...]
    unit: str
    goal: str


class Question(NamedTuple):
    """`contest(quick)` sets everyone up, gives contestant -> turn, and ends all processes of its own."""

    name: str
    lines: tuple[Line, ...]
    contest: Callable[[bool], AbstractContextManager[dict[str, Turn]]]
    by_default: bool = True
    """Whether it is put without being asked for; not so when it needs much memory (`--huge`)."""
    one_round_in: int = 1
    """Only one of so many rounds is played, at least one in all: for turns that take a second."""


class Skipped(Exception):
    """Raised by a contest that this machine has no room or no package for: told in the table, and no failure."""


def put(question: Question, rounds: int, quick: bool) -> list[Result]:
    """Take the figures of one question: one result for each of its lines."""
    taken: list[tuple[tuple[str, ...], dict[str, list[float]]]] = []
    with question.contest(quick) as turns:
        for order in _orders(tuple(turns), max(1, rounds // question.one_round_in)):
            taken.append((order, {name: turns[name]() for name in order}))
    return [_result(line, taken) for line in question.lines]


def times(act: Callable[[], object], count: int, warm_up: int) -> list[float]:
    """Seconds that each of `count` runs of `act` takes, after `warm_up` more that are not counted."""
    for _ in range(warm_up):
        act()
    seconds: list[float] = []
    for _ in range(count):
        began = perf_counter_ns()
        act()
        seconds.append((perf_counter_ns() - began) / 1e9)
    return seconds


def rates(batch: Callable[[], object], size: int, count: int) -> list[float]:
    """Things a second in each of `count` runs of `batch`, which does `size` of them, after one that is not counted."""
    return [size / seconds for seconds in times(batch, count, warm_up=1)]


def expect(what: str, got: Any, expected: Any) -> None:
    """A contestant that does not do its work is not measured. Raises: RuntimeError."""
    if got != expected:
        raise RuntimeError(f"{what}: expected {expected!r}, got {got!r}")


def _orders(names: tuple[str, ...], rounds: int) -> Iterator[tuple[str, ...]]:
    for number in range(rounds):
        first = number % len(names)
        yield names[first:] + names[:first]


def _result(line: Line, taken: list[tuple[tuple[str, ...], dict[str, list[float]]]]) -> Result:
    told = tuple(_round(line, order, samples) for order, samples in taken)
    pooled = {name: [one for _, samples in taken for one in samples[name]] for name in (line.loom, *line.rivals)}
    rivals = {}
    for name in line.rivals:
        own = figures(pooled[name], line.unit)
        rivals[name] = Rival(own.median, own.p99, own.unit, own.n, ratio([one.ratios[name] for one in told]))
    return Result(
        question=line.name,
        title=line.title,
        loom=figures(pooled[line.loom], line.unit),
        rivals=rivals,
        ratio=rivals[line.rivals[0]].ratio,
        goal=line.goal,
        better="higher" if line.unit in RATES else "lower",
        rounds=told,
    )


def _round(line: Line, order: tuple[str, ...], samples: dict[str, list[float]]) -> Round:
    loom = figures(samples[line.loom], line.unit)
    rivals = {name: figures(samples[name], line.unit) for name in line.rivals}
    return Round(order, loom, rivals, {name: loom.median / own.median for name, own in rivals.items()})
