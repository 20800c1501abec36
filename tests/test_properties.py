"""What is true of plan and scheduler whatever the graph, the outcomes and the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec.errors import GraphError, IllegalEventError
from qgexec.events import AttemptReturned, AttemptStarted, Event, StopReason, StopRequested
from qgexec.plan import Plan
from qgexec.policy import Policy
from qgexec.progress import Progress
from qgexec.quantum import Attempt, Resources
from qgexec.scheduler import Scheduler
from qgexec.states import FINAL_STATES, State
from qgexec.testing import Ending, FakeClock, ended, plan_of

_LABELS = "abcd"
_DONE = {State.SUCCEEDED, State.SKIPPED}

Edges = list[tuple[int, int]]


@st.composite
def _graphs(draw: st.DrawFn, *, cyclic: bool = False) -> tuple[list[str], Edges]:
    """Draw names and edges, in an order that need not be topological; some edges twice."""
    n_quanta = draw(st.integers(0 if not cyclic else 1, 14))
    names = [f"{draw(st.sampled_from(_LABELS))}:{number}" for number in range(n_quanta)]
    if not n_quanta:
        return names, []
    numbers = st.integers(0, n_quanta - 1)
    pairs = draw(st.lists(st.tuples(numbers, numbers), max_size=3 * n_quanta))
    if not cyclic:
        rank = draw(st.permutations(range(n_quanta)))
        pairs = [(a, b) if rank[a] < rank[b] else (b, a) for a, b in pairs if a != b]
    return names, pairs


@st.composite
def _requests(draw: st.DrawFn) -> dict[str, Resources]:
    sizes = st.builds(Resources, st.integers(1, 4), st.none() | st.integers(0, 4))
    return draw(st.dictionaries(st.sampled_from(_LABELS), sizes))


@dataclass
class _Walk:
    """One run: what a scheduler was told, and what an observer who knows nothing of it saw."""

    plan: Plan
    scheduler: Scheduler
    events: list[Event]
    started: list[int]
    ended: dict[int, list[Ending]]


def _fresh(plan: Plan, requests: dict[str, Resources], serial: set[str], fail_fast: bool) -> Scheduler:
    return Scheduler(plan, policy=Policy(fail_fast=fail_fast), requests=requests, serial_labels=serial)


def _snapshot(scheduler: Scheduler) -> object:
    """Return all there is to know about a scheduler."""
    indices = range(len(scheduler._states))
    return (
        bytes(scheduler._states),
        [scheduler.attempts(index) for index in indices],
        list(scheduler._missing),
        scheduler.counts_by_label(),
        scheduler.finished,
        scheduler.stopping,
        scheduler.wants_stop(),
        scheduler.select(Resources(1000)),
    )


def _check_selection(
    walk: _Walk, chosen: Sequence[Attempt], running: Sequence[Attempt], serial: set[str], total: Resources
) -> None:
    """Every chosen quantum may run, and all that run fit the machine together."""
    assert len({attempt.index for attempt in (*chosen, *running)}) == len(chosen) + len(running)
    for attempt in chosen:
        assert all(walk.scheduler.state(index) in _DONE for index in walk.plan.prerequisites(attempt.index))
        assert walk.scheduler.state(attempt.index) is State.READY
    together = [*running, *chosen]
    for label in serial:
        assert sum(attempt.task_label == label for attempt in together) <= 1
    shared = [attempt.resources for attempt in together if attempt.task_label not in serial]
    assert sum(request.cores for request in shared) <= total.cores
    if total.memory_bytes is not None:
        assert sum(request.memory_bytes or 0 for request in shared) <= total.memory_bytes


def _left(total: Resources, running: Sequence[Attempt], serial: set[str]) -> Resources:
    shared = [attempt.resources for attempt in running if attempt.task_label not in serial]
    cores = total.cores - sum(request.cores for request in shared)
    if total.memory_bytes is None:
        return Resources(cores)
    return Resources(cores, total.memory_bytes - sum(request.memory_bytes or 0 for request in shared))


_ENDINGS = st.sampled_from(
    [*[Ending.SUCCEED] * 6, *(ending for ending in Ending if ending is not Ending.HANG)]
)


@st.composite
def _walks(draw: st.DrawFn) -> tuple[_Walk, Scheduler]:
    """Drive a scheduler to its end by random outcomes in random order; return a fresh one beside it.

    Everything that should hold at each step is asserted on the way.
    """
    plan = plan_of(*draw(_graphs()))
    requests = draw(_requests())
    serial = draw(st.sets(st.sampled_from(_LABELS), max_size=2))
    fail_fast = draw(st.booleans())
    total = Resources(draw(st.integers(4, 7)), draw(st.none() | st.integers(4, 9)))
    walk = _Walk(plan, _fresh(plan, requests, serial, fail_fast), [], [], {})
    clock, running = FakeClock(), list[Attempt]()

    def apply(event: Event) -> None:
        walk.scheduler.apply(event)
        walk.events.append(event)

    returns_left = 5
    for _ in range(4 * len(plan) + 10):
        if walk.scheduler.finished:
            break
        chosen = walk.scheduler.select(_left(total, running, serial))
        _check_selection(walk, chosen, running, serial, total)
        assert walk.scheduler.select(_left(total, running, serial)) == chosen
        # A driver may be interrupted between two starts: what was chosen and not started is chosen again.
        if running:
            chosen = chosen[: draw(st.integers(0, len(chosen)))]
        for attempt in chosen:
            apply(AttemptStarted(clock(), attempt.index, attempt.number))
            walk.started.append(attempt.index)
            running.append(attempt)
        assert running, walk.scheduler.stuck(total)
        assert walk.scheduler.running() == sorted(attempt.index for attempt in running)
        attempt = running.pop(draw(st.integers(0, len(running) - 1)))
        ending = draw(_ENDINGS)
        if ending is Ending.RETURN:
            returns_left -= 1
            ending = ending if returns_left >= 0 else Ending.SUCCEED
        clock.advance(1.0)
        apply(ended(attempt, ending, clock()))
        walk.ended.setdefault(attempt.index, []).append(ending)
        reason = walk.scheduler.wants_stop()
        if reason is not None:
            apply(StopRequested(clock(), reason))
    return walk, _fresh(plan, requests, serial, fail_fast)


@given(_graphs())
def test_plan_is_the_graph_in_topological_order(graph: tuple[list[str], Edges]) -> None:
    """Prerequisites come first, and all relations between quanta are those that networkx sees."""
    names, edges = graph
    plan = plan_of(names, edges)
    position = {plan_of([name]).quantum_id(0): place for place, name in enumerate(names)}
    order = [position[plan.quantum_id(index)] for index in range(len(plan))]
    assert sorted(order) == list(range(len(names)))
    expected = nx.DiGraph(edges)
    expected.add_nodes_from(range(len(names)))
    found = nx.DiGraph([(order[p], order[i]) for i in range(len(plan)) for p in plan.prerequisites(i)])
    found.add_nodes_from(order)
    assert set(found.edges) == set(expected.edges)
    assert set(nx.transitive_closure(found).edges) == set(nx.transitive_closure(expected).edges)
    for index in range(len(plan)):
        assert all(prerequisite < index for prerequisite in plan.prerequisites(index))
        assert list(plan.successors(index)) == sorted(
            order.index(s) for s in expected.successors(order[index])
        )
        assert str(plan[index]).startswith(names[order[index]].partition(":")[0])
    lexicographic = list(nx.lexicographical_topological_sort(expected))
    assert order == (list(range(len(names))) if all(a < b for a, b in edges) else lexicographic)


@given(_graphs())
def test_path_lengths_are_the_longest(graph: tuple[list[str], Edges]) -> None:
    """The path length of a quantum is one more than the longest path of networkx among its descendants."""
    plan = plan_of(*graph)
    edges = nx.DiGraph([(p, i) for i in range(len(plan)) for p in plan.prerequisites(i)])
    edges.add_nodes_from(range(len(plan)))
    for index, length in enumerate(plan.path_lengths()):
        below = edges.subgraph({index} | nx.descendants(edges, index))
        assert length == 1 + nx.dag_longest_path_length(below)


@given(_graphs(cyclic=True))
def test_cycles_are_refused_where_graphlib_finds_one(graph: tuple[list[str], Edges]) -> None:
    """A plan is made exactly where the standard library can sort; else the message names a cycle."""
    names, edges = graph
    sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(range(len(names)), ()))
    for first, second in edges:
        sorter.add(second, first)
    try:
        sorter.prepare()
    except CycleError:
        with pytest.raises(GraphError) as raised:
            plan_of(names, edges)
        shown = raised.value.message.partition("circle: ")[2].split(" -> ")
        assert shown[0] == shown[-1]
        if not any(name.endswith("more") for name in shown):
            numbers = [int(name.partition(": ")[2].rstrip("}")) for name in shown]
            assert set(pairwise(numbers)) <= set(edges)
    else:
        assert len(plan_of(names, edges)) == len(names)


@given(_graphs())
def test_stored_plan_is_the_same(graph: tuple[list[str], Edges]) -> None:
    """A plan that goes through arrays has the same nodes and edges."""
    plan = plan_of(*graph)
    again = Plan.from_arrays(plan.to_arrays())
    assert list(again) == list(plan)
    assert [list(again.successors(i)) for i in range(len(again))] == [
        list(plan.successors(i)) for i in range(len(plan))
    ]


@given(_walks())
def test_every_run_ends(case: tuple[_Walk, Scheduler]) -> None:
    """It terminates; each quantum is in one final state, except what a stop left; none ended twice."""
    walk, _ = case
    scheduler = walk.scheduler
    assert scheduler.finished
    assert scheduler.running() == []
    states = [scheduler.state(index) for index in range(len(walk.plan))]
    if scheduler.stopping is None:
        assert set(states) <= FINAL_STATES
    assert sum(scheduler.counts().values()) == len(walk.plan)
    for index, state in enumerate(states):
        endings = walk.ended.get(index, [])
        assert all(ending is Ending.RETURN for ending in endings[:-1])
        assert len(endings) == walk.started.count(index) == scheduler.attempts(index)
        assert scheduler.counts_by_label()[walk.plan.label(index)][state] >= 1


@given(_walks())
def test_blocked_are_the_descendants_of_failed(case: tuple[_Walk, Scheduler]) -> None:
    """Exactly what can be reached from a failed quantum is blocked, as a blunt search finds it."""
    walk, _ = case
    plan, scheduler = walk.plan, walk.scheduler
    failing = {Ending.FAIL, Ending.FAIL_INVALID, Ending.LOSE, Ending.TIME_OUT}
    failed = {index for index, endings in walk.ended.items() if endings[-1] in failing}
    reached: set[int] = set()
    for _ in range(len(plan)):
        sources = failed | reached
        reached |= {i for i in range(len(plan)) if any(p in sources for p in plan.prerequisites(i))}
    states = {index: scheduler.state(index) for index in range(len(plan))}
    assert {index for index, state in states.items() if state is State.FAILED} == failed
    assert {index for index, state in states.items() if state is State.BLOCKED} == reached
    assert reached.isdisjoint(walk.started)


@given(_walks())
def test_same_events_same_state(case: tuple[_Walk, Scheduler]) -> None:
    """A fresh scheduler that is only told the events, and never asked, ends in the same state."""
    walk, fresh = case
    for event in walk.events:
        fresh.apply(event)
    assert _snapshot(fresh) == _snapshot(walk.scheduler)


@given(_walks(), st.data())
def test_illegal_events_change_nothing(case: tuple[_Walk, Scheduler], data: st.DataObject) -> None:
    """At any moment of a run, an event that is not possible there raises and leaves everything as it is."""
    walk, fresh = case
    if not len(walk.plan):
        return
    for event in walk.events[: data.draw(st.integers(0, len(walk.events)))]:
        fresh.apply(event)
    index = data.draw(st.integers(-1, len(walk.plan)))
    number = data.draw(st.integers(0, 3))
    attempt = Attempt(index, number, walk.plan.quantum_id(0), "a")
    kind = data.draw(st.sampled_from([ending for ending in Ending if ending is not Ending.HANG]) | st.none())
    event = AttemptStarted(1.0, index, number) if kind is None else ended(attempt, kind, 1.0)
    inside = 0 <= index < len(walk.plan)
    needed = State.READY if kind is None else State.RUNNING
    if inside and fresh.state(index) is needed and number == fresh.attempts(index) + (kind is None):
        return
    before = _snapshot(fresh)
    for refuse in (fresh.check, fresh.apply):
        with pytest.raises(IllegalEventError):
            refuse(event)
    assert _snapshot(fresh) == before


@given(_walks(), st.data())
def test_interruption_leaves_what_can_go_on(case: tuple[_Walk, Scheduler], data: st.DataObject) -> None:
    """Stopped at any moment and all that runs returned, it is finished; what is ready could still run."""
    walk, fresh = case
    for event in walk.events[: data.draw(st.integers(0, len(walk.events)))]:
        fresh.apply(event)
    fresh.apply(StopRequested(1.0, StopReason.INTERRUPTED))
    assert fresh.select(Resources(1000)) == []
    for index in fresh.running():
        fresh.apply(AttemptReturned(1.0, index, fresh.attempts(index)))
    assert fresh.finished
    for index in range(len(walk.plan)):
        done = all(fresh.state(p) in _DONE for p in walk.plan.prerequisites(index))
        assert fresh.state(index) is not State.READY or done


@given(_walks())
def test_progress_counts_as_the_scheduler(case: tuple[_Walk, Scheduler]) -> None:
    """At every moment progress shows what the scheduler knows."""
    walk, fresh = case
    progress = Progress(walk.plan)
    for event in walk.events:
        fresh.apply(event)
        progress.apply(event)
        counts = fresh.counts_by_label()
        for row in progress.view(event.at).labels:
            shown = (row.running, row.succeeded, row.skipped, row.failed, row.blocked)
            kinds = (State.RUNNING, State.SUCCEEDED, State.SKIPPED, State.FAILED, State.BLOCKED)
            assert shown == tuple(counts[row.label][state] for state in kinds)
