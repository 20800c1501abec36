"""The datastore records of a graph's overall inputs: whether a graph has them, and where it gets them from.

Quanta are executed without a registry: where an input's file lies must be in
the graph. Upstream's builder attaches these records when it is asked to.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass

from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import (
    PredictedInitQuantaModel,
    PredictedQuantumDatasetsModel,
    PredictedQuantumGraphComponents,
)

from qgexec.errors import RepositoryError
from qgexec.rubin.compat import export_records
from qgexec.rubin.qgfile import QgFile

__all__ = ["Sample", "attach_records", "check_known", "look_for_records"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the first quanta of a file show."""

    overall_input: uuid.UUID | None
    """A dataset that must be in the repository, if one was seen."""

    lacks_records: bool
    """The graph was saved without datastore records, as far as one can see."""


def look_for_records(file: QgFile) -> Sample:
    """Look at quanta until one has records, or an input from outside of the output RUN.

    Records are attached to all quanta that read overall inputs or to none:
    one such quantum is enough, and is usually the first. All of them are
    looked at only where earlier attempts in the same RUN made everything that
    this graph reads.
    """
    output_run = file.header["output_run"]
    reads = False
    for text in file.quanta():
        quantum = json.loads(text)
        datasets = [dataset for datasets in quantum["inputs"].values() for dataset in datasets]
        reads = reads or bool(datasets)
        outside = next((dataset["dataset_id"] for dataset in datasets if dataset["run"] != output_run), None)
        if outside is not None or quantum["datastore_records"]:
            found = uuid.UUID(outside) if outside is not None else None
            return Sample(found, lacks_records=not quantum["datastore_records"])
    return Sample(None, lacks_records=reads)


def check_known(name: str, butler: Butler, dataset_id: uuid.UUID) -> None:
    """Check that a repository knows a dataset that the graph ``name`` reads.

    Raises
    ------
    qgexec.errors.RepositoryError
        It does not: the graph was built from another one.
    """
    if butler.get_dataset(dataset_id) is None:
        raise RepositoryError(
            f"the repository is not the one that {name} was built from: "
            f"it does not know the input dataset {dataset_id}",
            hint="Give the repository that the graph was built from, or build the graph again.",
        )


def attach_records(name: str, components: PredictedQuantumGraphComponents, butler: Butler) -> bool:
    """Look up the datastore records of all overall inputs at once, and give each quantum its own.

    Parameters
    ----------
    name
        What to call the graph in messages.
    components
        The whole graph; its quanta are replaced, not changed.
    butler
        The repository that it was built from.

    Returns
    -------
    attached
        Whether there are any.

    Raises
    ------
    qgexec.errors.RepositoryError
        The repository does not know the graph's inputs.
    """
    quanta = [*components.init_quanta.root, *components.quantum_datasets.values()]
    produced = {dataset_id for quantum in quanta for dataset_id in quantum.iter_output_dataset_ids()}
    overall = {
        dataset.dataset_id: dataset
        for quantum in quanta
        for datasets in quantum.inputs.values()
        for dataset in datasets
        if dataset.dataset_id not in produced
    }
    if not overall:
        return False
    check_known(name, butler, next(iter(overall)))
    records = export_records(butler, [components.make_dataset_ref(dataset) for dataset in overall.values()])
    n_found = len({dataset_id for stored in records.values() for dataset_id in stored.records})
    _logger.info("looked up the datastore records of %d of %d input datasets", n_found, len(overall))

    def with_records(quantum: PredictedQuantumDatasetsModel) -> PredictedQuantumDatasetsModel:
        # A copy: a graph in memory is the caller's.
        wanted = overall.keys() & set(quantum.iter_input_dataset_ids())
        subsets = {name: stored.subset(wanted) for name, stored in records.items()} if wanted else {}
        attached = {name: subset.to_simple() for name, subset in subsets.items() if subset is not None}
        return quantum.model_copy(update={"datastore_records": attached})

    components.init_quanta = PredictedInitQuantaModel(
        [with_records(quantum) for quantum in components.init_quanta.root]
    )
    components.quantum_datasets = {
        quantum_id: with_records(quantum) for quantum_id, quantum in components.quantum_datasets.items()
    }
    return n_found > 0
