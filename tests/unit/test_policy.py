"""The restart policy as a table: who restarts after what, with whom, in which order, and when it gives up.

The matrix is OTP's (lib/stdlib/test/supervisor_SUITE.erl names the same cases).
"""

from __future__ import annotations

import pytest

from loom.supervise.policy import ChildState, Decision, Exit, ExitKind, State, decide, delay_s, stop_order
from loom.supervise.spec import BackoffSpec, Restart, Strategy, SupervisorSpec

NOW = 1000.0


def children(*rows: str) -> tuple[ChildState, ...]:
    """ "a", "b:temporary" or "c:transient:stopped"; permanent and running are the defaults."""
    made = []
    for row in rows:
        name, restart, state = (*row.split(":"), "", "")[:3]
        made.append(ChildState(name, restart or "permanent", state or "running"))  # type: ignore[arg-type]
    return tuple(made)


def spec(strategy: Strategy = "one_for_one", max_restarts: int = 10, within_s: float = 5.0) -> SupervisorSpec:
    return SupervisorSpec(strategy=strategy, max_restarts=max_restarts, within_s=within_s)


def one(restart: Restart, kind: ExitKind, state: State = "running") -> Decision:
    return decide(spec(), (ChildState("a", restart, state),), (), Exit("a", kind), NOW)


RESTARTED = Decision(start=("a",), history=(NOW,))
LEFT = Decision()
FORGOTTEN = Decision(remove=("a",))


# --- Who restarts ------------------------------------------------------------------------------------------------


def test_permanent_exit_normal_restarts() -> None:
    assert one("permanent", "normal") == RESTARTED


def test_permanent_exit_shutdown_restarts() -> None:
    assert one("permanent", "shutdown") == RESTARTED


def test_permanent_exit_abnormal_restarts() -> None:
    assert one("permanent", "abnormal") == RESTARTED


def test_permanent_start_failed_restarts() -> None:
    assert one("permanent", "start_failed", "restarting") == RESTARTED


def test_transient_exit_normal_is_left() -> None:
    assert one("transient", "normal") == LEFT


def test_transient_exit_shutdown_is_left() -> None:
    assert one("transient", "shutdown") == LEFT


def test_transient_exit_abnormal_restarts() -> None:
    assert one("transient", "abnormal") == RESTARTED


def test_transient_start_failed_restarts() -> None:
    assert one("transient", "start_failed", "restarting") == RESTARTED


@pytest.mark.parametrize("kind", ["normal", "shutdown", "abnormal", "start_failed"])
def test_temporary_exit_is_forgotten(kind: ExitKind) -> None:
    assert one("temporary", kind) == FORGOTTEN


def test_an_end_that_restarts_nobody_leaves_history_alone() -> None:
    history = (1.0, NOW - 1)
    for rows in (children("a:transient"), children("a:temporary")):
        assert decide(spec(), rows, history, Exit("a", "normal"), NOW).history == history


# --- Stale events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["stopping", "stopped"])
def test_child_stopped_on_purpose_is_left(state: State) -> None:
    assert one("permanent", "abnormal", state) == LEFT


def test_failed_start_of_a_child_stopped_meanwhile_is_left() -> None:
    assert one("permanent", "start_failed", "stopped") == LEFT


def test_temporary_child_stopped_on_purpose_is_forgotten() -> None:
    assert one("temporary", "normal", "stopping") == FORGOTTEN


def test_unknown_child_is_ignored() -> None:
    assert decide(spec("one_for_all"), children("a", "b"), (7.0,), Exit("z", "abnormal"), NOW) == Decision(
        history=(7.0,)
    )


# --- Who restarts with it ----------------------------------------------------------------------------------------


def group(strategy: Strategy, *rows: str, event: Exit) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    decision = decide(spec(strategy), children(*rows), (), event, NOW)
    assert not decision.escalate
    assert decision.history == (NOW,)  # a group restart counts once
    return decision.stop, decision.start, decision.remove


B_DIES = Exit("b", "abnormal")


def test_one_for_one_restarts_only_the_child() -> None:
    assert group("one_for_one", "a", "b", "c", event=B_DIES) == ((), ("b",), ())


def test_one_for_all_stops_in_reverse_and_starts_in_order() -> None:
    assert group("one_for_all", "a", "b", "c", "d", event=B_DIES) == (("d", "c", "a"), ("a", "b", "c", "d"), ())


def test_rest_for_one_takes_those_after_it() -> None:
    assert group("rest_for_one", "a", "b", "c", "d", event=B_DIES) == (("d", "c"), ("b", "c", "d"), ())


def test_rest_for_one_last_child_restarts_alone() -> None:
    assert group("rest_for_one", "a", "b", event=B_DIES) == ((), ("b",), ())


def test_rest_for_one_first_child_restarts_all() -> None:
    event = Exit("a", "abnormal")
    assert group("rest_for_one", "a", "b", "c", event=event) == (("c", "b"), ("a", "b", "c"), ())


def test_one_for_all_temporary_sibling_is_stopped_and_forgotten() -> None:
    assert group("one_for_all", "a", "b", "c:temporary", event=B_DIES) == (("c", "a"), ("a", "b"), ("c",))


def test_rest_for_one_temporary_sibling_is_stopped_and_forgotten() -> None:
    rows = ("a:temporary", "b", "c:temporary", "d")
    assert group("rest_for_one", *rows, event=B_DIES) == (("d", "c"), ("b", "d"), ("c",))


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
@pytest.mark.parametrize("row", ["b:temporary", "b:transient"])
def test_child_that_stays_down_takes_no_sibling_with_it(strategy: Strategy, row: str) -> None:
    decision = decide(spec(strategy), children("a", row, "c"), (), Exit("b", "normal"), NOW)
    assert (decision.stop, decision.start) == ((), ())


