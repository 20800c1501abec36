"""What a run writes once, before its quanta: init-outputs of tasks, their configs, and package versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType, MissingDatasetTypeError
from lsst.pipe.base import InMemoryDatasetHandle, PipelineTaskConfig
from lsst.pipe.base.automatic_connection_constants import CONFIG_INIT_OUTPUT_CONNECTION_NAME
from lsst.pipe.base.quantum_graph import (
    HeaderModel,
    PredictedInitQuantaModel,
    PredictedQuantumGraph,
    PredictedQuantumGraphComponents,
)
from lsst.utils.packages import Packages

from qgexec.errors import InitOutputsError
from qgexec.foreign import no_exit
from qgexec.plaintext import few
from qgexec.rubin.compat import datastore_of
from qgexec.rubin.datastores import remove_files
from qgexec.rubin.graphfile import GraphFile, open_graph
from qgexec.rubin.qgfile import QgFile, reading

__all__ = ["InitOutputs", "describe_changes", "plan_init_outputs", "write_without_registry"]


@dataclass(frozen=True, slots=True)
class InitOutputs:
    """Datasets to write; everything that exists already was compared with them."""

    datasets: tuple[tuple[Any, DatasetRef], ...]
    """Objects and where they go."""

    replaced: tuple[DatasetRef, ...]
    """Those among them that exist and are written anew."""

    perhaps_begun: bool
    """Somebody may have been killed who was writing them."""

    def write(self, butler: Butler) -> None:
        """Write them all, or none."""
        if self.perhaps_begun:
            new = [ref for _, ref in self.datasets if ref not in self.replaced]
            remove_files(datastore_of(butler), new)
        with butler.transaction():
            if self.replaced:
                butler.pruneDatasets(self.replaced, unstore=True, purge=True)
            for obj, ref in self.datasets:
                butler.put(obj, ref)


def plan_init_outputs(butler: Butler, graph: GraphFile, *, run_exists: bool, versions: bool) -> InitOutputs:
    """Make all init-outputs of a graph in memory, and compare them with those that exist.

    Parameters
    ----------
    butler
        The repository.
    graph
        The graph.
    run_exists
        The output RUN exists and may hold some.
    versions
        Include package versions.

    Raises
    ------
    qgexec.errors.InitOutputsError
        A task cannot be constructed, or a config or package version is not the one that is there.
    """
    components = _read_init_quanta(graph)
    init = components.assemble()
    labels = [quantum.task_label for quantum in components.init_quanta.root if quantum.task_label]
    planned: list[tuple[Any, DatasetRef]] = []
    replaced: list[DatasetRef] = []
    for obj, ref in _init_outputs(butler, init, labels):
        if not (run_exists and _exists(butler, ref) and butler.stored(ref)):
            planned.append((obj, ref))
    for label in labels:
        config = init.pipeline_graph.tasks[label].config
        ref = init.get_init_outputs(label)[CONFIG_INIT_OUTPUT_CONNECTION_NAME]
        existing = _get(butler, ref) if run_exists else None
        if existing is None:
            planned.append((config, ref))
        else:
            _compare_configs(label, config, existing)
    if versions:
        (ref,) = init.get_init_outputs("").values()
        existing = _get(butler, ref) if run_exists else None
        packages = Packages.fromSystem()
        if existing is None:
            planned.append((packages, ref))
        elif _compare_packages(packages, existing):
            existing.update(packages)
            planned.append((existing, ref))
            replaced.append(ref)
    return InitOutputs(tuple(planned), tuple(replaced), perhaps_begun=run_exists)


def write_without_registry(repository: str, path: Path) -> None:
    """Write all init-outputs of a graph to the datastore, or compare them with those that are there.

    Parameters
    ----------
    repository
        Root, configuration file or alias; storage classes that it defines are known.
    path
        Local ``.qg`` file.

    Raises
    ------
    qgexec.errors.GraphError
        It is missing or damaged, or a task class does not import.
    qgexec.errors.InitOutputsError
        A task cannot be constructed, or what is there is not the same; some may have been written.
    """
    with open_graph(path) as reader:
        with reading(path):
            reader.read_init_quanta()
        graph = reader.components.assemble()
    try:
        with no_exit(), graph.make_init_qbb(repository) as butler:
            graph.init_output_run(butler)
    except Exception as error:  # the tasks' own code, and files of any kind
        raise InitOutputsError(
            f"the init-outputs of {path} cannot be written: {type(error).__name__}: {error}",
            hint="In one RUN configs and package versions must agree: see what it has, or use another RUN.",
        ) from error


def _read_init_quanta(graph: GraphFile) -> PredictedQuantumGraphComponents:
    with QgFile(graph.path) as file, reading(graph.path):
        return PredictedQuantumGraphComponents(
            header=HeaderModel.model_validate(file.header),
            pipeline_graph=graph.pipeline_graph,
            init_quanta=PredictedInitQuantaModel.model_validate_json(file.block("init_quanta")),
        )


def _init_outputs(
    butler: Butler, init: PredictedQuantumGraph, labels: list[str]
) -> Iterator[tuple[Any, DatasetRef]]:
    """Construct the tasks, in the pipeline's order, for what they hand on; yield it with where it goes."""
    pipeline = init.pipeline_graph
    made: dict[str, InMemoryDatasetHandle] = {}
    for label in pipeline.tasks:
        if label not in labels:
            continue
        inputs = {ref.datasetType.name: ref for ref in init.get_init_inputs(label).values()}
        outputs = {ref.datasetType.name: ref for ref in init.get_init_outputs(label).values()}

        def get(dataset_type: DatasetType, inputs: dict[str, DatasetRef] = inputs) -> Any:
            parent, component = dataset_type.nameAndComponent()
            if (handle := made.get(parent)) is not None:
                return handle.get(component=component, storageClass=dataset_type.storageClass)
            return butler.get(inputs[dataset_type.name].overrideStorageClass(dataset_type.storageClass))

        objects: list[tuple[Any, DatasetType]] = []
        try:
            with no_exit():
                pipeline.instantiate_tasks(get_init_input=get, init_outputs=objects, labels=[label])
        except Exception as error:  # the task's own code
            raise InitOutputsError(
                f"task {label!r} ({pipeline.tasks[label].task_class_name}) cannot be constructed: "
                f"{type(error).__name__}: {error}",
                hint="Correct its configuration or its code, and build the graph again.",
            ) from error
        for obj, dataset_type in objects:
            storage_class = pipeline.dataset_types[dataset_type.name].storage_class
            # As upstream does: what only one task reads is not copied, since not everything can be.
            if n_consumers := len(pipeline.consumers_of(dataset_type.name)):
                made[dataset_type.name] = InMemoryDatasetHandle(
                    storage_class.coerce_type(obj),
                    dataId=DataCoordinate.make_empty(pipeline.universe),
                    storageClass=storage_class,
                    copy=n_consumers > 1,
                )
            yield obj, outputs[dataset_type.name]


