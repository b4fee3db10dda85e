"""The restart policy over random trees and histories: what holds whatever happens, and a model to compare with."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loom.supervise.policy import ALIVE, ROW, ChildState, Exit, decide
from loom.supervise.spec import BackoffSpec, ChildSpec, SupervisorSpec

RESTARTS = ("permanent", "transient", "temporary")
STATES = ("starting", "running", "stopping", "restarting", "stopped")
KINDS = ("normal", "shutdown", "abnormal", "start_failed")
STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one")
ONE = ("one_for_one", "simple_one_for_one")

# Whole and half seconds: exact in binary, so that the edge of a window is hit often, and exactly.
ticks = st.integers(0, 60).map(lambda n: n / 2)
rows = st.lists(
    st.tuples(st.sampled_from(RESTARTS), st.sampled_from(STATES), st.booleans()), min_size=1, max_size=7
).map(lambda made: tuple(ChildState(f"c{at}", *row) for at, row in enumerate(made)))  # type: ignore[arg-type]


def rules(strategy: str, **fields: Any) -> SupervisorSpec:
    children = (ChildSpec("m:A"),) if strategy == "simple_one_for_one" else ()
    return SupervisorSpec(strategy, children=children, **fields)  # type: ignore[arg-type]


specs = st.builds(
    rules,
    strategy=st.sampled_from(STRATEGIES),
    max_restarts=st.integers(0, 4),
    within_s=st.integers(1, 20).map(lambda n: n / 2),
    auto_shutdown=st.sampled_from(("never", "any", "all")),
    backoff=st.builds(BackoffSpec, base_s=ticks, cap_s=st.just(40), jitter=st.sampled_from((0, 0.5, 1))),
)


Case = tuple[SupervisorSpec, tuple[ChildState, ...], tuple[float, ...], Exit, float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    children = draw(rows)
    history = tuple(sorted(draw(st.lists(ticks, max_size=6))))
    now = draw(ticks.map(lambda n: n + (history[-1] if history else 0)))
    event = Exit(draw(st.sampled_from(children)).name, draw(st.sampled_from(KINDS)))
    return draw(specs), children, history, event, now


def names(children: tuple[ChildState, ...], *, restart: tuple[str, ...] = RESTARTS) -> list[str]:
    return [child.name for child in children if child.restart in restart]


def is_subsequence(part: tuple[str, ...], whole: list[str]) -> bool:
    left = iter(whole)
    return all(name in left for name in part)


@given(cases())
def test_order_start_is_start_order_and_stop_is_its_reverse(case: Case) -> None:
    decision, order = decide(*case), names(case[1])
    assert is_subsequence(decision.start, order)
    assert is_subsequence(decision.stop, order[::-1])
    assert is_subsequence(decision.remove, order)


@given(cases())
def test_temporary_is_never_started_and_only_temporary_is_forgotten(case: Case) -> None:
    """Or, of the children of a template, the one that ended."""
    spec, children, _, event, _ = case
    decision, temporary = decide(*case), names(children, restart=("temporary",))
    assert not set(decision.start) & set(temporary)
    assert set(decision.remove) <= {*temporary, *([event.name] if spec.strategy == "simple_one_for_one" else [])}


@given(cases())
def test_auto_shutdown_is_for_significant_children_that_ended_for_good(case: Case) -> None:
    spec, children, _, event, _ = case
    decision = decide(*case)
    if decision.auto_shutdown:
        ended = next(child for child in children if child.name == event.name)
        assert ended.significant
        assert spec.auto_shutdown != "never"
        assert ended.restart == "temporary" or (ended.restart == "transient" and event.kind in ("normal", "shutdown"))
        assert decision.start == ()
        if spec.auto_shutdown == "all":
            others = [child for child in children if child.significant and child is not ended]
            assert all(child.state == "stopped" for child in others)


@given(cases())
def test_giving_up_and_shutting_down_exclude_one_another(case: Case) -> None:
    decision = decide(*case)
    assert not (decision.escalate and decision.auto_shutdown)
    assert not ((decision.escalate or decision.auto_shutdown) and decision.start)


@given(cases())
def test_only_what_has_a_process_is_stopped_and_the_dead_child_is_not(case: Case) -> None:
    _, children, _, event, _ = case
    alive = {child.name for child in children if child.state in ALIVE}
    assert set(decide(*case).stop) <= alive - {event.name}


@given(cases())
def test_nobody_is_left_down_by_a_group_restart(case: Case) -> None:
    """What is stopped is started again, or forgotten: unless the supervisor gives up, when nobody is left running."""
    _, children, _, event, _ = case
    decision = decide(*case)
    if decision.escalate or decision.auto_shutdown:
        alive = {child.name for child in children if child.state in ALIVE}
        assert set(decision.stop) == alive - {event.name}
        assert decision.start == ()
        assert set(decision.remove) <= {event.name}
        assert decision.delay_s == 0
    else:
        assert set(decision.stop) <= set(decision.start) | set(decision.remove)
        assert not decision.start or event.name in decision.start


@given(cases())
def test_siblings_before_the_child_are_safe_in_rest_for_one(case: Case) -> None:
    spec, children, _, event, _ = case
    decision = decide(*case)
    if spec.strategy == "rest_for_one" and not (decision.escalate or decision.auto_shutdown):
        order = names(children)
        before = set(order[: order.index(event.name)])
        assert not before & {*decision.stop, *decision.start, *decision.remove}


@given(cases())
def test_siblings_are_safe_in_one_for_one(case: Case) -> None:
    spec, _, _, event, _ = case
    decision = decide(*case)
    if spec.strategy in ONE and not (decision.escalate or decision.auto_shutdown):
        assert {*decision.stop, *decision.start, *decision.remove} <= {event.name}


@given(cases())
def test_one_for_all_starts_all_but_the_temporary(case: Case) -> None:
    spec, children, _, _, _ = case
    decision = decide(*case)
    if spec.strategy == "one_for_all" and decision.start:
        assert list(decision.start) == names(children, restart=("permanent", "transient"))
        assert list(decision.remove) == names(children, restart=("temporary",))


@given(cases())
def test_history_grows_by_one_restart_or_not_at_all(case: Case) -> None:
    """It forgets what is out of the window, unless the backoff still wants to know."""
    spec, _, history, _, now = case
    decision = decide(*case)
    if decision.start or decision.escalate:
        kept = [then for then in history if now - spec.within_s <= then]
        assert list(decision.history) == [*(history if spec.backoff.base_s else kept), now]
        assert decision.escalate == (len(kept) >= spec.max_restarts)
    else:
        assert decision.history == history


@given(times=st.lists(ticks, min_size=1, max_size=300).map(lambda gaps: list(itertools.accumulate(gaps))))
def test_history_stays_small(times: list[float]) -> None:
    spec = SupervisorSpec(max_restarts=10**6, within_s=10, backoff=BackoffSpec(base_s=0.5))
    history: tuple[float, ...] = ()
    for now in times:
        history = decide(spec, (ChildState("a"),), history, Exit("a", "abnormal"), now).history
        recent = sum(now - then <= spec.within_s for then in history)
        assert len(history) <= max(ROW, recent)


@given(cases())
def test_delay_stays_between_zero_and_the_cap(case: Case) -> None:
    spec = case[0]
    decision = decide(*case)
    assert 0 <= decision.delay_s <= spec.backoff.cap_s
    if decision.delay_s:
        assert decision.start
        assert spec.backoff.base_s > 0


@given(cases())
def test_it_is_a_function(case: Case) -> None:
    assert decide(*case) == decide(*case)


@given(
    times=st.lists(ticks, min_size=1, max_size=40).map(sorted),
    max_restarts=st.integers(0, 5),
    within_s=st.integers(1, 20).map(lambda n: n / 2),
)
def test_gives_up_at_the_first_window_with_one_too_many(times: list[float], max_restarts: int, within_s: float) -> None:
    """Replay deaths. The model looks at all of them, at every window of max_restarts + 1 deaths in a row."""
    spec = SupervisorSpec(max_restarts=max_restarts, within_s=within_s)
    gave_up: int | None = None
    history: tuple[float, ...] = ()
    for at, now in enumerate(times):
        decision = decide(spec, (ChildState("a"),), history, Exit("a", "abnormal"), now)
        history = decision.history
        if decision.escalate:
            gave_up = at
            break
    crowded = [at for at in range(max_restarts, len(times)) if times[at] - times[at - max_restarts] <= within_s]
    assert gave_up == (crowded[0] if crowded else None)


@given(max_restarts=st.integers(0, 20), within_s=st.integers(1, 1000), start=st.integers(0, 10**6))
def test_exactly_max_restarts_at_the_edges_survive_and_one_more_gives_up(
    max_restarts: int, within_s: int, start: int
) -> None:
    """All at the far edge of the window: the next one at the near edge is one too many; a moment later it is not."""
    spec = SupervisorSpec(max_restarts=max_restarts, within_s=within_s)
    history: tuple[float, ...] = ()
    for _ in range(max_restarts):
        decision = decide(spec, (ChildState("a"),), history, Exit("a", "abnormal"), start)
        assert not decision.escalate
        history = decision.history
    event, rows = Exit("a", "abnormal"), (ChildState("a"),)
    assert decide(spec, rows, history, event, start + within_s).escalate
    assert decide(spec, rows, history, event, start + within_s + 0.5).escalate == (max_restarts == 0)
