"""Specs: the public contract (names, order, defaults), and each thing they refuse, with the text that says so."""

from __future__ import annotations

import inspect
import math
import pickle
from typing import Any

import pytest

from loom.errors import ConfigError
from loom.supervise.spec import (
    BackoffSpec,
    ChildSpec,
    LimitsSpec,
    MailboxSpec,
    SnapshotSpec,
    SpecError,
    SupervisorSpec,
    walk,
)


class Index:
    """Stands for an actor class: specs do not look further."""


class Node:
    pass


def refusal(kind: type, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        kind(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- The contract ------------------------------------------------------------------------------------------------


def test_child_spec_fields_in_order() -> None:
    assert list(inspect.signature(ChildSpec).parameters) == [
        "actor",
        "args",
        "kwargs",
        "name",
        "restart",
        "shutdown_s",
        "significant",
        "instances",
        "watchdog_s",
        "mailbox",
        "limits",
        "start_s",
        "snapshot",
        "routing",
    ]


def test_child_spec_defaults() -> None:
    child = ChildSpec(Index)
    assert (child.args, child.kwargs, child.name, child.restart) == ((), {}, "index", "permanent")
    assert (child.shutdown_s, child.significant, child.instances, child.watchdog_s) == (5.0, False, 1, None)
    assert (child.mailbox, child.limits) == (MailboxSpec(capacity=1000, policy="wait"), LimitsSpec())
    assert child.snapshot == SnapshotSpec(every_messages=None, every_s=None, at_stop=True)


def test_supervisor_spec_fields_in_order() -> None:
    expected = ["strategy", "max_restarts", "within_s", "children", "auto_shutdown", "backoff"]
    assert list(inspect.signature(SupervisorSpec).parameters) == expected


def test_supervisor_spec_defaults() -> None:
    spec = SupervisorSpec()
    assert (spec.strategy, spec.max_restarts, spec.within_s) == ("one_for_one", 1, 5.0)
    assert (spec.children, spec.auto_shutdown, spec.backoff) == ((), "never", BackoffSpec(0.0, 2.0, 30.0, 0.0, None))


def test_positional_and_keyword_agree() -> None:
    positional = ChildSpec(Index, (64,), {"fast": True}, "index", "transient", 2, False, 3)
    keyword = ChildSpec(
        actor=Index,
        args=(64,),
        kwargs={"fast": True},
        name="index",
        restart="transient",
        shutdown_s=2,
        significant=False,
        instances=3,
    )
    assert positional == keyword


@pytest.mark.parametrize(
    "spec", [ChildSpec(Index), SupervisorSpec(), MailboxSpec(), LimitsSpec(), BackoffSpec(), SnapshotSpec()]
)
def test_specs_are_frozen(spec: Any) -> None:
    with pytest.raises(AttributeError):
        setattr(spec, spec.__struct_fields__[0], 1)


def test_specs_survive_pickling() -> None:
    inner = ChildSpec(SupervisorSpec(children=(ChildSpec("a:B", instances=2),)), name="edge")
    spec = SupervisorSpec("rest_for_one", children=(ChildSpec(Index, (64,)), inner))
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_what_was_passed_is_copied() -> None:
    kwargs = {"dim": 64}
    child = ChildSpec(Index, args=[1], kwargs=kwargs)
    kwargs["dim"] = 0
    assert child.args == (1,)
    assert child.kwargs == {"dim": 64}
    assert SupervisorSpec(children=[child]).children == (child,)  # type: ignore[arg-type]


def test_error_keeps_its_parts_and_its_code() -> None:
    with pytest.raises(SpecError) as caught:
        SupervisorSpec(max_restarts=-1)
    error = caught.value
    assert (error.code, error.owner, error.field) == ("L1001", "SupervisorSpec", "max_restarts")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --- Names -------------------------------------------------------------------------------------------------------


def test_default_name_is_the_class_in_lower_case() -> None:
    assert ChildSpec(Index).name == "index"
    assert ChildSpec("myapp.index:Outer.FastIndex").name == "fastindex"
    assert ChildSpec(SupervisorSpec()).name == "supervisor"


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "_x", "-", "9", "nodes", "x" * 64])
def test_good_names(name: str) -> None:
    assert ChildSpec(Index, name=name).name == name


