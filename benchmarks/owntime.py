"""Measures the own time of a graph: what `SingleQuantumExecutor.execute` takes when nothing else is going on.

One process, upstream's parts only, one quantum after another. Reading quanta,
opening the butler and writing init-outputs are outside the clock, so that the
sum over all quanta is what no executor of upstream's quanta can go below.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from lsst.daf.butler import Quantum, QuantumBackedButler
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import TaskFactory
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

__all__ = ["OwnTime", "measure_own_time"]

_CHUNK = 200
"""Quanta in memory at a time: a heap with the whole graph in it slows every allocation down."""


_Records = Mapping[str, DatastoreRecordData]


@dataclass(frozen=True, slots=True)
class OwnTime:
    """What the quanta of a graph take by themselves."""

    n_quanta: int
    """Number of quanta."""
    own_s: float
    """Wall time inside `SingleQuantumExecutor.execute`, summed."""
    own_cpu_s: float
    """CPU time inside it."""
    first_tenth_s: float
    """Mean wall time of the first tenth of the most numerous task's quanta."""
    last_tenth_s: float
    """Mean wall time of the last tenth of the same task's quanta."""


class _SharedButler(QuantumBackedButler):
    """Serves many quanta: the executor closes what its factory gave it, which would drop the records."""

    def close(self) -> None:
        """Leave the records where they are; they are in memory."""


def measure_own_time(repository: Path, graph_file: Path) -> OwnTime:
    """Execute every quantum of a graph once, in this process.

    Parameters
    ----------
    repository
        A fresh copy: output files are written to it, the registry is left as it is.
    graph_file
        The ``.qg``, with datastore records.
    """
    # As pipetask does: log datasets hold what is worth INFO.
    logging.getLogger("lsst").setLevel(logging.INFO)
    graph, records = _initialize(repository, graph_file)
    factory = TaskFactory()
    walls: dict[str, list[float]] = {}
    cpu_s = 0.0
    for label, quantum_ids in graph.quanta_by_task.items():
        task_node = graph.pipeline_graph.tasks[label]
        walls[label] = []
        for quanta in _chunks(graph_file, list(quantum_ids.values())):
            butler = _open_butler(repository, graph, quanta.values(), records)
            for quantum_id, quantum in quanta.items():
                # A new executor each: an old one lists every earlier quantum in every log dataset.
                executor = SingleQuantumExecutor(
                    task_factory=factory,
                    limited_butler_factory=partial(_same, butler),
                    assume_no_existing_outputs=True,
                )
                started, started_cpu = time.perf_counter(), time.process_time()
                executor.execute(task_node, quantum, quantum_id)
                cpu_s += time.process_time() - started_cpu
                walls[label].append(time.perf_counter() - started)
            records = _with_outputs(records, butler)
    longest = max(walls.values(), key=len)
    tenth = max(1, len(longest) // 10)
    return OwnTime(
        n_quanta=sum(map(len, walls.values())),
        own_s=sum(chain.from_iterable(walls.values())),
        own_cpu_s=cpu_s,
        first_tenth_s=sum(longest[:tenth]) / tenth,
        last_tenth_s=sum(longest[-tenth:]) / tenth,
    )


def _same(butler: QuantumBackedButler, _quantum: Quantum) -> QuantumBackedButler:
    return butler


def _initialize(repository: Path, graph_file: Path) -> tuple[PredictedQuantumGraph, _Records]:
    """Write the init-outputs; return the thin graph, and the records of what was written."""
    with PredictedQuantumGraph.open(str(graph_file)) as reader:
        reader.read_thin_graph()
        reader.read_init_quanta()
        graph = reader.finish()
    butler = graph.make_init_qbb(str(repository))
    try:
        graph.init_output_run(butler)
        return graph, _with_outputs({}, butler)
    finally:
        butler.close()


def _with_outputs(records: _Records, butler: QuantumBackedButler) -> _Records:
    """Return the records and those of everything the butler has put."""
    put = butler.extract_provenance_data().datastore_records
    return DatastoreRecordData.merge_mappings(
        records, {name: DatastoreRecordData.from_simple(simple) for name, simple in put.items()}
    )


def _open_butler(
    repository: Path, graph: PredictedQuantumGraph, quanta: Collection[Quantum], written: _Records
) -> QuantumBackedButler:
    """Return a butler for some quanta that knows the records of their inputs.

    It serves one chunk only, because a butler grows slower with all that it has seen.
    """
    inputs: set[uuid.UUID] = set()
    outputs: set[uuid.UUID] = set()
    for quantum in quanta:
        inputs.update(ref.id for ref in chain.from_iterable(quantum.inputs.values()))
        inputs.update(ref.id for ref in quantum.initInputs.values())
        outputs.update(ref.id for ref in chain.from_iterable(quantum.outputs.values()))
    known = {name: found for name, data in written.items() if (found := data.subset(inputs)) is not None}
    return _SharedButler.from_predicted(
        config=str(repository),
        predicted_inputs=inputs,
        predicted_outputs=outputs,
        dimensions=graph.pipeline_graph.universe,
        datastore_records=DatastoreRecordData.merge_mappings(
            known, *(quantum.datastore_records for quantum in quanta)
        ),
        dataset_types={node.name: node.dataset_type for node in graph.pipeline_graph.dataset_types.values()},
    )


def _chunks(graph_file: Path, quantum_ids: Sequence[uuid.UUID]) -> Iterator[dict[uuid.UUID, Quantum]]:
    for first in range(0, len(quantum_ids), _CHUNK):
        wanted = quantum_ids[first : first + _CHUNK]
        graph = PredictedQuantumGraph.read_execution_quanta(str(graph_file), wanted)
        yield graph.build_execution_quanta(wanted)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.owntime", description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("graph_file", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(arguments)
    own = measure_own_time(options.repository, options.graph_file)
    options.result.write_text(json.dumps(asdict(own)))


if __name__ == "__main__":
    main()
