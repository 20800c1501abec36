"""What is true of plan and scheduler whatever the graph, the outcomes and the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qgexec.errors import GraphError, IllegalEventError
from qgexec.events import (
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    Event,
    FailureEvent,
    RunReopened,
    RunStarted,
    StopReason,
    StopRequested,
)
from qgexec.quantum import Attempt, ExceptionSummary, Resources
from qgexec.reports.progress import Progress
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Account, Policy, Retries, TaskRules
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import FINAL_STATES, State
from qgexec.testing import AnyEnding, Ending, FakeClock, ended, plan_of

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


_FEW = st.integers(0, 2)
_RETRIES = st.builds(
    Retries,
    common=_FEW,
    lost=_FEW,
    out_of_memory=st.none() | _FEW,
    timed_out=st.none() | _FEW,
    raised=st.none() | _FEW,
    exceptions=st.dictionaries(st.sampled_from(["ValueError", "builtins.OSError"]), _FEW),
    exit_codes=st.dictionaries(st.just(3), _FEW),
    signals=st.dictionaries(st.sampled_from([9, 11]), _FEW),
)


@st.composite
def _policies(draw: st.DrawFn, total: Resources) -> Policy:
    """Draw what quanta may use and how often they are tried; each of them fits the machine."""
    most = st.integers(0, 9 if total.memory_bytes is None else total.memory_bytes)
    rules = st.builds(
        TaskRules,
        request=st.builds(Resources, st.integers(1, 4), st.none() | st.integers(0, 4)),
        enforce_memory=st.booleans(),
        memory_multiplier=st.sampled_from([1.0, 1.5, 2.0, 4.0]),
        memory_max_bytes=most if total.memory_bytes is not None else st.none() | most,
        retries=_RETRIES,
    )
    return Policy(
        fail_fast=draw(st.booleans()),
        max_failures=draw(st.none() | st.integers(1, 3)),
        rules=draw(st.dictionaries(st.sampled_from(_LABELS), rules)),
        common_rules=draw(rules),
    )


_ENDINGS: st.SearchStrategy[AnyEnding] = st.sampled_from(
    [
        *[Ending.SUCCEED] * 12,
        *(ending for ending in Ending if ending is not Ending.HANG),
        ExceptionSummary("builtins.OSError", "as told"),
        3,
        -6,
    ]
)

_MOST_KILLS = 3
_MOST_RETURNS = 5
_MOST_ATTEMPTS = 30
"""More than all budgets that are drawn here allow a quantum of one driver."""


@dataclass
class _Walk:
    """One run by one or several drivers: all it was told, and what the last of them knows."""

    plan: Plan
    total: Resources
    serial: set[str]
    policies: list[Policy] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    running: list[Attempt] = field(default_factory=list)
    clock: FakeClock = field(default_factory=FakeClock)
    scheduler: Scheduler = field(init=False)

    def fresh(self, policy: Policy, events: Iterable[Event] = ()) -> Scheduler:
        """Return another scheduler that was told these events, and never asked."""
        scheduler = Scheduler(self.plan, policy=policy, serial_labels=self.serial)
        for event in events:
            scheduler.apply(event)
        return scheduler

    def apply(self, event: Event) -> None:
        """Record one event as the loop does."""
        if isinstance(event, FailureEvent):
            event = self.scheduler.judge(event)
        self.scheduler.check(event)
        self.events.append(event)
        self.scheduler.apply(event)

    def begin(self, draw: st.DrawFn) -> None:
        """Let a driver take the run in hand, whose forerunner, if any, was killed at any moment."""
        policy = draw(_policies(self.total))
        self.policies.append(policy)
        self.scheduler = self.fresh(policy, self.events)
        self.apply(RunStarted(self.clock(), "host", 1, 0.5, "fake", len(self.plan)))
        if len(self.policies) == 1:
            return
        assert self.scheduler.stopping is self.scheduler.wants_stop() is None
        for attempt in self.running:
            # Its outputs may be complete; else it is as if it had not been.
            settled = draw(st.sampled_from([Ending.RETURN, Ending.SUCCEED]))
            self.apply(ended(attempt, settled, self.clock()))
        self.running.clear()
        succeeded = [i for i in range(len(self.plan)) if self.scheduler.state(i) is State.SUCCEEDED]
        lost = draw(st.lists(st.sampled_from(succeeded), max_size=3)) if succeeded else []
        self.apply(RunReopened(self.clock(), tuple(lost)))

    def start(self, draw: st.DrawFn) -> None:
        """Start what is chosen, or, if something runs, only the first of it: a driver may be interrupted."""
        free = _left(self.total, self.running, self.serial)
        chosen = self.scheduler.select(free)
        _check_selection(self, chosen)
        assert self.scheduler.select(free) == chosen
        if self.running:
            chosen = chosen[: draw(st.integers(0, len(chosen)))]
        for attempt in chosen:
            self.apply(AttemptStarted(self.clock(), attempt.index, attempt.number))
            self.running.append(attempt)
        assert self.running, self.scheduler.stuck(self.total)
        assert self.scheduler.running() == sorted(attempt.index for attempt in self.running)

    def end_one(self, draw: st.DrawFn, *, may_return: bool) -> bool:
        """End one attempt; return whether it was taken back."""
        attempt = self.running.pop(draw(st.integers(0, len(self.running) - 1)))
        ending = draw(_ENDINGS)
        if ending is Ending.RETURN and not may_return:
            ending = Ending.SUCCEED
        self.clock.advance(1.0)
        self.apply(ended(attempt, ending, self.clock()))
        reason = self.scheduler.wants_stop()
        if reason is not None:
            self.apply(StopRequested(self.clock(), reason))
        return ending is Ending.RETURN


@st.composite
def _walks(draw: st.DrawFn) -> _Walk:
    """Drive a scheduler to its end by random outcomes in random order, and drivers that are killed.

    Everything that should hold at each step is asserted on the way.
    """
    plan = plan_of(*draw(_graphs()))
    serial = draw(st.sets(st.sampled_from(_LABELS), max_size=2))
    total = Resources(draw(st.integers(4, 7)), draw(st.none() | st.integers(4, 9)))
    walk = _Walk(plan, total, serial)
    walk.begin(draw)
    n_returned, kills_left = 0, draw(st.integers(0, _MOST_KILLS))
    for _ in range(_MOST_ATTEMPTS * len(plan) * (1 + _MOST_KILLS) + 10):
        if kills_left and draw(st.integers(0, 5)) == 0:
            kills_left -= 1
            walk.begin(draw)
        if walk.scheduler.finished:
            break
        walk.start(draw)
        n_returned += walk.end_one(draw, may_return=n_returned < _MOST_RETURNS)
    assert walk.scheduler.finished
    return walk


def _states(scheduler: Scheduler) -> object:
    """Return all there is to know about a scheduler whatever its policy."""
    indices = range(len(scheduler.plan))
    return (
        [scheduler.state(index) for index in indices],
        [scheduler.attempts(index) for index in indices],
        list(scheduler._missing),
        scheduler.counts_by_label(),
        scheduler.running(),
        scheduler.finished,
        scheduler.stopping,
    )


def _snapshot(scheduler: Scheduler) -> object:
    """Return all there is to know about a scheduler."""
    troubles = [scheduler.past(index) for index in range(len(scheduler.plan))]
    chosen = [scheduler.select(capacity) for capacity in (Resources(1000), Resources(3, 6))]
    return _states(scheduler), scheduler.wants_stop(), troubles, chosen


def _check_selection(walk: _Walk, chosen: Sequence[Attempt]) -> None:
    """Every chosen quantum may run, and all that run fit the machine together."""
    together = [*walk.running, *chosen]
    assert len({attempt.index for attempt in together}) == len(together)
    for attempt in chosen:
        assert all(walk.scheduler.state(index) in _DONE for index in walk.plan.prerequisites(attempt.index))
        assert walk.scheduler.state(attempt.index) is State.READY
    for label in walk.serial:
        assert sum(attempt.task_label == label for attempt in together) <= 1
    free = _left(walk.total, together, walk.serial)
    assert free.cores >= 0
    assert free.memory_bytes is None or free.memory_bytes >= 0
    for attempt in chosen:
        rules = walk.policies[-1].rules_of(attempt.task_label)
        least, asked = rules.request.memory_bytes, attempt.resources.memory_bytes
        assert attempt.memory_limit_bytes == (asked if rules.enforce_memory else None)
        assert (asked is None) == (least is None)
        assert (asked or 0) in range(least or 0, 1 + max(least or 0, rules.memory_max_bytes or asked or 0))


def _left(total: Resources, running: Sequence[Attempt], serial: set[str]) -> Resources:
    shared = [attempt.resources for attempt in running if attempt.task_label not in serial]
    cores = total.cores - sum(request.cores for request in shared)
    if total.memory_bytes is None:
        return Resources(cores)
    return Resources(cores, total.memory_bytes - sum(a.resources.memory_bytes or 0 for a in running))


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
def test_every_run_ends(walk: _Walk) -> None:
    """Prerequisites first; each quantum ends in one final state, unless stopped; as a blunt observer sees it.

    What can be reached from a failed quantum, and had not ended when it failed, is blocked, and nothing else.
    """
    plan, scheduler = walk.plan, walk.scheduler
    indices = range(len(plan))
    final: dict[int, State] = {}
    n_started: Counter[int] = Counter()
    for event in walk.events:
        match event:
            case AttemptStarted(index=index):
                assert index not in final
                assert all(final.get(p) in _DONE for p in plan.prerequisites(index))
                n_started[index] += 1
            case AttemptSucceeded() | AttemptSkipped():
                assert event.index not in final
                is_new = isinstance(event, AttemptSucceeded)
                final[event.index] = State.SUCCEEDED if is_new else State.SKIPPED
            case RunReopened(revoked=revoked):
                lost = {index for index, state in final.items() if state is State.FAILED} | set(revoked)
                final = {index: state for index, state in final.items() if index not in lost}
            case _ if isinstance(event, FailureEvent) and not event.retried:
                assert event.index not in final
                final[event.index] = State.FAILED
            case _:
                pass
    for index in indices:  # in topological order
        if any(final.get(p) in {State.FAILED, State.BLOCKED} for p in plan.prerequisites(index)):
            final.setdefault(index, State.BLOCKED)
    states = {index: scheduler.state(index) for index in indices}
    assert {index: state for index, state in states.items() if state in FINAL_STATES} == final
    assert scheduler.running() == []
    assert scheduler.stopping is not None or len(final) == len(plan)
    assert [scheduler.attempts(index) for index in indices] == [n_started[index] for index in indices]
    assert scheduler.counts() == {state: list(states.values()).count(state) for state in State}


@given(_walks())
def test_budgets_are_never_exceeded(walk: _Walk) -> None:
    """No driver tries a quantum again more often than the rule allows that is about its failure."""
    policies = iter(walk.policies)
    policy = next(policies)
    is_first, charged = True, Counter[tuple[int, Account]]()
    for event in walk.events:
        if isinstance(event, RunStarted) and not is_first:
            policy = next(policies)
        is_first = False
        if isinstance(event, RunReopened):
            charged.clear()
        elif isinstance(event, FailureEvent):
            account, budget = policy.account(event, walk.plan.label(event.index))
            charged[event.index, account] += event.retried
            assert charged[event.index, account] <= budget


@given(_walks())
def test_failures_stop_the_run_as_told(walk: _Walk) -> None:
    """With the last driver: it stops after as many final failures as it may bear, and not before."""
    policy, n_failed, stops = walk.policies[-1], 0, list[StopReason]()
    for event in walk.events:
        match event:
            case RunStarted() | RunReopened():
                n_failed, stops = 0, []
            case StopRequested(reason=reason):
                stops.append(reason)
            case _ if isinstance(event, FailureEvent):
                n_failed += not event.retried
    if policy.fail_fast:
        assert bool(n_failed) == bool(stops)
    elif policy.max_failures is not None and n_failed >= policy.max_failures:
        assert stops
    else:
        assert set(stops) <= {StopReason.INVALID_QUANTUM}
    assert len(stops) <= 1


@given(_walks(), st.data())
def test_same_events_same_state(walk: _Walk, data: st.DataObject) -> None:
    """A scheduler that is only told the events, and never asked, is in the same state at every moment.

    With another policy the states are the same: what may become of them is not.
    """
    policy = walk.policies[-1]
    assert _snapshot(walk.fresh(policy, walk.events)) == _snapshot(walk.scheduler)
    other = walk.fresh(data.draw(_policies(walk.total)), walk.events)
    assert _states(other) == _states(walk.scheduler)
    asked, told = walk.fresh(policy), walk.fresh(policy)
    end = data.draw(st.integers(0, len(walk.events)))
    for event in walk.events[:end]:
        asked.select(Resources(data.draw(st.integers(0, 4))))
        asked.apply(event)
        told.apply(event)
    assert _snapshot(asked) == _snapshot(told)


@given(_walks(), st.data())
def test_illegal_events_change_nothing(walk: _Walk, data: st.DataObject) -> None:
    """At any moment of a run, an event that is not possible there raises and leaves everything as it is."""
    assume(len(walk.plan))
    end = data.draw(st.integers(0, len(walk.events)))
    fresh = walk.fresh(walk.policies[-1], walk.events[:end])
    index = data.draw(st.integers(-1, len(walk.plan)))
    number = data.draw(st.integers(0, 3))
    inside = 0 <= index < len(walk.plan)
    if data.draw(st.integers(0, 5)) == 0:
        event: Event = RunReopened(1.0, (index,))
        legal = inside and not fresh.running() and fresh.state(index) is State.SUCCEEDED
    elif data.draw(st.booleans()):
        event = AttemptStarted(1.0, index, number)
        legal = inside and fresh.state(index) is State.READY and number == fresh.attempts(index) + 1
    else:
        event = ended(Attempt(index, number, walk.plan.quantum_id(0), "a"), data.draw(_ENDINGS), 1.0)
        legal = inside and fresh.state(index) is State.RUNNING and number == fresh.attempts(index)
    assume(not legal)
    before = _snapshot(fresh)
    for refuse in (fresh.check, fresh.apply, *([fresh.judge] if isinstance(event, FailureEvent) else [])):
        with pytest.raises(IllegalEventError):
            refuse(event)  # type: ignore[arg-type]
    assert _snapshot(fresh) == before


@given(_walks(), st.data())
def test_interruption_leaves_what_can_go_on(walk: _Walk, data: st.DataObject) -> None:
    """Stopped at any moment and all that runs returned, it is finished; what is ready could still run."""
    end = data.draw(st.integers(0, len(walk.events)))
    fresh = walk.fresh(walk.policies[-1], walk.events[:end])
    fresh.apply(StopRequested(1.0, StopReason.INTERRUPTED))
    assert fresh.select(Resources(1000)) == []
    for index in fresh.running():
        fresh.apply(AttemptReturned(1.0, index, fresh.attempts(index)))
    assert fresh.finished
    for index in range(len(walk.plan)):
        done = all(fresh.state(p) in _DONE for p in walk.plan.prerequisites(index))
        assert fresh.state(index) is not State.READY or done


@given(_walks())
def test_progress_counts_as_the_scheduler(walk: _Walk) -> None:
    """At every moment progress shows what the scheduler knows."""
    progress, fresh = Progress(walk.plan), walk.fresh(walk.policies[-1])
    n_retried = 0
    for event in walk.events:
        fresh.apply(event)
        progress.apply(event)
        n_retried += isinstance(event, FailureEvent) and event.retried
        counts, view = fresh.counts_by_label(), progress.view(event.at)
        for row in view.labels:
            shown = (row.running, row.succeeded, row.skipped, row.failed, row.blocked)
            kinds = (State.RUNNING, State.SUCCEEDED, State.SKIPPED, State.FAILED, State.BLOCKED)
            assert shown == tuple(counts[row.label][state] for state in kinds)
        assert view.total.retried == n_retried
