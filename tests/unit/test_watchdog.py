"""The watchdog's judgement: looks in, hang, slowness and questions out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from loom.supervise.watchdog import Hang, Judge, Look, Slow

STEP_S = 0.25  # a quarter of the limit of 1 s: how often the watchdog looks then


def found(looks: Sequence[Look], watchdog_s: float | None = 1.0, start_s: float | None = None) -> Hang | None:
    """The hang that the last of these looks comes to; none before it."""
    judge = Judge(watchdog_s, start_s)
    for look in looks[:-1]:
        assert not isinstance(judge.judge(look, STEP_S), Hang)
    last = judge.judge(looks[-1], STEP_S)
    return last if isinstance(last, Hang) else None


STUCK = Look(since_ns=5)
HELD = Look(since_ns=5, has_beat=False)
DEAF = Look(has_pong=False)


@pytest.mark.parametrize(
    ("kind", "looks"),
    [
        ("stopped", [Look(state="T")] * 5),
        ("stopped", [Look(state="t")] * 5),
        ("stopped", [Look(state="T", since_ns=5, has_pong=False, has_beat=False)] * 5),
        ("handler", [STUCK] * 6),
        ("handler", [Look(state="R", since_ns=5, has_pong=False)] * 6),
        ("handler", [*[HELD] * 5, STUCK]),
        ("loop", [DEAF] * 5),
        ("gil", [*[STUCK] * 4, *[HELD] * 2]),
        ("gil", [*[DEAF] * 3, *[DEAF._replace(has_beat=False)] * 2]),
        ("start", [Look(is_started=False)] * 5),
        ("gil", [*[Look(is_started=False)] * 4, *[Look(is_started=False, has_beat=False)] * 2]),
        ("stopped", [Look(is_started=False, state="T")] * 5),
    ],
)
def test_hangs(kind: str, looks: list[Look]) -> None:
    hang = found(looks, start_s=1.0)
    assert hang is not None
    assert hang.kind == kind
    assert hang.for_s > 1.0


@pytest.mark.parametrize(
    "looks",
    [
        [Look()] * 100,
        [Look(since_ns=number) for number in range(1, 100)],
        [Look(since_ns=5, progress_ns=number) for number in range(100)],
        [Look(since_ns=5 * (number % 4 < 3), has_pong=number % 4 == 3) for number in range(100)],
        [Look(state="T" if number % 4 else "S") for number in range(100)],
        [Look(has_pong=number % 4 == 0) for number in range(100)],
        [Look(is_started=False)] * 100,
        [Look(has_beat=False)] * 100,
    ],
)
def test_no_hangs(looks: list[Look]) -> None:
    assert found(looks) is None


def test_start_s_and_watchdog_s_are_two_limits() -> None:
    looks = [*[Look(is_started=False)] * 4, *[STUCK] * 4]
    assert found([*looks, STUCK], start_s=1.5) is None
    assert found([*looks, STUCK, STUCK], start_s=1.5) is not None
    assert found([*looks, *[STUCK] * 100], watchdog_s=None, start_s=1.5) is None
    assert found([Look(is_started=False, progress_ns=number) for number in range(100)], start_s=1.0) is None


def test_progress_of_a_start_and_a_stop_in_the_middle_begin_anew() -> None:
    stopped = Look(state="T", since_ns=5)
    hang = found([*[STUCK] * 3, *[stopped] * 4, *[STUCK] * 3])
    assert hang is not None
    assert hang.kind == "handler"
    assert hang.for_s == pytest.approx(1.25)


def test_time_in_which_nobody_looked_does_not_count() -> None:
    judge = Judge(10.0, None)
    assert judge.every_s == 1.0
    assert judge.judge(STUCK, 1.0) is None
    for _ in range(2):
        assert judge.judge(STUCK, 3600.0) is None
    assert isinstance(judge.judge(STUCK, 3600.0), Slow)
    assert judge.judge(STUCK, 3600.0) is None
    assert judge.judge(STUCK, 3600.0) is None
    assert isinstance(judge.judge(STUCK, 3600.0), Hang)


def test_a_message_is_told_to_be_slow_once_and_so_is_the_next() -> None:
    judge = Judge(1.0, None)
    seen = [judge.judge(Look(since_ns=since, progress_ns=at), STEP_S) for since in (5, 6, 0) for at in range(20)]
    slow = [one for one in seen if one is not None]
    assert len(slow) == 2
    assert all(isinstance(one, Slow) and one.for_s == pytest.approx(0.75) for one in slow)


def test_the_heartbeat_is_asked_for_when_something_is_overdue_only() -> None:
    judge = Judge(1.0, None)
    asked = []
    for look in [Look()] * 20 + [STUCK] * 5 + [Look()] * 20 + [DEAF] * 4:
        judge.judge(look, STEP_S)
        asked.append(judge.wants_beat)
    assert sum(asked) == 2
    assert asked.index(True) == 23
    assert asked[-1] or asked[-2]


def test_pings_are_asked_for_once_the_last_is_answered_and_the_actor_has_started() -> None:
    judge = Judge(1.0, None)
    wants = []
    for look in (Look(is_started=False), Look(), DEAF, DEAF, Look()):
        judge.judge(look, STEP_S)
        wants.append(judge.wants_ping)
    assert wants == [False, True, False, False, True]


def test_texts() -> None:
    hang = found([STUCK] * 6)
    assert str(hang) == "hang: stuck handler: it ran without ctx.progress() for 1.2 s (watchdog_s = 1)"
    hang = found([Look(is_started=False)] * 5, start_s=1.0)
    assert str(hang) == "hang: stuck start: __init__ and on_start were not done for 1.2 s (start_s = 1)"


@pytest.mark.parametrize(
    ("watchdog_s", "start_s", "every_s"),
    [(1.0, None, 0.25), (None, 2.0, 0.5), (8.0, 1.0, 0.25), (60.0, None, 1.0), (0.01, None, 0.02)],
)
def test_how_often_it_looks(watchdog_s: float | None, start_s: float | None, every_s: float) -> None:
    assert Judge(watchdog_s, start_s).every_s == every_s
