"""From a pipeline file to a ``.qg`` file, by upstream's builder, with ``pipetask qgraph``'s meanings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lsst.daf.butler import Butler, ButlerUserError
from lsst.pipe.base import Pipeline
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraphComponents

from qgexec.errors import GraphError, UsageError
from qgexec.rubin.collections import RunCollections, resolve_collections
from qgexec.rubin.repository import open_butler

__all__ = ["build_graph"]

_Change = tuple[str, Callable[[Pipeline], None]]
"""What the user asked for, and how it is done to a pipeline."""


def build_graph(  # noqa: PLR0913 -- they are the options of pipetask qgraph
    repository: str | Butler,
    pipeline: str,
    *,
    inputs: Sequence[str] = (),
    output: str | None = None,
    output_run: str | None = None,
    extend_run: bool = False,
    data_query: str = "",
    config_overrides: Sequence[tuple[str, str, str]] = (),
    config_files: Sequence[tuple[str, str]] = (),
    skip_existing: bool = False,
    clobber_outputs: bool = False,
    save_to: str | Path | None = None,
) -> str:
    """Build a graph with datastore records and save it; the repository is only read.

    Parameters
    ----------
    repository
        Repository, or a butler on it.
    pipeline
        Pipeline file; ``#label,label`` after the name selects tasks.
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
    data_query
        Butler expression that selects data IDs.
    config_overrides
        Task label, configuration key and value.
    config_files
        Task label and file of configuration overrides.
    skip_existing
        Leave out quanta that are done in the output RUN.
    clobber_outputs
        Quanta whose outputs exist in part are built nevertheless.
    save_to
        ``.qg`` file to write; by default
        ``qgexec-runs/<output_run>.qg`` in the current folder.

    Returns
    -------
    path
        File written.

    Raises
    ------
    qgexec.errors.UsageError
        The pipeline, an override or the data query is wrong.
    qgexec.errors.CollectionError
        See `qgexec.rubin.collections.resolve_collections`.
    qgexec.errors.GraphError
        There is nothing to do (the message has upstream's reasons), or the graph cannot be built.
    """
    changes = [_override(*override) for override in config_overrides] + [
        _file(*file) for file in config_files
    ]
    tasks = _make_pipeline(pipeline, changes)
    skip_existing = skip_existing or extend_run
    with open_butler(repository) as butler:
        collections = resolve_collections(
            butler, inputs=inputs, output=output, output_run=output_run, extend_run=extend_run
        )
        if not collections.search_path():
            raise UsageError("there are no input collections", hint="Name them with -i.")
        run = collections.output_run
        metadata = {
            "butler_argument": str(repository),
            "extend_run": extend_run,
            "skip_existing_in": [run] if skip_existing else [],
            "skip_existing": skip_existing,
            "data_query": data_query,
        }
        with _upstream_errors(data_query):
            components, reasons = _build(
                butler,
                tasks,
                collections,
                metadata,
                where=data_query,
                skip_existing_in=[run] if skip_existing else [],
                clobber=clobber_outputs,
            )
    if not components.quantum_datasets:
        why = "\n".join(reasons) or "Everything asked for may have been done before."
        raise GraphError(f"the graph of {pipeline} has no quanta: there is nothing to execute", hint=why)
    path = Path(save_to) if save_to is not None else Path("qgexec-runs", f"{run}.qg")
    try:
        components.write(str(path.absolute()))
    except OSError as error:
        raise UsageError(f"the graph cannot be saved as {path}: {error.strerror}") from error
    return str(path)


def _build(
    butler: Butler,
    tasks: PipelineGraph,
    collections: RunCollections,
    metadata: dict[str, object],
    *,
    where: str,
    skip_existing_in: list[str],
    clobber: bool,
) -> tuple[PredictedQuantumGraphComponents, list[str]]:
    """Return the graph, and what upstream said was wrong while it was built."""
    with _listening("lsst.pipe.base") as reasons:
        builder = AllDimensionsQuantumGraphBuilder(
            tasks,
            butler,
            where=where,
            input_collections=collections.search_path(),
            output_run=collections.output_run,
            skip_existing_in=skip_existing_in,
            clobber=clobber,
        )
        components = builder.finish(collections.output, metadata=metadata, attach_datastore_records=True)
    return components, reasons


@contextmanager
def _upstream_errors(data_query: str) -> Iterator[None]:
    try:
        yield
    except ButlerUserError as error:
        named = f"with the data query {data_query!r} " if data_query else ""
        raise UsageError(f"the graph cannot be built {named}from this repository: {error}") from error
    except Exception as error:  # tasks' own hooks run in the builder
        raise GraphError(f"the graph cannot be built: {type(error).__name__}: {error}") from error


@contextmanager
def _listening(logger_name: str) -> Iterator[list[str]]:
    """Collect the error messages that upstream logs, for it neither returns nor raises them."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector = Collector(logging.ERROR)
    logger = logging.getLogger(logger_name)
    logger.addHandler(collector)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)


def _override(label: str, key: str, value: str) -> _Change:
    return f"-c {label}:{key}={value}", lambda pipeline: pipeline.addConfigOverride(label, key, value)


def _file(label: str, file: str) -> _Change:
    return f"-C {label}:{file}", lambda pipeline: pipeline.addConfigFile(label, file)


def _make_pipeline(file: str, changes: Sequence[_Change]) -> PipelineGraph:
    """Read a pipeline and apply the changes; where that fails, find out which of them is wrong."""
    pipeline = _read_pipeline(file)
    try:
        for _, change in changes:
            change(pipeline)
        return pipeline.to_graph()
    except Exception as error:  # configurations and task classes raise what they like
        culprit = next((text for n, (text, _) in enumerate(changes, 1) if _fails(file, changes[:n])), "")
        if _fails(file, []) or not culprit:
            raise UsageError(
                f"the pipeline {file} cannot be used: {_brief(error)}",
                hint="Where a task does not import, set up its package (PYTHONPATH).",
            ) from error
        raise UsageError(f"the option {culprit} cannot be applied: {_brief(error)}") from error


def _fails(file: str, changes: Sequence[_Change]) -> bool:
    pipeline = _read_pipeline(file)
    try:
        for _, change in changes:
            change(pipeline)
        pipeline.to_graph()
    except Exception:  # noqa: BLE001 -- any failure is the answer
        return True
    return False


def _read_pipeline(file: str) -> Pipeline:
    try:
        return Pipeline.from_uri(file)
    except FileNotFoundError:
        raise UsageError(
            f"the pipeline file {file} does not exist", hint="Check the path after -p."
        ) from None
    except Exception as error:  # whatever the file's content makes upstream raise
        raise UsageError(f"{file} is not a valid pipeline file: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """Return type and message of an error; a configuration's goes on with its whole history, which is cut."""
    text = str(error).split("\nFor more information", maxsplit=1)[0]
    return f"{type(error).__name__}: {text}"
