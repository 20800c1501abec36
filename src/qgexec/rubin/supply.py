"""The one datastore of a process, and butlers over it; knows no registry and no tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from lsst.daf.butler import DatasetId, DatasetType, DimensionUniverse, Quantum, QuantumBackedButler

from qgexec.errors import RepositoryError
from qgexec.rubin.compat import datastore_of
from qgexec.rubin.graphfile import GraphSource
from qgexec.rubin.recordtables import LocationsManager, RecordTableManager

__all__ = ["Supply"]


class Supply:
    """A repository's datastore without its records, kept open.

    Parameters
    ----------
    repository
        Butler repository: root, configuration file or alias.
    universe
        Its dimensions.
    dataset_types
        By name, as datasets are written and read.

    Raises
    ------
    qgexec.errors.RepositoryError
        The datastore cannot be opened.
    """

    def __init__(
        self, repository: str, universe: DimensionUniverse, dataset_types: Mapping[str, DatasetType]
    ) -> None:
        try:
            self._owner = QuantumBackedButler.from_predicted(
                repository,
                predicted_inputs=(),
                predicted_outputs=(),
                dimensions=universe,
                datastore_records={},
                dataset_types=dataset_types,
                OpaqueManagerClass=RecordTableManager,
                BridgeManagerClass=LocationsManager,
            )
        except Exception as error:
            raise RepositoryError(
                f"the datastore of {repository} cannot be opened: {type(error).__name__}: {error}",
                hint="Check that the repository exists and may be read.",
            ) from error
        self.datastore = datastore_of(self._owner)
        """The datastore; it reads and removes what it has no records of, too."""
        self.universe = universe
        """The repository's dimensions."""
        self.dataset_types = dataset_types
        """By name, as datasets are written and read."""

    @classmethod
    def of_graph(cls, repository: str, source: GraphSource) -> Supply:
        """Open the datastore for the datasets of a graph; raises as the class."""
        graph = source.pipeline_graph
        types = {node.name: node.dataset_type for node in graph.dataset_types.values()}
        return cls(repository, graph.universe, types)

    def butler(self, quantum: Quantum) -> QuantumBackedButler:
        """Return a butler for one quantum; closing it leaves the datastore open."""
        inputs = chain(quantum.initInputs.values(), *quantum.inputs.values())
        outputs = chain.from_iterable(quantum.outputs.values())
        return self.butler_of((ref.id for ref in inputs), (ref.id for ref in outputs))

    def butler_of(self, inputs: Iterable[DatasetId], outputs: Iterable[DatasetId]) -> QuantumBackedButler:
        """Return a butler for these datasets; closing it leaves the datastore open."""
        return QuantumBackedButler(
            inputs,
            outputs,
            self.universe,
            self.datastore,
            storageClasses=self._owner.storageClasses,
            dataset_types=self.dataset_types,
        )

    def close(self) -> None:
        """Let go of it; may be called twice."""
        self._owner.close()