@pytest.mark.parametrize("name", ["", ".", ".a", "a b", "a/b", "é", "a\n", "x" * 65, "a:b"])
def test_bad_names(name: str) -> None:
    text = refusal(ChildSpec, Index, name=name)
    assert "ChildSpec.name: expected a name of 1 to 64 letters" in text


def test_bad_name_gets_a_proposal() -> None:
    assert refusal(ChildSpec, Index, name="my index").endswith("did you mean 'my_index'?")
    assert refusal(ChildSpec, Index, name="x" * 65).endswith("choose a shorter name")


def test_name_that_is_no_string() -> None:
    assert "got 5 (int): write it as a string" in refusal(ChildSpec, Index, name=5)


def test_node_is_reserved() -> None:
    for made in (refusal(ChildSpec, Index, name="node"), refusal(ChildSpec, Node)):
        assert "expected a name that is not reserved, got 'node'" in made


def test_members() -> None:
    assert ChildSpec(Index).members == ("index",)
    assert ChildSpec(Index, name="w", instances=3).members == ("w.0", "w.1", "w.2")


def test_members_names_fit_too() -> None:
    assert ChildSpec(Index, name="x" * 62, instances=10).members[-1] == "x" * 62 + ".9"
    assert "expected a name of 1 to 61 letters" in refusal(ChildSpec, Index, name="x" * 62, instances=11)


# --- A child's fields --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_restart_words(restart: Any) -> None:
    assert ChildSpec(Index, restart=restart).restart == restart


def test_restart_misspelt() -> None:
    assert refusal(ChildSpec, Index, restart="permanant") == (
        "L1001 ChildSpec.restart: expected 'permanent', 'transient' or 'temporary', got 'permanant': "
        "did you mean 'permanent'?"
    )
    assert refusal(ChildSpec, Index, restart="sometimes").endswith("write one of those")
    assert "got 3 (int)" in refusal(ChildSpec, Index, restart=3)


@pytest.mark.parametrize("shutdown", [0, 2, 0.5, "infinity", "brutal_kill"])
def test_shutdown(shutdown: Any) -> None:
    assert ChildSpec(Index, shutdown_s=shutdown).shutdown_s == shutdown


@pytest.mark.parametrize("shutdown", [-1, float("inf"), float("nan"), "5", True, None, 10**400])
def test_shutdown_refused(shutdown: Any) -> None:
    assert "ChildSpec.shutdown_s: expected " in refusal(ChildSpec, Index, shutdown_s=shutdown)


def test_shutdown_misspelt() -> None:
    assert refusal(ChildSpec, Index, shutdown_s="brutal-kill").endswith("did you mean 'brutal_kill'?")


@pytest.mark.parametrize("instances", [0, -1, 1.0, True, "4", 10_001])
def test_instances_refused(instances: Any) -> None:
    expected = "ChildSpec.instances: expected a whole number from 1 to 10000"
    assert expected in refusal(ChildSpec, Index, instances=instances)


def test_args_and_kwargs_refused() -> None:
    assert "ChildSpec.args: expected a list of values, got 'abc'" in refusal(ChildSpec, Index, args="abc")
    assert "ChildSpec.kwargs: expected a table" in refusal(ChildSpec, Index, kwargs=[1])
    assert "ChildSpec.kwargs: expected a table" in refusal(ChildSpec, Index, kwargs={1: 2})


@pytest.mark.parametrize("actor", ["a:B", "a.b.c:D", "a:B.C", "_a:_B"])
def test_actor_words(actor: str) -> None:
    assert ChildSpec(actor).actor == actor