def _exists(butler: Butler, ref: DatasetRef) -> bool:
    """Tell whether the RUN has this dataset; another one in its place is an error."""
    try:
        existing = butler.find_dataset(ref.datasetType.name, collections=[ref.run])
    except MissingDatasetTypeError:
        return False
    if existing is not None and existing.id != ref.id:
        raise InitOutputsError(
            f"the output RUN {ref.run!r} has another dataset {ref.datasetType.name!r} than the graph's: "
            "the graph was not built to extend this RUN",
            hint="Build the graph again with --extend-run, or for another output RUN.",
        )
    return existing is not None


def _get(butler: Butler, ref: DatasetRef) -> Any:
    """Return a dataset that may not exist; `None` where it does not."""
    if not _exists(butler, ref):
        return None
    try:
        return butler.get(ref)
    except (LookupError, FileNotFoundError):
        return None


def _compare_configs(label: str, config: PipelineTaskConfig, existing: PipelineTaskConfig) -> None:
    differences: list[str] = []
    compare: Callable[..., bool] = config.compare
    if not compare(existing, shortcut=False, output=differences.append):
        raise InitOutputsError(
            f"the config of task {label!r} is not the one in the output RUN: {few(differences, '; ')}",
            hint="In one RUN configs must agree: build the graph for another one, or with that config.",
        )


def _compare_packages(packages: Packages, existing: Packages) -> bool:
    """Return whether there are packages now that were not there before; versions must agree."""
    if changes := describe_changes(packages, existing):
        raise InitOutputsError(
            f"package versions are not those in the output RUN: {few(changes, '; ')}",
            hint="Use the versions that the RUN began with, or another output RUN; --no-versions ignores it.",
        )
    return bool(packages.keys() - existing.keys())


def describe_changes(now: Packages, before: Packages) -> tuple[str, ...]:
    """Return which packages have another version than before, such as ``numpy 2.4.0, was 2.3.1``, by name."""
    different = now.difference(before)
    return tuple(f"{name} {new}, was {old}" for name, (new, old) in sorted(different.items()))
