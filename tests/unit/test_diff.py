"""Diff: what a new plan changes of the one that runs."""

from __future__ import annotations

from typing import Any

import pytest

from loom.node.diff import diff, groups
from loom.node.plan import SupervisorPlan, plan_of
from loom.supervise.spec import ChildSpec, SnapshotSpec, SupervisorSpec


def plan(*children: ChildSpec, **rules: Any) -> SupervisorPlan:
    return plan_of(SupervisorSpec(children=children, **rules), ["/src"])


def actor(name: str, *args: Any, **options: Any) -> ChildSpec:
    return ChildSpec(f"app:{name.title().replace('.', '')}", args, name=name, **options)


def below(name: str, *children: ChildSpec, **options: Any) -> ChildSpec:
    rules = {key: options.pop(key) for key in ("strategy", "max_restarts") if key in options}
    return ChildSpec(SupervisorSpec(children=children, **rules), name=name, **options)


def steps(old: SupervisorPlan, new: SupervisorPlan) -> list[str]:
    return [" ".join(str(change).split()) for change in diff(old, new)]


A, B, C = actor("a"), actor("b"), actor("c")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (plan(A, B), plan(A, B), []),
        (plan(A), plan(A, B), ["add b under root"]),
        (plan(A, B), plan(B), ["remove a under root"]),
        (plan(A, B, C), plan(), ["remove c under root", "remove b under root", "remove a under root"]),
        (plan(A), plan(actor("a", 1)), ["replace a (pickled) under root"]),
        (plan(A), plan(ChildSpec("app:Other", name="a")), ["replace a (target) under root"]),
        (plan(A), plan(actor("a", restart="transient", shutdown_s=1)), ["adjust a (restart, shutdown_s) under root"]),
        (plan(A), plan(actor("a", 1, restart="transient")), ["replace a (pickled, restart) under root"]),
        (plan(A), plan(actor("a", snapshot=SnapshotSpec(every_s=1))), ["replace a (snapshot) under root"]),
        (plan(A, max_restarts=1), plan(A, max_restarts=2), ["adjust root (max_restarts)"]),
        (plan(A, B), plan(B, A), ["move b under root"]),
        (plan(A, B, C), plan(C, A, B), ["move c under root"]),
        (plan(A, B), plan(C, A, B), ["add c under root"]),
        (plan(A, below("s", B)), plan(A, B, below("s")), ["remove b under s", "add b under root"]),
        (plan(below("s", A)), plan(actor("s")), ["remove s under root", "add s under root"]),
        (plan(below("s", A)), plan(below("s", A, max_restarts=7)), ["adjust s (max_restarts)"]),
        (plan(below("s", A, B)), plan(below("s", B, C)), ["add c under s", "remove a under s"]),
        (plan(actor("w", instances=3)), plan(actor("w", instances=2)), ["remove w.2 under root"]),
        (plan(actor("w", instances=2)), plan(actor("w", instances=3)), ["add w.2 under root"]),
        (
            plan(below("s", A, strategy="simple_one_for_one")),
            plan(below("s", actor("a", 1), strategy="simple_one_for_one")),
            ["adjust s (template)"],
        ),
        (
            plan(below("s", A, strategy="simple_one_for_one")),
            plan(below("s", A)),
            ["remove s under root", "add s under root"],
        ),
    ],
)
def test_steps(old: SupervisorPlan, new: SupervisorPlan, expected: list[str]) -> None:
    assert steps(old, new) == expected


def test_removals_come_last_and_the_deepest_of_them_first() -> None:
    old = plan(A, below("s", B, below("t", C)))
    new = plan(actor("x"), below("s", actor("y"), below("t", actor("z"))))
    assert steps(old, new)[3:] == ["remove c under t", "remove b under s", "remove a under root"]
    assert {step.split()[0] for step in steps(old, new)[:3]} == {"add"}


def test_groups_are_found_at_every_depth() -> None:
    found = groups(plan(actor("w", instances=2), below("s", actor("v", instances=3))))
    assert found == {"w": ("w.0", "w.1"), "v": ("v.0", "v.1", "v.2")}
