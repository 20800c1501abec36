"""`qgexec.scheduling.parts`: the part of a graph that is to be executed."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec.errors import UsageError
from qgexec.scheduling.parts import Part
from qgexec.scheduling.plan import Plan
from qgexec.testing import make_plan, plan_of

CHAIN = "a -> b; b -> c; c -> d; e -> c"


def _labels(plan: Plan) -> str:
    return "".join(plan.label(index) for index in range(len(plan)))


@pytest.mark.parametrize(
    ("part", "labels"),
    [
        (Part(), "abecd"),
        (Part(("b",)), "b"),
        (Part(("d", "a")), "ad"),
        (Part(("b",), ancestors=True), "ab"),
        (Part(("c",), ancestors=True), "abec"),
        (Part(("c",), descendants=True), "cd"),
        (Part(("b",), ancestors=True, descendants=True), "abcd"),
        (Part(("a", "e"), descendants=True), "abecd"),
    ],
)
def test_what_is_meant(part: Part, labels: str) -> None:
    """Named quanta, and what is before and behind them."""
    found = part.of(make_plan(CHAIN))
    assert sorted(_labels(found)) == sorted(labels)


def test_what_is_outside_is_not_waited_for() -> None:
    """Only edges within the part are left."""
    found = Part(("b", "d")).of(make_plan(CHAIN))
    assert [node.prerequisites for node in found] == [(), ()]


def test_quanta_of_another_run() -> None:
    """By ID, or else by what reports call them."""
    plan = make_plan(CHAIN)
    described = plan.describe(2)
    by_id = Part(quanta=[(plan.quantum_id(1), "of an older graph")]).of(plan)
    by_name = Part(quanta=[(uuid.UUID(int=7), described)]).of(plan)
    assert _labels(by_id) == plan.label(1)
    assert [by_name.describe(index) for index in range(len(by_name))] == [described]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(ancestors=True), "none are named"),
        (Part(quanta=()), "Nothing is left to execute"),
        (Part(quanta=[(uuid.UUID(int=7), "x")]), "Nothing is left to execute"),
        (Part(("nope",)), "no task 'nope'"),
    ],
)
def test_nothing_is_meant(part: Part, said: str) -> None:
    """One sentence says why."""
    with pytest.raises(UsageError, match=said):
        part.of(make_plan(CHAIN))


@given(st.data())
def test_parts_are_closed(data: st.DataObject) -> None:
    """With ancestors a part has all that its quanta wait for; with descendants all that waits for them."""
    n = data.draw(st.integers(1, 12))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    edges = data.draw(st.lists(pairs, max_size=2 * n, unique=True)) if n > 1 else []
    plan = plan_of([f"t{i}" for i in range(n)], edges)
    named = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    names = tuple(str(index) for index in named)
    before, after = (
        {plan.index_of(node.quantum_id) for node in part.of(plan)}
        for part in (Part(names, ancestors=True), Part(names, descendants=True))
    )
    assert named <= before & after
    assert all(p in before for i in before for p in plan.prerequisites(i))
    assert all(s in after for i in after for s in plan.successors(i))