def test_group_restart_revives_a_transient_sibling_that_had_ended() -> None:
    assert group("one_for_all", "a:transient:stopped", "b", event=B_DIES) == ((), ("a", "b"), ())


def test_group_restart_stops_only_what_has_a_process() -> None:
    rows = ("a:permanent:starting", "b", "c:permanent:restarting", "d:permanent:stopped", "e:permanent:stopping")
    assert group("one_for_all", *rows, event=B_DIES) == (("e", "a"), ("a", "b", "c", "d", "e"), ())


def test_failed_start_in_a_group_restarts_the_group() -> None:
    rows = ("a", "b:permanent:restarting", "c:permanent:restarting")
    assert group("one_for_all", *rows, event=Exit("b", "start_failed")) == (("a",), ("a", "b", "c"), ())


# --- When it gives up --------------------------------------------------------------------------------------------


def deaths(max_restarts: int, within_s: float, times: list[float], kind: ExitKind = "abnormal") -> list[bool]:
    """Whether the supervisor gave up, after each death."""
    history: tuple[float, ...] = ()
    gave_up = []
    for now in times:
        decision = decide(spec("one_for_one", max_restarts, within_s), children("a"), history, Exit("a", kind), now)
        history = decision.history
        gave_up.append(decision.escalate)
    return gave_up


def test_default_is_one_restart_in_five_seconds() -> None:
    default, rows, event = SupervisorSpec(), children("a"), Exit("a", "abnormal")
    first = decide(default, rows, (), event, NOW)
    assert not first.escalate
    assert decide(default, rows, first.history, event, NOW + 5).escalate
    assert not decide(default, rows, first.history, event, NOW + 5.001).escalate


def test_max_restarts_within_the_window_survive_and_one_more_gives_up() -> None:
    assert deaths(3, 5, [0, 1, 2, 3]) == [False, False, False, True]


def test_entry_at_the_edge_of_the_window_counts() -> None:
    assert deaths(1, 5, [0, 5]) == [False, True]


def test_entry_past_the_edge_of_the_window_is_dropped() -> None:
    assert deaths(1, 5, [0, 5.001]) == [False, False]
    assert decide(spec(within_s=5), children("a"), (0.0, 1.0), Exit("a", "abnormal"), 5.5).history == (1.0, 5.5)


def test_window_slides() -> None:
    assert deaths(2, 5, [0, 4, 6, 8]) == [False, False, False, True]  # 4, 6 and 8 are within 5 s: 0 is not


def test_zero_max_restarts_gives_up_at_once() -> None:
    assert deaths(0, 5, [0]) == [True]


def test_each_failed_start_counts() -> None:
    assert deaths(2, 5, [0, 0.1, 0.2], "start_failed") == [False, False, True]


def test_giving_up_stops_all_in_reverse_and_starts_nobody() -> None:
    rows = children("a", "b", "c:temporary", "d:permanent:stopped", "e")
    decision = decide(spec("one_for_one", 0), rows, (), B_DIES, NOW)
    assert decision == Decision(stop=("e", "c", "a"), escalate=True, history=(NOW,))


def test_ends_that_restart_nobody_never_give_up() -> None:
    strict = spec("one_for_all", 0)
    assert not decide(strict, children("a:temporary"), (), Exit("a", "abnormal"), NOW).escalate
    assert not decide(strict, children("a:transient"), (), Exit("a", "normal"), NOW).escalate


def test_stop_order_is_reverse_start_order_of_what_runs() -> None:
    assert stop_order(children("a", "b:permanent:restarting", "c:temporary", "d:transient:stopped")) == ("c", "a")


# --- Backoff -----------------------------------------------------------------------------------------------------


def test_no_backoff_by_default() -> None:
    assert one("permanent", "abnormal").delay_s == 0.0


def test_backoff_grows_to_its_cap() -> None:
    backoff = BackoffSpec(base_s=0.5, factor=3, cap_s=10)
    assert [delay_s(backoff, nth, "a", NOW) for nth in (1, 2, 3, 4, 9)] == [0.5, 1.5, 4.5, 10, 10]


def test_backoff_beyond_a_float_is_its_cap() -> None:
    assert delay_s(BackoffSpec(base_s=1, cap_s=10), 5000, "a", NOW) == 10
    assert delay_s(BackoffSpec(), 5000, "a", NOW) == 0


def test_backoff_counts_the_restarts_of_the_window() -> None:
    slow = SupervisorSpec(max_restarts=9, within_s=5, backoff=BackoffSpec(base_s=1, factor=2))
    decision = decide(slow, children("a"), (NOW - 9, NOW - 8, NOW - 1), Exit("a", "abnormal"), NOW)
    assert decision.delay_s == 2  # the second


def test_giving_up_waits_for_nothing() -> None:
    slow = SupervisorSpec(max_restarts=0, backoff=BackoffSpec(base_s=1))
    assert decide(slow, children("a"), (), Exit("a", "abnormal"), NOW).delay_s == 0


def test_jitter_shortens_by_up_to_its_share_and_differs_between_children() -> None:
    backoff = BackoffSpec(base_s=10, jitter=0.2)
    delays = [delay_s(backoff, 1, name, NOW) for name in "abcdefgh"]
    assert all(8 < delay <= 10 for delay in delays)
    assert len(set(delays)) == len(delays)
    assert delay_s(backoff, 1, "a", NOW) == delays[0]
