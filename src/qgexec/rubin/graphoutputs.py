"""What the quanta of a graph are to write, read from its file as plain values; asks no repository."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from lsst.daf.butler import DatasetRef
from lsst.daf.butler.dimensions import DataCoordinate, DimensionDataAttacher
from lsst.pipe.base.pipeline_graph import PipelineGraph

from qgexec.errors import GraphError
from qgexec.quantum import DataIdValue
from qgexec.rubin.addresses import local_copy, locate_file
from qgexec.rubin.graphfile import open_graph, prepare_graph, read_plan
from qgexec.rubin.qgfile import QgFile, reading
from qgexec.scheduling.plan import Plan

__all__ = ["GraphOutputs", "Output", "read_graph_outputs"]


class Output(NamedTuple):
    """A dataset that a quantum is to write."""

    dataset_type: str
    """Name of its parent dataset type."""
    values: tuple[DataIdValue, ...]
    """Values of its data ID, required and implied."""
    n_required: int
    """How many of them, from the first, are required: they tell it from all others of its type."""
    dataset_id: str
    """UUID as text."""

    @property
    def required_values(self) -> tuple[DataIdValue, ...]:
        """Required values of its data ID."""
        return self.values[: self.n_required]


@dataclass(frozen=True, slots=True)
class GraphOutputs:
    """A graph that was executed, or was to be: its quanta, and what they write."""

    name: str
    """File or address of the graph, as it was given."""
    built_at: float
    """When the graph was built, UNIX seconds."""
    plan: Plan
    """Its quanta."""
    output_run: str
    """The RUN that they write."""
    pipeline_graph: PipelineGraph
    """Its tasks and dataset types; task classes are not imported."""
    outputs: Sequence[Sequence[Output]]
    """Of each quantum, in the plan's order."""
    metadata_types: dict[str, str]
    """By task label, the dataset type of its metadata."""
    log_types: dict[str, str]
    """By task label, the dataset type of its log; tasks without one are missing."""
    attacher: DimensionDataAttacher
    """Knows the dimension records that names of files are made of."""

    @property
    def n_required(self) -> dict[str, int]:
        """By task label, how many values of a quantum's data ID are required."""
        return {label: len(node.dimensions.required) for label, node in self.pipeline_graph.tasks.items()}

    def output_of(self, index: int, dataset_type: str) -> Output | None:
        """Return what a quantum is to write of a dataset type that it writes one dataset of."""
        return next((output for output in self.outputs[index] if output.dataset_type == dataset_type), None)

    def refs(self, outputs: Sequence[Output]) -> list[DatasetRef]:
        """Return datasets as references that a datastore finds files with, all of one type."""
        if not outputs:
            return []
        dataset_type = self.pipeline_graph.dataset_types[outputs[0].dataset_type].dataset_type
        data_ids = [DataCoordinate.from_full_values(dataset_type.dimensions, each.values) for each in outputs]
        expanded = self.attacher.attach(dataset_type.dimensions, data_ids)
        return [
            DatasetRef(dataset_type, data_id, run=self.output_run, id=uuid.UUID(output.dataset_id))
            for output, data_id in zip(outputs, expanded, strict=True)
        ]


@contextmanager
def _local(graph: str) -> Iterator[Path]:
    """Give a graph as a local ``.qg`` file."""
    uri = locate_file(graph)
    if uri.getExtension() == ".qgraph":
        with TemporaryDirectory(prefix="qgexec-report-") as folder:
            yield prepare_graph(uri, Path(folder), None).path
        return
    with local_copy(uri) as path:
        yield path


def read_graph_outputs(graph: str) -> GraphOutputs:
    """Read a graph.

    Parameters
    ----------
    graph
        File or address, ``.qg`` or ``.qgraph``.

    Returns
    -------
    outputs
        About 0.1 ms and 1.5 kB a quantum with four outputs.

    Raises
    ------
    qgexec.errors.GraphError
        It is missing, damaged, of another type, has no quanta, or names no output RUN.
    """
    with _local(graph) as path:
        plan = read_plan(path)
        with open_graph(path, imports=False) as reader, reading(path):
            reader.read_dimension_data()
            components = reader.components
        header, pipeline_graph = components.header, components.pipeline_graph
        if not header.output_run:
            raise GraphError(f"{graph} names no output RUN: nothing can be looked for")
        assert components.dimension_data is not None
        tasks = pipeline_graph.tasks
        return GraphOutputs(
            name=graph,
            built_at=header.timestamp.timestamp(),
            plan=plan,
            output_run=header.output_run,
            pipeline_graph=pipeline_graph,
            outputs=_read_outputs(path, plan, pipeline_graph),
            metadata_types={label: node.metadata_output.dataset_type_name for label, node in tasks.items()},
            log_types={
                label: node.log_output.dataset_type_name
                for label, node in tasks.items()
                if node.log_output is not None
            },
            attacher=components.dimension_data,
        )


def _read_outputs(path: Path, plan: Plan, pipeline_graph: PipelineGraph) -> list[tuple[Output, ...]]:
    n_required = {node.name: len(node.dimensions.required) for node in pipeline_graph.dataset_types.values()}
    found: list[tuple[Output, ...]] = [()] * len(plan)
    with QgFile(path) as file, reading(path):
        for text in file.quanta():
            quantum = json.loads(text)
            try:
                # Init-quanta have descriptions too, and are not in the plan.
                index = plan.index_of(uuid.UUID(quantum["quantum_id"]))
            except LookupError:
                continue
            found[index] = tuple(
                Output(name, tuple(dataset["data_coordinate"]), n_required[name], dataset["dataset_id"])
                for datasets in quantum["outputs"].values()
                for dataset in datasets
                if (name := dataset["dataset_type_name"])
            )
    return found
