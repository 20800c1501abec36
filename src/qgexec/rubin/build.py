"""Owns how a graph is built of a pipeline by upstream's builder; knows nothing of what is done with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from astropy.table import Table
from lsst.daf.butler import Butler, ButlerUserError, MissingCollectionError
from lsst.pipe.base.all_dimensions_quantum_graph_builder import (
    AllDimensionsQuantumGraphBuilder,
    DatasetQueryConstraintVariant,
)
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraphComponents
from lsst.resources import ResourcePath
from lsst.utils import doImportType

from qgexec.books.rundir import folder_name
from qgexec.config.buildoptions import GraphOptions, MockFailure, PipelineOptions
from qgexec.errors import GraphError, UsageError
from qgexec.foreign import no_exit
from qgexec.regularfile import YAML_BYTES, read_regular
from qgexec.rubin.collections import Replacement, RunCollections, resolve_collections
from qgexec.rubin.compat import builder_arguments
from qgexec.rubin.graphwrite import save_under_new_name, write_graph
from qgexec.rubin.localfile import check_local
from qgexec.rubin.pipelines import BuiltPipeline
from qgexec.rubin.repository import open_butler

__all__ = ["build_graph", "make_graph", "save_graph"]

_logger = logging.getLogger(__name__)


def build_graph(
    repository: str | Butler,
    pipeline: str | PipelineOptions,
    *,
    inputs: Sequence[str] = (),
    output: str | None = None,
    output_run: str | None = None,
    options: GraphOptions | None = None,
    save_to: str | Path | None = None,
) -> str:
    """Build a graph and save it; the repository is only read.

    Parameters
    ----------
    repository
        Repository, or a butler on it.
    pipeline
        Pipeline file, or what a pipeline is to be made of.
    inputs, output, output_run, options
        See `make_graph`.
    save_to
        See `save_graph`.

    Returns
    -------
    path
        File written.

    Raises
    ------
    qgexec.errors.QgexecError
        See `make_graph` and `save_graph`.
    """
    made = BuiltPipeline(PipelineOptions(pipeline) if isinstance(pipeline, str) else pipeline)
    components = make_graph(
        repository, made, inputs=inputs, output=output, output_run=output_run, options=options
    )
    return save_graph(components, save_to)


def make_graph(
    repository: str | Butler,
    pipeline: BuiltPipeline,
    *,
    inputs: Sequence[str] = (),
    output: str | None = None,
    output_run: str | None = None,
    extend_run: bool = False,
    replace_run: bool = False,
    rebase: bool = False,
    options: GraphOptions | None = None,
) -> PredictedQuantumGraphComponents:
    """Build a graph; the repository is only read.

    Parameters
    ----------
    repository
        Repository, or a butler on it.
    pipeline
        The pipeline.
    inputs
        Input collections, in search order; may be left out where ``output``
        exists.
    output
        CHAINED collection, new or existing.
    output_run
        RUN collection; by default a new one named after ``output`` and the
        time, or with ``extend_run`` the newest one of ``output``.
    extend_run
        The RUN exists; quanta that are done there are left out.
    replace_run
        The newest RUN of ``output`` will be taken out of it: do not look there.
    rebase
        Where ``output`` was made from other inputs, these will be put into it: look there.
    options
        How to build.

    Returns
    -------
    components
        The graph, with at least one quantum.

    Raises
    ------
    qgexec.errors.UsageError
        An option is wrong, the data query for example.
    qgexec.errors.CollectionError
        See `qgexec.rubin.collections.resolve_collections`.
    qgexec.errors.GraphError
        There is nothing to do (the message has upstream's reasons), or the graph cannot be built.
    """
    options = options or GraphOptions()
    with open_butler(repository) as butler:
        collections = resolve_collections(
            butler,
            inputs=inputs,
            output=output,
            output_run=output_run,
            extend_run=extend_run,
            replacement=Replacement() if replace_run else None,
            rebase=rebase,
        )
        if not collections.search_path():
            named = f" (nothing is called {', '.join(inputs)})" if inputs else ""
            raise UsageError(f"there are no input collections{named}", hint="Name them with -i.")
        skip_existing = options.skip_existing or extend_run
        metadata = {
            "butler_argument": str(repository),
            "extend_run": extend_run,
            "skip_existing_in": _skipped_in(butler, options, collections, skip_existing=skip_existing),
            "skip_existing": skip_existing,
            "retained_dataset_types": options.retained_dataset_types,
            "data_query": options.data_query,
        }
        components, reasons = _build(butler, pipeline, collections, options, metadata)
    if not components.quantum_datasets:
        why = "\n".join(reasons) or _nothing_left(options)
        raise GraphError(f"the graph of {pipeline.name} has no quanta: there is nothing to execute", hint=why)
    return components


def save_graph(components: PredictedQuantumGraphComponents, path: str | Path | None = None) -> str:
    """Write a graph to a file.

    Parameters
    ----------
    components
        The graph.
    path
        ``.qg`` file, which is replaced where it exists; by default ``qgexec-runs/<output RUN>.qg`` in the
        current folder, with ``_2``, ``_3``, ... where that is taken.

    Returns
    -------
    path
        The file.

    Raises
    ------
    qgexec.errors.UsageError
        It cannot be written.
    qgexec.errors.RunDirError
        No file is named, and the RUN's name leads out of that folder.
    """
    file = Path(path or f"qgexec-runs/{folder_name(components.header.output_run)}.qg")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)  # lsst-pipe-base 30.0.0 does not make it
        if path is None:
            return str(save_under_new_name(components, file))
        write_graph(components, file)
    except OSError as error:
        raise UsageError(f"the graph cannot be saved as {file}: {error.strerror}") from error
    return str(file)


def _skipped_in(
    butler: Butler, options: GraphOptions, collections: RunCollections, *, skip_existing: bool
) -> list[str]:
    """Return where to look for what is done; if one did not exist, upstream would look in none of them."""
    found: list[str] = []
    for name in options.skip_existing_in:
        with suppress(MissingCollectionError):
            if matching := butler.collections.query(name):
                found += matching
                continue
        if name != collections.output:  # that may be made by this very run
            _logger.warning("--skip-existing-in: there is no collection %s; nothing is skipped for it.", name)
    own = [collections.output_run] if skip_existing else []
    return [*found, *own]


def _nothing_left(options: GraphOptions) -> str:
    """Return what may be why a graph has no quanta, where upstream has named no error."""
    if options.prune_unanchored_quanta:
        pair = ":".join(options.prune_unanchored_quanta)
        return f"--prune-unanchored-quanta {pair} may have taken all out, or it has all been done before."
    return "Everything asked for may have been done before."


def _build(
    butler: Butler,
    pipeline: BuiltPipeline,
    collections: RunCollections,
    options: GraphOptions,
    metadata: dict[str, Any],
) -> tuple[PredictedQuantumGraphComponents, list[str]]:
    """Return the graph, and what upstream said was wrong while it was built."""
    newer: dict[str, Any] = builder_arguments(
        {
            "retained_dataset_types": _read_patterns(options.retained_dataset_types),
            "prune_unanchored_quanta": options.prune_unanchored_quanta,
        }
    )
    if not metadata["skip_existing_in"]:
        # Upstream would refuse it, also where collections were named that are only not there yet.
        retained = newer.pop("retained_dataset_types", None)
        if retained and not options.skip_existing_in:
            raise UsageError(
                "--retained-dataset-types: no quanta are skipped, so that it would change nothing.",
                hint="Name with --skip-existing-in where quanta have been done, or leave it out.",
            )
    tables = [_read_table(file) for file in options.data_id_tables]
    tasks = _mocked(pipeline.graph, options) if options.mock else pipeline.graph
    with _listening("lsst.pipe.base") as reasons, _upstream_errors(options, pipeline.graph):
        builder = AllDimensionsQuantumGraphBuilder(
            tasks,
            butler,
            where=options.data_query,
            dataset_query_constraint=DatasetQueryConstraintVariant.fromExpression(
                options.dataset_query_constraint
            ),
            data_id_tables=tables,
            input_collections=collections.search_path(),
            output_run=collections.output_run,
            skip_existing_in=metadata["skip_existing_in"],
            clobber=options.clobber_outputs,
            **newer,
        )
        components = builder.finish(
            collections.output, metadata=metadata, attach_datastore_records=options.datastore_records
        )
    return components, reasons


def _mocked(tasks: PipelineGraph, options: GraphOptions) -> PipelineGraph:
    """Return a graph of mocks in place of tasks."""
    unknown = sorted({failure.label for failure in options.mock_failures} - set(tasks.tasks))
    if unknown:
        raise UsageError(
            f"--mock-failure: the pipeline has no task {', '.join(map(repr, unknown))}",
            hint=f"It has {', '.join(tasks.tasks)}.",
        )
    # Merely imported, this changes how storage classes are looked up: only for those who ask for mocks.
    from lsst.pipe.base.tests.mocks import ForcedFailure, mock_pipeline_graph  # noqa: PLC0415

    return mock_pipeline_graph(
        tasks,
        unmocked_dataset_types=options.unmocked_dataset_types,
        force_failures={
            failure.label: ForcedFailure(failure.where, _exception(failure), failure.memory)
            for failure in options.mock_failures
        },
    )


def _exception(failure: MockFailure) -> type[BaseException] | None:
    if not failure.exception:
        return None
    try:
        with no_exit():
            found = doImportType(failure.exception)
    except Exception as error:  # a module may raise what it likes
        raise UsageError(
            f"--mock-failure {failure.label}: {failure.exception!r} cannot be imported: {error}",
            hint="Give its full name, such as lsst.pipe.base.RepeatableQuantumError; nothing for ValueError.",
        ) from error
    if not issubclass(found, BaseException):
        raise UsageError(f"--mock-failure {failure.label}: {failure.exception} is no exception.")
    return found


def _read_table(file: str) -> Table:
    try:
        check_local(file)
        with ResourcePath(file, forceDirectory=False).as_local() as local:
            table = Table.read(local.ospath)
    except Exception as error:  # astropy's readers raise what they like
        raise UsageError(
            f"--data-id-table {file} cannot be read: {error}",
            hint="Any table that astropy.table.Table.read reads will do, with dimensions as its columns.",
        ) from error
    table.meta["filename"] = file  # upstream's messages name it
    return table


def _read_patterns(file: str | None) -> list[str] | None:
    if file is None:
        return None
    try:
        patterns = yaml.safe_load(read_regular(Path(file), YAML_BYTES))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--retained-dataset-types {file} cannot be read: {why}") from error
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) for p in patterns):
        raise UsageError(
            f"--retained-dataset-types {file} holds no list of dataset types.",
            hint="Write a YAML list of names or glob patterns; ['*'] for all.",
        )
    return patterns


@contextmanager
def _upstream_errors(options: GraphOptions, pipeline: PipelineGraph) -> Iterator[None]:
    try:
        with no_exit():
            yield
    except ButlerUserError as error:
        named = f"with the data query {options.data_query!r} " if options.data_query else ""
        raise UsageError(f"the graph cannot be built {named}from this repository: {error}") from error
    except Exception as error:  # tasks' own hooks run in the builder
        raise GraphError(
            f"the graph cannot be built: {type(error).__name__}: {error}",
            hint=_hint_to_mocks(options, pipeline),
        ) from error


def _hint_to_mocks(options: GraphOptions, pipeline: PipelineGraph) -> str:
    """Say how mocks read what is there, where they look for what only mocks would have written."""
    names = {name for name, _ in pipeline.iter_overall_inputs()} - set(options.unmocked_dataset_types)
    if not (options.mock and names):
        return ""
    return (
        "Mocks read what mocks wrote. So that they read what the repository has: "
        f"--unmocked-dataset-types {','.join(sorted({*names, *options.unmocked_dataset_types}))}"
    )


@contextmanager
def _listening(logger_name: str) -> Iterator[list[str]]:
    """Collect the error messages that upstream logs, for it neither returns nor raises them.

    Its warnings, of labels and dataset types that there are not for example, are printed
    where nothing is set up to log them: Python does so only where there is no handler at all.
    """
    messages: list[str] = []
    logger = logging.getLogger(logger_name)
    last_resort = None if logger.hasHandlers() else logging.lastResort

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                messages.append(record.getMessage())
            elif last_resort:
                last_resort.handle(record)

    collector = Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)
