"""The registry before a run: collections, dataset types, init-outputs, configs and package versions.

Everything is checked before anything is written, so that an error leaves the
repository as it was. What is written is what ``pipetask run`` writes. Whoever is killed as it writes
leaves some of it: to prepare the same once more, told so, brings it to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from lsst.daf.butler import (
    Butler,
    ButlerUserError,
    DatasetType,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.pipe.base.pipeline_graph import PipelineGraph
from sqlalchemy.exc import SQLAlchemyError

from qgexec.errors import CollectionError, DatasetTypeError, RepositoryError, RunDirError
from qgexec.rubin.collections import Replacement, RunCollections, prune_replaced, resolve_collections
from qgexec.rubin.graphfile import GraphFile
from qgexec.rubin.initoutputs import InitOutputs, plan_init_outputs
from qgexec.rubin.repository import open_butler, require_writeable
from qgexec.storedvalues import UNFIT, check_types

__all__ = [
    "Begun",
    "Preparation",
    "Prepared",
    "missing_dataset_types",
    "prepare_run",
    "run_collections",
]


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is to be prepared, and in which collections; those not given are the graph's own."""

    inputs: tuple[str, ...] = ()
    """Input collections, in search order."""

    output: str | None = None
    """CHAINED collection that will show inputs and outputs."""

    output_run: str | None = None
    """RUN collection; must be the one that the graph was built for."""

    extend_run: bool | None = False
    """The RUN exists and is written to again; `None` for whichever it is."""

    register_dataset_types: bool = False
    """Register dataset types that are not registered; otherwise they must be."""

    init_writes: bool = True
    """Write init-outputs, configs and package versions, or compare them where they exist."""

    versions: bool = True
    """Include package versions in that."""

    chain: bool = True
    """Put the RUN into the CHAINED collection; otherwise that is left alone."""

    rebase: bool = False
    """Where the CHAINED collection was made from other inputs, put these into it."""

    replace_run: bool = False
    """Take the newest RUN out of the CHAINED collection."""

    prune_replaced: str | None = None
    """What becomes of that RUN: ``purge``, ``unstore``, or nothing."""

    replaced: str | None = None
    """Which RUN that is, once it is known: whoever brings this to its end must not take the next one."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self) | {"inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` was called for.

        Raises
        ------
        qgexec.errors.RunDirError
            It is something else.
        """
        try:
            preparation = cls(**{**values, "inputs": tuple(values["inputs"])})
            check_types(preparation)
        except UNFIT as error:
            raise RunDirError(
                f"what the run's run.json says is to be done to the registry is damaged: {error}",
                hint="Bring run.json back from a copy.",
            ) from error
        return preparation


@dataclass(frozen=True, slots=True)
class Begun:
    """An earlier preparation for the same run, of the same graph, that was cut off somewhere."""

    fresh: bool
    """The RUN did not exist before it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A registry in which a run may begin."""

    output_run: str
    """RUN collection."""

    output: str | None
    """CHAINED collection, where there is one."""

    inputs: tuple[str, ...]
    """Input collections, in search order, CHAINED ones replaced by their members."""

    fresh: bool
    """The RUN did not exist before: it can hold no outputs of earlier attempts."""

    replaced: str | None = None
    """RUN whose place it takes in the CHAINED collection."""


def prepare_run(
    repository: str | Butler,
    graph: GraphFile,
    preparation: Preparation | None = None,
    *,
    begun: Begun | None = None,
    announce: Callable[[Prepared], object] = lambda _prepared: None,
) -> Prepared:
    """Make a repository ready for a graph's outputs, or say why it cannot be.

    Parameters
    ----------
    repository
        Repository, or a butler on it.
    graph
        The graph.
    preparation
        What to do; by default everything but registering dataset types, in the graph's own collections.
    begun
        What is to be brought to its end, if anything: some of it is done already.
    announce
        Called when all is known to be right, before anything is written.

    Returns
    -------
    prepared
        The collections as they are now.

    Raises
    ------
    qgexec.errors.RepositoryError
        The repository is missing, read-only, or does not fit; `CollectionError`, `DatasetTypeError`
        and `InitOutputsError` say more. Nothing was changed.
    qgexec.errors.GraphError
        The graph file is damaged.
    """
    asked = preparation or Preparation()
    with open_butler(repository, writeable=True) as butler:
        with butler.registry.caching_context():
            collections = run_collections(butler, graph, asked, begun)
            missing = missing_dataset_types(butler, graph.pipeline_graph, asked)
            init_outputs = (
                plan_init_outputs(butler, graph, run_exists=collections.run_exists, versions=asked.versions)
                if asked.init_writes
                else None
            )
        require_writeable(butler)
        prepared = Prepared(
            collections.output_run,
            collections.output,
            collections.inputs,
            fresh=not collections.run_exists if begun is None else begun.fresh,
            replaced=collections.replaced,
        )
        announce(prepared)
        _write(butler, collections, missing, init_outputs)
        if collections.replaced is not None:
            # Last of all: nothing is taken away before everything that may fail has been done.
            _prune(butler, collections.replaced, asked.prune_replaced, graph.pipeline_graph)
    return prepared


