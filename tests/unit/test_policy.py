"""The restart policy as a table: who restarts after what, with whom, in which order, and when it gives up.

The matrix is OTP's (lib/stdlib/test/supervisor_SUITE.erl names the same cases).
"""

from __future__ import annotations

import msgspec
import pytest

from loom.supervise.policy import ChildState, Decision, Exit, ExitKind, State, decide, delay_s, stop_order
from loom.supervise.spec import AutoShutdown, BackoffSpec, ChildSpec, Restart, Strategy, SupervisorSpec

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


# --- simple_one_for_one ------------------------------------------------------------------------------------------


def simple(auto_shutdown: AutoShutdown = "never") -> SupervisorSpec:
    template = ChildSpec("m:A", restart="transient", significant=auto_shutdown != "never")
    return SupervisorSpec("simple_one_for_one", 10, children=(template,), auto_shutdown=auto_shutdown)


def test_simple_one_for_one_restarts_only_the_child() -> None:
    decision = decide(simple(), children("a", "b"), (), Exit("a", "abnormal"), NOW)
    assert decision == Decision(start=("a",), history=(NOW,))


def test_simple_one_for_one_forgets_what_it_does_not_restart() -> None:
    decision = decide(simple(), children("a:transient", "b:transient"), (), Exit("a", "normal"), NOW)
    assert decision == Decision(remove=("a",))


def test_simple_one_for_one_leaves_what_is_being_stopped_to_who_stops_it() -> None:
    assert decide(simple(), children("a:transient:stopping"), (), Exit("a", "normal"), NOW) == LEFT


# --- Auto-shutdown -----------------------------------------------------------------------------------------------


def significant(auto_shutdown: AutoShutdown, *rows: str, event: Exit) -> Decision:
    """Rows as in `children`; one whose name is a capital is significant."""
    made = [msgspec.structs.replace(row, significant=row.name.isupper()) for row in children(*rows)]
    return decide(SupervisorSpec(max_restarts=10, auto_shutdown=auto_shutdown), made, (), event, NOW)


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_any_ends_with_the_first_significant_child(restart: Restart) -> None:
    decision = significant("any", "a", f"B:{restart}", "C:transient", event=Exit("B", "normal"))
    assert (decision.auto_shutdown, decision.stop, decision.start) == (True, ("C", "a"), ())


def test_all_ends_with_the_last_significant_child() -> None:
    event = Exit("B", "normal")
    assert not significant("all", "a", "B:transient", "C:transient", event=event).auto_shutdown
    assert not significant("all", "a", "B:transient", "C:transient:restarting", event=event).auto_shutdown
    assert significant("all", "a", "B:transient", "C:transient:stopped", event=event).auto_shutdown


@pytest.mark.parametrize("auto_shutdown", ["never", "any", "all"])
def test_an_insignificant_child_ends_nobody(auto_shutdown: AutoShutdown) -> None:
    assert not significant(auto_shutdown, "b:transient", event=Exit("b", "normal")).auto_shutdown


def test_never_means_never() -> None:
    assert not significant("never", "B:transient", event=Exit("B", "normal")).auto_shutdown


@pytest.mark.parametrize("auto_shutdown", ["any", "all"])
def test_a_restart_is_no_end(auto_shutdown: AutoShutdown) -> None:
    decision = significant(auto_shutdown, "B:transient", event=Exit("B", "abnormal"))
    assert (decision.auto_shutdown, decision.start) == (False, ("B",))


@pytest.mark.parametrize("kind", ["normal", "shutdown", "abnormal"])
def test_every_end_of_a_temporary_child_counts(kind: ExitKind) -> None:
    assert significant("any", "B:temporary", event=Exit("B", kind)).auto_shutdown


@pytest.mark.parametrize("state", ["stopping", "stopped"])
def test_a_significant_child_that_was_stopped_has_not_ended_by_itself(state: State) -> None:
    assert not significant("any", f"B:temporary:{state}", event=Exit("B", "shutdown")).auto_shutdown


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


def delays(backoff: BackoffSpec, within_s: float, times: list[float]) -> list[float]:
    """The delay of each restart, for deaths at these times."""
    rules = SupervisorSpec(max_restarts=1000, within_s=within_s, backoff=backoff)
    history: tuple[float, ...] = ()
    found = []
    for now in times:
        decision = decide(rules, children("a"), history, Exit("a", "abnormal"), now)
        history = decision.history
        found.append(decision.delay_s)
    return found


DOUBLING = BackoffSpec(base_s=1, factor=2, cap_s=60)


def test_backoff_grows_with_the_restarts_in_a_row_also_beyond_the_window() -> None:
    assert delays(DOUBLING, 5, [0, 2, 6, 14, 25]) == [1, 2, 4, 8, 16]  # each some seconds after the delay was over


def test_backoff_begins_anew_after_a_quiet_period() -> None:
    assert delays(DOUBLING, 5, [0, 2, 9, 13]) == [1, 2, 4, 8]  # 9 - 2 is the delay of 2 and exactly 5 of quiet
    assert delays(DOUBLING, 5, [0, 2, 9.5, 11]) == [1, 2, 1, 2]  # and a moment more
    slow = BackoffSpec(base_s=1, factor=2, cap_s=60, reset_after_s=100)
    assert delays(slow, 5, [0, 50, 151, 252, 353]) == [1, 2, 4, 8, 16]
    assert delays(slow, 5, [0, 50, 152.5]) == [1, 2, 1]


def test_backoff_stays_at_its_cap_for_as_long_as_it_goes_on() -> None:
    times = [0.0, 2, 5, 10, 20, 40, *(75 + 61.0 * nth for nth in range(500))]
    assert delays(DOUBLING, 5, times)[6:] == [60] * 500
    assert delays(DOUBLING, 5, [*times, times[-1] + 66])[-1] == 1


def test_giving_up_waits_for_nothing() -> None:
    slow = SupervisorSpec(max_restarts=0, backoff=BackoffSpec(base_s=1))
    assert decide(slow, children("a"), (), Exit("a", "abnormal"), NOW).delay_s == 0


def test_jitter_shortens_by_up_to_its_share_and_differs_between_children() -> None:
    backoff = BackoffSpec(base_s=10, jitter=0.2)
    delays = [delay_s(backoff, 1, name, NOW) for name in "abcdefgh"]
    assert all(8 < delay <= 10 for delay in delays)
    assert len(set(delays)) == len(delays)
    assert delay_s(backoff, 1, "a", NOW) == delays[0]
