"""Figures: samples -> median and p99, rounds -> ratios. Samples are in seconds, bytes or things a second throughout."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

FACTORS = {"us": 1e6, "ms": 1e3, "s": 1.0, "k/s": 1e-3, "MB": 1e-6}
"""Unit -> what a sample is multiplied by to be told in it. MB is 10**6 bytes."""

RATES = ("k/s",)
"""Units of which more is better; of all others less is."""


class Figures(msgspec.Struct, frozen=True):
    """One contestant: the median of `n` samples, and the value that 99 % of them are no worse than.

    `p99` is the high end of times and sizes and the low end of rates; of fewer than 100 samples it is the worst one.
    """

    median: float
    p99: float
    unit: str
    n: int


class Ratio(msgspec.Struct, frozen=True):
    """Loom's median by the rival's, one ratio for each round: the median of them, the least and the greatest."""

    median: float
    min: float
    max: float


class Rival(Figures, frozen=True):
    """A rival's figures, and Loom's ratio to them."""

    ratio: Ratio


class Round(msgspec.Struct, frozen=True):
    """One round: everyone had one turn. `order` is who went first, `ratios` Loom's median by each rival's."""

    order: tuple[str, ...]
    loom: Figures
    rivals: dict[str, Figures]
    ratios: dict[str, float]


class Result(msgspec.Struct, frozen=True):
    """The answer to one question. `ratio` is the one to the first rival; `better` is "lower" or "higher"."""

    question: str
    title: str
    loom: Figures
    rivals: dict[str, Rival]
    ratio: Ratio
    goal: str
    better: str
    rounds: tuple[Round, ...]


def figures(samples: Sequence[float], unit: str) -> Figures:
    """Median and p99 (nearest rank) of `samples`, told in `unit`."""
    factor = FACTORS[unit]
    ordered = sorted(samples, reverse=unit in RATES)
    worst = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return Figures(statistics.median(ordered) * factor, worst * factor, unit, len(ordered))


def ratio(ratios: Sequence[float]) -> Ratio:
    """The median, the least and the greatest of one ratio a round."""
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