def run_collections(
    butler: Butler, graph: GraphFile, asked: Preparation, begun: Begun | None = None
) -> RunCollections:
    """Return the collections of a run, checked; nothing is written.

    Raises
    ------
    qgexec.errors.CollectionError
        See `qgexec.rubin.collections.resolve_collections`; or the graph was built for another RUN.
    """
    if asked.output_run and asked.output_run != graph.output_run:
        raise CollectionError(
            f"the graph was built for the output RUN {graph.output_run!r}, not {asked.output_run!r}",
            hint="Leave --output-run out, or change the graph with 'qgexec update-graph-run'.",
        )
    is_ours = begun is not None and begun.fresh and _holds_only_init_outputs(butler, graph)
    return resolve_collections(
        butler,
        inputs=asked.inputs or graph.inputs,
        output=(asked.output or graph.output) if asked.chain else None,
        output_run=graph.output_run,
        extend_run=None if is_ours else asked.extend_run,
        inputs_given=bool(asked.inputs),
        begun_fresh=None if begun is None else begun.fresh,
        replacement=Replacement(asked.prune_replaced, asked.replaced) if asked.replace_run else None,
        rebase=asked.rebase,
    )


def _prune(butler: Butler, replaced: str, prune: str | None, pipeline: PipelineGraph) -> None:
    try:
        prune_replaced(butler, replaced, prune, pipeline)
    except (SQLAlchemyError, OSError, ButlerUserError) as error:
        raise RepositoryError(
            f"the RUN {replaced!r}, which was replaced, cannot be removed: {type(error).__name__}: {error}",
            hint="It is in the output collection no more; remove it with 'butler remove-runs'.",
        ) from error


def _holds_only_init_outputs(butler: Butler, graph: GraphFile) -> bool:
    """Tell whether nothing was run into the RUN, if it exists: else it is not that of a start cut off."""
    try:
        info = butler.collections.get_info(graph.output_run, include_summary=True)
    except MissingCollectionError:
        return True
    pipeline = graph.pipeline_graph
    init = {
        edge.parent_dataset_type_name
        for task in pipeline.tasks.values()
        for edge in task.init.iter_all_outputs()
    }
    init.add(pipeline.packages_dataset_type.name)
    return init.issuperset(info.dataset_types or ())


def missing_dataset_types(butler: Butler, pipeline: PipelineGraph, asked: Preparation) -> list[DatasetType]:
    """Return the dataset types to register; all others are registered as the graph has them.

    Raises
    ------
    qgexec.errors.DatasetTypeError
        They are registered otherwise; or they are missing, and are not to be registered.
    """
    wanted = [node.dataset_type for node in pipeline.dataset_types.values()]
    if asked.versions:
        wanted.append(pipeline.packages_dataset_type)
    missing: list[DatasetType] = []
    clashes: list[str] = []
    for dataset_type in wanted:
        try:
            registered = butler.registry.getDatasetType(dataset_type.name)
        except MissingDatasetTypeError:
            missing.append(dataset_type)
        else:
            # Upstream registers no other definition, but puts what can be converted to the registered one.
            fits = not asked.register_dataset_types and registered.is_compatible_with(dataset_type)
            if registered != dataset_type and not fits:
                clashes.append(f"{dataset_type} in the graph, {registered} in the repository")
    if clashes:
        raise DatasetTypeError(
            f"dataset types differ between graph and repository: {'; '.join(clashes)}",
            hint="Build the graph again: it then takes the repository's definitions where they fit.",
        )
    if asked.register_dataset_types:
        return missing
    needed = [dataset_type.name for dataset_type in missing if not _is_optional(pipeline, dataset_type.name)]
    if needed:
        raise DatasetTypeError(
            f"dataset types are not registered in the repository: {', '.join(sorted(needed))}",
            hint="Give --register-dataset-types to register them.",
        )
    return []


def _is_optional(pipeline: PipelineGraph, name: str) -> bool:
    """Tell whether a dataset type is only read, and only by tasks that can do without it."""
    if name not in pipeline.dataset_types or pipeline.producer_of(name) is not None:
        return False
    return all(
        pipeline.tasks[edge.task_label].is_optional(edge.connection_name)
        for edge in pipeline.consuming_edges_of(name)
    )


def _write(
    butler: Butler,
    collections: RunCollections,
    dataset_types: list[DatasetType],
    init_outputs: InitOutputs | None,
) -> None:
    try:
        # None of these may be in a transaction. A registry that cannot be written refuses the first.
        collections.define(butler)
        for dataset_type in dataset_types:
            butler.registry.registerDatasetType(dataset_type)
        if init_outputs is not None:
            init_outputs.write(butler)
    except (SQLAlchemyError, OSError, ButlerUserError, ConflictingDefinitionError) as error:
        raise RepositoryError(
            f"the repository cannot be written: {type(error).__name__}: {error}",
            hint="Check permissions, quota and free space, then try again (with --extend-run, "
            f"where the output RUN {collections.output_run!r} was made already).",
        ) from error
