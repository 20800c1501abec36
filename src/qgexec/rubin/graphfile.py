"""Quantum graphs as the rest of qgexec wants them: a `Plan`, one ``.qg`` file, and quanta read one by one."""

from __future__ import annotations

import functools
import importlib
import logging
import uuid
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lsst.daf.butler import Butler, Quantum
from lsst.pipe.base import BuildId, QuantumGraph
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskImportMode, TaskNode
from lsst.pipe.base.quantum_graph import (
    PredictedInitQuantaModel,
    PredictedQuantumDatasetsModel,
    PredictedQuantumGraph,
    PredictedQuantumGraphComponents,
    PredictedQuantumGraphReader,
)
from lsst.resources import ResourcePath

from qgexec.errors import EmptyGraphError, GraphError
from qgexec.foreign import no_exit
from qgexec.regularfile import UnfitFileError
from qgexec.rubin.addresses import local_copy, locate_file, reaching
from qgexec.rubin.compat import graph_components, keeping_package_metadata
from qgexec.rubin.graphwrite import BuiltGraph, copy_graph, fetch_graph, into_run_dir, write_graph
from qgexec.rubin.inputrecords import attach_records, check_known, look_for_records
from qgexec.rubin.localfile import check_local
from qgexec.rubin.qgfile import QgFile, reading
from qgexec.rubin.repository import learn_storage_classes, open_butler
from qgexec.rubin.thingraph import ThinGraph, parse_thin_graph
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.plan import Plan, find_quanta

__all__ = [
    "AnyGraph",
    "GraphFile",
    "GraphSource",
    "open_graph",
    "peek_graph",
    "prepare_graph",
    "read_old",
    "read_output_run",
    "read_plan",
    "serial_labels",
]

_logger = logging.getLogger(__name__)

_STORAGE_CLASS_HINT = (
    "If that is a storage class which only a repository defines: name the repository with -b."
)

