"""Builds graphs with `qgexec qgraph` and `pipetask qgraph`, and says what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from tests.kit.commands.pipetask import pipetask
from tests.kit.commands.qgexec import call

__all__ = ["Arguments", "both", "contents"]

Arguments = list[object]
"""Arguments of a command."""


def contents(file: Path) -> dict[str, Any]:
    """Return all that is the same in two graphs built from the same: IDs of quanta and outputs are not."""
    graph = PredictedQuantumGraph.read_execution_quanta(str(file))
    quanta = graph.build_execution_quanta()
    return {
        "header": (graph.header.inputs, graph.header.output, graph.header.output_run),
        "metadata": {
            k: v
            for k, v in graph.header.metadata.items()
            if k in ("data_query", "extend_run", "skip_existing", "retained_dataset_types") and v is not None
        },
        "tasks": {label: len(quanta) for label, quanta in graph.quanta_by_task.items() if quanta},
        "configs": {label: str(node.get_config_str()) for label, node in graph.pipeline_graph.tasks.items()},
        "quanta": sorted(
            (
                quantum.taskName,
                str(quantum.dataId),
                sorted(
                    str(ref.dataId) + ref.datasetType.name for refs in quantum.inputs.values() for ref in refs
                ),
                sorted(
                    str(ref.dataId) + ref.datasetType.name
                    for refs in quantum.outputs.values()
                    for ref in refs
                ),
                sorted(quantum.datastore_records),
            )
            for quantum in quanta.values()
        ),
    }


def both(folder: Path, *arguments: object) -> dict[str, Any]:
    """Build with both commands; the graphs are equal, and what is in them is returned."""
    files = folder / "ours.qg", folder / "theirs.qg"
    more: Arguments = ["--output-run", "u/me/run", "--qgraph-datastore-records"]
    results = [
        run("qgraph", *arguments, *more, "-q", file)
        for run, file in zip((call, pipetask), files, strict=True)
    ]
    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    ours, theirs = map(contents, files)
    assert ours == theirs
    return ours