@pytest.mark.parametrize("actor", ["", "a", "a:", ":B", "a:B:C", "a b:C", "a..b:C", "a:1B", "a/b.py:C"])
def test_actor_words_refused(actor: str) -> None:
    assert 'ChildSpec.actor: expected "module:Class"' in refusal(ChildSpec, actor)


def test_actor_with_a_dot_for_the_colon() -> None:
    assert refusal(ChildSpec, "myapp.index.Index").endswith('did you mean "myapp.index:Index"?')


def test_actor_that_is_an_instance() -> None:
    assert "pass a class and its arguments, as in ChildSpec(Index, " in refusal(ChildSpec, Index())


def test_long_values_are_cut() -> None:
    assert len(refusal(ChildSpec, Index, args="x" * 10_000)) < 250
    assert "got a value of type int" in refusal(ChildSpec, Index, instances=16**9000)


# --- Significant children and templates ---------------------------------------------------------------------------


def test_significant() -> None:
    child = ChildSpec(Index, restart="transient", significant=True)
    for word, kept in (("any", "any"), ("all", "all"), ("any_significant", "any"), ("all_significant", "all")):
        assert SupervisorSpec(auto_shutdown=word, children=(child,)).auto_shutdown == kept  # type: ignore[arg-type]
    assert refusal(SupervisorSpec, children=(child,)) == (
        "L1001 SupervisorSpec.children[0].significant: expected false, as the supervisor's auto_shutdown is 'never', "
        "got True (bool): set auto_shutdown to 'any' or 'all', or leave significant out"
    )
    assert "significant: expected false, as restart is 'permanent'" in refusal(ChildSpec, Index, significant=True)
    assert "significant: expected true or false" in refusal(ChildSpec, Index, significant="yes", restart="temporary")
    assert refusal(SupervisorSpec, auto_shutdown="al").endswith("did you mean 'all'?")


def test_template() -> None:
    assert SupervisorSpec("simple_one_for_one", children=(ChildSpec(Index),)).children[0].name == "index"
    simple = {"strategy": "simple_one_for_one"}
    assert "SupervisorSpec.children: expected one child spec, the template" in refusal(SupervisorSpec, **simple)
    two = (ChildSpec(Index, name="a"), ChildSpec(Index, name="b"))
    assert "got 2 of them" in refusal(SupervisorSpec, **simple, children=two)
    several = (ChildSpec(Index, instances=2),)
    assert "children[0].instances: expected 1" in refusal(SupervisorSpec, **simple, children=several)
    supervisor = (ChildSpec(SupervisorSpec()),)
    assert "children[0].actor: expected an actor" in refusal(SupervisorSpec, **simple, children=supervisor)


def test_the_roots_name_is_reserved() -> None:
    assert "expected a name that is not reserved, got 'root'" in refusal(ChildSpec, Index, name="root")


# --- Limits ---


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"memory_bytes": 1}, "LimitsSpec.memory_bytes: expected a whole number >= 16777216, got 1 (int)"),
        ({"memory_bytes": "256MiB"}, "LimitsSpec.memory_bytes: expected a whole number >= 16777216, got '256MiB'"),
        ({"memory_soft_bytes": 0}, "LimitsSpec.memory_soft_bytes: expected a whole number >= 1"),
        (
            {"memory_bytes": 2**25, "memory_soft_bytes": 2**26},
            "LimitsSpec.memory_soft_bytes: expected at most memory_bytes (33554432), got 67108864 (int)",
        ),
        ({"cpu_s": 0}, "LimitsSpec.cpu_s: expected a whole number >= 1"),
        ({"cpu_s": 1.5}, "LimitsSpec.cpu_s: expected a whole number >= 1, got 1.5 (float)"),
        ({"open_files": 63}, "LimitsSpec.open_files: expected a whole number >= 64"),
        ({"nice": 20}, "LimitsSpec.nice: expected a whole number from -20 to 19"),
        ({"cpus": ()}, "LimitsSpec.cpus: expected a list of CPU numbers, each once"),
        ({"cpus": [0, 0]}, "LimitsSpec.cpus: expected a list of CPU numbers, each once"),
        ({"cpus": [True]}, "LimitsSpec.cpus: expected a list of CPU numbers, each once"),
        ({"cpus": 0}, "LimitsSpec.cpus: expected a list of CPU numbers, each once"),
    ],
)
def test_wrong_limits(fields: dict[str, Any], text: str) -> None:
    assert text.removeprefix("L1001 ") in refusal(LimitsSpec, **fields)


