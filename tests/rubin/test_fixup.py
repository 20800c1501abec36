"""`qgexec.rubin.graphfile`: edges that a client adds, and tasks that cannot multiprocess."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from lsst.daf.butler import DataCoordinate
from lsst.pipe.base import QuantumGraph
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask

from qgexec.rubin.fixups import fixup_edges
from qgexec.rubin.graphfile import read_plan, serial_labels
from tests.kit.butler.repos import MockRepository, add_standard_tasks, open_repository


class SerialTask(DynamicTestPipelineTask):
    """A task that must not run in several processes."""

    canMultiprocess = False  # noqa: N815 -- upstream's name


class ByVisit(ExecutionGraphFixup):
    """Runs the isr quanta one after another, by detector within a visit."""

    def fixup_graph(
        self, xgraph: nx.DiGraph, quanta_by_task: Mapping[str, Mapping[DataCoordinate, uuid.UUID]]
    ) -> None:
        ordered = [quanta_by_task["isr"][data_id] for data_id in sorted(quanta_by_task["isr"])]
        xgraph.add_edges_from(pairwise(ordered))


class OldByVisit(ExecutionGraphFixup):
    """The same by the older hook."""

    def fixupQuanta(self, graph: QuantumGraph) -> QuantumGraph:  # noqa: N802 -- upstream's name
        def data_id(node: Any) -> Any:
            return node.quantum.dataId

        nodes = sorted((node for node in graph if node.taskDef.label == "isr"), key=data_id)
        graph.graph.add_edges_from(pairwise(nodes))
        return graph


class Nothing(ExecutionGraphFixup):
    """Adds nothing."""

    def fixup_graph(self, xgraph: nx.DiGraph, quanta_by_task: Any) -> None:
        return


class TestFixup:
    """`fixup_edges` and `serial_labels`."""

    @pytest.mark.parametrize("fixup", [ByVisit(), OldByVisit()])
    def test_edges_are_added(self, template: MockRepository, fixup: ExecutionGraphFixup) -> None:
        """The new edges come back, by either hook, and order the plan."""
        plan = read_plan(template.graph)
        edges = fixup_edges(fixup, template.graph)
        assert len(edges) == 7
        ordered = plan.with_edges(edges)
        assert sum(not node.prerequisites for node in ordered) == 1

    def test_no_edges(self, template: MockRepository) -> None:
        """The graph's own edges are not reported."""
        assert fixup_edges(Nothing(), template.graph) == []

    def test_serial_labels(self, tmp_path: Path) -> None:
        """Tasks that cannot multiprocess are known by label."""
        with open_repository(tmp_path / "repo") as repo:
            add_standard_tasks(repo, task_classes={"summary": SerialTask})
            assert serial_labels(repo.pipeline_graph) == {"summary"}
