"""The backlog: higher priority first, and first in, first out among equals."""

from __future__ import annotations

import random

import pytest

from loom.actor.backlog import DEFAULT_PRIORITY, Backlog


def drain(backlog: Backlog[str]) -> list[str]:
    return [backlog.pop() for _ in range(len(backlog))]


def test_equals_keep_their_order() -> None:
    for priority in (0, 49, DEFAULT_PRIORITY, 51, 100):
        backlog: Backlog[str] = Backlog()
        for letter in "abcdef":
            backlog.push(letter, priority)
        assert "".join(drain(backlog)) == "abcdef"


def test_higher_goes_first() -> None:
    backlog: Backlog[str] = Backlog()
    for priority in (0, 50, 100, 49, 51):
        backlog.push(str(priority), priority)
    assert drain(backlog) == ["100", "51", "50", "49", "0"]


def test_a_late_urgent_one_overtakes() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.push("first")
    backlog.push("second")
    assert backlog.pop() == "first"
    backlog.push("urgent", 90)
    assert drain(backlog) == ["urgent", "second"]


def test_what_is_in_it_is_never_compared() -> None:
    backlog: Backlog[object] = Backlog()
    for priority in (10, 10, 90, 90):
        backlog.push(object(), priority)  # objects have no order
    for _ in range(4):
        backlog.pop()


def test_depth() -> None:
    backlog: Backlog[str] = Backlog()
    assert len(backlog) == 0
    for count, priority in enumerate((0, 50, 100), start=1):
        backlog.push("", priority)
        assert len(backlog) == count
    assert not drain(backlog)[0]
    assert len(backlog) == 0


def test_empty() -> None:
    backlog: Backlog[str] = Backlog()
    with pytest.raises(IndexError):
        backlog.pop()


@pytest.mark.parametrize("wanted", range(15))
def test_one_is_found_and_taken_out(wanted: int) -> None:
    backlog: Backlog[tuple[int, int]] = Backlog()
    everything = [(number, (0, 50, 100, 20, 80)[number % 5]) for number in range(15)]
    for one in everything:
        backlog.push(one, one[1])
    found = backlog.find(lambda one: one[0] == wanted)
    assert found is everything[wanted]
    backlog.remove(found)
    assert backlog.find(lambda one: one[0] == wanted) is None
    assert len(backlog) == 14
    left = [backlog.pop() for _ in range(14)]
    assert left == sorted((one for one in everything if one[0] != wanted), key=lambda one: (-one[1], one[0]))


def test_nothing_is_found_in_an_empty_one() -> None:
    backlog: Backlog[str] = Backlog()
    assert backlog.find(lambda _: True) is None


def test_it_is_a_stable_sort_of_what_is_waiting() -> None:
    chance = random.Random(20)
    backlog: Backlog[tuple[int, int]] = Backlog()
    waiting: list[tuple[int, int]] = []
    for arrival in range(5000):
        if waiting and chance.random() < 0.45:
            expected = min(waiting, key=lambda one: (-one[0], one[1]))
            waiting.remove(expected)
            assert backlog.pop() == expected
        priority = chance.choice([0, 20, 50, 50, 50, 80, 100])
        backlog.push((priority, arrival), priority)
        waiting.append((priority, arrival))
    assert len(backlog) == len(waiting)
