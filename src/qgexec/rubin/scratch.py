"""Executes one quantum beside its run: real inputs, outputs in a folder of its own, nothing recorded."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from lsst.daf.butler import ButlerConfig, Config, DatasetRef, Quantum, QuantumBackedButler
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.pipe.base import ExecutionResources
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.utils.doImport import doImportType
from lsst.utils.threads import disable_implicit_threading

from qgexec.errors import RepositoryError
from qgexec.quantum import Resources
from qgexec.rubin.compat import QuantumExecutor, put_refs
from qgexec.rubin.graphfile import GraphSource
from qgexec.rubin.quantumlog import QuantumLogRecords, pipetask_logging
from qgexec.rubin.supply import Supply

__all__ = ["Scratch", "open_scratch"]


@contextmanager
def open_scratch(
    repository: str,
    graph_file: str,
    task_label: str,
    quantum_id: uuid.UUID,
    folder: Path,
    *,
    resources: Resources | None = None,
    raise_on_partial_outputs: bool = True,
    implicit_threads: bool = False,
) -> Iterator[Scratch]:
    """Make ready to execute a quantum without writing to the repository.

    Parameters
    ----------
    repository
        Butler repository: root, configuration file or alias. Only its datastore is opened.
    graph_file
        Local ``.qg`` file.
    task_label, quantum_id
        The quantum.
    folder
        Where outputs are written; must exist.
    resources
        What the task is told that it may use.
    raise_on_partial_outputs, implicit_threads
        As in the run.

    Yields
    ------
    scratch
        The stack's loggers write to the terminal while it is open.

    Raises
    ------
    qgexec.errors.GraphError
        The graph file cannot be read, or a task class not be imported.
    qgexec.errors.RepositoryError
        The datastore cannot be opened, or has no files.
    """
    with contextlib.ExitStack() as stack:
        if not implicit_threads:
            disable_implicit_threading()  # for libraries that read it when they are imported
        config = _write_config(repository, folder)
        source = stack.enter_context(closing(GraphSource(Path(graph_file), repository)))
        inputs = stack.enter_context(closing(Supply.of_graph(repository, source)))
        if not implicit_threads:
            disable_implicit_threading()  # for those that have been imported by now
        outputs = stack.enter_context(closing(Supply.of_graph(str(config), source)))
        quantum = source.quantum(quantum_id)
        if quantum.datastore_records:
            inputs.datastore.import_records(quantum.datastore_records)
        butler = _ScratchButler(quantum, source, inputs, outputs)
        stack.enter_context(pipetask_logging("INFO"))
        request = resources or Resources()
        executor = QuantumExecutor(
            butler=None,
            limited_butler_factory=lambda _: butler,
            resources=ExecutionResources(num_cores=request.cores, max_mem=request.memory_bytes),
            assume_no_existing_outputs=True,
            raise_on_partial_outputs=raise_on_partial_outputs,
        )
        yield Scratch(executor, butler, source.task_node(task_label), quantum, quantum_id)


class Scratch:
    """Executes the quantum that `open_scratch` was called for."""

    def __init__(
        self,
        executor: QuantumExecutor,
        butler: _ScratchButler,
        task_node: TaskNode,
        quantum: Quantum,
        quantum_id: uuid.UUID,
    ) -> None:
        self._executor = executor
        self._butler = butler
        self._task_node = task_node
        self._quantum = quantum
        self._quantum_id = quantum_id

    def missing_inputs(self) -> list[str]:
        """Return the inputs that are not there: their quanta have not run, or did not write them."""
        refs = _inputs_of(self._quantum)
        return [f"{ref.datasetType.name} {ref.dataId}" for ref in refs if not self._butler.stored(ref)]

    def execute(self) -> None:
        """Execute the quantum as a worker does.

        Raises
        ------
        BaseException
            Whatever the quantum raises: that is what this is for.
        """
        self._executor.execute(
            self._task_node, self._quantum, quantum_id=self._quantum_id, log_records=QuantumLogRecords()
        )

    def outputs(self) -> list[tuple[str, list[str]]]:
        """Return what was put: dataset type and files of each dataset."""
        return sorted(self._butler.files_of_outputs())


def _inputs_of(quantum: Quantum) -> list[DatasetRef]:
    return [*quantum.initInputs.values(), *chain.from_iterable(quantum.inputs.values())]


class _ScratchButler(QuantumBackedButler):
    """Reads a quantum's inputs from one datastore; writes its outputs to, and reads them from, another."""

    def __init__(self, quantum: Quantum, source: GraphSource, inputs: Supply, outputs: Supply) -> None:
        graph = source.pipeline_graph
        self._outputs = outputs.butler(quantum)
        self._output_ids = {ref.id for ref in chain.from_iterable(quantum.outputs.values())}
        super().__init__(
            [ref.id for ref in _inputs_of(quantum)],
            (),
            graph.universe,
            inputs.datastore,
            storageClasses=inputs.butler(quantum).storageClasses,
            dataset_types={node.name: node.dataset_type for node in graph.dataset_types.values()},
        )

    def get(self, ref: DatasetRef, /, **options: Any) -> Any:
        """Read a dataset."""
        if ref.id in self._output_ids:
            return self._outputs.get(ref, **options)
        return super().get(ref, **options)

    def stored_many(self, refs: Iterable[DatasetRef]) -> dict[DatasetRef, bool]:
        """Tell which datasets are there."""
        written: list[DatasetRef] = []
        read: list[DatasetRef] = []
        for ref in refs:
            (written if ref.id in self._output_ids else read).append(ref)
        return {**self._outputs.stored_many(written), **super().stored_many(read)}

    def put(self, obj: Any, ref: DatasetRef, /, **options: Any) -> DatasetRef:
        """Write a dataset to the other datastore."""
        return self._outputs.put(obj, ref, **options)

    def pruneDatasets(self, refs: Iterable[DatasetRef], **options: Any) -> None:  # noqa: N802 - upstream's name
        """Remove datasets from the other datastore."""
        self._outputs.pruneDatasets(refs, **options)

    def files_of_outputs(self) -> Iterator[tuple[str, list[str]]]:
        """Yield type and files of each dataset that was put."""
        for ref in put_refs(self._outputs):
            found = self._outputs.get_many_uris([ref], predict=True)[ref]
            uris = [uri for uri in (found.primaryURI, *found.componentURIs.values()) if uri is not None]
            yield ref.datasetType.name, [uri.ospath for uri in uris]