def test_limits() -> None:
    assert LimitsSpec() == LimitsSpec(None, None, None, None, None, None)
    limits = LimitsSpec(2**25, 2**25, 1, 64, -20, [3, 1])
    assert limits.cpus == (3, 1)
    assert ChildSpec(Index, limits=limits).limits is limits
    assert "as the child is a supervisor" in refusal(ChildSpec, SupervisorSpec(), limits=limits)


@pytest.mark.parametrize("field", ["watchdog_s", "start_s"])
def test_limits_of_hanging(field: str) -> None:
    assert getattr(ChildSpec(Index), field) is None
    assert getattr(ChildSpec(Index, **{field: 3}), field) == 3.0
    for wrong in (0, -1, math.inf, math.nan, "3", True):
        assert f"ChildSpec.{field}: expected a number of seconds > 0" in refusal(ChildSpec, Index, **{field: wrong})
    assert "as the child is a supervisor" in refusal(ChildSpec, SupervisorSpec(), **{field: 1.0})


# --- The others --------------------------------------------------------------------------------------------------


def test_mailbox() -> None:
    assert ChildSpec(Index, mailbox=MailboxSpec(5)).mailbox.capacity == 5
    assert "MailboxSpec.capacity: expected a whole number from 1 to 2147483648" in refusal(MailboxSpec, 0)
    assert "MailboxSpec.policy: expected 'wait', 'refuse' or 'drop_oldest', got 'drop'" in refusal(
        MailboxSpec, 5, "drop"
    )
    assert "MailboxSpec.on_death: expected 'dead_letter' or 'hand_on'" in refusal(MailboxSpec, on_death="keep")
    assert "ChildSpec.mailbox: expected a MailboxSpec, got 5 (int)" in refusal(ChildSpec, Index, mailbox=5)


@pytest.mark.parametrize(
    "fields",
    [
        {"base_s": -1},
        {"factor": 0.5},
        {"cap_s": -1},
        {"base_s": 40},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"base_s": "1"},
        {"reset_after_s": 0},
        {"reset_after_s": "1"},
    ],
)
def test_backoff_refused(fields: dict[str, Any]) -> None:
    assert "BackoffSpec." in refusal(BackoffSpec, **fields)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_strategies(strategy: Any) -> None:
    assert SupervisorSpec(strategy).strategy == strategy


def test_strategy_misspelt() -> None:
    assert refusal(SupervisorSpec, "one-for-all").endswith("did you mean 'one_for_all'?")


@pytest.mark.parametrize("count", [-1, 1.5, True, "3", None])
def test_max_restarts_refused(count: Any) -> None:
    assert "SupervisorSpec.max_restarts: expected a whole number >= 0" in refusal(SupervisorSpec, max_restarts=count)


@pytest.mark.parametrize("within", [0, -1, float("inf"), float("nan"), "5s", True])
def test_within_refused(within: Any) -> None:
    assert "SupervisorSpec.within_s: expected a number of seconds > 0" in refusal(SupervisorSpec, within_s=within)


def test_smallest_values() -> None:
    spec = SupervisorSpec(max_restarts=0, within_s=0.001)
    assert (spec.max_restarts, spec.within_s) == (0, 0.001)


def test_children_refused() -> None:
    assert "SupervisorSpec.children: expected a list" in refusal(SupervisorSpec, children=ChildSpec(Index))
    text = refusal(SupervisorSpec, children=(ChildSpec(Index), Index))
    assert "SupervisorSpec.children[1]: expected a ChildSpec, got the class Index: wrap it" in text


# --- Trees -------------------------------------------------------------------------------------------------------


