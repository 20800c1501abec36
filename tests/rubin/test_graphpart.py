"""`qgexec.rubin.graphpart`: some quanta of a graph, in the order that the whole graph has."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgexec.errors import EmptyGraphError, GraphError
from qgexec.rubin.graphfile import read_plan
from qgexec.rubin.graphpart import local_graph, read_part
from qgexec.scheduling.plan import Plan
from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.commands.qgexec import rewrite_graph


def as_values(plan: Plan) -> dict[uuid.UUID, tuple[str, object, frozenset[uuid.UUID]]]:
    """Return all that a plan says of each quantum."""
    return {
        node.quantum_id: (
            node.task_label,
            node.data_id,
            frozenset(map(plan.quantum_id, node.prerequisites)),
        )
        for node in plan
    }


@settings(max_examples=20)
@given(st.data())
def test_as_of_the_whole(template: MockRepository, data: st.DataObject) -> None:
    """Labels, data IDs and edges among them are those of the whole graph, however they are named."""
    whole = read_plan(template.graph)
    indices = data.draw(st.lists(st.integers(0, N_QUANTA - 1), min_size=1))
    found = read_part(template.graph, [whole.quantum_id(index) for index in indices])
    assert as_values(found) == as_values(whole.part(np.unique(indices)))


def test_all(template: MockRepository) -> None:
    """Where none are named."""
    assert as_values(read_part(template.graph)) == as_values(read_plan(template.graph))


def test_quanta_that_are_not_there(template: MockRepository) -> None:
    """The one that the graph lacks is named."""
    there, unknown = read_plan(template.graph).quantum_id(0), uuid.uuid4()
    with pytest.raises(GraphError, match=f"has no quantum {unknown}"):
        read_part(template.graph, [there, unknown])


def test_no_quanta(template: MockRepository, tmp_path: Path) -> None:
    """There is nothing to execute: that is an error of its own."""
    path = tmp_path / "empty.qg"
    path.write_bytes(template.graph.read_bytes())
    rewrite_graph(path, header={"n_quanta": 0})
    with pytest.raises(EmptyGraphError):
        read_part(path)


def test_a_local_file_is_not_copied(template: MockRepository, tmp_path: Path) -> None:
    """A graph of gigabytes is executed by thousands of jobs; its address may be a URI."""
    assert local_graph(template.graph.as_uri(), tmp_path) == template.graph
    assert [*tmp_path.iterdir()] == []