def _write_config(repository: str, folder: Path) -> Path:
    """Write the configuration of a datastore that writes files as the repository's does, into a folder.

    One of files alone, and without a registry: of a chain, others might write to who knows where.
    """
    try:
        whole = ButlerConfig(repository)
    except (FileNotFoundError, LookupError) as error:
        raise RepositoryError(
            f"there is no butler repository {repository}: {error}",
            hint="Was the run's repository moved, or does the alias mean another one now?",
        ) from error
    datastore = _file_datastore(Config(whole["datastore"]))
    if datastore is None:
        raise RepositoryError(f"{repository} has no datastore of files whose formats could be used")
    datastore["root"] = str(folder)
    if "constraints" in datastore:
        del datastore["constraints"]  # what one of a chain refuses, another takes
    config = Config({"datastore": datastore})
    if "storageClasses" in whole:
        config["storageClasses"] = whole["storageClasses"]
    path = folder / "butler.yaml"
    config.dumpToUri(str(path))
    return path


def _file_datastore(config: Config) -> Config | None:
    """Return the configuration of the first datastore of files in this one."""
    if issubclass(doImportType(config["cls"]), FileDatastore):
        return config
    for child in map(Config, config.get("datastores", [])):
        # As it is in the file, or as upstream has merged it with defaults.
        found = _file_datastore(Config(child["datastore"]) if "datastore" in child else child)
        if found is not None:
            return found
    return None
