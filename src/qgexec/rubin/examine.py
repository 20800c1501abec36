"""Finds out what became of executed graphs from the repository alone, whoever executed them.

The registry is asked once for each dataset type of each graph; files are read where metadata or logs
are wanted, and from the datastore directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from lsst.daf.butler import Butler, ButlerUserError, MissingCollectionError, MissingDatasetTypeError

from qgexec.errors import RepositoryError, UsageError
from qgexec.quantum import DataIdValue
from qgexec.rubin.existing import existing_data_ids
from qgexec.rubin.graphoutputs import GraphOutputs, read_graph_outputs
from qgexec.rubin.leftbehind import LeftBehind
from qgexec.rubin.repository import open_butler
from qgexec.rubin.verdicts import RunFound, RunWord, Verdicts

__all__ = ["Examination", "ExamineOptions", "ReadCaveats", "examine"]


class ReadCaveats(Enum):
    """Of which quanta that succeeded the metadata are read."""

    EXHAUSTIVE = "exhaustive"
    """Of all: then times and memory are known, too."""

    LAZY = "lazy"
    """Of those that did not write all that was predicted."""

    NONE = "none"
    """Of none."""


@dataclass(frozen=True, slots=True)
class ExamineOptions:
    """How to look; names and meanings are those of ``pipetask report``."""

    collections: tuple[str, ...] = ()
    """Where datasets must be found to be visible, in search order.

    By default the graphs' RUNs, newest first.
    """

    where: str = ""
    """Constrains that search."""

    logs: bool = True
    """Read the logs of quanta that failed."""

    curse_failed_logs: bool = False
    """Logs of quanta that did not succeed are cursed, if they are visible."""

    read_caveats: ReadCaveats = ReadCaveats.LAZY
    use_qbb: bool = True
    """Ask the datastore where files must be, rather than the registry where they are."""

    n_threads: int = 1
    """How many files are read at the same time."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What became of executed graphs."""

    repository: str
    graphs: tuple[GraphOutputs, ...]
    """The oldest first."""
    options: ExamineOptions
    verdicts: Verdicts


def examine(repository: str, graphs: Sequence[str], options: ExamineOptions | None = None) -> Examination:
    """Find out what became of graphs.

    Parameters
    ----------
    repository
        Root, configuration file or alias.
    graphs
        Files or addresses, ``.qg`` or ``.qgraph``, in any order: they are taken in that in which they
        were built.
    options
        How to look.

    Returns
    -------
    examination
        About 0.3 ms a quantum; besides 1 ms for each metadata dataset, and a few for each log, that is read.

    Raises
    ------
    qgexec.errors.UsageError
        Options do not go together.
    qgexec.errors.GraphError
        A graph cannot be read.
    qgexec.errors.RepositoryError
        There is no such repository or collection, or files that must be there are not.
    """
    options = options or ExamineOptions()
    if options.curse_failed_logs and not options.collections:
        raise UsageError(
            "--curse-failed-logs says nothing about single RUNs, in which all logs are visible.",
            hint="Name the collection that is to be published with --collections.",
        )
    _require_different(graphs)
    verdicts = Verdicts()
    with open_butler(repository) as butler:
        found = sorted(map(read_graph_outputs, graphs), key=lambda graph: graph.built_at)
        for graph in found:
            runs = verdicts.add(graph, _existing(butler, graph))
            _read(butler, repository, graph, runs, verdicts, options)
        _see(butler, found, verdicts, options)
    log_types = {name for graph in found for name in graph.log_types.values()}
    verdicts.conclude(log_types, curse_failed_logs=options.curse_failed_logs)
    return Examination(repository, tuple(found), options, verdicts)


def _require_different(graphs: Sequence[str]) -> None:
    for number, graph in enumerate(graphs):
        if graph in graphs[:number]:
            raise UsageError(f"{graph} is named twice.", hint="Name each graph once.")


def _existing(butler: Butler, graph: GraphOutputs) -> Mapping[str, AbstractSet[tuple[DataIdValue, ...]]]:
    names = {output.dataset_type for outputs in graph.outputs for output in outputs}
    return existing_data_ids(butler, names, graph.output_run)


def _read(
    butler: Butler,
    repository: str,
    graph: GraphOutputs,
    runs: Sequence[RunFound],
    verdicts: Verdicts,
    options: ExamineOptions,
) -> None:
    """Read metadata and logs as far as it is wanted."""
    succeeded, failed = (
        [run for run in runs if run.word is word] for word in (RunWord.SUCCEEDED, RunWord.FAILED)
    )
    match options.read_caveats:
        case ReadCaveats.NONE:
            succeeded = []
        case ReadCaveats.LAZY:
            succeeded = [run for run in succeeded if not verdicts.all_exist(run)]
    if not options.logs:
        failed = []
    if not (succeeded or failed):
        return
    with LeftBehind(butler, repository, graph, use_qbb=options.use_qbb, n_threads=options.n_threads) as left:
        left.read_metadata(succeeded)
        left.read_logs(failed)


def _see(butler: Butler, graphs: Sequence[GraphOutputs], verdicts: Verdicts, options: ExamineOptions) -> None:
    """Find out which datasets are visible."""
    newest_first = [graph.output_run for graph in reversed(graphs)]
    if not (options.collections or options.where):
        verdicts.see_newest(newest_first)
        return
    collections = list(options.collections) or newest_first
    _require_collections(butler, collections)
    for name in sorted({name for name, _ in verdicts.datasets}):
        try:
            refs = butler.query_datasets(name, collections, where=options.where, limit=None, explain=False)
        except MissingDatasetTypeError:
            continue
        except ButlerUserError as error:
            raise UsageError(
                f"--where {options.where!r} cannot be understood: {error}",
                hint='Give an expression as for pipetask run -d, for example "visit IN (1, 2)".',
            ) from error
        for ref in refs:
            verdicts.see(name, ref.dataId.required_values, ref.run)


def _require_collections(butler: Butler, collections: Sequence[str]) -> None:
    if patterns := [name for name in collections if set(name) & set("*?[")]:
        raise UsageError(
            f"--collections {', '.join(patterns)}: a search needs names in their order, not a pattern.",
            hint="Name each collection, or a CHAINED one that has them all.",
        )
    try:
        butler.collections.query_info(collections)
    except MissingCollectionError as error:
        raise RepositoryError(
            f"the repository has not all of the collections {', '.join(collections)}: {error}",
            hint="Check what is named with --collections, or that it is the repository of these graphs.",
        ) from error