def test_walk_goes_in_start_order() -> None:
    inner = SupervisorSpec(children=(ChildSpec("m:A"), ChildSpec("m:B")))
    spec = SupervisorSpec(children=(ChildSpec("m:C"), ChildSpec(inner, name="edge"), ChildSpec("m:D")))
    assert [(place, child.name) for place, child in walk(spec)] == [
        ((0,), "c"),
        ((1,), "edge"),
        ((1, 0), "a"),
        ((1, 1), "b"),
        ((2,), "d"),
    ]


def test_supervisor_child() -> None:
    inner = SupervisorSpec()
    child = ChildSpec(inner, name="edge", restart="transient")
    assert child.supervisor is inner
    assert child.shutdown_s == "infinity"
    assert ChildSpec(Index).supervisor is None


@pytest.mark.parametrize(
    "fields", [{"args": (1,)}, {"kwargs": {"a": 1}}, {"instances": 2}, {"shutdown_s": 3}, {"mailbox": MailboxSpec(5)}]
)
def test_supervisor_child_refuses_what_is_an_actors(fields: dict[str, Any]) -> None:
    text = refusal(ChildSpec, SupervisorSpec(), **fields)
    assert f"ChildSpec.{next(iter(fields))}: expected " in text
    assert "as the child is a supervisor" in text


def test_one_name_twice() -> None:
    text = refusal(SupervisorSpec, children=(ChildSpec(Index), ChildSpec("m:Index")))
    assert "SupervisorSpec.children[1].name: expected a name that no other child of the node has, got 'index'" in text


def test_one_child_spec_twice() -> None:
    child = ChildSpec(Index)
    assert "got 'index' twice" in refusal(SupervisorSpec, children=(child, child))


def test_one_name_twice_in_different_branches() -> None:
    left = ChildSpec(SupervisorSpec(children=(ChildSpec(Index),)), name="left")
    right = ChildSpec(SupervisorSpec(children=(ChildSpec("m:A"), ChildSpec(Index))), name="right")
    text = refusal(SupervisorSpec, children=(left, right))
    assert "SupervisorSpec.children[1].actor.children[1].name: " in text


@pytest.mark.parametrize("other", ["w.0", "w.2", "w"])
def test_name_of_an_instance_twice(other: str) -> None:
    group = ChildSpec(Index, name="w", instances=3)
    for children in ((group, ChildSpec(Index, name=other)), (ChildSpec(Index, name=other), group)):
        text = refusal(SupervisorSpec, children=children)
        assert f"got {other!r} twice" in text
        assert ("as a member of 'w' (instances = 3)" in text) == (other != "w")


def test_name_beside_the_instances() -> None:
    group = ChildSpec(Index, name="w", instances=3)
    assert SupervisorSpec(children=(group, ChildSpec(Index, name="w.3"))).children[1].name == "w.3"


# --- Snapshots ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"every_messages": 0}, "SnapshotSpec.every_messages: expected a whole number >= 1, got 0"),
        ({"every_messages": 1.5}, "SnapshotSpec.every_messages: expected a whole number >= 1, got 1.5"),
        ({"every_s": 0}, "SnapshotSpec.every_s: expected a number of seconds > 0, got 0"),
        ({"every_s": float("nan")}, "SnapshotSpec.every_s: expected a number of seconds > 0, got nan"),
        ({"at_stop": "yes"}, "SnapshotSpec.at_stop: expected true or false, got 'yes'"),
    ],
)
def test_wrong_snapshot_specs(fields: dict[str, Any], text: str) -> None:
    assert text in refusal(SnapshotSpec, **fields)


def test_a_snapshot_spec_is_an_actors() -> None:
    text = refusal(ChildSpec, SupervisorSpec(), snapshot=SnapshotSpec(every_messages=1))
    assert "ChildSpec.snapshot: expected nothing, as the child is a supervisor" in text
    assert "expected a SnapshotSpec" in refusal(ChildSpec, Index, snapshot=3)