GRAPH_NAME = "graph.qg"
"""Name in the run directory of a graph that had to be written anew."""


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A ``.qg`` file that is ready to be executed, and what its header says."""

    path: Path
    """The file; absolute."""

    inputs: tuple[str, ...]
    """Input collections, in search order."""

    output: str | None
    """Output CHAINED collection, where there is one."""

    output_run: str
    """Output RUN collection; empty where the graph does not name one."""

    n_quanta: int
    """Number of quanta, at least 1."""

    pipeline_graph: PipelineGraph
    """Tasks and dataset types, task classes imported."""


def read_plan(path: Path) -> Plan:
    """Read the thin part of a ``.qg`` file; no task class is imported.

    Parameters
    ----------
    path
        Local file.

    Returns
    -------
    plan
        Without a source; about 5 us a quantum with three edges; 0.8 GB at the peak for a million.

    Raises
    ------
    qgexec.errors.GraphError
        The file is missing, damaged, of another type, or has no quanta.
    """
    with QgFile(path) as file:
        _require_quanta(str(path), file.header["n_quanta"])
        text = file.block("thin_graph") if file.header["version"] > 0 else b""
    with open_graph(path, imports=False) as reader, reading(path):
        tasks = reader.pipeline_graph.tasks
        dimensions = {label: tuple(node.dimensions.data_coordinate_keys) for label, node in tasks.items()}
        thin = parse_thin_graph(text)
        del text
        if thin is None:
            thin = _read_thin_models(reader)
    unknown = set(thin.labels) - dimensions.keys()
    if unknown:
        raise GraphError(
            f"{path} is damaged: quanta of tasks that are not in its pipeline: {sorted(unknown)}"
        )
    code = {label: code for code, label in enumerate(dimensions)}
    codes = np.array([code[label] for label in thin.labels], dtype=np.int64)[thin.label_codes]
    edges = find_quanta(thin.quantum_ids, thin.edge_ids).reshape(-1, 2)
    return Plan.from_edges(
        labels=dimensions,
        label_codes=codes,
        quantum_ids=thin.quantum_ids,
        data_ids=thin.data_ids,
        predecessors=edges[:, 0],
        successors=edges[:, 1],
    )


def _read_thin_models(reader: PredictedQuantumGraphReader) -> ThinGraph:
    """Read any thin graph that upstream can read: 20 times slower, and several GB for a million quanta."""
    reader.read_thin_graph()
    thin = reader.components.thin_graph
    quanta = [quantum for quanta in thin.quanta.values() for quantum in quanta]
    return ThinGraph(
        labels=tuple(thin.quanta),
        label_codes=np.repeat(np.arange(len(thin.quanta)), [len(quanta) for quanta in thin.quanta.values()]),
        quantum_ids=b"".join([quantum.quantum_id.bytes for quantum in quanta]),
        data_ids=DataIds.pack(quantum.data_coordinate for quantum in quanta),
        edge_ids=b"".join([first.bytes + second.bytes for first, second in thin.edges]),
    )


AnyGraph = str | Path | ResourcePath | PredictedQuantumGraph | QuantumGraph | BuiltGraph
"""File, or graph in memory whose quanta are loaded."""


def read_output_run(graph: AnyGraph) -> str:
    """Return the output RUN of a graph, reading no more of a file than its header; empty where it names none.

    Raises
    ------
    qgexec.errors.GraphError
        The file is missing, damaged or of another type.
    """
    if isinstance(graph, BuiltGraph):
        return graph.output_run
    if isinstance(graph, PredictedQuantumGraph):
        return graph.header.output_run
    if isinstance(graph, QuantumGraph):
        return str(graph.metadata.get("output_run") or "")
    uri = locate_file(graph)
    if uri.getExtension() == ".qgraph":
        return read_old(uri).header.output_run
    with local_copy(uri) as path, QgFile(path) as file:
        return str(file.header["output_run"])


def prepare_graph(
    graph: AnyGraph, run_dir: Path, repository: str | Butler | None, *, own: bool = False
) -> GraphFile:
    """Make a graph ready to be executed from one local ``.qg`` file with datastore records.

    Anything that is no such file (an old ``.qgraph`` file, a remote file, a graph in memory, a graph
    without the datastore records of its overall inputs) is written once as ``graph.qg`` in the run directory.

    Parameters
    ----------
    graph
        File, or graph in memory whose quanta are loaded.
    run_dir
        Run directory, or another folder; must exist.
    repository
        Where missing datastore records are looked up, and where the graph's
        inputs must be known; `None` to do neither.
    own
        Copy also a file that is ready as it is: nobody else writes to the copy, or removes it.

    Returns
    -------
    graph_file
        What to execute. Task classes are imported.

    Raises
    ------
    qgexec.errors.GraphError
        The graph cannot be read, or not executed as it is.
    qgexec.errors.RepositoryError
        The repository is missing, or not the graph's.
    qgexec.errors.RunDirError
        The run directory cannot be written.
    """
    target = run_dir.absolute() / GRAPH_NAME
    with ExitStack() as stack:
        butler = stack.enter_context(open_butler(repository)) if repository is not None else None
        if not isinstance(graph, str | Path | ResourcePath):
            return _prepare_components(_components_of(graph), target, butler)
        uri = locate_file(graph)
        if uri.getExtension() == ".qgraph":
            return _prepare_components(read_old(uri), target, butler)
        path = _local_path(uri, target)
        graph_file = _prepare_file(path, target, butler)
        if not own or graph_file.path == target:
            return graph_file
        with into_run_dir(target):
            copy_graph(path, target)
        return replace(graph_file, path=target)


def peek_graph(path: Path) -> GraphFile:
    """Return what there is to know of a ``.qg`` file without importing a task class.

    Raises
    ------
    qgexec.errors.GraphError
        It cannot be read.
    """
    with open_graph(path, imports=False) as reader:
        return _graph_file(path, reader.components)


def _prepare_file(path: Path, target: Path, butler: Butler | None) -> GraphFile:
    with QgFile(path) as file:
        _require_quanta(str(path), file.header["n_quanta"])
        with reading(path):
            sample = look_for_records(file)
    with open_graph(path) as reader:
        graph_file = _graph_file(path, reader.components)
        if butler is None:
            return graph_file
        _check_universe(graph_file, butler)
        if sample.overall_input is not None:
            check_known(str(path), butler, sample.overall_input)
        if not sample.lacks_records:
            return graph_file
        with reading(path):
            reader.read_all()
        if not attach_records(str(path), reader.components, butler):
            return graph_file
        with into_run_dir(target):
            write_graph(reader.components, target)
        return replace(graph_file, path=target)


def _prepare_components(
    components: PredictedQuantumGraphComponents, target: Path, butler: Butler | None
) -> GraphFile:
    _require_quanta("the graph", len(components.quantum_datasets))
    graph_file = _graph_file(target, components)
    if butler is not None:
        _check_universe(graph_file, butler)
        if not any(quantum.datastore_records for quantum in components.quantum_datasets.values()):
            attach_records("the graph", components, butler)
    with into_run_dir(target):
        write_graph(components, target)
    return graph_file


def _local_path(uri: ResourcePath, target: Path) -> Path:
    """Return the path of a ``.qg`` file; a remote one is copied to ``target``."""
    if uri.isLocal:
        return Path(uri.ospath).absolute()
    with into_run_dir(target):
        fetch_graph(uri, target)
    return target


def read_old(
    uri: ResourcePath, quantum_ids: Collection[uuid.UUID] = (), graph_id: str | None = None
) -> PredictedQuantumGraphComponents:
    """Read and convert an old ``.qgraph`` file.

    Parameters
    ----------
    uri
        The file.
    quantum_ids
        Quanta to read; none for all.
    graph_id
        The identifier that the graph must have, if any.

    Raises
    ------
    qgexec.errors.GraphError
        The file is missing or damaged, has another identifier, or not these quanta.
    """
    name = uri.ospath if uri.isLocal else str(uri)
    with reaching(uri):
        if not uri.exists():
            raise GraphError(f"graph file {name} does not exist", hint="Check the path.")
    _check_regular(uri)
    try:
        with no_exit(), keeping_package_metadata():
            old = QuantumGraph.loadUri(
                uri,
                nodes=list(quantum_ids) or None,
                graphID=BuildId(graph_id) if graph_id is not None else None,
            )
    except Exception as error:  # pickled task classes: an old file may raise anything
        raise GraphError(
            f"{name} cannot be read as a quantum graph (.qgraph): {type(error).__name__}: {error}",
            hint="Where a module is missing, set its package up (PYTHONPATH).",
        ) from error
    _logger.info("converting %s from the old format", name)
    return _components_of(old)


def _components_of(
    graph: PredictedQuantumGraph | QuantumGraph | BuiltGraph,
) -> PredictedQuantumGraphComponents:
    if isinstance(graph, BuiltGraph):
        return graph.take()
    if not isinstance(graph, PredictedQuantumGraph):
        return PredictedQuantumGraphComponents.from_old_quantum_graph(graph)
    _require_quanta("the graph in memory", len(graph))
    components = graph_components(graph)
    if len(graph) != len(components.quantum_datasets) or components.dimension_data is None:
        raise GraphError(
            f"only {len(components.quantum_datasets)} of the {len(graph)} quanta of the graph in memory "
            "are loaded with their datasets",
            hint="Give the graph's file, or read it with read_execution_quanta().",
        )
    return components


def _graph_file(path: Path, components: PredictedQuantumGraphComponents) -> GraphFile:
    header = components.header
    return GraphFile(
        path=path,
        inputs=tuple(header.inputs),
        output=header.output or None,
        output_run=header.output_run,
        n_quanta=header.n_quanta,
        pipeline_graph=components.pipeline_graph,
    )


def _require_quanta(name: str, n_quanta: int) -> None:
    if n_quanta == 0:
        raise EmptyGraphError(
            f"{name} has no quanta: there is nothing to execute",
            hint="What was said when it was built tells why: inputs are missing, or all was done before.",
        )


def _check_universe(graph: GraphFile, butler: Butler) -> None:
    ours, theirs = graph.pipeline_graph.universe, butler.dimensions
    if (ours.namespace, ours.version) != (theirs.namespace, theirs.version):
        raise GraphError(
            f"{graph.path} was built for dimension universe {ours.namespace} version {ours.version}, "
            f"but the repository has {theirs.namespace} version {theirs.version}",
            hint="Build the graph from this repository.",
        )


@contextmanager
def open_graph(path: Path, *, imports: bool = True) -> Iterator[PredictedQuantumGraphReader]:
    """Open a file with upstream's reader.

    Raises
    ------
    qgexec.errors.GraphError
        A task class does not import, or upstream cannot read the pipeline.
    """
    _check_regular(ResourcePath(str(path), forceDirectory=False))
    mode = TaskImportMode.ASSUME_CONSISTENT_EDGES if imports else TaskImportMode.DO_NOT_IMPORT
    with ExitStack() as stack:
        try:
            with no_exit(), keeping_package_metadata():
                reader = stack.enter_context(PredictedQuantumGraph.open(str(path), import_mode=mode))
        except Exception as error:
            if imports:
                _check_imports(path)
            raise GraphError(
                f"{path} cannot be read: {type(error).__name__}: {error}",
                hint=_STORAGE_CLASS_HINT if isinstance(error, KeyError) else "",
            ) from error
        yield reader


def _check_regular(uri: ResourcePath) -> None:
    """Check a file that upstream is to open, which would wait for a FIFO."""
    try:
        check_local(uri)
    except UnfitFileError as error:
        raise GraphError(
            f"graph file {uri.ospath} cannot be read: {error.strerror}", hint="Copy it to a file first."
        ) from error


def _check_imports(path: Path) -> None:
    """Import the task classes of a graph one by one, to say which does not; upstream names no label."""
    with open_graph(path, imports=False) as reader:
        tasks = {label: node.task_class_name for label, node in reader.pipeline_graph.tasks.items()}
    for label, class_name in tasks.items():
        module_name, _, name = class_name.rpartition(".")
        try:
            with no_exit():
                getattr(importlib.import_module(module_name), name)
        except Exception as error:  # a module may raise anything when it is imported
            raise GraphError(
                f"the class {class_name} of task {label!r} does not import: {type(error).__name__}: {error}",
                hint="Set up its package (PYTHONPATH), in the version that the graph was built with.",
            ) from error


class GraphSource:
    """Reads the quanta of a ``.qg`` file one by one; opens it when first asked, and keeps no quantum.

    Parameters
    ----------
    path
        Local file.
    repository
        Root, configuration file or alias of the repository that defines storage classes of the graph;
        empty where there is none.
    """

    def __init__(self, path: Path, repository: str = "") -> None:
        self.path = path
        self._repository = repository

    def datasets(self, quantum_id: uuid.UUID) -> PredictedQuantumDatasetsModel:
        """Read what one quantum reads and writes, as upstream's model; about 0.1 ms.

        Raises
        ------
        qgexec.errors.UnknownQuantumError
            The graph has no such quantum.
        qgexec.errors.GraphError
            The file is missing or damaged.
        """
        with reading(self.path):
            return PredictedQuantumDatasetsModel.model_validate_json(self._file.quantum(quantum_id))

    def quantum(self, quantum_id: uuid.UUID) -> Quantum:
        """Read one quantum, data IDs expanded and datastore records attached; about 0.5 ms.

        Raises
        ------
        qgexec.errors.UnknownQuantumError
            The graph has no such quantum.
        qgexec.errors.GraphError
            The file is missing or damaged, or a task class does not import.
        """
        datasets = self.datasets(quantum_id)
        whole = self._components
        with reading(self.path):
            init = self._init_quanta[datasets.task_label]
        only = PredictedQuantumGraphComponents(
            header=whole.header,
            pipeline_graph=whole.pipeline_graph,
            dimension_data=whole.dimension_data,
            init_quanta=PredictedInitQuantaModel.model_construct(root=[init]),
            quantum_datasets={quantum_id: datasets},
        )
        with reading(self.path):
            return only.assemble().build_execution_quanta([quantum_id])[quantum_id]

    def task_node(self, task_label: str) -> TaskNode:
        """Return the node of this task in the pipeline graph.

        Raises
        ------
        LookupError
            There is no such task.
        """
        return self.pipeline_graph.tasks[task_label]

    @property
    def pipeline_graph(self) -> PipelineGraph:
        """The graph's pipeline, task classes imported."""
        return self._components.pipeline_graph

    @functools.cached_property
    def _file(self) -> QgFile:
        return QgFile(self.path)

    @functools.cached_property
    def _components(self) -> PredictedQuantumGraphComponents:
        if self._repository:
            learn_storage_classes(self._repository)
        with open_graph(self.path) as reader:
            with reading(self.path):
                reader.read_init_quanta()
                reader.read_dimension_data()
            return reader.components

    @functools.cached_property
    def _init_quanta(self) -> dict[str, PredictedQuantumDatasetsModel]:
        return {quantum.task_label: quantum for quantum in self._components.init_quanta.root}

    def close(self) -> None:
        """Close the file; it is opened again when asked for another quantum."""
        if (file := self.__dict__.pop("_file", None)) is not None:
            file.close()


def serial_labels(pipeline_graph: PipelineGraph) -> frozenset[str]:
    """Return the labels of tasks that must not run in parallel: whose ``canMultiprocess`` is false."""
    return frozenset(
        label for label, node in pipeline_graph.tasks.items() if not node.task_class.canMultiprocess
    )
