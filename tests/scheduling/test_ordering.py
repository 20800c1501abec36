"""`qgexec.scheduling.ordering`: what waits for what, and that it is the order which ctrl_bps would make."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowJob

from qgexec.errors import UsageError
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.ordergroup import OrderGroup
from qgexec.scheduling.ordering import ordered
from qgexec.scheduling.plan import Plan

_DIMENSIONS = {"isr": ("exposure", "detector"), "calibrate": ("visit", "detector"), "coadd": ("band",)}

_Quantum = tuple[str, int, int]


def _plan(quanta: Iterable[_Quantum], edges: Iterable[tuple[int, int]] = ()) -> Plan:
    """Return a plan of quanta of these tasks: label, exposure or visit, detector."""
    rows = list(quanta)
    pairs = np.asarray(list(edges), dtype=np.int64).reshape(-1, 2)
    return Plan.from_edges(
        labels=_DIMENSIONS,
        label_codes=[list(_DIMENSIONS).index(label) for label, *_ in rows],
        quantum_ids=b"".join(uuid.UUID(int=n + 1).bytes for n in range(len(rows))),
        data_ids=DataIds.pack([["r"] if label == "coadd" else values for label, *values in rows]),
        predecessors=pairs[:, 0],
        successors=pairs[:, 1],
    )


def _edges(plan: Plan) -> set[tuple[str, str]]:
    """Return the edges of a plan, as texts such as ``isr 1 2``."""
    names = [" ".join([plan.label(i), *map(str, plan.data_id(i).values())]) for i in range(len(plan))]
    return {(names[i], names[other]) for i in range(len(plan)) for other in plan.successors(i)}


def _group(labels: str, dimensions: str, **more: Any) -> OrderGroup:
    return OrderGroup(name="g", labels=tuple(labels.split()), dimensions=tuple(dimensions.split()), **more)


_CHAINS = _plan(
    [(label, visit, detector) for visit in (10, 9) for detector in (1, 2) for label in ("isr", "calibrate")],
    [(0, 1), (2, 3), (4, 5), (6, 7)],
)
"""Two detectors of two visits."""

_EQUAL = (("visit", "exposure"),)


def test_one_task() -> None:
    """Numbers are ordered as numbers; each quantum of a set waits for all of the set before."""
    found = _edges(ordered(_CHAINS, [_group("isr", "exposure")])) - _edges(_CHAINS)
    assert found == {(f"isr 9 {a}", f"isr 10 {b}") for a in (1, 2) for b in (1, 2)}


@pytest.mark.parametrize(
    "group",
    [
        _group("isr calibrate", "visit", equal_dimensions=_EQUAL),
        _group("isr calibrate", "exposure", find_dependency_method="source"),
        _group("calibrate isr", "visit", find_dependency_method="sink"),
    ],
)
def test_several_tasks(group: OrderGroup) -> None:
    """The first of a set wait for the last of the set before; those between need no edge of their own."""
    found = _edges(ordered(_CHAINS, [group])) - _edges(_CHAINS)
    assert found == {(f"calibrate 9 {a}", f"isr 10 {b}") for a in (1, 2) for b in (1, 2)}


def test_nothing_to_order() -> None:
    """Without groups, tasks of the graph or a second set of values the plan is what it was."""
    assert ordered(_CHAINS, []) is _CHAINS
    assert _edges(ordered(_CHAINS, [_group("none", "visit")])) == _edges(_CHAINS)
    one_visit = _plan([("isr", 1, 1), ("isr", 1, 2)])
    assert _edges(ordered(one_visit, [_group("isr", "exposure")])) == set()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (_group("isr calibrate", "visit"), "isr.* has no visit"),
        (_group("coadd", "band visit"), r"coadd.* has no visit"),
        (_group("isr calibrate coadd", "band", find_dependency_method="source"), "isr.* has no band"),
    ],
)
def test_no_such_dimension(group: OrderGroup, message: str) -> None:
    """It is an error that names group, quantum and dimension."""
    plan = _plan([("isr", 1, 1), ("calibrate", 1, 1), ("coadd", 0, 0)], [(0, 1), (1, 2)])
    with pytest.raises(UsageError, match=f"ordering g: {message}"):
        ordered(plan, [group])


def test_in_two_places() -> None:
    """A quantum that follows two sets of the group is in neither: it is an error that names both."""
    plan = _plan([("isr", 1, 1), ("isr", 2, 1), ("coadd", 0, 0)], [(0, 2), (1, 2)])
    group = _group("isr coadd", "exposure", find_dependency_method="source")
    with pytest.raises(
        UsageError, match=r"coadd.* would be in several places: {'exposure': 1}, {'exposure': 2}"
    ):
        ordered(plan, [group])


def test_against_the_graph() -> None:
    """An order in which something would have to wait for itself is an error that names the section."""
    plan = _plan([("isr", 2, 1), ("calibrate", 1, 1)], [(0, 1)])
    with pytest.raises(UsageError, match=r"ordering \(g\): .*isr.*calibrate"):
        ordered(plan, [_group("isr calibrate", "visit", equal_dimensions=_EQUAL)])


def _workflow(plan: Plan, group: OrderGroup) -> nx.DiGraph:
    """Return the jobs that ctrl_bps makes of a plan, each quantum one, with those that order them."""
    workflow = GenericWorkflow("name")
    for index in range(len(plan)):
        job = GenericWorkflowJob(str(index), plan.label(index))
        job.tags = plan.data_id(index)
        workflow.add_job(job)
    for index in range(len(plan)):
        workflow.add_job_relationships(str(index), [str(other) for other in plan.successors(index)])
    config: dict[str, Any] = {
        "labels": ",".join(group.labels),
        "dimensions": ",".join(group.dimensions),
        "equalDimensions": "visit:exposure",
        "implementation": "noop",
    }
    if group.find_dependency_method is not None:
        config["findDependencyMethod"] = group.find_dependency_method
    workflow.add_special_job_ordering({group.name: config})
    return nx.DiGraph(workflow)


def _reached(graph: nx.DiGraph) -> set[tuple[str, str]]:
    """Return which jobs come before which."""
    closure = nx.transitive_closure(graph)
    return {(a, b) for a, b in closure.edges if str(a).isdecimal() and str(b).isdecimal()}


@given(
    images=st.sets(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1),
    both=st.booleans(),
    dimensions=st.sampled_from(["visit", "detector", "visit detector"]),
    method=st.sampled_from([None, "source", "sink"]),
)
def test_as_bps_orders_jobs(
    images: set[tuple[int, int]], both: bool, dimensions: str, method: str | None
) -> None:
    """Each quantum comes before the same ones as its job does in ctrl_bps's workflow."""
    quanta = [(label, *image) for image in sorted(images, reverse=True) for label in ("isr", "calibrate")]
    plan = _plan(quanta, [(n, n + 1) for n in range(0, len(quanta), 2)])
    labels = "isr calibrate" if both else "calibrate"
    group = _group(labels, dimensions, equal_dimensions=_EQUAL, find_dependency_method=method)
    ours = ordered(plan, [group])
    graph = nx.DiGraph()
    place = {plan.quantum_id(index): str(index) for index in range(len(plan))}
    for index in range(len(ours)):
        name = place[ours.quantum_id(index)]
        graph.add_node(name)
        graph.add_edges_from((name, place[ours.quantum_id(other)]) for other in ours.successors(index))
    assert _reached(graph) == _reached(_workflow(plan, group))
